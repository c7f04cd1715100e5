"""VeRA in PEFT's layout: ranks that were found in training, and what one side cannot say."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, batch, shake
from safetensors.torch import load_file, save_file

import thrifty
from thrifty.artifact.peft import CannotExpress, read, write
from thrifty.core.errors import BrokenArtifact
from thrifty.methods.vera import Vectors

peft = pytest.importorskip("peft")


def written(folder: Path, name: str = "bert", **settings: Any) -> Path:
    at = thrifty.attach(MODELS[name](), thrifty.VeRA(rank=8, **settings))
    shake(at.parameters())
    return write(at, folder)


def test_what_is_drawn_is_what_peft_draws() -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.VeRA(rank=8, seed=11, where="attn.?|mlp.*"))
    theirs = peft.get_peft_model(MODELS["bert"](), peft.VeraConfig(
        r=8, projection_prng_key=11, target_modules=r".*(query|key|value|encoder.*dense)"))
    for mine, name in ((at.context.shared.A, "vera_A"), (at.context.shared.B, "vera_B")):
        assert torch.equal(mine, getattr(theirs.base_model, name)["default"])


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another rank": (lambda c: c.update(r=4), r"\(8, 16\); config and model ask for \(4, 16\)"),
    "no rank": (lambda c: c.pop("r"), "r = None is not a rank"),
    "no seed": (lambda c: c.update(projection_prng_key="0"), "projection_prng_key.*wrong type"),
    "matrices that are not said": (lambda c: c.update(save_projection=False), "vera_A"),
    "LoRA's biases": (lambda c: c.update(bias="lora_only"), "'vera_only'"),
    "misspelt": (lambda c: c.update(vera_dropuot=0.1), "vera_dropout"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_is_refused(case: str, tmp_path: Path) -> None:
    alter, said = CONFIGS[case]
    path = written(tmp_path / "a") / "adapter_config.json"
    config = json.loads(path.read_text())
    alter(config)
    path.write_text(json.dumps(config))
    model = MODELS["bert"]()
    with pytest.raises(BrokenArtifact, match=f"(?s){said}"):
        read(tmp_path / "a", model)
    assert not thrifty.attachments(model)


@pytest.mark.parametrize("name", ["base_model.vera_A", "base_model.model.bert.encoder.layer.0.attention.self.query.vera_lambda_b"])
def test_tensors_are_refused(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name][1:]}, file)
    with pytest.raises(BrokenArtifact, match=f"{name.removeprefix('base_model.').removeprefix('model.')}.* has shape"):
        read(tmp_path / "a", MODELS["bert"]())
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(BrokenArtifact, match="is missing"):
        read(tmp_path / "a", MODELS["bert"]())


def test_convolutions_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "plain", where="linear") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["conv1"]}))
    with pytest.raises(CannotExpress, match="'conv1' is a Conv2d"):
        read(tmp_path / "a", MODELS["cnn"]())


def test_parts_of_a_fused_projection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotExpress, match="attn.q of the fused"):
        written(tmp_path / "a", "gpt2")
    assert not (tmp_path / "a").exists()


def test_two_on_one_module_and_two_dropouts_are_refused(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.VeRA(rank=8))
    site = next(iter(at.edits.values())).site
    at.put(site, Vectors, rank=8)
    with pytest.raises(CannotExpress, match="two VeRA edits"):
        write(at, tmp_path / "a", unchanged=True)
    at.replace(f"{site.key}#random-vectors+", Vectors, rank=8)
    at.take_away(f"{site.key}#random-vectors+")
    at.replace(f"{site.key}#random-vectors", Vectors, rank=8, dropout=0.5)
    with pytest.raises(CannotExpress, match="dropouts"):
        write(at, tmp_path / "a", unchanged=True)


def test_matrices_that_are_larger_than_needed_are_refused(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.VeRA(rank=8, where="attn.q|mlp.in"))
    for key in [key for key in at.edits if "intermediate" in key]:
        at.take_away(key)
    with pytest.raises(CannotExpress, match="larger than"):
        write(at, tmp_path / "a", unchanged=True)


def test_ranks_found_in_training_are_those_of_a_plain_lora(tmp_path: Path) -> None:
    """AdaLoRA's finish leaves plain edits of different ranks, which PEFT loads as LoRA with a rank pattern."""
    model = MODELS["bert"]()
    method = thrifty.AdaLoRA(rank=4, target=2, every=1)
    at = thrifty.attach(model, method)
    optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
    for step in range(1, 13):
        optimiser.zero_grad()
        model(**batch("bert")).logits.square().sum().backward()
        optimiser.step()
        method.step(at, step, 12)
    with pytest.raises(CannotExpress, match="'components'"):
        write(at, tmp_path / "early")
    method.finish(at)
    wanted = answer(model, "bert")
    assert len({row.numbers["rank"] for row in at.plan}) > 1
    write(at, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(MODELS["bert"](), tmp_path / "a").eval()
    assert (answer(theirs, "bert") - wanted).abs().max() < 1e-5
