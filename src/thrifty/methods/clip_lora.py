"""CLIP-LoRA: Low-Rank Few-Shot Adaptation of Vision-Language Models (Zanella, Ben Ayed; CVPR workshops 2024,
arXiv:2405.18541)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import need
from .lora import LoRA
from .prompts.context import place

if TYPE_CHECKING:
    from ..core import Attachment

ENCODERS = {"both": ("text_blocks", "image_blocks"), "text": ("text_blocks",), "vision": ("image_blocks",)}


@dataclass
class CLIPLoRA(LoRA):
    """LoRA on the queries, keys and values of every block of both towers: W x + alpha / sqrt(rank) B A drop(x).

    A is Kaiming-uniform, B zero; dropout acts on what A reads alone, for q, k and v apart. ``encoder`` is "both", "text" or
    "vision". One setting serves all data sets and shots: rank 2, alpha 1, dropout 0.25, AdamW at 2e-4 with decay 0.01, batch 32,
    500 steps for each shot, a cosine to 1e-6, random crops, no validation. Merged, it costs nothing.
    """

    name = "clip-lora"
    presets = {}
    modalities = ("image", "text")
    paper = "Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR workshops 2024, arXiv:2405.18541"
    trains = "low-rank updates of q, k and v in both towers"
    needs = "an image-text model"
    rate = 2e-4
    elsewhere = ("where", "ratio", "encoder")

    rank: int = 2
    alpha: float = 1.0
    dropout: float = 0.25
    stable: bool = True
    where: str = "attn.q|attn.k|attn.v"
    encoder: str = "both"

    def check(self) -> None:
        """The encoder is known."""
        super().check()
        need(self.encoder in ENCODERS, self, "encoder", "'both', 'text' or 'vision'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Updates in the blocks of the chosen towers.

        Raises:
            Unfit: the model does not know classes by their names. NoSuchSetting: ``where`` names nothing in those towers.
        """
        place(at, "text")
        model: Any = at.model
        stacks = tuple(model.path(getattr(model.towers, name)) + "." for name in ENCODERS[self.encoder])
        chosen = [site for site in at.sites(self.where) if site.path.startswith(stacks)]
        need(bool(chosen), self, "where", f"places in the blocks of {', '.join(stack[:-1] for stack in stacks)}")
        for site in chosen:
            at.put(site, self.Edit, **self.numbers(site))
