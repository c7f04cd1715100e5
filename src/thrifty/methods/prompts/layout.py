"""Where soft vectors stand among the tokens of a text: in front, or at the places of a template, counted row by row.

Templates are those of Liu et al., GPT Understands, Too, 2021, arXiv:2103.10385.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.drawing import is_drawing
from ...core.errors import Unfit

Template = list[list[int]]  # [place, count] pairs: ``count`` vectors before token number ``place`` of the row


@dataclass
class Layout:
    """``count`` vectors among tokens; without ``anchors`` they stand in front.

    ``anchors`` [batch, count] names the token that each vector stands before, ``order`` [batch, count + tokens] says which
    of (vectors, tokens) stands at each place.
    """

    count: int
    anchors: Tensor | None = None
    order: Tensor | None = None

    def lay(self, front: Tensor, t: Tensor) -> Tensor:
        """front [batch, count, ...] among t [batch, tokens, ...] -> [batch, count + tokens, ...]."""
        both = torch.cat([front, t], 1)
        if self.order is None:
            return both
        order = self.order if t.dim() == 2 else self.order[..., None].expand(-1, -1, t.shape[-1])
        return both.gather(1, order)

    def types(self, t: Tensor) -> Tensor:
        """Token types [batch, tokens], with each vector of the type of what it stands before; in front they are of type 0."""
        return self.lay(t.new_zeros(len(t), self.count) if self.anchors is None else t.gather(1, self.anchors), t)

    def positions(self, t: Tensor) -> Tensor:
        """Position ids [batch or 1, tokens], or slots of a cache [tokens] -> the same with those of the vectors."""
        if self.anchors is None or self.order is None or t.dim() == 1:  # slots are filled in turn, whatever comes into them
            upto = torch.arange(self.count, device=t.device, dtype=t.dtype)
            return torch.cat([upto.expand(*t.shape[:-1], self.count), t + self.count], -1)
        t, ours = t.expand(len(self.order), -1), (self.order < self.count).to(t.dtype)
        return self.lay(t.gather(1, self.anchors), t) + ours.cumsum(1) - ours

    def kept(self) -> int | Tensor:
        """Where the tokens went: from the number on, or [batch, tokens] places."""
        return self.count if self.order is None else self.order.argsort(1)[:, self.count:]


def layout(count: int, template: Template, mask: Tensor) -> Layout:
    """How ``count`` vectors stand in rows whose tokens ``mask`` [batch, tokens] tells from padding.

    Places count a row's own tokens from 0, or from the end if they are negative: -1 is before the last one.

    Raises:
        Unfit: a row has fewer tokens than a place asks for.
    """
    if not template:
        return Layout(count)
    real = mask.long()
    first, end = real.argmax(1), real.shape[1] - real.flip(1).argmax(1)
    most = max(max(place + 1, -place) for place, _ in template)
    asked = most > 1 and not torch.compiler.is_compiling() and not is_drawing(mask)
    if asked and bool((end - first < most).any()):
        row = int((end - first).argmin())
        raise Unfit(f"row {row} has {int(end[row] - first[row])} tokens: there is no such place in it as the template "
                    f"{template} names")
    anchors = torch.cat([((first if place >= 0 else end) + place)[:, None].expand(-1, n) for place, n in template], 1)
    tokens = 2 * torch.arange(real.shape[1], device=mask.device) + 1  # the vectors of a token come just before it
    order = torch.cat([2 * anchors, tokens.expand(len(real), -1)], 1).argsort(dim=1, stable=True)
    return Layout(count, anchors, order)


def kept(where: int | Tensor, t: Tensor) -> Tensor:
    """The tokens among t [batch, count + tokens, d], given what ``Layout.kept`` said."""
    return t[:, where:] if isinstance(where, int) else t.gather(1, where[..., None].expand(-1, -1, t.shape[-1]))
