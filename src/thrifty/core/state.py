"""State: every tensor that an attachment needs, by name, and putting them back."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import BrokenArtifact, nearest
from .sparse import mask_at, positions

if TYPE_CHECKING:
    from .building import Building


def state(at: Building) -> dict[str, Tensor]:
    """All tensors that the adapter needs, by name, whole (on every rank when sharded) and on the CPU."""
    found = _tuner(at)
    for name in at.base:
        now = at.stash[name] if name in at.stash else at._tensor(name)
        if name in at.masks:
            found[f"entries:{name}"] = positions(at.masks[name])
            found[f"base:{name}"] = whole(now)[at.masks[name]]
        else:
            found[f"base:{name}"] = now
    return {n: whole(t).detach().to("cpu", copy=True).contiguous() for n, t in found.items()}


@torch.no_grad()
def load_state(at: Building, state: Mapping[str, Tensor]) -> None:
    """Put tensors back. Where only some entries of a parameter train, they are those that ``state`` lists from now on.

    Raises:
        BrokenArtifact: a tensor is missing, unknown, or of another shape; nothing has been changed then.
    """
    targets = _tuner(at) | {f"base:{name}": at._tensor(name) for name in at.base}
    known = [*targets, *(f"entries:{name}" for name in at.masks)]
    for name in state:
        if name not in known:
            raise BrokenArtifact(f"unexpected tensor {name!r}." + nearest(name, known))
    for name in known:
        if name not in state:
            raise BrokenArtifact(f"the tensor {name!r} is missing")
    masks = {name: mask_at(state[f"entries:{name}"], at.base[name], name) for name in at.masks}
    for name, target in targets.items():
        wanted = state[f"entries:{name[5:]}"].shape if name[5:] in masks and name.startswith("base:") else target.shape
        if tuple(state[name].shape) != tuple(wanted):
            raise BrokenArtifact(f"{name!r} has shape {tuple(state[name].shape)}, the model wants {tuple(wanted)}")
    for name, mask in masks.items():
        at.masks[name].copy_(mask)
    for name, target in targets.items():
        if name.startswith("base:") and (base := name[5:]) in masks:
            every = at.base[base].clone()
            every[masks[base]] = state[name].to(every)
            target.copy_(every)
        else:
            target.copy_(spread(target, state[name]))


def _tuner(at: Building) -> dict[str, Tensor]:
    """The tensors of the edits and of what they share, themselves and not copies."""
    found: dict[str, Tensor] = {}
    for key, edit in at.edits.items():
        found |= {f"edit:{key}:{n}": t for n, t in edit.state_dict(keep_vars=True).items()}
    if at.context.shared is not None:
        found |= {f"shared:{n}": t for n, t in at.context.shared.state_dict(keep_vars=True).items()}
    return found


def spread(target: Any, value: Tensor) -> Tensor:
    """``value``, over processes as ``target`` is."""
    if not hasattr(target, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


def whole(t: Any) -> Tensor:
    """``t``, gathered if it is spread over processes."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t
