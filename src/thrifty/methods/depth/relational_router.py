"""The routers of RDI-Net: Relational Dynamic Inference Networks (Wang, Li, Su, Qin, Li; ICCV 2021), and the two ways through a
residual block of convolutions that they choose from, beside its shortcut."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import Unfit
from .dropping import bypass, for_each, sparing

ROUTES = "the ways of this batch"
MIX = (0.25, 0.5, 1.0)  # weights of the router before the last one, the last one, and this one
Layer = Callable[[Tensor], Tensor]
WRITERS = ("act3", "act2", "relu", "activation")  # what a block ends with, by its authors


class Block:
    """The layers of a residual block: ``first`` and ``second``, and in a bottleneck ``third``; each with its normalisation."""

    def __init__(self, block: Any) -> None:
        extra = [name for name in ("se", "aa") if not isinstance(getattr(block, name, None), (nn.Identity, type(None)))]
        layers = list(getattr(block, "layer", ()))
        if layers:
            self.parts: list[Layer] = layers
        elif hasattr(block, "conv2") and not extra:
            count = 3 if hasattr(block, "conv3") else 2
            self.parts = [_layer(block, i, last=i == count) for i in range(1, count + 1)]
        else:
            self.parts = []
        if len(self.parts) not in (2, 3) or not any(hasattr(block, short) for short in ("shortcut", "downsample")):
            raise Unfit(f"{type(block).__name__} is no residual block of two or three convolutions, which the ways of RDI-Net need")
        self.block = block

    def branch(self, x: Tensor, ways: int) -> tuple[Tensor | None, Tensor | None]:
        """What the cheap way (1), the full one (2) or both (3) add to the shortcut of x."""
        inner = self.parts[0](x)
        if len(self.parts) == 2:
            return inner if ways & 1 else None, self.parts[1](inner) if ways & 2 else None
        full = self.parts[2](self.parts[1](inner)) if ways & 2 else None
        cheap = self.parts[2](F.max_pool2d(inner, 3, 2, 1) if self.stride > 1 else inner) if ways & 1 else None
        return cheap, full

    @property
    def stride(self) -> int:
        """How much smaller the block makes its pictures."""
        convs = [m for m in self.block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
        return max(int(conv.stride[0]) for conv in convs)

    def add(self, x: Tensor, added: Tensor | None) -> Tensor:
        """act(shortcut(x) + added)."""
        if added is None:
            return bypass(self.block, x)
        short = getattr(self.block, "shortcut", None) or getattr(self.block, "downsample", None)
        act: Layer = next(getattr(self.block, name) for name in WRITERS if hasattr(self.block, name))
        return act(added + (x if short is None else short(x)))


def _layer(block: Any, i: int, last: bool) -> Layer:
    def layer(x: Tensor) -> Tensor:
        y: Tensor = getattr(block, f"bn{i}")(getattr(block, f"conv{i}")(x))
        if last:
            return y
        act: Layer = getattr(block, f"act{i}", None) or block.relu
        return act(y)
    return layer


@register("relational-router")
class Router(Edit):
    """Around block ``number``: chooses one of three ways for each picture, the shortcut, a cheap branch and the full one.

        h = W_2 relu(BN(W_1 GAP(x)));   l = W_3 (0.25 r_(b-2) + 0.5 r_(b-1) + h) G,   G [3, 256] ~ U(-1/16, 1/16)
        r = gumbel_softmax(dropout(l));   out = act(shortcut(x) + r_1 cheap(x) + r_2 full(x))

    where r_(b-1) and r_(b-2) [B, 3] come from the routers before; of the first two blocks what there is stands for what is not.
    The cheap branch of a bottleneck leaves out the middle convolution (its pictures are max-pooled where that would stride) and
    shares the last with the full one; of a basic block it is the first convolution alone. While it learns r is soft, or with
    ``hard`` one-hot with the soft one's gradient; otherwise r is the likeliest way, nothing is drawn, and only that way is
    computed.
    """

    port = "around"

    def __init__(self, site: Site, number: int, width: int, hard: bool, dropout: float):
        super().__init__(site)
        self.number, self.hard = number, hard
        channels = site.din
        self.first, self.norm, self.second = nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.Linear(channels, 3)
        self.G = nn.Parameter(torch.empty(3, width).uniform_(-(width**-0.5), width**-0.5))
        self.third, self.dropout = nn.Linear(width, 3), nn.Dropout(dropout)
        self.drawing = False
        self.forced: int | None = None

    def forward(self, run: Any, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C', h', w']."""
        block = Block(self.site.module)
        if self.forced == 2:
            y: Tensor = run(x)
            return y
        ways: list[Layer] = [lambda rows: block.add(rows, None), lambda rows: block.add(rows, block.branch(rows, 1)[0]), run]
        if self.forced is not None:
            return ways[self.forced](x)
        logits = self.logits(x)
        if not (self.drawing or self.training):
            self.leave(logits.detach().softmax(-1))
            choice = logits.argmax(-1)
            if sparing(self):
                return for_each(choice, ways, x)
            r = F.one_hot(choice, 3).to(logits.dtype)
        else:
            r = F.gumbel_softmax(self.dropout(logits), hard=self.hard)
            self.leave(r)
        cheap, full = block.branch(x, 3)
        assert cheap is not None and full is not None
        r = r.to(x.dtype)[..., None, None, None]
        return block.add(x, r[:, 1] * cheap + r[:, 2] * full)

    def logits(self, x: Tensor) -> Tensor:
        """l [B, 3]."""
        f = x.mean((2, 3)).to(self.G.dtype)
        still = self.norm.training and len(f) == 1  # one picture has no statistics
        h = self.first(f)
        h = F.batch_norm(h, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias,
                         eps=self.norm.eps) if still else self.norm(h)
        h = self.second(F.relu(h))
        before = self.before()
        prev = before[0] if before else h
        pprev = before[1] if len(before) > 1 else prev
        mixed = MIX[0] * pprev + MIX[1] * prev + MIX[2] * h
        logits: Tensor = self.third(mixed @ self.G)
        return logits

    def before(self) -> list[Tensor]:
        """What the last two routers gave, the last first."""
        routes = self.context.taps.get(ROUTES, {})
        return [routes[n] for n in (self.number - 1, self.number - 2) if n >= 0 and n in routes]

    def leave(self, r: Tensor) -> None:
        """Leave r for the routers behind; the first of them begins a batch."""
        if self.number == 0:
            self.context.taps[ROUTES] = {}
        self.context.taps[ROUTES][self.number] = r


@contextmanager
def forcing(routers: list[Router], way: int) -> Iterator[None]:
    """While it lasts, every block goes that way: 0 the shortcut, 1 the cheap branch, 2 as it always did."""
    for router in routers:
        router.forced = way
    try:
        yield
    finally:
        for router in routers:
            router.forced = None
