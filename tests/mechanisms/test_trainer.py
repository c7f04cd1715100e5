"""transformers.Trainer trains a model with edits, and its files hold the base under the base's keys."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

import thrifty
from thrifty.testing import tiny
from thrifty.testing.measuring import stir

transformers = pytest.importorskip("transformers")


def test_trainer_moves_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"), also_train="head", example=backbone.example)
    before = {n: p.clone() for n, p in model.named_parameters()}
    start = at.state()
    rows = [{"input_ids": torch.randint(3, 60, (6,)), "labels": torch.tensor(i % 2)} for i in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, weight_decay=0.1)
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    own = {id(p) for p in at.parameters()}
    for name, p in model.named_parameters():
        assert id(p) in own or torch.equal(p, before[name]), f"{name} moved"
    now = at.state()
    assert all(not torch.equal(now[n], start[n]) for n in start)


def test_save_pretrained_keeps_the_base_keys(tmp_path: Path) -> None:
    """A file written with edits on the model loads into a model that knows of no edits."""
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"), example=backbone.example)
    stir(at)
    model.save_pretrained(tmp_path)
    back, about = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert all(".edits." in key for key in about["unexpected_keys"])
    assert all(torch.equal(v, backbone.model.state_dict()[k]) for k, v in back.state_dict().items())
    assert torch.equal(backbone.output(back.eval()), backbone.output(backbone.fresh()))


def test_a_merged_model_saves_as_a_plain_one(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"), example=backbone.example)
    stir(at)
    edited = backbone.output(model)
    at.merge(keep_base=False)
    model.save_pretrained(tmp_path)
    back, about = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    torch.testing.assert_close(backbone.output(back.eval()), edited, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_to_moves_edits_with_the_model(dtype: torch.dtype) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2), example=backbone.example)
    model.to(dtype)
    assert {p.dtype for p in at.parameters()} == {dtype}
    assert backbone.output(model).dtype == dtype
