"""Small random image-text models that know classes by their names, and the one that the reference arrays were made with."""
from __future__ import annotations

import json
from typing import Any

import torch
import transformers as hf
from backbones import golden
from torch import Tensor

from thrifty.clip import ImageTextModel

LABELS = ["face", "leopard", "yin yang", "sea horse"]
WORDS = ["a", "photo", "of", "the", "art", "bad", "large", ".", "texture", "x", "face", "leopard", "yin", "yang", "sea", "horse",
         "cat", "dog"]
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64,
        "max_position_embeddings": 24}
IMAGE = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
         "patch_size": 8}


class Reader:
    """Words to numbers; what is given as one name may be several tokens. ``begin`` and ``end`` go around a sentence."""

    def __init__(self, known: dict[str, list[int]], begin: list[int], end: list[int]):
        self.known, self.begin, self.end, self.pad_token_id = known, begin, end, 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        for name in (n for n in self.known if " " in n):
            text = text.replace(name, name.replace(" ", "_"))
        ids = [i for word in text.replace(".", " .").replace(",", " ,").split() for i in self.known[word.replace("_", " ")]]
        return {"input_ids": [*self.begin, *ids, *self.end] if add_special_tokens else ids}


def reader(begin: bool = True) -> Reader:
    return Reader({word: [i + 1] for i, word in enumerate(WORDS)}, [62] if begin else [], [63])


def clip(labels: list[str] = LABELS, templates: Any = None, seed: int = 0, **text: Any) -> ImageTextModel:
    """Three blocks in each tower; weights large enough that everything shows."""
    torch.manual_seed(seed)
    trunk = hf.CLIPModel(hf.CLIPConfig(text_config={**TEXT, "eos_token_id": 63, **text}, vision_config=IMAGE, projection_dim=32))
    return ImageTextModel(stirred(trunk), reader(), labels, templates).eval()


def siglip(labels: list[str] = LABELS, templates: Any = None, seed: int = 0) -> ImageTextModel:
    torch.manual_seed(seed)
    image = {**IMAGE, "hidden_size": 16}
    trunk = hf.SiglipModel(hf.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=image))
    return ImageTextModel(stirred(trunk), reader(begin=False), labels, templates).eval()


def stirred(trunk: Any) -> Any:
    with torch.no_grad():
        for name, p in trunk.named_parameters():
            p.add_((0.05 if p.dim() < 2 or "norm" in name else 0.5 * p[0].numel() ** -0.5) * torch.randn_like(p))
    return trunk


def pictures(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def logits(model: Any, pixels: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(pictures() if pixels is None else pixels)["logits"]


def golden_clip() -> tuple[ImageTextModel, dict[str, Any]]:
    """The small CLIP of the reference arrays with its vocabulary, and the arrays."""
    g = golden("vlm_tiny_clip")
    config = json.loads(g["hp/hf_config"]) if isinstance(g["hp/hf_config"], str) else g["hp/hf_config"]
    trunk = hf.CLIPModel(hf.CLIPConfig(**config))
    trunk.load_state_dict({k.removeprefix("clip/"): torch.as_tensor(v) for k, v in g.items() if k.startswith("clip/")})
    rows = [row[: row.tolist().index(63) + 1].tolist() for row in g["in/input_ids"]]
    a, photo, of = rows[0][1:4]
    known = {"a": [a], "photo": [photo], "of": [of], ".": [rows[0][-2]]} | {
        name: row[5:-2] for name, row in zip(LABELS, rows, strict=True)}
    return ImageTextModel(trunk, Reader(known, [62], [63]), LABELS).eval(), g
