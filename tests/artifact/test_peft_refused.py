"""What PEFT's files may hold that is refused, and what an attachment may hold that PEFT's files cannot say: by name."""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, shake
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import thrifty
from thrifty.artifact.peft import CannotExpress, read, write
from thrifty.core.errors import BrokenArtifact, HalfAdapted, NoSuchSite, ThriftyError, WrongBase

Config, Tensors = dict[str, Any], dict[str, Tensor]
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def written(folder: Path, name: str = "bert", method: Any = None, also: str | None = "head") -> Path:
    at = thrifty.attach(MODELS[name](), method or thrifty.LoRA(where="attn.q"), also_train=also)
    shake(at.parameters())
    return write(at, folder)


def change(folder: Path, config: Callable[[Config], Any] | None = None,
           tensors: Callable[[Tensors], Any] | None = None) -> None:
    where = folder / "adapter_config.json"
    if config is not None:
        data = json.loads(where.read_text())
        config(data)
        where.write_text(json.dumps(data))
    if tensors is not None:
        state = load_file(folder / "adapter_model.safetensors")
        tensors(state)
        save_file(state, folder / "adapter_model.safetensors")


CONFIGS: dict[str, tuple[Callable[[Config], Any], type[Exception], str]] = {
    "unknown key": (lambda c: c.update(lora_alhpa=3), BrokenArtifact, "'lora_alhpa'.*'lora_alpha'"),
    "wrong type": (lambda c: c.update(r="8"), BrokenArtifact, "'r' is of the wrong type"),
    "no rank": (lambda c: c.pop("r"), BrokenArtifact, "r = None"),
    "no alpha": (lambda c: c.pop("lora_alpha"), BrokenArtifact, "lora_alpha"),
    "other type": (lambda c: c.update(peft_type="LOHA"), CannotExpress, "'LOHA' cannot be expressed.*LORA, VERA, IA3"),
    "pissa": (lambda c: c.update(init_lora_weights="pissa_niter_4"), CannotExpress, "pissa_niter_4.*base weights"),
    "lora bias": (lambda c: c.update(lora_bias=True), CannotExpress, "lora_bias = True"),
    "expert parameters": (lambda c: c.update(target_parameters=["mlp.experts.up"]), CannotExpress, "target_parameters"),
    "trainable tokens": (lambda c: c.update(trainable_token_indices=[3]), CannotExpress, "trainable_token_indices"),
    "replicated layers": (lambda c: c.update(layer_replication=[[0, 2]]), CannotExpress, "layer_replication"),
    "velora": (lambda c: c.update(velora_config={"num_groups": 2}), CannotExpress, "velora_config"),
    "bias of another kind": (lambda c: c.update(bias="some"), BrokenArtifact, "bias = 'some'"),
    "misspelt target": (lambda c: c.update(target_modules=["query", "vaule"]), NoSuchSite,
                       "'vaule' matches no module.*'value'"),
    "pattern without a match": (lambda c: c.update(target_modules=r".*\.qury"), NoSuchSite, "qury"),
    "no target": (lambda c: c.update(target_modules=None), BrokenArtifact, "target_modules = None"),
    "unresolved all-linear": (lambda c: c.update(target_modules="all-linear"), BrokenArtifact, "all-linear"),
    "more targets than tensors": (lambda c: c.update(target_modules=["query", "value"]), BrokenArtifact,
                                  "value.lora_A.* missing"),
    "fewer targets than tensors": (lambda c: c.update(target_modules=["layer.0.attention.self.query"]), BrokenArtifact,
                                   "4 tensors of which its config says nothing"),
    "missing layer": (lambda c: c.update(layers_to_transform=[0, 1, 2, 7]), NoSuchSite, "layer 7"),
    "rank pattern without a match": (lambda c: c.update(rank_pattern={"qeury": 4}), NoSuchSite, "rank_pattern: 'qeury'"),
    "alpha pattern without a match": (lambda c: c.update(alpha_pattern={"layer.9.*": 4}), NoSuchSite, "alpha_pattern"),
    "rank that is no number": (lambda c: c.update(rank_pattern={"query": 0}), BrokenArtifact, "rank_pattern"),
    "another rank": (lambda c: c.update(r=4), BrokenArtifact, r"shape \(8, 16\); config and model ask for \(4, 16\)"),
    "a rank that fills the memory": (lambda c: c.update(r=10**9), BrokenArtifact, "ask for \\(1000000000, 16\\)"),
    "module to save that is not there": (lambda c: c.update(modules_to_save=["classifier", "lm_haed"]), NoSuchSite,
                                         "'lm_haed'"),
    "head without tensors": (lambda c: c.update(modules_to_save=["classifier", "pooler"]), BrokenArtifact, "pooler.* missing"),
    "head that is not said": (lambda c: c.update(modules_to_save=None), BrokenArtifact, "classifier"),
    "no regular expression": (lambda c: c.update(target_modules="query("), BrokenArtifact, "not a regular expression"),
    "dora without magnitudes": (lambda c: c.update(use_dora=True), BrokenArtifact, "lora_magnitude_vector.* missing"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_is_refused(case: str, tmp_path: Path) -> None:
    alter, kind, said = CONFIGS[case]
    folder = written(tmp_path / "a")
    change(folder, alter)
    model = MODELS["bert"]()
    before, keys = answer(model, "bert"), list(model.state_dict())
    with pytest.raises(kind, match=f"(?s){said}"):
        read(folder, model)
    assert torch.equal(answer(model, "bert"), before) and list(model.state_dict()) == keys
    assert not thrifty.attachments(model) and all(p.requires_grad for p in model.parameters())


TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop(f"{QUERY}.lora_B.weight"), "lora_B.weight' is missing"),
    "left over": (lambda t: t.update({f"{QUERY}.lora_C.weight": torch.ones(3)}), "1 tensors of which.*lora_C"),
    "wrong shape": (lambda t: t.update({f"{QUERY}.lora_B.weight": torch.ones(17, 8)}), r"\(17, 8\)"),
    "wrong head": (lambda t: t.update({"base_model.model.classifier.weight": torch.ones(4, 16)}), r"\(4, 16\)"),
    "not finite": (lambda t: t[f"{QUERY}.lora_A.weight"].__setitem__((0, 0), float("nan")), "lora_A.* NaN"),
    "infinite": (lambda t: t[f"{QUERY}.lora_A.weight"].__setitem__((0, 0), float("inf")), "infinity"),
    "integers": (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(8, 16, dtype=torch.int32)}), "int32"),
    "without prefix": (lambda t: t.update(stray=torch.ones(3)), "'stray' does not begin with"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused(case: str, tmp_path: Path) -> None:
    alter, said = TENSORS[case]
    folder = written(tmp_path / "a")
    change(folder, tensors=alter)
    with pytest.raises(BrokenArtifact, match=f"(?s){said}"):
        read(folder, MODELS["bert"]())


def test_truncated_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 50, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(BrokenArtifact, match="truncated"):
            read(folder, MODELS["bert"]())


def test_pickle_is_not_opened(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(BrokenArtifact, match=re.escape("adapter_model.bin")):
        read(folder, MODELS["bert"]())


def test_no_adapter_at_all(tmp_path: Path) -> None:
    with pytest.raises(BrokenArtifact, match="adapter_config.json"):
        read(tmp_path / "nowhere", MODELS["plain"]())


def test_the_base_cannot_be_compared(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with pytest.raises(WrongBase, match="base='any'"):
        read(folder, MODELS["bert"](), base="same")
    with pytest.raises(WrongBase, match="'some'"):
        read(folder, MODELS["bert"](), base="some")


def test_another_model(tmp_path: Path) -> None:
    with pytest.raises(NoSuchSite, match="LlamaForCausalLM"):
        read(written(tmp_path / "a"), MODELS["llama"]())


def test_one_module_at_two_places(tmp_path: Path) -> None:
    shared = nn.Linear(6, 6)
    folder = written(tmp_path / "a", "plain", thrifty.LoRA(where="linear"), None)
    change(folder, lambda c: c.update(target_modules=["0"]), lambda t: [t.pop(k) for k in list(t) if ".0." not in k])
    with pytest.raises(HalfAdapted, match=r"\['0', '2'\]"):
        read(folder, nn.Sequential(shared, nn.ReLU(), shared))


def test_a_tied_head_cannot_be_saved_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "gpt2", thrifty.LoRA(where="attn.o"), None)
    head = {"base_model.model.lm_head.weight": MODELS["gpt2"]().lm_head.weight.detach().clone()}
    change(folder, lambda c: c.update(modules_to_save=["lm_head"]), lambda t: t.update(head))
    with pytest.raises(HalfAdapted, match="tied to .*wte"):
        read(folder, MODELS["gpt2"]())


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2),
                                   nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")])
def test_convolutions_where_peft_computes_something_else(layer: nn.Module, tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "plain", thrifty.LoRA(where="linear"), None)
    change(folder, lambda c: c.update(target_modules=["0"]))
    with pytest.raises(CannotExpress, match="'0': PEFT's convolution"):
        read(folder, nn.Sequential(layer))


def test_multihead_attention(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    folder = written(tmp_path / "a", "plain", thrifty.LoRA(where="linear"), None)
    change(folder, lambda c: c.update(target_modules=["self_attn"]))
    with pytest.raises(CannotExpress, match="MultiheadAttention"):
        read(folder, model)
    with pytest.raises(CannotExpress, match="MultiheadAttention"):
        write(thrifty.attach(model, thrifty.LoRA(where="attn.q"), check=False), tmp_path / "b", unchanged=True)


WRITTEN: dict[str, tuple[str, Any, str | None, str]] = {
    "houlsby": ("bert", "Houlsby", None, "houlsby: the edit 'bottleneck'.*PEFT reads LoRA"),
    "pfeiffer": ("bert", "Pfeiffer", None, "pfeiffer: the edit"),
    "parallel adapter": ("bert", "ParallelAdapter", None, "the edit"),
    "bitfit": ("bert", "BitFit", None, "bitfit: base parameters that train in place, and no edit"),
    "layer norms": ("bert", "LayerNormTuning", None, "no edit"),
    "whole model": ("bert", "FullFineTuning", None, "no edit"),
    "part of a head": ("bert", "LoRA", "classifier.weight", "'classifier.weight'.*without the rest"),
    "tied head": ("gpt2", "LoRA", "head|embed", "tied"),
    "biases with ia3": ("bert", "IA3", "*.bias", "keeps no biases"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_peft_has_no_word_for_it(case: str, tmp_path: Path) -> None:
    name, method, also, said = WRITTEN[case]
    at = thrifty.attach(MODELS[name](), getattr(thrifty, method)(), also_train=also)
    with pytest.raises(CannotExpress, match=said):
        write(at, tmp_path / "a", unchanged=True)
    assert not (tmp_path / "a").exists()


def test_an_edit_that_is_off(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.LoRA())
    at.disable(lambda row: row.depth == 0)
    with pytest.raises(CannotExpress, match="is off"):
        write(at, tmp_path / "a", unchanged=True)


def test_merged_and_detached(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.LoRA())
    shake(at.parameters())
    at.merge()
    with pytest.raises(ThriftyError, match="merged"):
        write(at, tmp_path / "a")
    at.detach()
    with pytest.raises(ThriftyError, match="detached"):
        write(at, tmp_path / "a")


def test_an_edit_inside_a_module_that_is_saved(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.LoRA(where="attn.q|bert.pooler.dense"), also_train="bert.pooler.*")
    with pytest.raises(CannotExpress, match="bert.pooler"):
        write(at, tmp_path / "a", unchanged=True)
