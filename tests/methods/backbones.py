"""Small random backbones, published ones without numbers, and reference arrays, for the tests of the methods."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

SHARED = Path(os.environ.get("THRIFTY_SHARED", Path(__file__).resolve().parents[3] / "shared"))
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 16, "patch_size": 8, **SMALL}
IDS = torch.tensor([[5, 9, 11, 3, 7], [6, 2, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (hf.BertForSequenceClassification, hf.BertConfig, {"vocab_size": 64, **SMALL}),
    "bert-tokens": (hf.BertForTokenClassification, hf.BertConfig, {"vocab_size": 64, **SMALL}),
    "roberta": (hf.RobertaForSequenceClassification, hf.RobertaConfig,
                {"vocab_size": 64, "max_position_embeddings": 66, "pad_token_id": 1, **SMALL}),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config,
             {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1,
              "eos_token_id": None}),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, {"vocab_size": 64, "num_key_value_heads": 1, "eos_token_id": None, **SMALL}),
    "llama-class": (hf.LlamaForSequenceClassification, hf.LlamaConfig,
                    {"vocab_size": 64, "num_key_value_heads": 1, "pad_token_id": 0, **SMALL}),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config,
           {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "decoder_start_token_id": 0}),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig,
             {"vocab_size": 64, "d_model": 16, "max_position_embeddings": 64, "decoder_start_token_id": 2, "encoder_layers": 2,
              "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
              "decoder_ffn_dim": 32}),
    "vit": (hf.ViTForImageClassification, hf.ViTConfig, IMAGE),
    "deit": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, IMAGE),
    "dinov2": (hf.Dinov2ForImageClassification, hf.Dinov2Config,
               {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "swin": (hf.SwinForImageClassification, hf.SwinConfig,
             {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}),
    "beit": (hf.BeitForImageClassification, hf.BeitConfig, {"use_relative_position_bias": True, **IMAGE}),
    "resnet": (hf.ResNetForImageClassification, hf.ResNetConfig,
               {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "convnext": (hf.ConvNextForImageClassification, hf.ConvNextConfig,
                 {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 0.5}),
}

PUBLISHED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert-base": (hf.BertModel, hf.BertConfig, {}),
    "bert-large": (hf.BertModel, hf.BertConfig, {"vocab_size": 28996, "hidden_size": 1024, "num_hidden_layers": 24,
                                                 "num_attention_heads": 16, "intermediate_size": 4096}),
    "roberta-base": (hf.RobertaModel, hf.RobertaConfig, {"vocab_size": 50265, "max_position_embeddings": 514}),
    "roberta-large": (hf.RobertaModel, hf.RobertaConfig, {
        "vocab_size": 50265, "max_position_embeddings": 514, "hidden_size": 1024, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 4096}),
    "t5-base": (hf.T5ForConditionalGeneration, hf.T5Config, {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "gpt2-medium": (hf.GPT2Model, hf.GPT2Config, {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "bart-large": (hf.BartModel, hf.BartConfig, {}),
    "llama-7b": (hf.LlamaModel, hf.LlamaConfig, {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
                                                 "num_hidden_layers": 32, "num_attention_heads": 32}),
    "vit-b16": (hf.ViTModel, hf.ViTConfig, {}),
    "swin-b": (hf.SwinModel, hf.SwinConfig, {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}),
    "resnet-50": (hf.ResNetModel, hf.ResNetConfig, {}),
}


def tiny(kind: str, seed: int = 0, **config: Any) -> Any:
    """A small random model of that family in eval mode; the same numbers for the same seed."""
    torch.manual_seed(seed)
    model, configuration, small = FAMILIES[kind]
    return model(configuration(**{**small, **config})).eval()


def published(name: str) -> Any:
    """A published architecture with no numbers in it, for counting."""
    model, configuration, sizes = PUBLISHED[name]
    with torch.device("meta"):
        return model(configuration(**sizes))


def count(at: Any) -> int:
    """How many numbers an attachment trains."""
    return sum(p.numel() for p in at.parameters())


def run(model: nn.Module, **more: Any) -> Tensor:
    """Logits of a fixed batch that suits the model."""
    if getattr(model, "main_input_name", "") == "pixel_values":
        generator = torch.Generator().manual_seed(1)
        side = model.config.image_size if hasattr(model.config, "image_size") else 32
        more.setdefault("pixel_values", torch.randn(2, 3, side, side, generator=generator))
        return model(**more).logits
    if model.config.is_encoder_decoder:
        more.setdefault("decoder_input_ids", IDS[:, :3])
    return model(input_ids=IDS, attention_mask=MASK, **more).logits


def shake(at: Any, size: float = 0.3) -> None:
    """Move everything that trains, so that an edit which does nothing shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in at.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))


def frozen_stay(model: nn.Module, at: Any, steps: int = 3) -> set[str]:
    """Train for ``steps`` with decay and check that nothing frozen moves or gets a gradient; names of what did move."""
    before = {n: t.clone() for n, t in model.state_dict().items()}
    mine = {id(p) for p in at.parameters()}
    optimiser = torch.optim.AdamW(at.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        run(model).square().mean().backward()
        optimiser.step()
    trains = {n for n, p in model.named_parameters() if id(p) in mine}
    for name, p in model.named_parameters():
        assert name in trains or (p.grad is None and torch.equal(p, before[name])), name
    return {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}


def golden(name: str) -> dict[str, Any]:
    """Reference arrays as tensors, names as lists; numbers of the setting as Python numbers."""
    numpy = pytest.importorskip("numpy")
    path = SHARED / "golden" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no reference arrays at {path}; set THRIFTY_SHARED")
    with numpy.load(path) as held:
        return {k: held[k].item() if held[k].ndim == 0 else held[k].tolist() if held[k].dtype.kind == "U"
                else torch.from_numpy(held[k]) for k in held}


def reference_vit(g: dict[str, Any]) -> Any:
    """A transformers ViT with the weights of reference arrays; its head is random where they have none."""
    w = {k[2:].removeprefix("transformer."): v for k, v in g.items() if k.startswith("w/")}
    mlp, width = w["encoder.layer.0.ffn.fc1.weight"].shape
    config = hf.ViTConfig(hidden_size=width, num_hidden_layers=g["hp/layers"], num_attention_heads=g["hp/heads"],
                          intermediate_size=mlp, patch_size=g["hp/patch"], image_size=24, num_labels=5,
                          layer_norm_eps=g["hp/layernorm_eps"], hidden_act="gelu")
    model = hf.ViTForImageClassification(config).eval()
    state = {"vit.embeddings.cls_token": w["embeddings.cls_token"],
             "vit.embeddings.position_embeddings": w["embeddings.position_embeddings"]}
    places = {"vit.embeddings.patch_embeddings.projection": "embeddings.patch_embeddings", "vit.layernorm": "encoder.encoder_norm",
              "classifier": "head"}
    inside = {"layernorm_before": "attention_norm", "layernorm_after": "ffn_norm", "mlp.fc1": "ffn.fc1", "mlp.fc2": "ffn.fc2",
              "attention.q_proj": "attn.query", "attention.k_proj": "attn.key", "attention.v_proj": "attn.value",
              "attention.o_proj": "attn.out"}
    places |= {f"vit.layers.{i}.{ours}": f"encoder.layer.{i}.{theirs}" for i in range(3) for ours, theirs in inside.items()}
    if "head.weight" not in w:
        del places["classifier"]
    state |= {f"{ours}.{k}": w[f"{theirs}.{k}"] for ours, theirs in places.items() for k in ("weight", "bias")}
    wanted = [] if "classifier" in places else ["classifier.weight", "classifier.bias"]
    assert model.load_state_dict(state, strict=False).missing_keys == wanted
    return model
