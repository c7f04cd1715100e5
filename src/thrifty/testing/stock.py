"""Tiny backbones that do not come from transformers: torch.nn's own layers, timm and open_clip."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..clip import ImageTextModel
from ..core.errors import Missing
from ..core.hooks import main
from ..navigation.agent import Agent
from ..navigation.config import AgentConfig
from .zoo import HUGGING_FACE

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "timm_vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 32, "patch_size": 8}),
    "timm_swin": ("swin_tiny_patch4_window7_224",
                  {"depths": (1, 1), "embed_dim": 8, "num_heads": (2, 2), "img_size": 32, "window_size": 4}),
    "timm_resnet": ("resnet10t", {"channels": (8, 8, 16, 16), "stem_width": 8}),
    "timm_convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
}


class Attender(nn.Module):
    """Token ids [batch, length] -> 5 logits, through one nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(64, 16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        """``padding`` is true where there is no token."""
        x = self.embed_tokens(ids)
        y, _ = self.attn(x, x, x, key_padding_mask=padding, need_weights=False)
        logits: Tensor = self.head(self.norm(x + y).mean(1))
        return logits


class Convolver(nn.Module):
    """Images [batch, 3, 32, 32] -> 5 logits, through convolutions named like nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1, stride=2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Average over places, then classify."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)


class Letters:
    """A tokenizer of 64 tokens: each word is one, made of its first and last letter."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """As those of transformers: 62 in front, 63 behind."""
        ids = [2 + (31 * ord(w[0]) + ord(w[-1])) % 59 for w in text.replace(".", " .").split()]
        return {"input_ids": [62, *ids, 63] if add_special_tokens else ids}


TORCH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "encoder": (lambda: _encoder(False), "sequence"),
    "encoder_norm_first": (lambda: _encoder(True), "sequence"),
    "attender": (Attender, "tokens"),
    "convolver": (Convolver, "tensor"),
}


def build(name: str) -> tuple[nn.Module, str, Callable[[Any], Tensor]]:
    """The module called ``name``, the kind of batch it takes, and how to read its answer.

    Raises:
        Missing: timm or open_clip cannot be imported.
    """
    if name == "image_text":
        return _image_text(), "pictures", main
    if name == "agent":
        return Agent(AgentConfig(**AGENT)), "walk", read_options
    if name in TORCH:
        make, kind = TORCH[name]
        return make(), kind, main
    try:
        if name in TIMM:
            import timm

            kind_of, numbers = TIMM[name]
            return timm.create_model(kind_of, num_classes=5, **numbers), "tensor", main
        import open_clip  # type: ignore[import-untyped, unused-ignore]
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch raises RuntimeError
        package = "timm" if name in TIMM else "open_clip_torch"
        raise Missing(f"{name!r} needs the package {package}, which cannot be imported: {error}") from None
    vision = open_clip.model.CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=32)
    text = open_clip.model.CLIPTextCfg(context_length=16, vocab_size=64, width=16, heads=2, layers=2)
    return open_clip.model.CLIP(16, vision, text), "towers", read_towers


AGENT: dict[str, Any] = {"vocabulary": 64, "width": 16, "heads": 2, "hidden": 32, "language_layers": 2, "panorama_layers": 1,
                         "cross_layers": 2, "features": 6, "fixed_language": False, "fixed_history": False}


def read_options(out: Tensor) -> Tensor:
    """The logits of an agent, with zeros in the place of those of options that cannot be taken."""
    return out.masked_fill(out.isneginf(), 0.0)


def _image_text() -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise Missing(f"'image_text' needs the package transformers: {error}") from None
    numbers = HUGGING_FACE["clip"][2]
    trunk = transformers.CLIPModel(transformers.CLIPConfig(**numbers))
    return ImageTextModel(trunk, Letters(), ["tabby cat", "fire truck", "sea"])


def read_towers(out: tuple[Tensor, ...]) -> Tensor:
    """Both towers' features, one under the other."""
    return torch.cat([out[0], out[1]])
