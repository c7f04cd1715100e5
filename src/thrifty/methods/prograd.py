"""ProGrad: Prompt-aligned Gradient for Prompt Tuning (Zhu, Niu, Han, Wu, Zhang; ICCV 2023, arXiv:2205.14865)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import need
from .coop import CoOp
from .kgcoop import teacher

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class ProGrad(CoOp):
    """CoOp that takes no step against what the model knew.

        L_d = CE(z, y);  L_g = T² mean_b sum_k -softmax(z0 / T) log softmax(z / T)      z0 of the model's own sentences
        G = G_d                                   if <G_d, G_g> >= 0
        G = G_d - ``strength`` <G_d, g> g         else, g = G_g / |G_g|

    for each trained tensor, in each batch. The vectors' last rows start from ``words``, the ones before them at zero. A G_g of
    zero is no conflict (the authors' code divides by its length). The words must be ones that a name can follow. The authors
    use T = 1, strength 1 (0.8 on three data sets), and CoOp's schedule.
    """

    name = "prograd"
    presets = {}
    paper = "Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023, arXiv:2205.14865"
    trains = "vectors around class names, by steps that agree with the untrained model"

    words: str = "a photo of a"
    strength: float = 1.0
    temperature: float = 1.0

    def check(self) -> None:
        """Strength and temperature have a meaning."""
        super().check()
        need(self.strength >= 0, self, "strength", "at least 0")
        need(self.temperature > 0, self, "temperature", "positive")

    def start(self, at: Attachment) -> Tensor | None:
        """Zeros, then the words."""
        if not self.words:
            return None
        words = self.embedded(at)
        need(len(words) <= self.length, self, "length", f"at least the {len(words)} tokens of the words")
        return torch.cat([words.new_zeros(self.length - len(words), words.shape[1]), words])

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Worth L_d; its gradient is G."""
        out, labels, t = model(**task.inputs(model, batch)), batch["labels"], self.temperature
        logits, own = out["logits"].float(), at.parameters()
        guess = at.model.scores(out["image_embeds"], teacher(at).to(out["image_embeds"].dtype))  # type: ignore[operator]
        soft = (guess.detach().float() / t).softmax(-1)
        known = -t * t * (soft * (logits / t).log_softmax(-1)).sum(-1).mean()
        found = F.cross_entropy(logits, labels)
        if not torch.is_grad_enabled():
            return found, len(labels)
        theirs = torch.autograd.grad(known, own, retain_graph=True)
        ours = torch.autograd.grad(found, own)
        aligned = align(ours, theirs, self.strength)
        return found.detach() + sum(((p - p.detach()) * g).sum() for p, g in zip(own, aligned, strict=True)), len(labels)


def align(ours: Sequence[Tensor], theirs: Sequence[Tensor], strength: float) -> list[Tensor]:
    """Of each of ``ours``, without ``strength`` times the part that goes against the one of ``theirs``."""
    found = []
    for g, other in zip(ours, theirs, strict=True):
        along, size = (g * other).sum(), (other * other).sum()
        against = along.clamp(max=0) / size.clamp_min(torch.finfo(size.dtype).tiny)
        found.append(g - strength * against * other)
    return found
