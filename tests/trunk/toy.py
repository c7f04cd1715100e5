"""Rows for tiny random models, a task that is hardly one, and a training step with and without the frozen part."""
from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

import thrifty
from thrifty import trunk
from thrifty.core.errors import Unfit
from thrifty.core.hooks import main
from thrifty.testing import tiny


class Toy:
    """Texts of 3 to 9 tokens, padded to a multiple of 4 on one ``side``; or pictures as their bytes, counting how many are read."""

    limits: dict[str, Any] = {}

    def __init__(self, pictures: bool, side: str = "right") -> None:
        self.pictures, self.side, self.read = pictures, side, 0

    def rows(self, count: int, seed: int) -> list[dict[str, Any]]:
        drawn = torch.Generator().manual_seed(seed)
        if self.pictures:
            return [{"image": torch.randn(3, 32, 32, generator=drawn).numpy().tobytes(), "row": i} for i in range(count)]
        lengths = torch.randint(3, 10, (count,), generator=drawn).tolist()
        return [{"input_ids": torch.randint(3, 60, (length,), generator=drawn).tolist()} for length in lengths]

    def collate(self, examples: Any) -> dict[str, Tensor]:
        if self.pictures:
            return {"pixel_values": torch.stack([self._picture(example) for example in examples])}
        width = -(-max(len(e["input_ids"]) for e in examples) // 4) * 4
        ids, mask = torch.zeros(len(examples), width, dtype=torch.long), torch.zeros(len(examples), width, dtype=torch.long)
        for row, example in enumerate(examples):
            size = len(example["input_ids"])
            at = slice(0, size) if self.side == "right" else slice(width - size, width)
            ids[row, at], mask[row, at] = torch.tensor(example["input_ids"]), 1
        return {"input_ids": ids, "attention_mask": mask}

    def _picture(self, example: dict[str, Any]) -> Tensor:
        if "pixels" in example:
            return example["pixels"]
        self.read += 1
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(hash(example["drawn"]))) if "drawn" in example else 0
        return torch.frombuffer(bytearray(example["image"]), dtype=torch.float32).view(3, 32, 32) + noise

    def vary(self, examples: Any, seed: int, step: int) -> list[dict[str, Any]]:
        return list(examples)

    def turn(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return self, batch

    def inputs(self, model: nn.Module, batch: Any) -> Any:
        return batch

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return loss_of(model, batch), 1

    def judge(self, model: nn.Module, batch: Any) -> list[Any]:
        return main(model(**batch)).tolist()


class Varied(Toy):
    """Pictures that chance changes."""

    def vary(self, examples: Any, seed: int, step: int) -> list[dict[str, Any]]:
        return [{**example, "drawn": (seed, step, example["row"])} for example in examples]


def terms(cache: str | int = "auto", precision: str = "exact", **more: Any) -> trunk.Terms:
    return trunk.Terms(cache, precision, 4, torch.device("cpu"), contextlib.nullcontext, **more)


def still(model: nn.Module) -> nn.Module:
    """The model without dropout, and without dropping of paths."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


def fresh(name: str) -> nn.Module:
    return still(tiny.make(name).fresh())


def attach(model: nn.Module, task: Any, method: Any, rows: Any, seed: int = 0) -> Any:
    """The method, and the head with it; with numbers that are not zero, so that nothing hides."""
    heads = thrifty.sites(model, "head") if any(s.role == "head" for s in thrifty.sites(model)) else []
    also = "|".join(site.path for site in heads) or None
    at = thrifty.attach(model, method, also_train=also, example=task.collate(rows[:2]), tied="leave", seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in at.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=drawn))
    return at


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """A number that all real outputs decide."""
    said = main(model(**batch)).float()
    mask = batch.get("attention_mask")
    if mask is not None and said.shape[:2] == mask.shape:
        said = said[mask.bool()]
    return (said * torch.linspace(-1, 1, said.shape[-1])).sin().mean()


def step(at: Any, task: Any, rows: Any, kept: Any, turn: int = 0) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one batch in training mode."""
    at.model.train().zero_grad()
    batch = kept.collate(task, rows)
    with kept.giving(rows, batch, turn):
        loss = loss_of(at.model, batch)
        loss.backward()
    found = {name: p.grad.clone() for name, p in at.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def compare(name: str, method: Any, side: str = "right", **more: Any) -> tuple[dict[str, Any], float]:
    """What was kept, and how far losses and gradients are from those of a model that computes everything (relative)."""
    task = Toy(isinstance(tiny.make(name).example, dict) and "pixel_values" in tiny.make(name).example, side)
    train, validation = trunk.number(task.rows(10, 1), task.rows(5, 2))
    at = attach(fresh(name), task, method, train)
    still(at.model)  # edits may have brought their own
    plain = trunk.Direct()
    batches = [train[:4], train[4:8], train[8:], validation[:3]]
    expected = [step(at, task, rows, plain) for rows in batches]
    kept = trunk.keep(at, task, train, validation, terms(**more))
    if kept.record is None or not kept.record["used"]:
        raise Unfit(kept.record["words"] if kept.record else "off")
    read, calls = task.read, count_calls(at.model)
    found = [step(at, task, rows, kept) for rows in batches]
    ran = sorted(set(calls))
    kept.remove()
    assert task.read == read, "pictures are not read again"
    again = step(at, task, batches[0], plain)
    worst = max(apart(one, other) for one, other in zip([*found, again], [*expected, expected[0]], strict=True))
    return {**kept.record, "ran": ran}, worst


def count_calls(model: nn.Module) -> list[str]:
    """Paths of the leaf modules with weights that run from now on."""
    ran: list[str] = []
    for path, module in model.named_modules():
        if "edits" not in path.split(".") and next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, path=path: ran.append(path))
    return ran


def apart(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> float:
    assert one[1].keys() == other[1].keys() and one[1]
    """The largest relative difference of losses and gradients; one gradient counts as at least a thousandth of all."""
    least = 1e-3 * torch.stack([b.norm() for b in other[1].values()]).norm().item()
    return max(abs(one[0] - other[0]) / max(abs(other[0]), 1e-2),
               *((a - other[1][n]).norm().item() / max(other[1][n].norm().item(), least) for n, a in one[1].items()))


def copy_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
