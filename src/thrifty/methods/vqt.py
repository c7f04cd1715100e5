"""VQT: Visual Query Tuning: Towards Effective Usage of Intermediate Representations for Parameter and Memory Efficient Transfer
Learning (Tu, Mai, Chao; CVPR 2023, arXiv:2212.03220)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import AttentionEdit, Edit, Method, Site, need, register
from ..core.attending import Attending
from ..core.hooks import main
from .branches.side import SideTap, asked, hear
from .features.feature_head import head_of, lasso, narrow, put_head, select
from .features.tower import choose
from .prompts.still import keep_still
from .prompts.tokens import span_of, tower

if TYPE_CHECKING:
    from ..core import Attachment


@register("vqt-keys")
class Keys(AttentionEdit):
    """Changes nothing: leaves the keys and values of a block for the queries of its own that are asked afterwards."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [batch, heads, tokens, dim], as they are."""
        self.context.taps[f"keys {self.site.path}"] = k.detach(), v.detach()
        return q, k, v


@register("vqt-queries")
class Queries(Edit):
    """Z = B(P | K, V): the whole block on query tokens P [length, d] alone, which attend to the keys and values of its own tokens.

        A = Attention(LN(P) W_q, K, V) W_o,   Z' = P + A,   Z = Z' + MLP(LN'(Z'))

    P ~ U(-span, span); each image has a dropout mask of its own. K and V are those of the frozen pass over the tokens X, which
    no query changes, so that X is outside the graph: what is kept for the backward pass are ``length`` rows in each block.
    """

    def __init__(self, site: Site, length: int, span: float, dropout: float = 0.0):
        super().__init__(site)
        self.dropout = nn.Dropout(dropout)
        self.prompt = nn.Parameter(torch.empty(length, site.din).uniform_(-span, span))
        self.__dict__["mode"] = Attending(self.elsewhere)

    def elsewhere(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries of P [batch, heads, length, dim], with the keys and values of X in the place of their own."""
        keys, values = hear(self, f"keys {self.site.path}")
        return q, keys, values

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, d], as it is; Z goes [batch, length * d] to the head."""
        block, call = self.site.module, hear(self, asked(self.site.path))
        prompt = self.dropout(self.prompt.expand(len(x), -1, -1)).to(x.dtype)
        with self.__dict__["mode"]:  # forward() and not a call: the edits on the block have acted already
            z = main(block.forward(**{**call, next(iter(call)): prompt}))
        self.context.taps[piece(self.site)] = z.flatten(1)
        return y


def piece(site: Site) -> str:
    """Under which the queries' answers in a block are left for the head."""
    return f"queries {site.path}"


@dataclass
class VQT(Method):
    """Query tokens that sum up each frozen block, and a head that reads all of these summaries beside the class token's:

        h = [n(x_L), n(vec Z_1), ..., n(vec Z_L)],   n(v) = v / ||v||_2,   y = W h + b

    with Z_l from ``Queries`` in block l and x_L what the model's own head reads. The head takes the place of the model's own
    (``also_train`` leaves it out), and with width d + L T d it is most of what trains.

    ``keep`` below 1 compresses it in three phases of one training: the group lasso ``lasso`` * sum_j ||W_{:, j}||_2 is added to the
    loss, after the share ``choose`` of the steps the int(keep * width) longest columns are kept, and queries and head go on
    without it. The authors train anew for each phase, the first at half the rate, and give 1e-4 and 0.7 as their example.
    """

    name = "vqt"
    route = "add modules"
    modalities = ("image",)
    paper = "Tu et al., Visual Query Tuning, CVPR 2023, arXiv:2212.03220"
    trains = "query tokens at every block, and a head on all that they gather"
    inference = "`length` tokens more, each of which costs a query; no key"
    Edit = Queries
    identity_at_start = False
    rate = 1e-3

    length: int = 1
    dropout: float = 0.1
    keep: float = 1.0
    lasso: float = 1e-4
    choose: float = 0.5
    where: str = "block"

    def check(self) -> None:
        """Lengths are positive, dropout is a probability, shares are shares."""
        need(self.length >= 1, self, "length", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(0 < self.keep <= 1, self, "keep", "above 0, and 1 at most: the share of features that the head keeps")
        need(self.lasso >= 0, self, "lasso", "at least 0")
        need(0 < self.choose < 1, self, "choose", "between 0 and 1: the share of the training after which features are chosen")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Queries at the chosen blocks, and the head.

        Raises:
            Unfit: the model is no plain vision transformer, or ends in no single linear layer.
        """
        patch, blocks = tower(at)
        chosen = choose(at, blocks, self.where)
        span = span_of(patch, chosen[0].din)
        for block in chosen:
            at.put(block, SideTap, port="call")
            at.put(block, Keys)
            at.put(block, Queries, length=self.length, span=span, dropout=self.dropout)
        head = put_head(at, sum(self.length * block.din for block in chosen), pieces=[piece(block) for block in chosen],
                        choosing=self.keep < 1)
        width = head.linear.in_features
        need(int(self.keep * width) >= 1, self, "keep", f"enough to keep one of {width} features")
        keep_still(at, recompute=False)

    def penalty(self, at: Attachment) -> Tensor | float:
        """The group lasso on the head's columns, until they are chosen."""
        head = head_of(at)
        return self.lasso * lasso(head) if head.mask is not None and bool(head.mask.all()) else 0.0

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Choose when it is time."""
        if step >= self.choose * total and not self.settled(at):
            select(head_of(at), self.keep)

    def settled(self, at: Attachment) -> bool:
        """Once features are chosen, if they are to be."""
        mask = head_of(at).mask
        return mask is None or not bool(mask.all())

    def finish(self, at: Attachment) -> None:
        """Throw the other columns away; choose now, if the training ended before it was time."""
        if head_of(at).mask is not None:
            if not self.settled(at):
                select(head_of(at), self.keep)
            narrow(at)
