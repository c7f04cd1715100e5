"""Adapters of HF PEFT, read and written: outputs equal to the real PEFT's on the same base."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, shake

import thrifty
from thrifty.artifact.peft import read, write
from thrifty.core.errors import NothingTrains

peft = pytest.importorskip("peft")
NEAR = 1e-5


def by_peft(name: str, config: Any, folder: Path) -> torch.Tensor:
    """Train (by noise) and save with PEFT; what the adapted model answers."""
    model = peft.get_peft_model(MODELS[name](), config)
    shake(p for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(folder)
    return answer(model, name)


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


LORA, IA3, VERA = peft.LoraConfig, peft.IA3Config, peft.VeraConfig
READ: dict[str, tuple[str, Any]] = {
    "bert-lora": ("bert", LORA(target_modules=["query", "value"])),
    "bert-head": ("bert", LORA(task_type="SEQ_CLS", target_modules=["query"], r=4, lora_alpha=16, lora_dropout=0.1)),
    "bert-rslora": ("bert", LORA(target_modules=["query", "dense"], use_rslora=True, r=3)),
    "bert-bias-all": ("bert", LORA(task_type="SEQ_CLS", target_modules=["query"], bias="all")),
    "bert-bias-lora": ("bert", LORA(target_modules=["query", "key"], bias="lora_only")),
    "bert-regex": ("bert", LORA(target_modules=r".*layer\.[01]\.attention\.self\.(query|value)")),
    "bert-patterns": ("bert", LORA(target_modules=["query", "value"], rank_pattern={r"layer.1.*query": 3, "value": 2},
                                   alpha_pattern={"^bert.encoder.layer.0.attention.self.query": 5})),
    "bert-layers": ("bert", LORA(target_modules=["query"], layers_to_transform=[0, 2])),
    "bert-one-layer": ("bert", LORA(target_modules=["query"], layers_to_transform=1, layers_pattern="layer")),
    "bert-exclude": ("bert", LORA(target_modules=["query", "value"], exclude_modules=r".*layer\.2.*")),
    "bert-embedding": ("bert", LORA(target_modules=["word_embeddings", "query"])),
    "bert-dora": ("bert", LORA(target_modules=["query", "dense"], use_dora=True)),
    "bert-ia3": ("bert", IA3(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])),
    "bert-ia3-regex": ("bert", IA3(target_modules=r".*(key|value|intermediate\.dense)",
                                   feedforward_modules=r".*intermediate\.dense")),
    "gpt2-fused": ("gpt2", LORA(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    "gpt2-dora": ("gpt2", LORA(target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True)),
    "gpt2-ia3": ("gpt2", IA3(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"])),
    "llama-all": ("llama", LORA(target_modules="all-linear")),
    "llama-embedding": ("llama", LORA(target_modules=["embed_tokens", "q_proj"])),
    "llama-dora-rs": ("llama", LORA(target_modules=["q_proj", "down_proj"], use_dora=True, use_rslora=True,
                                    rank_pattern={"q_proj": 2})),
    "llama-ia3": ("llama", IA3(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "llama-saved-head": ("llama", LORA(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])),
    "t5-lora": ("t5", LORA(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wo"])),
    "t5-ia3": ("t5", IA3(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])),
    "cnn-lora": ("cnn", LORA(target_modules=["conv1", "conv2"], modules_to_save=["fc", "bn"])),
    "cnn-dora": ("cnn", LORA(target_modules=["conv1", "conv2"], use_dora=True)),
    "cnn-ia3": ("cnn", IA3(target_modules=["conv1", "conv2"], feedforward_modules=["conv2"])),
    "bert-vera": ("bert", VERA(target_modules=["query", "value"], r=8)),
    "bert-vera-shapes": ("bert", VERA(task_type="SEQ_CLS", target_modules=["query", "dense"], r=6, vera_dropout=0.1)),
    "bert-vera-bias-all": ("bert", VERA(target_modules=["query"], r=6, bias="all")),
    "bert-vera-bias-own": ("bert", VERA(target_modules=["query", "output.dense"], r=6, bias="vera_only")),
    "llama-vera-drawn": ("llama", VERA(target_modules="all-linear", r=6, save_projection=False, projection_prng_key=54321)),
    "llama-vera-layers": ("llama", VERA(target_modules=["q_proj", "up_proj"], r=6, layers_to_transform=[1], d_initial=0.5)),
    "gpt2-vera": ("gpt2", VERA(target_modules=["c_attn", "mlp.c_proj"], r=6, fan_in_fan_out=True)),
    "t5-vera": ("t5", VERA(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wo"], r=6)),
}


@pytest.mark.parametrize("case", READ)
def test_reads_what_peft_wrote(case: str, tmp_path: Path) -> None:
    name, config = READ[case]
    wanted = by_peft(name, config, tmp_path / "peft")
    model = MODELS[name]()
    before = answer(model, name)
    at = read(tmp_path / "peft", model)
    assert (answer(model, name) - wanted).abs().max() < NEAR
    assert (wanted - before).abs().max() > 100 * NEAR
    at.save(tmp_path / "own")  # what was read is an adapter like any other
    again = MODELS[name]()
    thrifty.load(again, tmp_path / "own")
    assert torch.equal(answer(again, name), answer(model, name))
    at.detach()
    assert torch.equal(answer(model, name), before)


@pytest.mark.parametrize("case", READ)
def test_peft_reads_back_what_was_read(case: str, tmp_path: Path) -> None:
    name, config = READ[case]
    wanted = by_peft(name, config, tmp_path / "peft")
    write(read(tmp_path / "peft", MODELS[name]()), tmp_path / "again", unchanged=True)
    assert (answer(peft.PeftModel.from_pretrained(MODELS[name](), tmp_path / "again").eval(), name) - wanted).abs().max() < NEAR


WRITE: dict[str, tuple[str, Any, str | None]] = {
    "bert-lora": ("bert", thrifty.LoRA(), None),
    "bert-some-layers": ("bert", thrifty.LoRA(rank=3, alpha=5.0, where="attn.q[0:2]|attn.o"), "head"),
    "bert-rs-pooler": ("bert", thrifty.LoRA(where="mlp.out", stable=True), "bert.pooler.*|classifier.*"),
    "bert-embedding": ("bert", thrifty.LoRA(where="embed|attn.q"), None),
    "bert-all-biases": ("bert", thrifty.LoRA(where="attn.q"), "*.bias"),
    "bert-their-biases": ("bert", thrifty.LoRA(where="attn.q"), "*.query.bias"),
    "bert-dora": ("bert", thrifty.DoRA(), "head"),
    "bert-ia3": ("bert", thrifty.IA3(), "head"),
    "gpt2-fused-parts": ("gpt2", thrifty.LoRA(), None),
    "gpt2-one-part": ("gpt2", thrifty.LoRA(where="attn.k|attn.o", stable=True), None),
    "gpt2-dora-parts": ("gpt2", thrifty.DoRA(where="attn.q|attn.v|mlp.out"), None),
    "gpt2-ia3-parts": ("gpt2", thrifty.IA3(), None),
    "llama-lora": ("llama", thrifty.LoRA(where="attn.?|mlp.*"), None),
    "llama-dora": ("llama", thrifty.DoRA(stable=True), None),
    "llama-ia3-norms": ("llama", thrifty.IA3(), "norm*"),
    "t5-lora": ("t5", thrifty.LoRA(where="attn.q|attn.v|mlp.out"), None),
    "t5-ia3": ("t5", thrifty.IA3(), None),
    "cnn-lora": ("cnn", thrifty.LoRA(where="conv"), "fc*|bn"),
    "cnn-dora": ("cnn", thrifty.DoRA(where="conv"), None),
    "cnn-ia3": ("cnn", thrifty.IA3(where="conv"), None),
    "bert-vera": ("bert", thrifty.VeRA(rank=8, where="attn.?|mlp.*"), "head"),
    "bert-vera-biases": ("bert", thrifty.VeRA(rank=8), "*.bias"),
    "llama-vera-drawn": ("llama", thrifty.VeRA(rank=8, keep=False, seed=54321, where="attn.?|mlp.*"), None),
    "gpt2-vera-whole": ("gpt2", thrifty.VeRA(rank=8, where="transformer.h.?.attn.c_proj|mlp.*"), None),
    "bert-lora-fa": ("bert", thrifty.LoRAFA(stable=True), "head"),
    "gpt2-lora-fa-parts": ("gpt2", thrifty.LoRAFA(), None),
}


@pytest.mark.parametrize("case", WRITE)
def test_writes_what_peft_reads(case: str, tmp_path: Path) -> None:
    name, method, also = WRITE[case]
    model = MODELS[name]()
    before = answer(model, name)
    at = thrifty.attach(model, method, also_train=also)
    shake(at.parameters())
    wanted = answer(model.eval(), name)
    write(at, tmp_path / "peft", base_name="someone/base")
    theirs = answer(peft.PeftModel.from_pretrained(MODELS[name](), tmp_path / "peft").eval(), name)
    assert (theirs - wanted).abs().max() < NEAR
    assert (wanted - before).abs().max() > 100 * NEAR
    own = MODELS[name]()
    assert read(tmp_path / "peft", own).about["peft"]["base_model_name_or_path"] == "someone/base"
    assert (answer(own, name) - wanted).abs().max() < NEAR


def test_peft_names_are_short_where_they_mean_the_same(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["bert"](), thrifty.LoRA())
    write(at, tmp_path / "a", unchanged=True)
    assert settings(tmp_path / "a")["target_modules"] == ["query", "value"]
    assert settings(tmp_path / "a")["rank_pattern"] == {}


def test_reading_and_writing_do_not_need_peft(tmp_path: Path) -> None:
    import subprocess
    import sys

    by_peft("plain", LORA(target_modules=["0", "3"]), tmp_path / "a")
    code = ("import sys; sys.modules['peft'] = None\n"
            "from artifact_models import plain; from thrifty.artifact.peft import read, write\n"
            f"write(read({str(tmp_path / 'a')!r}, plain()), {str(tmp_path / 'b')!r}, unchanged=True)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, timeout=120)
    assert settings(tmp_path / "b")["peft_type"] == "LORA"


def test_half_precision_base(tmp_path: Path) -> None:
    by_peft("llama", LORA(target_modules=["q_proj", "v_proj"]), tmp_path / "a")
    model, theirs = MODELS["llama"]().bfloat16(), MODELS["llama"]().bfloat16()
    read(tmp_path / "a", model)
    wanted = answer(peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval(), "llama")
    assert (answer(model, "llama") - wanted).abs().max() < 0.1  # a few units in the last place of bfloat16
    assert answer(model, "llama").dtype == torch.bfloat16


def test_an_embedding_that_multiplies(tmp_path: Path) -> None:
    """Gemma 3 multiplies what it looks up: the edit as PEFT has it, and the merged weight, must be multiplied too."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    def gemma() -> torch.nn.Module:
        torch.manual_seed(0)
        return Gemma3ForCausalLM(Gemma3TextConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            intermediate_size=32, max_position_embeddings=64, tie_word_embeddings=False)).eval()

    model = gemma()
    at = thrifty.attach(model, thrifty.LoRA(where="embed"))
    shake(at.parameters())
    wanted = answer(model, "llama")
    write(at, tmp_path / "a")
    assert (answer(peft.PeftModel.from_pretrained(gemma(), tmp_path / "a").eval(), "llama") - wanted).abs().max() < NEAR
    at.merge()
    assert (answer(model, "llama") - wanted).abs().max() < NEAR


def test_nothing_to_write(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["plain"](), thrifty.LoRA(where="linear"))
    with pytest.raises(NothingTrains, match="has changed since"):
        write(at, tmp_path / "a")
    assert not (tmp_path / "a").exists()
