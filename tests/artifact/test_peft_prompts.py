"""Prompts and prefixes of HF PEFT: equal on the text, or refused with the reason."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, _seeded, answer, batch, shake
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import thrifty
from thrifty.artifact.peft import CannotExpress, read, write
from thrifty.core.errors import BrokenArtifact

peft = pytest.importorskip("peft")
NEAR, LENGTH = 1e-5, 3
ROTARY = {"mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma": {"head_dim": 8}}


def rotary(kind: str, **more: Any) -> nn.Module:
    import transformers

    name = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "llama": "Llama"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        max_position_embeddings=64, **{**ROTARY.get(kind, {}), **more})
    return _seeded(1, lambda: getattr(transformers, f"{name}ForCausalLM")(config))


def tagger() -> nn.Module:
    from transformers import BertConfig, BertForTokenClassification

    return _seeded(1, lambda: BertForTokenClassification(BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=3)))


def classifier() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return _seeded(1, lambda: LlamaForSequenceClassification(LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=3, pad_token_id=0)))


def prefix(task: str = "CAUSAL_LM", **more: Any) -> Any:
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=LENGTH, **more)


def prompt(task: str = "CAUSAL_LM", **more: Any) -> Any:
    return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH, **more)


def by_peft(model: nn.Module, config: Any, folder: Path, name: str = "llama") -> Tensor:
    """Train (by noise), save, load again (a projected prefix is kept as what it makes), and answer."""
    adapted = peft.get_peft_model(model, config)
    shake(p for p in adapted.parameters() if p.requires_grad)
    adapted.eval().save_pretrained(folder)
    return answer(adapted, name)


PREFIXES: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "gpt2": (MODELS["gpt2"], prefix(), "gpt2"), "llama": (MODELS["llama"], prefix(), "llama"),
    "bert with its head": (MODELS["bert"], prefix("SEQ_CLS"), "bert"),
    "llama with a head": (classifier, prefix("SEQ_CLS"), "llama"),
    "projected": (MODELS["llama"], prefix(prefix_projection=True, encoder_hidden_size=8), "llama"),
    "yarn": (lambda: rotary("llama", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                                      "original_max_position_embeddings": 16}), prefix(), "llama"),
    **{kind: (lambda kind=kind: rotary(kind), prefix(), "llama") for kind in ROTARY},
}
PROMPTS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "gpt2": (MODELS["gpt2"], prompt(), "gpt2"), "llama": (MODELS["llama"], prompt(), "llama"),
    "bert tagger": (tagger, prompt("TOKEN_CLS"), "bert"),
    "t5, encoder": (MODELS["t5"], prompt("SEQ_2_SEQ_LM", num_transformer_submodules=1), "t5"),
    "t5, both": (MODELS["t5"], prompt("SEQ_2_SEQ_LM"), "t5"),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefixes_both_ways(case: str, tmp_path: Path) -> None:
    make, config, name = PREFIXES[case]
    wanted = by_peft(make(), config, tmp_path / "a", name)
    model = make()
    at = read(tmp_path / "a", model)
    assert (answer(model, name) - wanted).abs().max() < NEAR
    assert (answer(make(), name) - wanted).abs().max() > 100 * NEAR
    write(at, tmp_path / "b", unchanged=True)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "b").eval()
    assert (answer(theirs, name) - wanted).abs().max() < NEAR
    at.save(tmp_path / "own")
    again = make()
    thrifty.load(again, tmp_path / "own")
    assert torch.equal(answer(again, name), answer(model, name))


@pytest.mark.parametrize("mlp", [False, True])
def test_an_own_prefix_written(mlp: bool, tmp_path: Path) -> None:
    model = MODELS["llama"]()
    at = thrifty.attach(model, thrifty.PrefixTuning(length=4, mlp=mlp, hidden=8))
    shake(at.parameters())
    wanted = answer(model, "llama")
    write(at, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(MODELS["llama"](), tmp_path / "a").eval()
    assert (answer(theirs, "llama") - wanted).abs().max() < NEAR


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_p_tuning_v2_written(name: str, tmp_path: Path) -> None:
    """Its positions begin behind the prefix, as PEFT's do."""
    model = MODELS[name]()
    at = thrifty.attach(model, thrifty.PrefixTuning(length=4, mlp=False, shift=True))
    shake(at.parameters())
    write(at, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(MODELS[name](), tmp_path / "a").eval()
    assert (answer(theirs, name) - answer(model, name)).abs().max() < NEAR


def test_a_prefix_generates_the_same(tmp_path: Path) -> None:
    adapted = peft.get_peft_model(MODELS["gpt2"](), prefix())
    shake(p for p in adapted.parameters() if p.requires_grad)
    adapted.eval().save_pretrained(tmp_path / "a")
    model: Any = MODELS["gpt2"]()
    read(tmp_path / "a", model)
    ids = batch("gpt2")["input_ids"][:1]
    more = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(input_ids=ids, **more), adapted.generate(input_ids=ids, **more))


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_both_ways(case: str, tmp_path: Path) -> None:
    """PEFT's logits of the text; those that it returns for the prompt itself are not returned here."""
    make, config, name = PROMPTS[case]
    skip = 0 if name == "t5" else LENGTH
    wanted = by_peft(make(), config, tmp_path / "a", name)[:, skip:]
    model = make()
    at = read(tmp_path / "a", model)
    assert (answer(model, name) - wanted).abs().max() < NEAR
    assert (answer(make(), name) - wanted).abs().max() > 100 * NEAR
    write(at, tmp_path / "b", unchanged=True)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "b").eval()
    assert (answer(theirs, name)[:, skip:] - wanted).abs().max() < NEAR


def test_an_own_prompt_written(tmp_path: Path) -> None:
    model = tagger()
    at = thrifty.attach(model, thrifty.PromptTuning(length=4))
    shake(at.parameters())
    write(at, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tagger(), tmp_path / "a").eval()
    assert (answer(theirs, "bert")[:, 4:] - answer(model, "bert")).abs().max() < NEAR


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "prefix on t5": (MODELS["t5"], prefix("SEQ_2_SEQ_LM"), "PREFIX_TUNING through T5ForConditionalGeneration has no equal"),
    "prompt before a pooler": (MODELS["bert"], prompt("SEQ_CLS"), "counted from the prompt's beginning"),
    "prefix in a window": (lambda: rotary("mistral", sliding_window=8), prefix(), "slides out of the attention window"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_equal_here(case: str, tmp_path: Path) -> None:
    make, config, said = REFUSED[case]
    peft.get_peft_model(make(), config).save_pretrained(tmp_path / "a")
    model = make()
    with pytest.raises(CannotExpress, match=said):
        read(tmp_path / "a", model)
    assert not thrifty.attachments(model)


def test_no_equal_in_peft(tmp_path: Path) -> None:
    at = thrifty.attach(MODELS["gpt2"](), thrifty.PrefixTuning(length=4, mlp=False))
    with pytest.raises(CannotExpress, match="moves the text's positions in 'transformer.wpe' by 4; .* moved by 0"):
        write(at, tmp_path / "a", unchanged=True)
    at = thrifty.attach(MODELS["llama"](), thrifty.PrefixTuning(length=4, mlp=False, where="attn[0:1]"))
    with pytest.raises(CannotExpress, match="1 prefixes .* in 2 layers"):
        write(at, tmp_path / "a", unchanged=True)
    at = thrifty.attach(MODELS["bert"](), thrifty.PromptTuning(length=4))
    with pytest.raises(CannotExpress, match="counted from the prompt's beginning"):
        write(at, tmp_path / "a", unchanged=True)
    at = thrifty.attach(rotary("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
                        thrifty.PrefixTuning(length=4, mlp=False))
    with pytest.raises(CannotExpress, match="'dynamic'"):
        write(at, tmp_path / "a", unchanged=True)


@pytest.mark.parametrize("config", [prefix(), prompt()], ids=["prefix", "prompt"])
def test_files_that_do_not_fit(config: Any, tmp_path: Path) -> None:
    by_peft(MODELS["llama"](), config, tmp_path / "a")
    where = tmp_path / "a" / "adapter_config.json"
    data = json.loads(where.read_text())
    for length, said in ((10**9, "ask for \\(1000000000"), (2, "ask for \\(2,"), (0, "no length"), (None, "wrong type")):
        where.write_text(json.dumps({**data, "num_virtual_tokens": length}))
        with pytest.raises(BrokenArtifact, match=said):
            read(tmp_path / "a", MODELS["llama"]())
    where.write_text(json.dumps({**data, "task_type": "SEQ_CLS"}))
    with pytest.raises(CannotExpress, match="for the task SEQ_CLS, LlamaForCausalLM is for CAUSAL_LM"):
        read(tmp_path / "a", MODELS["llama"]())
    where.write_text(json.dumps(data))
    file = tmp_path / "a" / "adapter_model.safetensors"
    state = load_file(file)
    save_file({"prompt_embeddings": state["prompt_embeddings"][:, :-2].contiguous()}, file, {"format": "pt"})
    with pytest.raises(BrokenArtifact, match="'prompt_embeddings' has shape"):
        read(tmp_path / "a", MODELS["llama"]())
    save_file({"other": state["prompt_embeddings"]}, file, {"format": "pt"})
    with pytest.raises(BrokenArtifact, match="'other' does not begin with"):
        read(tmp_path / "a", MODELS["llama"]())
