"""A linear head on features gathered all over a frozen vision transformer, and the choice of those that it keeps.

As in Visual Query Tuning (Tu, Mai, Chao; CVPR 2023, arXiv:2212.03220) and, before it, Head2Toe: Utilizing Intermediate
Representations for Better Transfer Learning (Evci, Dumoulin, Larochelle, Mozer; ICML 2022, arXiv:2201.03529).
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import CannotMerge, DeadEdit, NoSuchSite, Unfit

if TYPE_CHECKING:
    from ...core import Attachment

PRIOR = 0.01  # of each class, in the head's first biases


@register("feature-head")
class FeatureHead(Edit):
    """W h + b in the place of the model's last layer, W [classes, width], h the features side by side:

        h = [x, f_1, f_2, ...]        or, with ``unit``, each of them over its length: x / ||x||, f_1 / ||f_1||, ...

    x [batch, din] is what the layer itself reads, unless ``own`` is false, and f_i what was left under ``pieces[i]`` in this
    forward pass. W starts Kaiming-normal over what goes out, b at -log((1 - 0.01) / 0.01). With ``kept`` W has that many columns
    and reads the features at ``columns`` alone; while they are still to be chosen (``choosing``) ``mask`` [width] says which
    count.
    """

    replaces = True

    def __init__(self, site: Site, pieces: list[str], width: int, own: bool = True, unit: bool = True, kept: int = 0,
                 choosing: bool = False):
        super().__init__(site)
        self.pieces, self.own, self.unit = pieces, own, unit
        self.linear = nn.Linear(kept or width, site.dout)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
        nn.init.constant_(self.linear.bias, -math.log((1 - PRIOR) / PRIOR))
        self.columns: Tensor | None
        self.mask: Tensor | None
        self.register_buffer("columns", torch.arange(kept) if kept else None)
        self.register_buffer("mask", torch.ones(width, dtype=torch.bool) if choosing else None)

    def features(self, x: Tensor) -> Tensor:
        """h [batch, width].

        Raises:
            DeadEdit: what gathers features is off.
        """
        if missing := [piece for piece in self.pieces if piece not in self.context.taps]:
            raise DeadEdit(f"the head at {self.site.path!r} reads {missing[0]!r}, which nobody left: switch all edits on or off "
                           "together")
        found = [x] * self.own + [self.context.taps[piece] for piece in self.pieces]
        kind = self.linear.weight.dtype
        return torch.cat([F.normalize(f.to(kind), dim=-1) if self.unit else f.to(kind) for f in found], -1)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, classes], x [batch, din] -> [batch, classes]."""
        h = self.features(x)
        if self.columns is not None:
            h = h[:, self.columns]
        if self.mask is not None:
            h = h * self.mask
        answer: Tensor = self.linear(h)
        return answer.to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """There is none.

        Raises:
            CannotMerge: always.
        """
        raise CannotMerge(f"the head at {self.site.path!r} reads features from all over the model: it is no change of one weight")


def put_head(at: Attachment, gathered: int, own: bool = True, **numbers: Any) -> FeatureHead:
    """Put a ``FeatureHead`` for so many ``gathered`` features on the linear layer in which the model ends.

    Raises:
        Unfit: it ends in none, or in several.
    """
    try:
        found = at.sites("head")
    except NoSuchSite:
        found = []
    if len(found) != 1 or not hasattr(found[0].module, "in_features"):
        raise Unfit(f"{type(at.model).__name__} ends in {[s.path for s in found] or 'no head'}, and features are read by a head in "
                    "the place of one linear layer: load the model for classification")
    made = at.put(found[0], FeatureHead, width=gathered + (found[0].din if own else 0), own=own, **numbers)
    assert isinstance(made, FeatureHead)
    return made


def head_of(at: Attachment) -> FeatureHead:
    """The attachment's head."""
    return next(edit for edit in at.edits.values() if isinstance(edit, FeatureHead))


def lasso(head: FeatureHead) -> Tensor:
    """sum_j ||W_{:, j}||_2 over the columns of the head's weight: of each feature a group."""
    penalty: Tensor = head.linear.weight.norm(dim=0).sum()
    return penalty


@torch.no_grad()
def select(head: FeatureHead, share: float) -> None:
    """From now on only the floor(share * width) features count whose columns of W are longest; the first of equal ones."""
    assert head.mask is not None
    size = head.linear.weight.norm(dim=0)
    keep = size.argsort(descending=True, stable=True)[: int(share * len(size))]
    head.mask.zero_()[keep] = True


@torch.no_grad()
def narrow(at: Attachment) -> None:
    """Put a head in the place of the attachment's that holds only the columns which count; it answers as before."""
    key, head = next((k, e) for k, e in at.edits.items() if isinstance(e, FeatureHead))
    assert head.mask is not None
    columns = head.mask.nonzero().flatten()
    made: Any = at.replace(key, FeatureHead, pieces=head.pieces, width=len(head.mask), own=head.own, unit=head.unit,
                           kept=len(columns))
    made.columns.copy_(columns)
    made.linear.weight.copy_(head.linear.weight[:, columns])
    made.linear.bias.copy_(head.linear.bias)
