"""Fingerprint: which base model an adapter belongs to, told by the contents of its weights and not by its name."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Row, base
from ..core.digest import digest
from ..core.errors import BrokenArtifact, WrongBase
from ..core.ledger import Ledger, first_names, ledger
from .naming import named

PACKED = {"absmax", "nested_absmax", "quant_map"}  # what stands beside weights in four bits
ROUNDED = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def fingerprint(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, Any]:
    """Checksums of every base parameter and persistent buffer but those in ``skip`` (they come with the adapter).

    ``stored`` holds them in the precision of the weights; ``bfloat16`` and ``float16`` those of a float32 base rounded to
    that precision, so that a half-precision copy of the same base is known for what it is. Tensors above 16 M entries are
    sampled, so that a 7 B model takes seconds.
    """
    tensors = base_tensors(model, frozenset(skip))
    found: dict[str, Any] = {"stored": {n: digest(t) for n, t in tensors.items()}}
    if any(t.dtype == torch.float32 for t in tensors.values()):
        for dtype, name in ROUNDED.items():
            found[name] = {n: digest(_rounded(t, dtype)) for n, t in tensors.items() if t.is_floating_point()}
    return found


def refuse_other(model: nn.Module, recorded: Any, skip: Iterable[str]) -> str:
    """Compare ``model`` with a recorded fingerprint; returns how they match ("exactly", "rounded to bfloat16").

    Raises:
        WrongBase: naming the tensors that are missing, extra or different.
        BrokenArtifact: the record is not a fingerprint.
    """
    stored, tensors = _stored(recorded), base_tensors(model, frozenset(skip))
    missing, extra = [n for n in stored if n not in tensors], [n for n in tensors if n not in stored]
    if missing or extra:
        packed = [{n.rpartition(".")[2] for n in names} & PACKED for names in (missing, extra)]
        odd = "quantised to four bits and this one is not" if packed[0] else "not quantised and this one is"
        why = "" if bool(packed[0]) == bool(packed[1]) else (
            f". Its base was {odd}: load the model as it was, or pass base='any' for answers that differ by the rounding")
        raise WrongBase(f"this adapter was trained on a model with other tensors: {len(missing)} are missing here "
                        f"{missing[:3]}, {len(extra)} are not in its base {extra[:3]}{why}")
    return _match(model, tensors, recorded)


def refuse_other_trunk(model: nn.Module, recorded: Any, skip: Iterable[str]) -> str:
    """Compare the tensors that ``model`` has in common with a recorded fingerprint: the trunk, under whatever head.

    A head, or the lack of one, is a matter of the task; a block more or less is another trunk.

    Raises:
        WrongBase: they have other contents, or there are none, or one has blocks that the other lacks.
        BrokenArtifact: the record is not a fingerprint.
    """
    stored, tensors = _stored(recorded), base_tensors(model, frozenset(skip))
    common = {n: t for n, t in tensors.items() if n in stored}
    if not stored:
        return "not compared, as all of it was trained"
    if not common:
        raise WrongBase(f"{type(model).__name__} and the base that this adapter was trained on are different models: they have no "
                        "tensor in common")
    stacks = {stack for n in common if (stack := stack_of(n)) is not None}
    if odd := [n for n in {**stored, **tensors} if n not in common and stack_of(n) in stacks]:
        here = "here" if odd[0] in tensors else "there"
        raise WrongBase(f"{type(model).__name__} and the base that this adapter was trained on are different models: {odd[0]!r} "
                        f"({len(odd)} such) is {here} only, in a stack of blocks that both have")
    return _match(model, common, recorded, "common ")


def _stored(recorded: Any) -> dict[str, str]:
    if not isinstance(recorded, dict) or not isinstance(recorded.get("stored"), dict):
        raise BrokenArtifact("the file's record of its base model is not a fingerprint")
    found: dict[str, str] = recorded["stored"]
    return found


def stack_of(name: str) -> str | None:
    """What stands before the first number in a tensor's name: the list of blocks that it belongs to. None if there is none."""
    words = name.split(".")
    first = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return None if first is None else ".".join(words[:first])


def _match(model: nn.Module, tensors: dict[str, Tensor], recorded: Any, kind: str = "") -> str:
    """How the contents of ``tensors`` match what is recorded of them."""
    stored = recorded["stored"]
    different = [n for n, t in tensors.items() if digest(t) != stored[n]]
    if not different:
        return "exactly"
    for dtype, name in ROUNDED.items():
        rounded = {n: t for n, t in tensors.items() if t.is_floating_point()}
        if any(n not in rounded for n in different):
            continue
        reference = recorded.get(name) or {n: stored[n] for n in rounded}
        here = {t.dtype for t in rounded.values()}
        there_is_wider = name in recorded
        if (dtype in here) != there_is_wider or (dtype not in here and torch.float32 not in here):
            continue
        if all(digest(_rounded(t, dtype)) == reference.get(n) for n, t in rounded.items()):
            return f"rounded to {name}"
    raise WrongBase(f"{type(model).__name__} is not the base this adapter was trained on: {len(different)} of {len(tensors)} "
                    f"{kind}tensors have other contents, the first is {different[0]!r}. Load the base it names, or pass base='any' "
                    "if you know better")


def unread(model: nn.Module, plan: Iterable[Row]) -> list[str]:
    """Base tensors that nobody reads, because an edit in ``plan`` answers in the place of the module that they belong to."""
    paths = tuple(f"{row.path}." for row in plan if named(row.edit).replaces)
    return [name for name in base.tensors(model) if name.startswith(paths)] if paths else []


def base_tensors(model: nn.Module, skip: frozenset[str]) -> dict[str, Tensor]:
    """The base model's tensors as they are without any attachment."""
    book: Ledger | None = ledger(model)
    if book is not None:
        return book.base_tensors(skip)
    first = first_names(model)
    return {n: t for n, t in base.tensors(model).items() if isinstance(t, Tensor) and first.get(n, n) not in skip}


def _rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.detach().to(dtype) if t.is_floating_point() else t
