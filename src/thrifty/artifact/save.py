"""Save: an attachment as a folder of two files, adapter.safetensors and adapter.json."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import Attachment
from ..core.digest import digest
from ..core.edit import plain
from ..core.errors import BrokenArtifact, NothingTrains, ThriftyError
from .files import ABOUT, TENSORS, canonical, sha256, whole_folder
from .fingerprint import fingerprint, unread
from .schema import FORMAT, VERSION

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
          torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16"}


def save(at: Attachment, path: str | Path, *, unchanged: bool = False, **about: Any) -> Path:
    """Write ``at`` to the folder ``path``, whole or not at all, without a network.

    The folder holds all that ``load`` needs: every tensor that trains (the head too), the plan of what goes where, the
    method and its settings, and the fingerprint of the base. ``about`` is plain data that travels along (task, labels).

    Raises:
        NothingTrains: nothing has changed since ``attach`` (pass ``unchanged=True`` if that is meant).
        BrokenArtifact: a tensor is not finite.
        ThriftyError: the attachment was detached, or the folder holds other files.
    """
    if at.closed:
        raise ThriftyError(f"the attachment {at.name!r} was detached: there is nothing to save")
    state = at.state()
    refuse_unfit(at, state, unchanged)
    data = describe(at, state, {**at.about, **about})
    with whole_folder(Path(path), frozenset({TENSORS, ABOUT})) as folder:
        write(folder, state, data)
    return Path(path)


def describe(at: Attachment, state: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Any]:
    """The contents of adapter.json, but for the hash that ``write`` adds."""
    from .. import __version__

    buffers = dict(at.model.named_buffers())
    replaced = [*(n for n in at.base if n not in at.masks), *unread(at.model, at.plan)]
    return {
        "format": FORMAT, "version": VERSION, "thrifty": __version__,
        "method": None if at.method is None else {"name": at.method.name, "settings": plain(at.method.settings(), "settings")},
        "seed": at.seed, "plan": [row.plain() for row in at.plan],
        "shared": list(at.shared_as) if at.shared_as else None,
        "trained": {n: {"masked": n in at.masks, "buffer": n in buffers, "wildcard": n in at.wildcard} for n in at.base},
        "base": fingerprint(at.model, replaced),
        "tensors": {n: {"shape": list(t.shape), "dtype": DTYPES[t.dtype], "sha256": sha256(raw(t))} for n, t in state.items()},
        "about": plain(about, "about"),
    }


def write(folder: Path, state: dict[str, Tensor], data: dict[str, Any]) -> None:
    """Put both files into ``folder``."""
    import json

    from safetensors.torch import save_file

    save_file(state, folder / TENSORS, {"format": "pt"})
    text = json.dumps({**data, "hash": sha256(canonical(data))}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")


def raw(t: Tensor) -> bytes:
    """The tensor's bytes, as safetensors stores them."""
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""


def refuse_unfit(at: Attachment, state: dict[str, Tensor], unchanged: bool) -> None:
    """Refuse an adapter that is empty, not finite, or (unless ``unchanged``) what it was when it was attached.

    Raises:
        NothingTrains, BrokenArtifact: naming the tensors.
    """
    if not state:
        raise NothingTrains(f"the attachment {at.name!r} holds no tensor")
    broken = [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise BrokenArtifact(f"{len(broken)} tensors hold NaN or infinity: {broken[:5]}; this adapter would not work")
    if at.start and not unchanged and all(digest(p) == at.start.get(n) for n, p in at.named_parameters()):
        raise NothingTrains(f"no tensor of {at.name!r} has changed since it was attached: train it first, or pass "
                            "unchanged=True")
