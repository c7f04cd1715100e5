"""Life cycle, points 1, 2 and 11: what matches nothing or only a part, what would be half adapted, what loses gradients."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, bert, gpt2, llama, plain
from torch import nn

import thrifty
from thrifty.core.errors import HalfAdapted, NoSuchSetting, NoSuchSite, ThriftyError

WHERE = {
    "nothing": ("attn.qq", r"'attn.qq' in BertForSequenceClassification.* Did you mean 'attn.q' .*Its roles are"),
    "one of two": ("attn.q|attn.vv", r"no site matches 'attn.vv' in 'attn.q\|attn.vv'"),
    "no such path": ("bert.encoder.layer.9.*", "no site matches 'bert.encoder.layer.9"),
    "no such depth": ("block[7]", "no site|leaves no site"),
    "all taken away": ("attn.q|!attn", "leaves no site"),
    "not readable": ("attn.q[", "cannot read"),
}


@pytest.mark.parametrize("case", WHERE)
def test_where_matches_nothing_or_only_some(case: str) -> None:
    where, said = WHERE[case]
    model = bert()
    with pytest.raises(NoSuchSite, match=said):
        thrifty.attach(model, thrifty.LoRA(where=where))
    assert not thrifty.attachments(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("also", ["haed", "head|nothing", "classifier.wieght"])
def test_modules_to_train_that_do_not_exist(also: str) -> None:
    with pytest.raises(NoSuchSite, match="names no parameter to train"):
        thrifty.attach(bert(), thrifty.LoRA(), also_train=also)


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(NoSuchSetting, match="lora has no setting 'rnak'. Did you mean 'rank'"):
        thrifty.LoRA.make(rnak=8)
    with pytest.raises(NoSuchSetting, match="rank must be of type int"):
        thrifty.LoRA.make(rank="8")
    with pytest.raises(NoSuchSetting, match="rank must be at least 1"):
        thrifty.attach(bert(), thrifty.LoRA(rank=0))


def test_a_tied_weight() -> None:
    with pytest.raises(HalfAdapted, match="transformer.wte.weight is tied to .*lm_head.weight.*tied='leave'"):
        thrifty.attach(gpt2(), thrifty.LoRA(where="embed"))
    assert thrifty.attach(gpt2(), thrifty.LoRA(where="embed"), tied="leave").plan
    with pytest.raises(HalfAdapted, match="is tied to"):
        thrifty.attach(gpt2(), thrifty.LoRA(), also_train="head")


def test_a_tied_weight_that_trains_is_no_part_of_the_base_by_any_name(tmp_path: Path) -> None:
    model = gpt2()
    at = thrifty.attach(model, thrifty.FullFineTuning())
    with torch.no_grad():
        for p in at.parameters():
            p.add_(0.1)
    at.save(tmp_path / "adapter")
    fresh, ids = gpt2(), torch.tensor([[3, 5, 7]])
    thrifty.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(ids).logits, model(ids).logits)


def test_a_shared_module() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(HalfAdapted, match=r"'0' names '0', which is the same module as \['2'\]"):
        thrifty.attach(model, thrifty.LoRA(where="0"))
    assert len(thrifty.attach(model, thrifty.LoRA(where="linear")).plan) == 1  # by role: both of its places are meant


def test_mixture_of_experts() -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts=4, num_experts_per_tok=2,
        decoder_sparse_step=1))
    with pytest.raises(HalfAdapted, match=r"expert tensors beside it .*add '\|!experts'"):
        thrifty.attach(model, thrifty.LoRA(where="mlp.in"))
    at = thrifty.attach(model, thrifty.LoRA(where="mlp.in|!experts"))
    assert all("shared_expert" in row.path for row in at.plan)


def test_a_parameter_that_two_attachments_would_own() -> None:
    model = bert()
    thrifty.attach(model, thrifty.LoRA(), "first", also_train="head")
    with pytest.raises(HalfAdapted, match="already trains in place in the attachment 'first'"):
        thrifty.attach(model, thrifty.LoRA(), "second", also_train="head")
    with pytest.raises(ThriftyError, match="called 'first' is on this model already"):
        thrifty.attach(model, thrifty.LoRA(), "first")


def test_reentrant_checkpointing() -> None:
    """It cuts the graph at a frozen embedding, unless a hook makes the embedding's output require gradients."""
    model: Any = llama()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.disable_input_require_grads()
    if hasattr(model, "_require_grads_hook"):
        del model._require_grads_hook
    with pytest.raises(ThriftyError, match="reentrant checkpointing.*'use_reentrant': False"):
        thrifty.attach(model, thrifty.LoRA())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    at = thrifty.attach(model, thrifty.LoRA())
    model.train()(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert all(p.grad is not None for p in at.parameters())


def test_not_a_method() -> None:
    with pytest.raises(TypeError, match="takes a method such as"):
        thrifty.attach(plain(), "lora")  # type: ignore[arg-type]
    assert MODELS["plain"] is plain
