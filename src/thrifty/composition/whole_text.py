"""A split counts tokens from the first one on, so it must see the whole text."""
from __future__ import annotations

from typing import Any

from ..core import Edit, register
from ..core.errors import Unfit


@register("whole-text")
class WholeText(Edit):
    """At the model: changes nothing, and refuses to continue a text from a cache, where every new token would be the first."""

    port = "call"

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, as they are.

        Raises:
            Unfit: there is a cache with tokens in it.
        """
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            raise Unfit("Split counts tokens from the beginning of the text, which a cache does not show: generate with "
                        "use_cache=False")
        return args, kwargs
