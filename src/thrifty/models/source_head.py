"""The head that a checkpoint was saved with: a new task has no use for it, but some methods ask it what the model knew."""
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn


def read_head(files: Iterable[Path], model: nn.Module, under: str, new: Iterable[str], outside: bool = False) -> dict[str, Tensor]:
    """The checkpoint's own values, in float32, for the parameters of the head: those ``under`` a path, or ``outside`` of it.

    Those of ``new`` parameters, which the checkpoint holds in another shape or not at all, are read from its ``files``; the
    others are copied from the model. Parameters that the checkpoint does not have are left out.
    """
    from safetensors import safe_open

    head = {name: p for name, p in model.named_parameters() if name.startswith(under + ".") != outside}
    found = {name: p.detach().float().clone() for name, p in head.items() if name not in set(new)}
    wanted = head.keys() - found.keys()
    for path in sorted(files) if wanted else ():
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name).float() for name in wanted & set(file.keys())}
    return found


def name_classes(name: str) -> list[str] | None:
    """What the checkpoint of the model called ``name`` calls its classes, in order; None where it only numbers them."""
    from thrifty.models.finding import find

    if name.startswith("timm:"):
        return None
    known = json.loads((find(name).folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    names = [str(known[key]) for key in sorted(known, key=int)]
    return None if not names or names == [f"LABEL_{i}" for i in range(len(names))] else names
