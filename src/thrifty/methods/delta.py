"""DELTA: DEep Learning Transfer using Feature Map with Attention for Convolutional Networks (Li, Xiong, Wang, Rao, Liu, Huan;
ICLR 2019, arXiv:1901.09229)."""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Site, need
from ..core.drawing import is_drawing
from ..core.errors import NoSuchSite, ThriftyError, Unfit
from .branches.side import SideTap, said
from .full import FullFineTuning, head_names
from .guidance.channel_attention import channel_axis, measure_attention
from .guidance.source import ask_source
from .l2_sp import squares

if TYPE_CHECKING:
    from ..core import Attachment

WEIGHTS = "channels of "  # before the path of a place, in what the method remembers: the attention to its channels
ACROSS = re.compile(r"(^|\.)(shortcut|downsample)(\.|$)")
LAYER = re.compile(r"conv|linear|(attn|mlp)\..*")


@dataclass
class DELTA(FullFineTuning):
    """Full fine-tuning whose feature maps are held at those of the source, which is asked anew for every batch:

        L + alpha Omega + beta/2 |w_head|²,   FM_j [B, C, h, w] the maps of place j, FM0_j those of the source
        plain       Omega = 1/2 sum_j |FM_j - FM0_j|²
        attention   Omega = 1/2 sum_j sum_{b, c} C a_{j, c} |FM_{j, b, c} - FM0_{j, b, c}|² / (h w)

    a sum over the batch, which grows with it. The source runs in evaluation mode, the target in training mode, so that where there
    are batch norms Omega is not zero at the start. a_j = softmax(z(delta_j) / 5) from how much worse a head for the task becomes
    without each channel: see ``channel_attention``, which takes ``head_epochs`` over the training rows and then a forward pass for
    each channel and each of ``iterations`` batches. ``attention=False`` saves that (``delta-plain``).

    The places are the last convolutions of the stages, before their batch norms; of a model that is one long list of blocks
    those at a quarter, a half, three quarters and the end. Where blocks end in no convolution it is what they give out, with
    tokens [B, N, d] as maps of h w = N: a reading of ours, as the authors tell of convolutional networks alone. ``where`` names
    other places. Nothing decays, whatever ``decay`` says.
    """

    name = "delta"
    presets = {"delta-plain": {"attention": False}}
    modalities = ("image",)
    paper = "Li et al., DELTA: DEep Learning Transfer using Feature Map with Attention, ICLR 2019, arXiv:1901.09229"
    trains = "every weight of the model, whose feature maps are held at those of the source"

    head_factor: float = 10.0
    alpha: float = 0.01
    beta: float = 0.01
    attention: bool = True
    head_epochs: int = 10
    iterations: int = 10
    where: str = ""

    def check(self) -> None:
        """Weights of the terms are not negative; attention is measured on something."""
        super().check()
        need(self.alpha >= 0, self, "alpha", "at least 0")
        need(self.beta >= 0, self, "beta", "at least 0")
        need(self.head_epochs >= 1, self, "head_epochs", "at least 1")
        need(self.iterations >= 1, self, "iterations", "at least 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, listen at the places, and measure the attention to their channels.

        Raises:
            Unfit: the model reads text. ThriftyError: attention without data. NoSuchSite: see ``find_places``.
        """
        if _reads_text(at):
            raise Unfit(f"DELTA compares feature maps of pictures, and {type(at.model).__name__} reads tokens: l2-sp and bss know "
                        "no difference")
        places = at.sites(self.where) if self.where else find_places(at)
        super().attach(at, batches)
        if self.attention and not is_drawing(next(at.model.parameters())):
            if batches is None:
                raise ThriftyError("DELTA weighs channels by the data: attach with batches= (dicts of tensors, with labels), or "
                                   "set attention=False")
            found = measure_attention(at, places, batches, self.head_epochs, self.iterations)
            at.memory |= {WEIGHTS + path: a for path, a in found.items()}
        for place in places:
            at.put(place, SideTap, port="output", cut=False)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss and alpha Omega."""
        ask_source(at, task.inputs(at.model, batch))
        source = self._hear(at)
        mean, count = super().loss(at, task, model, batch)
        terms = [gap(now, source[path], at.memory.get(WEIGHTS + path)) for path, now in self._hear(at).items()]
        return mean + self.alpha * torch.stack(terms).sum(), count

    def penalty(self, at: Attachment) -> Tensor | float:
        """beta/2 |w_head|²."""
        trained = dict(at.named_parameters())
        return self.beta / 2 * squares(trained[name] for name in head_names(at))

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """Without decay, as the terms say where weights are drawn to."""
        return super().groups(at, rate, 0.0)

    def finish(self, at: Attachment) -> None:
        """The taps are no longer needed."""
        for key in [row.key for row in at.plan if row.edit == SideTap.registered]:
            at.take_away(key)

    def _hear(self, at: Attachment) -> dict[str, Tensor]:
        return {row.path: at.context.taps.pop(said(row.path)) for row in at.plan if row.edit == SideTap.registered}


def gap(now: Tensor, source: Tensor, a: Tensor | None) -> Tensor:
    """One place's share of Omega: plain, or with attention ``a`` [C] to the channels of maps [B, C, h, w] or [B, N, C]."""
    squared = (now.float() - source.float()).square()
    if a is None:
        return squared.sum() / 2
    axis = channel_axis(squared, len(a))
    by_channel = squared.movedim(axis, 1).flatten(2)  # [B, C, h w]
    return (len(a) * a.to(by_channel) * by_channel.sum(2)).sum() / (2 * by_channel.shape[2])


def find_places(at: Attachment) -> list[Site]:
    """Where stages end: see ``DELTA``.

    Raises:
        NoSuchSite: the model has no blocks; the places must be named.
    """
    lists: dict[str, list[Site]] = {}
    for block in at.sites("block"):
        lists.setdefault(block.path.rpartition(".")[0], []).append(block)
    if len(lists) > 1:
        ends = [blocks[-1] for blocks in lists.values()]
    else:
        (blocks,) = lists.values()
        ends = [blocks[i] for i in sorted({-(-len(blocks) * quarter // 4) - 1 for quarter in (1, 2, 3, 4)})]
    layers = [site for site in at.sites("*") if LAYER.fullmatch(site.role) and not ACROSS.search(site.path)]
    return [_last_convolution(block, layers) or block for block in ends]


def _last_convolution(block: Site, layers: list[Site]) -> Site | None:
    """The convolution that a block ends in, if it does."""
    inside = [site for site in layers if site.path.startswith(block.path + ".")]
    return inside[-1] if inside and inside[-1].role == "conv" else None


def _reads_text(at: Attachment) -> bool:
    try:
        return bool(at.sites("embed"))
    except NoSuchSite:
        return False
