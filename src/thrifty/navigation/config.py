"""The shape of a navigator."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from thrifty.core.errors import NoSuchSetting, nearest

ACTIONS = ("alone", "text", "history", "both")  # what an option is multiplied by before it is weighed


@dataclass(frozen=True)
class AgentConfig:
    """The shape of an agent; the defaults are HAMT's for R2R.

    ``features`` is the width of what is seen, ``positions`` and ``steps`` how long instructions and walks may be.
    ``fixed_language`` and ``fixed_history`` let no gradient into those encoders (R2R, RxR). Without ``language_attends`` language
    is not changed by what is seen (REVERIE, CVDN, RxR), and options are weighed ``alone``; else ``action`` says by what they are
    multiplied before.
    """

    vocabulary: int = 30522
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    language_layers: int = 9
    panorama_layers: int = 2
    cross_layers: int = 4
    features: int = 768
    angles: int = 4
    positions: int = 512
    steps: int = 100
    dropout: float = 0.1
    feature_dropout: float = 0.4
    fixed_language: bool = True
    fixed_history: bool = True
    language_attends: bool = True
    action: str = "text"

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise NoSuchSetting(f"action={self.action!r} is unknown." + nearest(self.action, ACTIONS))
        if not self.language_attends and self.action != "alone":
            raise NoSuchSetting(f"action={self.action!r}: where language_attends is false options are weighed by themselves, "
                                "action='alone'")
        if self.width % self.heads:
            raise NoSuchSetting(f"width={self.width} is no multiple of heads={self.heads}")

    @classmethod
    def make(cls, values: dict[str, Any]) -> AgentConfig:
        """The configuration with these values.

        Raises:
            NoSuchSetting: one that does not exist, with the nearest, or that has no meaning.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise NoSuchSetting(f"an agent has no setting {name!r}." + nearest(name, known, 20))
        return cls(**values)

    @property
    def heard(self) -> list[bool]:
        """For each cross-modal layer, whether anything reads the language that it gives out."""
        last = self.language_attends and self.action in ("text", "both")
        return [True] * (self.cross_layers - 1) + [last] if self.cross_layers else []
