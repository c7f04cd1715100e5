"""Everything that can be set about a training, in one place: names, types, defaults, bounds, and what each is for."""
from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.train.schedule import SCHEDULES

MIXING = ("temperature", "cap", "one_head")  # what has a meaning for several datasets only


def _said(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults are for small sets on a small machine; each field is a setting of `thrifty tune` too."""

    task: str | dict[str, Any] | None = _said(None, "what the data is for; inferred from its columns unless told. Of several "
                                                    "datasets: name=task pairs")
    columns: dict[str, Any] | None = _said(None, "role=column pairs where names leave a choice: text=review,label=stars; of one "
                                                 "of several datasets name.text=review")
    limit: int | None = _said(None, "train on at most this many rows, drawn with the split seed")
    allow_leak: bool = _said(False, "go on although equal rows lie in different splits; the report says so")
    skip_bad: bool = _said(False, "leave out rows that cannot be used; the report says so")
    split_seed: int = _said(0, "for carving splits where the data has none; stays the same over seeds")
    max_length: int | None = _said(None, "tokens after which a text is cut (default: 256, or what the model has positions for)")
    max_new_tokens: int | None = _said(None, "tokens that generation may write")
    format: str | dict[str, Any] | None = _said(None, "answer in words, rows written as this says: t5:mrpc, flan:rte, 'Is this "
                                                      "good? {review}'. Of several datasets: name=format pairs")
    words: dict[str, Any] | None = _said(None, "label=word pairs that spell classes in a format otherwise than it does; of one of "
                                               "several datasets name.label=word")
    answer: Literal["auto", "written", "ranked", "ranked-mean"] = _said(
        "auto", "with a format, how answers are found: written, or ranked by likelihood (its sum, or mean per token)")
    metric: str | dict[str, Any] | None = _said(None, "validation metric that decides when to stop and what to keep. Of several "
                                                      "datasets: name=metric pairs; the mean of them decides")
    temperature: float | None | Literal["equal", "annealed"] = _said(
        None, "of several datasets: how often a batch comes from each, in proportion to rows^(1/temperature) (default: 1, by "
              "size); equal; or annealed, from by size towards equal")
    cap: int | None = _said(None, "of several datasets: count at most this many rows of each")
    one_head: bool | None = _said(None, "of several datasets with the same labels, such as languages: one head for all")

    epochs: float | None = _said(None, "passes over the training rows (default: as many as make 300 steps, 3 to 12)")
    batch: int = _said(32, "rows per process that go through the model at once")
    accumulate: int = _said(1, "batches that are summed up before each step")
    rate: float | None = _said(None, "peak learning rate (default: by method, see thrifty.train.rates)")
    decay: float = _said(0.0, "weight decay of tensors with two or more dimensions")
    warmup: float = _said(0.06, "share of the steps over which the rate rises from zero")
    schedule: Literal["linear", "cosine", "constant"] = _said("linear", "how the rate falls after the warm-up")
    clip: float = _said(1.0, "largest norm of the gradient; longer ones are scaled down")
    evaluations: float = _said(1.0, "passes over the validation rows per epoch")
    patience: int = _said(5, "stop after this many evaluations without a better one; 0 never stops early")
    start: str | None = _said(None, "folder of a saved adapter of the same method whose values training starts from")
    seeds: int = _said(1, "trainings from different seeds; the report gives mean, spread and interval")
    seed: int = _said(0, "of the new weights, the order of the data and dropout; the first of several")

    precision: Literal["auto", "float32", "bfloat16"] = _said("auto", "auto computes in bfloat16 where the processor has it")
    checkpointing: bool = _said(False, "compute activations twice instead of keeping them")
    device: str = _said("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one")
    checkpoint_every: int = _said(200, "steps between checkpoints; there is one after each evaluation too")
    baselines: bool = _said(True, "measure the majority class and a linear head on frozen features too")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Settings).items():
            object.__setattr__(self, name, _fit(name, getattr(self, name), kind))
        for name in ("batch", "accumulate", "seeds", "checkpoint_every"):
            _need(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.temperature == float("inf"):  # which JSON cannot write down
            object.__setattr__(self, "temperature", "equal")
        heat = self.temperature
        _need(heat is None or isinstance(heat, str) or heat >= 1, "temperature", heat, "at least 1, equal or annealed")
        for name in ("limit", "max_new_tokens", "cap"):
            _need(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("epochs", "rate", "clip", "evaluations"):
            _need(getattr(self, name) is None or 0 < getattr(self, name) < float("inf"), name, getattr(self, name), "positive")
        for name in ("decay", "patience", "seed", "split_seed"):
            _need(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _need(0 <= self.warmup < 1, "warmup", self.warmup, "in [0, 1)")

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Settings:
        """The settings with these values.

        Raises:
            NoSuchSetting: an unknown name, with the nearest; a value of the wrong type or out of bounds.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise NoSuchSetting(f"training has no setting {name!r}." + nearest(name, known, 40))
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it. What only several datasets have is left out where it is not set."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in MIXING}


def kinds() -> dict[str, Any]:
    """Setting -> its type."""
    return get_type_hints(Settings)


def parts(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: those of a union, or the one."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fit(name: str, value: Any, kind: Any) -> Any:
    """``value``, if it is of the type; whole numbers may stand for others."""
    for one in parts(kind):
        plain = get_origin(one) or one
        if plain is Literal:
            if value not in get_args(one):
                raise NoSuchSetting(f"{name} is {value!r}." + nearest(str(value), get_args(one)))
            return value
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool):
            return value
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "pairs", type(None): "none"}
    wanted = " or ".join(words[get_origin(one) or one] for one in parts(kind))
    raise NoSuchSetting(f"{name} must be {wanted}, not {value!r}")


def _need(holds: bool, name: str, value: Any, wanted: str) -> None:
    if not holds:
        raise NoSuchSetting(f"{name} must be {wanted}, not {value!r}")


assert set(SCHEDULES) == set(get_args(kinds()["schedule"]))
