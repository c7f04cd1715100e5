"""Another adapter in the place of one part of a composition: another language under the same task."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import Attachment
from ..core.edit import plain
from ..core.errors import CannotCombine, NoSuchSetting, nearest
from .building import exchange, places
from .composed import Composed
from .parts import from_folder


@torch.no_grad()
def swap(at: Attachment, part: str, folder: str | Path) -> None:
    """Let the saved adapter in ``folder`` act as the ``part`` of a composition. It must act at the same places and alike.

    Raises:
        NoSuchSetting: the composition has no such part.
        CannotCombine: naming the place where the two differ; nothing has been changed then.
        BrokenArtifact, WrongBase: the adapter is not whole, or was trained on another base.
    """
    composed = {key: edit for key, edit in at.edits.items() if isinstance(edit, Composed) and part in edit.leaves}
    if not composed:
        known = {name for edit in at.edits.values() if isinstance(edit, Composed) for name in edit.leaves}
        raise NoSuchSetting(f"{at.name!r} is composed of no part {part!r}." + nearest(part, known))
    new = from_folder(at.model, part, Path(folder))
    for name in new.trained:
        exchange(new, name)
    there = {key: (edit.site.path, edit.part.name if edit.part else "", edit.port) for key, edit in composed.items()
             if edit.held(part)}
    here = places(at, [new])
    if other := set(there.values()) ^ set(here):
        raise CannotCombine(f"{folder} and the part {part!r} do not act at the same places: only one of them acts at "
                            f"{sorted(other)[0]!r}")
    values: dict[str, Tensor] = {}
    for key, place in there.items():
        rows = here[place][part]
        said = [{"edit": row.edit, "numbers": plain(row.numbers, key)} for row in rows]
        if said != composed[key].says(part):
            raise CannotCombine(f"at {place[0]!r} {folder} has {said}, the part {part!r} {composed[key].says(part)}")
        for i, row in enumerate(rows):
            values |= {f"edit:{key}:leaves.{part}.{i}.{n.removeprefix(f'edit:{row.key}:')}": t
                       for n, t in new.state.items() if n.startswith(f"edit:{row.key}:")}
    values |= {f"shared:branches.{part}.{n.removeprefix('shared:')}": t for n, t in new.state.items() if n.startswith("shared:")}
    _refuse_shared(at, part, new.shared, folder)
    at.load_state(at.state() | values)


def _refuse_shared(at: Attachment, part: str, shared: Any, folder: Any) -> None:
    known = at.shared_as[1]["parts"].get(part) if at.shared_as else None
    if (known is None) != (shared is None) or (known and [shared[0], plain(shared[1], part)] != known[:2]):
        raise CannotCombine(f"{folder} shares {shared} among its places, the part {part!r} {known and known[:2]}")
