"""What goes wrong, by name. Every error says what was asked, what exists, and what to do."""
from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ThriftyError(Exception):
    """Any mistake that a user can make or a file can hold. Catch this to catch all of them."""


class NoSuchSite(ThriftyError, LookupError):
    """A pattern, or one term of it, matches no site or parameter of the model."""


class NoSuchSetting(ThriftyError, ValueError):
    """A method, option or value that does not exist."""


class HalfAdapted(ThriftyError, ValueError):
    """A tied weight, shared module, fused projection or expert tensor of which only a part would be adapted."""


class Unfit(ThriftyError, TypeError):
    """A method that has no meaning at a place: no SDPA call to edit, no width to read, no bias to train."""


class NothingTrains(ThriftyError, ValueError):
    """Nothing would train, or something declared trainable gets no gradient."""


class DeadEdit(ThriftyError, RuntimeError):
    """An edit that the model's forward pass never reaches."""


class FrozenMoved(ThriftyError, RuntimeError):
    """A tensor that must stay as it was has changed."""


class CannotMerge(ThriftyError, ValueError):
    """The edit is not a change of a weight, or the weight's precision would swallow it."""


class CannotCombine(ThriftyError, ValueError):
    """A weighted sum of these adapters is not an adapter."""


class BrokenArtifact(ThriftyError, ValueError):
    """A file that is truncated, altered, oversized, of an unknown schema, or does not say what it must."""


class WrongBase(ThriftyError, ValueError):
    """An adapter meets a base model whose weights are not the ones it was trained on."""


class BadData(ThriftyError, ValueError):
    """Data that cannot be read, or would make the result wrong."""


class OverBudget(ThriftyError, RuntimeError):
    """A training that would need, or has taken, more memory or time than it was given."""


class Missing(ThriftyError, ImportError):
    """An optional package is needed; the message says which one to install."""


def nearest(name: str, choices: Iterable[str], most: int = 12) -> str:
    """The tail of an error about an unknown ``name``: the closest choices, then what exists.

    >>> nearest("rnak", ["rank", "alpha"])
    " Did you mean 'rank'? Known: alpha, rank."
    """
    known = sorted(set(map(str, choices)))
    close = get_close_matches(str(name), known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    shown = ", ".join(known[:most]) + (f", … ({len(known)} in all)" if len(known) > most else "")
    return f"{hint} Known: {shown or 'none'}."
