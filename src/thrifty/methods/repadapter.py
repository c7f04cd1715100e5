"""RepAdapter: Towards Efficient Visual Adaption via Structural Re-parameterization (Luo, Huang, Zhou, Sun, Jiang, Wang, Ji; 2023,
arXiv:2302.08106)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import CannotMerge, NoSuchSetting, Unfit
from .branches.operations import by_block
from .branches.stream import halves
from .features.tower import choose, image_tower

if TYPE_CHECKING:
    from ..core import Attachment


@register("repadapter")
class Affine(Edit):
    """u + s (B dropout(A u + a) + b), A [rank, d], B [d, rank] of ``groups`` blocks on its diagonal, with no activation between.

    ``B`` holds the blocks, [groups, d / groups, rank / groups]. A is Xavier-uniform and all else zero, so the model starts
    unchanged. ``readers`` are the paths of the layers that read u. With ``image``, u is [batch, d, height, width].
    """

    def __init__(self, site: Site, port: str, width: int, rank: int, groups: int, scale: float, dropout: float, readers: list[str],
                 image: bool = False):
        super().__init__(site)
        if width % groups:
            fit = [n for n in range(1, rank + 1) if width % n == rank % n == 0]
            raise NoSuchSetting(f"repadapter: {groups} groups do not divide the width {width} of {site.path!r}; "
                                f"{', '.join(map(str, fit))} do")
        self.port, self.readers, self.image, self.scale = port, readers, image, scale
        self.A, self.a = nn.Parameter(torch.empty(rank, width)), nn.Parameter(torch.zeros(rank))
        self.B, self.b = nn.Parameter(torch.zeros(groups, width // groups, rank // groups)), nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.A)

    def forward(self, u: Tensor, x: Tensor | None = None) -> Tensor:
        """u [..., d], or [batch, d, height, width] -> the same shape. ``x`` is not read."""
        h = (u.movedim(1, -1) if self.image else u).to(self.A.dtype)
        low = self.dropout(F.linear(h, self.A, self.a)).unflatten(-1, (len(self.B), -1))
        z = self.scale * (torch.einsum("...gi,goi->...go", low, self.B).flatten(-2) + self.b)
        return u + (z.movedim(-1, 1) if self.image else z).to(u.dtype)

    def folds_into(self) -> tuple[str, ...]:
        """The layers that read u."""
        return tuple(self.readers)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W (I + D A) and W (D a + s b) + c for a reader with weight W and bias c, where D = s B.

        Raises:
            CannotMerge: the reader is a convolution over several places or keeps channels apart, or has no bias.
        """
        if weight.shape[1] != len(self.b) or weight[0, 0].numel() != 1:
            raise CannotMerge(f"{self.readers} read {len(self.b)} channels by weights of shape {list(weight.shape)}: an affine map "
                              "before a depth-wise convolution, or one that pads, is no change of its weight")
        flat = weight.flatten(1)
        D = self.scale * torch.block_diag(*self.B.to(flat.dtype))
        shift = flat @ (D @ self.a.to(flat.dtype) + self.scale * self.b.to(flat.dtype))
        if bias is None and shift.any():
            raise CannotMerge(f"{self.readers} have no bias, which would take in what the adapter's biases add")
        folded = flat + flat @ D @ self.A.to(flat.dtype)
        return folded.view_as(weight), None if bias is None else bias + shift.to(bias.dtype)


@dataclass
class RepAdapter(Method):
    """A sparse affine bottleneck in front of attention and feed-forward network, which merges into the layers that read it.

        MHSA(f1(LN1 x)),  MLP(f2(LN2 x)),   f(u) = u + s (B dropout(A u + a) + b)

    A [rank, d] is dense, B [d, rank] block-diagonal with ``g`` blocks. Merged, W u + c becomes W (I + s B A) u + c +
    s W (B a + b). ``beside="attn"`` leaves f2 out. The authors choose s from 0.1 to 10 task by task. ViT and Swin; in a ConvNeXt
    f1 stands before the depth-wise convolution, into which it does not merge.
    """

    name = "repadapter"
    presets = {"repadapter-attn": {"beside": "attn"}}
    route = "add modules"
    modalities = ("image",)
    paper = "Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, 2023, arXiv:2302.08106"
    trains = "a sparse affine bottleneck before each attention and feed-forward network"
    mergeable = True
    inference = "none once merged"
    rate = 1e-3
    Edit = Affine

    rank: int = 8
    g: int = 2
    scale: float = 1.0
    dropout: float = 0.1
    beside: str = "both"
    where: str = "block"

    def check(self) -> None:
        """Ranks are positive and divide into the groups, dropout is a probability, the places are known."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.g >= 1 and self.rank % self.g == 0, self, "g", f"a divisor of the rank, {self.rank}")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.beside in ("both", "attn"), self, "beside", "'both' or 'attn'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """An adapter where each half's operation reads the stream.

        Raises:
            Unfit: the model has no blocks over patches of one attention, or one convolution, and one feed-forward network.
        """
        blocks = choose(at, image_tower(at)[1], self.where)
        pairs = _convolutional(at, blocks) or _attentive(at, blocks)
        for first, second in pairs:
            for place, port, readers in (first, second) if self.beside == "both" else (first,):
                module = at.model.get_submodule(readers[0].path)
                at.put(place, Affine, port=port, width=readers[0].din, rank=self.rank, groups=self.g, scale=self.scale,
                       dropout=self.dropout, readers=list(dict.fromkeys(r.path for r in readers)),
                       image=isinstance(module, nn.Conv2d))


Place = tuple[Site, str, list[Site]]  # where an adapter stands, at which port, and the layers that read what it gives


def _attentive(at: Attachment, blocks: list[Site]) -> list[tuple[Place, Place]]:
    """Transformers. What windows pad is read by the projections, too, so f stands behind the padding, as it will once merged."""
    projections = [by_block(at, blocks, role) for role in ("attn.q", "attn.k", "attn.v", "attn.qkv")]
    found = []
    for half in halves(at, blocks):
        own = [s for kind in projections for s in kind[half.block.path] if s.path.startswith(f"{half.attention.path}.")]
        if not own:
            raise Unfit(f"{half.attention.path!r} ({type(half.attention.module).__name__}) has no projections that read its input")
        apart = isinstance(half.attention.module, nn.MultiheadAttention)  # it is given its input three times
        first: Place = (half.first, "output", own) if apart else (half.attention, "input", own)
        found.append((first, _network(at, half.block, half.second)))
    return found


def _convolutional(at: Attachment, blocks: list[Site]) -> list[tuple[Place, Place]]:
    """ConvNeXt: one convolution a block in the place of the attention; empty for other models."""
    convolutions, norms = by_block(at, blocks, "conv"), by_block(at, blocks, "norm")
    if any(len(convolutions[b.path]) != 1 or len(norms[b.path]) != 1 for b in blocks):
        return []
    first = [convolutions[b.path][0] for b in blocks]
    return [((conv, "input", [conv]), _network(at, b, norms[b.path][0])) for b, conv in zip(blocks, first, strict=True)]


def _network(at: Attachment, block: Site, norm: Site) -> Place:
    whole, first, gates = (by_block(at, [block], role)[block.path] for role in ("mlp", "mlp.in", "mlp.gate"))
    if len(first) != 1:
        raise Unfit(f"{block.path!r} ({type(block.module).__name__}) has no feed-forward network of one first layer")
    if len(whole) == 1:
        return whole[0], "input", [*first, *gates]
    return (first[0], "input", first) if not gates else (norm, "output", [*first, *gates])
