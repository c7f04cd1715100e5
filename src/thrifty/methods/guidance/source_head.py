"""The source head: the classifier that the base was trained with, kept beside the new one while training asks it something."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import Unfit
from ..features.reading import find_reader

if TYPE_CHECKING:
    from ...core import Attachment

FEATURES = "what the heads read"


@register("source-head")
class SourceHead(Edit):
    """G_s(f) = W_s f + b_s of what the new head reads, f [batch, d], with W_s [source classes, d]; the answer stays the new head's.

    It leaves f, for ``answer`` to be asked. W_s and b_s start as the base's checkpoint had them.
    """

    def __init__(self, site: Site, classes: int, bias: bool = True):
        super().__init__(site)
        self.linear = nn.Linear(site.din, classes, bias)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, classes], x [batch, d] -> y."""
        self.context.taps[FEATURES] = x
        if not self.training:
            return y
        # DDP looks in the graph of what the model returns for all that takes part in a step
        return y + 0 * sum(p.sum() for p in self.parameters())

    def answer(self, features: Tensor) -> Tensor:
        """f [batch, d] -> logits [batch, source classes]."""
        logits: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return logits


def keep_source_head(at: Attachment) -> SourceHead:
    """Put the source head beside the model's own, with the values that it had in the checkpoint.

    Raises:
        Unfit: they are not known, do not fit, or the model does not answer from one vector per example.
    """
    site = find_reader(at)
    known = at.source_head
    if f"{site.path}.weight" not in known:
        raise Unfit(f"{at.method.name if at.method else 'this'} asks the classifier that {type(at.model).__name__} was trained "
                    f"with, and none is known for {site.path!r}: load a checkpoint that was saved with its classifier, or attach "
                    f"with source_head={{'{site.path}.weight': ..., '{site.path}.bias': ...}}")
    weight, bias = known[f"{site.path}.weight"], known.get(f"{site.path}.bias")
    if weight.dim() != 2 or weight.shape[1] != site.din:
        raise Unfit(f"the source head {list(weight.shape)} does not read what {site.path!r} reads, {site.din} numbers per example")
    edit = at.put(site, SourceHead, classes=len(weight), bias=bias is not None)
    assert isinstance(edit, SourceHead)
    with torch.no_grad():
        for mine, value in zip(edit.linear.parameters(), (weight, bias), strict=False):
            mine.copy_(value)  # type: ignore[arg-type]
    return edit


def source_head(at: Attachment) -> SourceHead:
    """The source head that ``keep_source_head`` put there."""
    return next(edit for edit in at.edits.values() if isinstance(edit, SourceHead))


def features(at: Attachment) -> Tensor:
    """What the heads read in the forward pass that has just run [batch, d]."""
    found: Tensor = at.context.taps.pop(FEATURES)
    return found


def drop_source_head(at: Attachment) -> None:
    """Take it away, when only the new head is needed any more."""
    for key in [key for key, edit in at.edits.items() if isinstance(edit, SourceHead)]:
        at.take_away(key)


def first_answer(at: Attachment, given: Tensor) -> Tensor:
    """What the source head said to ``given`` [batch, d] before it trained: logits [batch, source classes]."""
    path = source_head(at).site.path
    weight, bias = at.source_head[f"{path}.weight"], at.source_head.get(f"{path}.bias")
    moved: Any = [None if t is None else t.to(given.device, torch.float32) for t in (weight, bias)]
    return nn.functional.linear(given.float(), *moved)
