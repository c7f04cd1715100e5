"""Keeping: features of a frozen model lie where its states for training lie, and are computed once for the same rows."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.artifact.files import canonical, sha256
from thrifty.artifact.fingerprint import base_tensors
from thrifty.core.digest import digests
from thrifty.core.errors import BrokenArtifact
from thrifty.tasks import Task
from thrifty.train.processes import move
from thrifty.trunk import key
from thrifty.trunk.feed import by_length
from thrifty.trunk.packing import gap
from thrifty.trunk.proving import CLOSE
from thrifty.trunk.store import HEADER, Store, Writer, refuse_full

Look = Callable[[dict[str, Tensor]], Tensor]
Examples = list[dict[str, Any]]
PROBED = 3  # rows that are computed once more where a store is found: the same tensors may compute something else


def compute(look: Look, task: Task, examples: Examples, places: Sequence[int], device: torch.device) -> Tensor:
    """What ``look`` sees in the examples at these places, as one batch [n, D] in float32."""
    batch = move(task.collate([examples[i] for i in places]), device)
    return look(batch).detach().float().cpu()


def compute_all(look: Look, task: Task, examples: Examples, size: int, device: torch.device) -> Tensor:
    """What ``look`` sees in every example [n, D], those of like length together."""
    seen = [(chosen, compute(look, task, examples, chosen, device)) for chosen in arrange(examples, size)]
    whole = torch.empty(len(examples), seen[0][1].shape[1])
    for chosen, part in seen:
        whole[chosen] = part
    return whole


def keep(look: Look, task: Task, examples: Examples, size: int, device: torch.device,
         about: Mapping[str, Any]) -> tuple[Tensor, bool]:
    """As ``compute_all``, from the store of what is described ``about`` them, which is written if it is not there; and whether it
    was there.

    Raises:
        BrokenArtifact: the store is damaged, or holds something else than the model gives now. Unfit: the disk is full.
    """
    path = key.folder() / key.name(about)
    found = path.exists()
    if not found:
        seen = compute_all(look, task, examples, size, device)
        if not seen.isfinite().all():
            return seen, False  # for its user to refuse, by name: nothing that anybody would want again
        refuse_full(path.parent, HEADER + seen.numel() * 4 + 16 * len(seen))
        writer = Writer(path, dict(about), len(seen), "exact")
        try:
            writer.add(range(len(seen)), seen.split(1))
            writer.close()
        finally:
            writer.discard()
    store = Store(path, dict(about))
    kept = store.take(range(len(examples)))[0].clone()
    if found:
        probed = arrange(examples, PROBED)[0]
        apart = gap(kept[probed], compute(look, task, examples, probed, device))
        if not apart <= CLOSE:
            raise BrokenArtifact(f"{path} does not hold what the model gives (the difference is {apart:.2g}, relative): it "
                                 f"computed otherwise when that was written. Delete it: rm {path}")
    return kept, found


def describe(task: Task, examples: Examples, place: str) -> dict[str, Any]:
    """Everything that features at ``place`` of the task's frozen model depend on, as plain data."""
    backbone = task.backbone
    head = {name for name in backbone.source["new_tensors"] if place and name.startswith(place + ".")}
    sums = digests(base_tensors(backbone.model, frozenset(head)).items(), whole=True)
    pictures = "image" in examples[0]
    given = key.digest_pictures(examples) if pictures else key.digest_rows(task.collate([example]) for example in examples)
    seen = key.digest_rows([task.collate(examples[:2])]) if pictures else ""  # a callable of one's own has no numbers to compare
    return {"version": 1, "model": type(backbone.model).__name__, "place": ["features", place], "count": len(examples),
            "tensors": sha256(canonical(sums)), "rows": given, "seen": seen, "prepared": backbone.source.get("image"),
            "computed": "float32", "precision": "exact"}


def arrange(examples: Examples, size: int) -> list[list[int]]:
    """The places of all examples in batches of ``size``, short ones first."""
    return by_length(examples, [len(example.get("input_ids", ())) for example in examples], size)
