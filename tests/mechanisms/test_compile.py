"""torch.compile: attach before or after, several attachments, and switching them."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import thrifty
from thrifty.core.errors import ThriftyError
from thrifty.testing import tiny
from thrifty.testing.measuring import distance, stir

LORA = thrifty.LoRA(rank=2, where="attn.?|mlp.*")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compile_then_attach_then_switch() -> None:
    """The compiled model notices edits that arrive, are switched off, and leave."""
    backbone = tiny.make("attender")
    model = backbone.fresh()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    base = backbone.output(model)
    assert distance(backbone.output(compiled), base) < 1e-5
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?"), example=backbone.example)
    stir(at)
    edited = backbone.output(model)
    assert distance(edited, base) > 1e-3
    assert distance(backbone.output(compiled), edited) < 1e-5
    with at.disabled():
        assert distance(backbone.output(compiled), base) < 1e-5
    assert distance(backbone.output(compiled), edited) < 1e-5
    at.detach()
    assert distance(backbone.output(compiled), base) < 1e-5


def test_the_compiled_wrapper_itself_is_refused() -> None:
    compiled = torch.compile(tiny.make("attender").fresh(), backend="aot_eager")
    with pytest.raises(ThriftyError, match="_orig_mod"):
        thrifty.attach(compiled, LORA)


def test_training_steps_of_a_compiled_model_are_those_of_a_plain_one() -> None:
    backbone = tiny.make("gpt2")
    results = []
    for compile_it in (False, True):
        model = backbone.fresh()
        at = thrifty.attach(model, LORA, example=backbone.example)
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
        optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            backbone.run(run).logits.pow(2).mean().backward()
            optimiser.step()
        results.append(at.state())
    assert all(torch.allclose(results[0][k], results[1][k], atol=1e-5) for k in results[0])


def test_export_holds_the_edits() -> None:
    backbone = tiny.make("attender")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?"), example=backbone.example)
    stir(at)
    assert isinstance(backbone.example, tuple)
    program = torch.export.export(model, backbone.example)
    assert distance(backbone.output(program.module()), backbone.output(model)) < 1e-5
