"""URNet: gates by picture and scale, what runs at which scale, the loss that keeps to it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.core.hooks import main
from thrifty.methods.depth.scaled_gates import Gate
from thrifty.methods.ur_net import scale_of, set_scale

X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
DEEP: dict[str, dict[str, Any]] = {"vit": {"num_hidden_layers": 4}, "resnet": {"hidden_sizes": [8, 16], "depths": [2, 2]}}


class Classify:
    """Cross-entropy, as a task for pictures computes it."""

    def inputs(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"]}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(main(model(**self.inputs(model, batch))), batch["labels"]), len(batch["labels"])


def put(kind: str, **settings: Any) -> tuple[Any, thrifty.Attachment, Tensor]:
    model = tiny(kind, num_labels=3, **DEEP[kind])
    x = X[..., :16, :16] if kind == "vit" else X
    at = thrifty.attach(model, thrifty.URNet(**{"trunk": "frozen", **settings}), example={"pixel_values": x[:2]})
    return model, at, x


def blocks(model: Any) -> list[Any]:
    return list(model.vit.layers) if hasattr(model, "vit") else [b for s in model.resnet.encoder.stages for b in s.layers]


def gates(at: thrifty.Attachment) -> list[Gate]:
    return [edit for edit in at.edits.values() if isinstance(edit, Gate)]


def by_hand(model: Any, at: thrifty.Attachment, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Logits and gates, one picture and one block at a time."""
    chosen, found = [], []
    for picture in x:
        own, wrapped = [], []
        for block, gate in zip(blocks(model), gates(at), strict=True):
            def forward(h: Tensor, *a: Any, block: Any = block, gate: Any = gate, own: Any = own, **k: Any) -> Tensor:
                f = h.mean((2, 3)) if h.dim() == 4 else h.mean(1)
                a1 = F.relu(torch.cat([f, torch.tensor([[scale]])], 1) @ gate.hidden.weight.T + gate.hidden.bias)
                s = torch.clamp((a1 @ gate.last.weight.T + gate.last.bias) / 6 + 0.5, 0, 1)
                own.append(float(s > 0.5))
                if own[-1]:
                    return type(block).forward(block, h, *a, **k)
                return block.activation(block.shortcut(h).clone()) if h.dim() == 4 else h
            block.forward = forward
            wrapped.append(block)
        with torch.no_grad():
            found.append(model(pixel_values=picture[None]).logits[0])
        for block in wrapped:
            del block.forward
        chosen.append(torch.tensor(own))
    return torch.stack(found), torch.stack(chosen)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_gates_decide_by_picture_and_scale(kind: str) -> None:
    model, at, x = put(kind)
    shake(at, 0.8)
    answers = {}
    for scale in (0.2, 0.7):
        set_scale(at, scale)
        with torch.no_grad():
            quick = model(pixel_values=x).logits
        torch.testing.assert_close(model(pixel_values=x).logits.detach(), quick, atol=1e-5, rtol=1e-5)
        answers[scale] = quick
    set_scale(at, 1.0)
    with torch.no_grad():
        whole = model(pixel_values=x).logits
    edits, at_off = gates(at), at
    at_off.disable()
    assert edits and torch.equal(model(pixel_values=x).logits, whole)  # a scale of 1 is the network itself
    used = []
    for scale, quick in answers.items():
        wanted, own = by_hand(model, at, x, scale)
        torch.testing.assert_close(quick, wanted, atol=1e-5, rtol=1e-5)
        used.append(own)
    assert any(0 < float(own.mean()) < 1 for own in used)


def test_a_shut_block_is_not_computed() -> None:
    model, at, x = put("vit")
    ran: list[int] = []
    for i, block in enumerate(blocks(model)):
        block.mlp.register_forward_hook(lambda m, a, out, i=i: ran.append(i))
    with torch.no_grad():
        gates(at)[1].last.bias.fill_(-1.0)
        model(pixel_values=x)
    assert ran == [0, 2, 3]


def test_the_loss_keeps_to_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    model, at, x = put("vit", weight=0.7, soft=1.0)
    shake(at, 0.3)
    batch = {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    monkeypatch.setattr(torch, "rand_like", lambda t: torch.full_like(t, 0.3))
    total, items = at.method.loss(at, Classify(), model, batch)
    h, used = None, []
    at.disable()
    h = model.vit.embeddings(x)
    for block, gate in zip(model.vit.layers, gates(at), strict=True):
        s = gate.openness(h, torch.tensor(0.3))
        used.append(s)
        h = s[:, None, None] * block(h) + (1 - s[:, None, None]) * h  # open as far as s says
    logits = model.classifier(model.vit.layernorm(h)[:, 0])
    wanted = F.cross_entropy(logits, batch["labels"]) + 0.7 * (torch.stack(used).mean() - 0.3) ** 2
    torch.testing.assert_close(total, wanted, atol=1e-5, rtol=1e-5)
    assert items == 6 and not scale_of(at).drawing
    at.enable()
    at.method.soft = 0.0
    for gate in gates(at):
        gate.soft = 0.0
    stepped, _ = at.method.loss(at, Classify(), model, batch)
    stepped.backward()
    assert all(p.grad is not None and p.grad.any() for p in at.parameters())  # through the step, too


def test_more_scale_more_blocks_once_learnt() -> None:
    torch.manual_seed(0)
    model, at, x = put("vit", weight=20.0)
    batch = {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    optimiser = torch.optim.Adam(at.parameters(), lr=0.02)
    for _ in range(250):
        optimiser.zero_grad()
        at.method.loss(at, Classify(), model, batch)[0].backward()
        optimiser.step()
    method: Any = at.method
    used = []
    for scale in (0.0, 0.5, 1.0):
        set_scale(at, scale)
        with torch.no_grad():
            method.calibrate(at, Classify(), [batch])
        used.append(at.about["measured"]["used"])
        assert at.about["measured"]["blocks"] == 4 and at.about["measured"]["flops"] > 0
    assert used == sorted(used) and used[0] < 0.5 and used[-1] == 1


def test_counts_and_files(tmp_path: Path) -> None:
    model, at, x = put("resnet", hidden=5)
    widths = [8, 8, 8, 16]  # what enters each block
    assert count(at) == sum((c + 1) * 5 + 5 + 5 + 1 for c in widths)
    y = model(pixel_values=x).logits
    at.disable()
    assert torch.equal(model(pixel_values=x).logits, y)  # it starts as the network itself
    at.enable()
    shake(at, 0.8)
    set_scale(at, 0.25)
    with torch.no_grad():
        y = model(pixel_values=x).logits
    at.save(tmp_path / "gates")
    fresh = tiny("resnet", num_labels=3, **DEEP["resnet"])
    again = thrifty.load(fresh, tmp_path / "gates", example={"pixel_values": x})
    with torch.no_grad():
        assert torch.equal(fresh(pixel_values=x).logits, y)
    assert float(scale_of(again).scale) == 0.25


def test_blocks_that_are_computed_again_in_the_backward_pass() -> None:
    found = []
    for again in (False, True):
        model, at, x = put("vit", trunk="full", soft=1.0)
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        at.method.loss(at, Classify(), model, {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 0, 1, 2])})[0].backward()
        found.append([p.grad for p in at.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_refusals() -> None:
    with pytest.raises(Unfit, match="no pictures"):
        thrifty.attach(tiny("bert"), thrifty.URNet())
    for settings in ({"scale": 1.5}, {"weight": -1.0}, {"soft": 2.0}, {"hidden": 0}, {"trunk": "half"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            put("vit", **settings)
    with pytest.raises(NoSuchSetting, match="scale must be from 0 to 1"):
        set_scale(put("vit")[1], -0.1)
