"""Begin: the values of a saved adapter as the start of another training of the same method, perhaps on another task."""
from __future__ import annotations

from pathlib import Path

from ..core import Attachment
from ..core.digest import digest
from ..core.errors import CannotCombine, nearest
from .load import read, refuse_base


def begin(at: Attachment, path: str | Path) -> list[str]:
    """Give ``at``, freshly attached, the values that the adapter in ``path`` holds for the same edits and base parameters.

    What ``at`` trains beyond those (a new head, all of the base) keeps its own start. Base parameters of the adapter that the
    model does not have (the head of its task) stay behind; their names are returned.

    Raises:
        BrokenArtifact: the folder is not whole.
        WrongBase: it was trained on a model with another trunk.
        CannotCombine: its edits are not those of ``at``, or it trained a part of the base that ``at`` leaves frozen.
    """
    folder = Path(path)
    data, _, state = read(folder)
    if sparse := [n for n, about in data["trained"].items() if about["masked"]]:
        raise CannotCombine(f"{folder} trained only some entries of {sparse[0]!r}, and which ones is its own choice")
    refuse_base(at.model, data, head="any")
    mine, known = at.state(), set(at.model.state_dict())
    behind = [n for n in state if n.startswith("base:") and n[5:] not in known]
    theirs = {n: t for n, t in state.items() if n not in behind}
    added = [n for n in mine if not n.startswith("base:") and n not in theirs]
    if added:
        raise CannotCombine(f"{folder} holds nothing for {added[0]!r} ({len(added)} such): it is another method, or has other "
                            "settings")
    for name, tensor in theirs.items():
        if name not in mine:
            why = "which is frozen here" if name.startswith("base:") else "which this method does not have"
            raise CannotCombine(f"{folder} trained {name!r}, {why}." + nearest(name, mine))
        if tensor.shape != mine[name].shape:
            raise CannotCombine(f"{name!r} is {list(tensor.shape)} in {folder} and {list(mine[name].shape)} here: other settings")
    at.load_state(mine | theirs)
    at.start = {n: digest(p) for n, p in at.named_parameters()}
    return [n.removeprefix("base:") for n in behind]
