"""LLaMA-Adapter V2: Parameter-Efficient Visual Instruction Model (Gao, Han, Zhang, Lin, Geng, Zhou, Zhang, Lu, He, Yue, Li, Qiao;
2023, arXiv:2304.15010)."""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import CannotMerge, NoSuchSetting, Unfit
from .ia3 import Scale
from .llama_adapter import GatedPrompt, put_prompts, stacks_of
from .prompts.sight import Projected, Queried, Sight

if TYPE_CHECKING:
    from ..core import Attachment

LINEAR = "attn.?|mlp.*"
RELEASED = ("attn.q", "attn.o", "mlp.gate", "mlp.in", "mlp.out")  # the layers that have a bias in the authors' 7B code
GROUPS = ("picture", "instruction")
HEADS = 16  # of the blocks that ask a picture


@register("scale-of-bias")
class ScaledBias(Edit):
    """s * (y + b), where y is what the layer gives out; b [dout] = 0, and s [dout] = 1, or no s without ``scale``."""

    def __init__(self, site: Site, scale: bool):
        super().__init__(site)
        self.b = nn.Parameter(torch.zeros(site.dout))
        self.s = nn.Parameter(torch.ones(site.dout)) if scale else None

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """y [..., dout] -> the same shape; x is not read."""
        moved = y.to(self.b.dtype) + self.b
        return (moved if self.s is None else self.s * moved).to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """s W and s (bias + b).

        Raises:
            CannotMerge: the layer has no bias that could hold b.
        """
        if bias is None:
            raise CannotMerge(f"{self.site.path!r} has no bias that could hold the one that was learned")
        s = torch.ones_like(self.b) if self.s is None else self.s
        return s.to(weight)[:, None] * weight, s.to(bias) * (bias + self.b.to(bias))


@dataclass
class LLaMAAdapterV2(Method):
    """Biases and scales on every linear layer, norms, prompts in the top layers, pictures in the lowest.

        y = s * (W x + b),   s = 1, b = 0        in every linear layer of every block
        P_l  [length, d]                         with zero-initialised attention in the top ``layers`` layers, see LLaMAAdapter
        V [batch, n, d] = W_c f + b_c            the tokens of a picture, likewise gated, in the lowest ``early`` layers

    The model starts as it was, whatever the picture. ``features`` is the width of a frozen image encoder's tokens f, handed over
    as ``image_features``; without pictures (0) nothing enters the lowest layers. Prompts leave the lowest ``early`` layers to them.

    Two groups of parameters train on two kinds of data, and share nothing: pictures with captions train W_c and the gates of the
    lowest layers, instructions train the rest. ``phase`` "joint" holds both, and ``only(at, group)`` says which of them a batch
    trains; "pretrain" and "finetune" hold one, for attachments that are trained one after the other.

    What the authors released differs. "llama-adapter-v2-7b": the picture is asked by learned queries, and their answers are added
    to the prompts of the top 31 layers (``fusion`` "queries", through ``depth`` blocks of ``width``); biases in q, o and the
    feed-forward network, no scales (``linear`` "released"); pretrain holds prompts, gates and all that looks, finetune the rest.
    "llama-adapter-v2-65b": for text; the scale is on the other side, W (x * s) + b (``linear`` "input").
    """

    name = "llama-adapter-v2"
    presets = {"llama-adapter-v2-7b": {"layers": 31, "fusion": "queries", "linear": "released", "features": 768},
               "llama-adapter-v2-65b": {"linear": "input"}}
    route = "input and output"
    modalities = ("text", "image")
    paper = "Gao et al., LLaMA-Adapter V2: Parameter-Efficient Visual Instruction Model, 2023, arXiv:2304.15010"
    trains = "bias and scale of every linear layer, norms, gated prompts, and what pictures enter by"
    inference = "attention over `length` vectors more in the top layers, a scale and a bias per linear layer"
    rate = 1e-3
    intermittent = True  # a batch of texts without pictures does not reach what pictures enter by

    length: int = 10
    layers: int = 30
    early: int = 2
    features: int = 0
    fusion: str = "early"
    width: int = 768
    depth: int = 8
    linear: str = "output"
    phase: str = "joint"

    def check(self) -> None:
        """Numbers are positive, every choice is known."""
        for setting in ("length", "layers", "early"):
            need(getattr(self, setting) >= 1, self, setting, "at least 1")
        need(self.features >= 0, self, "features", "the width of the pictures' features, or 0 for text alone")
        need(self.width >= HEADS and self.width % HEADS == 0, self, "width", f"a multiple of {HEADS}, the number of heads")
        need(self.depth >= 1, self, "depth", "at least 1")
        need(self.fusion in ("early", "queries"), self, "fusion", "'early' or 'queries'")
        need(self.linear in ("output", "input", "released"), self, "linear", "'output', 'input' or 'released'")
        need(self.phase in ("joint", "pretrain", "finetune"), self, "phase", "'joint', 'pretrain' or 'finetune'")
        need(self.phase != "pretrain" or self.features > 0, self, "features", "the width of the pictures' features, as pretrain "
             "trains on pictures")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """What the phase trains.

        Raises:
            NoSuchSite: a block has no attention with q, k and v.
            Unfit: scales on the input side of a fused projection would be one for all that it holds.
        """
        stacks = stacks_of(at, "block")
        early = self.fusion == "early"
        if self.features and self.phase != "finetune":
            self._look(at, stacks[0][0].k.din)
        for stack in stacks:
            lowest = min(self.early, len(stack) - 1) if self.features and early else 0
            if lowest and self.phase != "finetune":
                put_prompts(at, stack[:lowest], 0, True)
            if self.phase == "joint" or self.phase == ("finetune" if early else "pretrain"):
                put_prompts(at, stack[max(lowest, len(stack) - self.layers):], self.length, bool(self.features) and not early)
        if self.phase != "pretrain":
            self._tune_linear(at)
            at.train_matching("norm*", wildcard=True)

    def _look(self, at: Attachment, width: int) -> None:
        root = Site("", at.model, "model", seen=at.seen)
        if self.fusion == "early":
            at.put(root, Projected, features=self.features, width=width)
        else:
            at.put(root, Queried, features=self.features, width=width, length=self.length, inner=self.width, depth=self.depth,
                   heads=HEADS)

    def _tune_linear(self, at: Attachment) -> None:
        for site in at.sites(LINEAR):
            if self.linear == "released" and site.role not in RELEASED:
                continue
            if self.linear == "input":
                if site.part is not None:
                    raise Unfit(f"{site.path!r} is one layer for several projections, so that a scale of its input would not be "
                                f"that of {site.part.name} alone: use linear='output'")
                at.put(site, Scale, port="input")
            at.put(site, ScaledBias, scale=self.linear == "output")


@contextlib.contextmanager
def only(at: Attachment, group: str) -> Iterator[None]:
    """Forward passes made while the context lasts train one ``group`` alone: "picture" or "instruction".

        with only(at, "picture"):
            loss = model(**captions).loss
        loss.backward()

    Raises:
        NoSuchSetting: there is no such group.
        Unfit: the attachment does not hold both.
    """
    if group not in GROUPS:
        raise NoSuchSetting(f"there is no group {group!r} of parameters: a batch trains 'picture' or 'instruction'")
    apart = groups(at)
    if not all(apart.values()):
        raise Unfit(f"{at.name!r} holds parameters for {' and '.join(g for g in GROUPS if apart[g])} alone: only phase='joint' "
                    "with features= has both")
    still = [p for name, held in apart.items() if name != group for p in held]
    for p in still:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in still:
            p.requires_grad_(True)


def groups(at: Attachment) -> dict[str, list[nn.Parameter]]:
    """What pictures with captions train, and what instructions do."""
    looking = {id(p) for edit in at.edits.values() if isinstance(edit, Sight) or isinstance(edit, GatedPrompt) and edit.sees
               for p in edit.parameters()}
    return {"picture": [p for p in at.parameters() if id(p) in looking],
            "instruction": [p for p in at.parameters() if id(p) not in looking]}
