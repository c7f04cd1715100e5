"""What is listed of a base does not change, and costs no more, however much is attached to it."""
from __future__ import annotations

import torch
import transformers
from torch import nn

import thrifty
from thrifty.core import base


def gpt() -> nn.Module:
    """Tied embeddings, buffers that are saved and buffers that are not."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    model.again = model.transformer.h[0]  # one module at two places
    model.transformer.h[1].register_buffer("kept", torch.ones(2))
    model.transformer.h[1].register_buffer("lost", torch.ones(2), persistent=False)
    return model


def test_without_anything_attached_it_lists_what_torch_lists() -> None:
    model = gpt()
    for duplicates in (True, False):
        assert list(base.modules(model, duplicates)) == list(model.named_modules(remove_duplicate=duplicates))
        ours, theirs = base.parameters(model, duplicates), model.named_parameters(remove_duplicate=duplicates)
        assert [(n, id(p)) for n, p in ours] == [(n, id(p)) for n, p in theirs]
    assert {n: id(b) for n, b in base.buffers(model).items()} == {n: id(b) for n, b in model.named_buffers()}
    wanted = model.state_dict(keep_vars=True)
    assert {n: id(t) for n, t in base.tensors(model).items()} == {n: id(t) for n, t in wanted.items()}


def test_attachments_are_not_listed() -> None:
    model = gpt()
    before = [dict(base.modules(model)), dict(base.parameters(model)), base.buffers(model), base.tensors(model)]
    for name in ("a", "b"):
        thrifty.attach(model, thrifty.LoRA(rank=2, where="mlp.*"), name, tied="leave")
    after = [dict(base.modules(model)), dict(base.parameters(model)), base.buffers(model), base.tensors(model)]
    assert [{n: id(x) for n, x in one.items()} for one in before] == [{n: id(x) for n, x in one.items()} for one in after]
    assert len(list(model.named_modules())) > len(after[0])


def test_who_changes_his_state_dict_is_asked_for_it() -> None:
    def leave_out(module: nn.Module, found: dict[str, torch.Tensor], prefix: str, local: object) -> None:
        found.pop(f"{prefix}ln_1.bias")

    model = gpt()
    model.transformer.h[0].register_state_dict_post_hook(leave_out)
    thrifty.attach(model, thrifty.LoRA(rank=2, where="mlp.*"), tied="leave")
    found = base.tensors(model)
    assert "transformer.h.0.ln_1.bias" not in found and "transformer.h.1.ln_1.bias" in found
    assert not any("edits" in name for name in found)
