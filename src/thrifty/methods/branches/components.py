"""Low-rank updates whose components have a factor each, so that ranks can be given to the layers that need them.

This is what AdaLoRA (Zhang et al., ICLR 2023, arXiv:2303.10512) and the dynamic-rank DoRA (Mao et al., ACL 2024,
arXiv:2405.17357) have in common; they differ in how components are scored, and when they are pruned.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Site, register
from ...core.errors import ThriftyError
from ...core.state import spread, whole
from ..lora import LowRank

if TYPE_CHECKING:
    from ...core import Attachment


@register("components")
class Components(LowRank):
    """y + s B diag(c) A x, a sum of components c_i b_i a_i; A [rank, din], B [dout, rank], c [rank], s = ``scale``.

    c starts at zero, so the model starts unchanged. A and B start from N(0, std²), or where std is 0 Kaiming-uniform with
    gain sqrt(2).
    """

    def __init__(self, site: Site, rank: int, scale: float, dropout: float = 0.0, std: float = 0.0):
        super().__init__(site, rank, scale * rank, dropout)
        self.scale = scale
        self.c = nn.Parameter(torch.zeros(rank))
        for t in (self.A, self.B):
            if std > 0:
                nn.init.normal_(t, std=std)
            else:
                nn.init.kaiming_uniform_(t)

    def down(self) -> Tensor:
        """diag(c) A."""
        return self.c.view(-1, *(1 for _ in self.A.shape[1:])) * self.A

    @classmethod
    def combine(cls, edits: list[Any], weights: list[float]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The sum of w s B diag(c) A over edits has all their components, at scale 1."""
        c = torch.cat([w * e.scale * e.c.detach() for e, w in zip(edits, weights, strict=True)])
        tensors = {"A": torch.cat([e.A.detach() for e in edits]), "B": torch.cat([e.B.detach() for e in edits], 1), "c": c}
        return {"rank": len(c), "scale": 1.0}, tensors


def components(at: Attachment) -> dict[str, Components]:
    """The edits that have components and are on, by key."""
    return {key: edit for key, edit in at.edits.items() if isinstance(edit, Components) and edit.on}


def prune(edits: Mapping[str, Components], scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Set c to zero in the ``count`` components of all ``edits`` with the lowest ``scores`` [rank]; returns which, as masks.

    Components with the score of the last of them go too.
    """
    gone = {key: torch.zeros_like(score, dtype=torch.bool) for key, score in scores.items()}
    if count > 0:
        device = next(iter(scores.values())).device
        bar = torch.cat([score.to(device) for score in scores.values()]).kthvalue(count).values
        gone = {key: score <= bar.to(score.device) for key, score in scores.items()}
    silence(edits, gone)
    return gone


@torch.no_grad()
def silence(edits: Mapping[str, Components], gone: Mapping[str, Tensor]) -> None:
    """Set c to zero where ``gone`` [rank] is true."""
    for key, mask in gone.items():
        if key in edits:
            c = edits[key].c
            c.mul_(spread(c, (~mask).to(c.device, c.dtype)))


@torch.no_grad()
def compress(at: Attachment, most: int) -> None:
    """Make plain low-rank edits of the components whose factor is not zero, c into B; where none is left no edit stays.

    Edits whose weights are spread over processes stay as they are, with zeros in c.

    Raises:
        ThriftyError: more than ``most`` are left: the method did not see every step of the training.
    """
    edits = components(at)
    kept = {key: whole(edit.c) != 0 for key, edit in edits.items()}
    left = sum(int(keep.sum()) for keep in kept.values())
    if left > most:
        raise ThriftyError(f"{left} components are left where {most} may be: call step(at, number, total) after every optimiser "
                           "step, from 1 to the total, so that the others are pruned")
    if left == 0 or any(hasattr(edit.c, "full_tensor") for edit in edits.values()):
        return
    with torch.random.fork_rng(devices=[]):  # initial values that what was learned takes the place of
        for key, edit in edits.items():
            if rank := int(kept[key].sum()):
                made = at.replace(key, LowRank, rank=rank, alpha=edit.scale * rank, dropout=edit.dropout.p)
                made.load_state_dict({"A": edit.A[kept[key]], "B": (edit.B * edit.c)[:, kept[key]]})
            else:
                at.take_away(key)
