"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko, Blankevoort, Asano; ICLR 2024, arXiv:2310.11454)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Branch, Method, Shared, Site, need, register
from ..core.digest import digest
from ..core.drawing import is_drawing
from ..core.errors import BrokenArtifact, Unfit

if TYPE_CHECKING:
    from ..core import Attachment


@register("random-matrices")
class RandomMatrices(Shared):
    """A [rank, din] and B [dout, rank], Kaiming-uniform from ``seed``; frozen, and the same for all layers.

    With ``keep`` they are saved. Without, they are drawn again when the adapter is loaded, and must then be those whose
    checksum is ``drawn``: another version of torch may draw others.

    Raises:
        BrokenArtifact: they are not.
    """

    A: Tensor
    B: Tensor

    def __init__(self, rank: int, din: int, dout: int, seed: int = 0, keep: bool = True, drawn: str = ""):
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, shape in (("A", (rank, din)), ("B", (dout, rank))):
            t = torch.empty(shape)
            if not is_drawing(t):
                t.uniform_(-((6 / shape[1]) ** 0.5), (6 / shape[1]) ** 0.5, generator=generator)
            self.register_buffer(name, t, persistent=keep)
        if drawn and not is_drawing(self.A) and self.checksum() != drawn:
            raise BrokenArtifact(f"torch {torch.__version__} draws other random projections from seed {seed} than were drawn when "
                                 "this adapter was trained, and the file does not hold them: load it with the torch that saved it")

    def checksum(self) -> str:
        """Of both."""
        return digest(self.A, whole=True) + digest(self.B, whole=True)


@register("random-vectors")
class Vectors(Branch):
    """y + b * (B (d * (A x))), d [rank], b [dout]; A and B are the first columns and rows of those that all layers share.

    b starts at zero, so the model starts unchanged; d starts at ``start``.
    """

    additive = True

    def __init__(self, site: Site, rank: int, start: float = 0.1, dropout: float = 0.0):
        super().__init__(site)
        if isinstance(site.module, (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise Unfit(f"VeRA at {site.path!r}: its random matrices are for linear layers, not for {type(site.module).__name__}")
        self.d = nn.Parameter(torch.full((rank,), start))
        self.b = nn.Parameter(torch.zeros(site.dout))
        self.dropout, self.widths = nn.Dropout(dropout), (site.din, site.dout)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """x [..., din]."""
        return x

    def branch(self, h: Tensor) -> Tensor:
        """b * (B (d * (A dropout(h)))) [..., dout]."""
        A, B = self.projections()
        return self.b * F.linear(self.d * F.linear(self.dropout(h.to(self.d.dtype)), A), B)

    def projections(self) -> tuple[Tensor, Tensor]:
        """A [rank, din] and B [dout, rank] of this layer."""
        din, dout = self.widths
        shared = self.context.shared
        return shared.A[:, :din].to(self.d.dtype), shared.B[:dout].to(self.d.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """diag(b) B diag(d) A."""
        A, B = (t.to(weight.dtype) for t in self.projections())
        return (self.b.to(weight.dtype)[:, None] * B) @ (self.d.to(weight.dtype)[:, None] * A)


@dataclass
class VeRA(Method):
    """Two vectors per layer scale random matrices that all layers share.

    The matrices are as large as the largest layer wants them. ``keep=False`` leaves them out of the file, which then holds
    rank + out numbers per layer and the ``seed``, and can be loaded where torch draws the same numbers from it.
    """

    name = "vera"
    route = "inject parameters"
    paper = "Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, ICLR 2024, arXiv:2310.11454"
    trains = "vectors d [rank] and b [out] beside each chosen weight, around random matrices that all share"
    mergeable = True
    inference = "none once merged"
    Edit = Vectors
    rate = 4e-3

    rank: int = 1024
    start: float = 0.1
    dropout: float = 0.0
    seed: int = 0
    keep: bool = True
    where: str = "attn.q|attn.v"

    def check(self) -> None:
        """Ranks are positive, seeds are seeds, dropout is a probability."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.seed < 1 << 63, self, "seed", "from 0 to 2**63 - 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The shared matrices, and an edit per site."""
        found = at.sites(self.where)
        share(at, self.rank, max(s.din for s in found), max(s.dout for s in found), self.seed, self.keep)
        for site in found:
            at.put(site, Vectors, rank=self.rank, start=self.start, dropout=self.dropout)


def share(at: Attachment, rank: int, din: int, dout: int, seed: int, keep: bool) -> None:
    """Give ``at`` its random matrices."""
    numbers: dict[str, Any] = {"rank": rank, "din": din, "dout": dout, "seed": seed, "keep": keep}
    at.share(RandomMatrices, **numbers, **({} if keep else {"drawn": RandomMatrices(**numbers).checksum()}))
