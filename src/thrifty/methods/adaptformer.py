"""AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition (Chen, Ge, Tong, Wang, Song, Wang, Luo; NeurIPS 2022,
arXiv:2205.13535)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import Method, Site, need, register
from .branches.bottleneck import Beside, Tap
from .branches.stream import halves, laid_out
from .features.tower import choose, image_tower

if TYPE_CHECKING:
    from ..core import Attachment


@register("adaptformer")
class BesideNetwork(Beside):
    """y + s A(x') where a block ends; x' [..., d] is what a ``Tap`` left under ``key``."""

    def write(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """y + z; Swin may hold its tokens as a grid in y and as a row in z."""
        return y + laid_out(self.site, z, y).to(y.dtype)


@dataclass
class AdaptFormer(Method):
    """A bottleneck beside the feed-forward network of every block, which reads what the attention's half has made of the stream.

        y = x' + MLP(LN2(x')) + s A(x'),   A(u) = W_up dropout(relu(W_down u + b_down)) + b_up

    with W_down [rank, d] as nn.Linear draws it and all else zero, so the model starts unchanged. A reads x' itself, as the
    authors' code does; ``pre_norm`` has it read LN2(x'), as the paper's formula does. ``learned`` trains s, from 1. ViT and Swin,
    with the width of each stage. The authors train a batch norm without scale and shift in front of the head, too.
    """

    name = "adaptformer"
    route = "add modules"
    modalities = ("image",)
    paper = "Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, NeurIPS 2022, arXiv:2205.13535"
    trains = "one bottleneck beside each feed-forward network"
    inference = "one small network more per block, beside the large one"
    rate = 1e-3
    Edit = BesideNetwork

    rank: int = 64
    scale: float = 0.1
    learned: bool = False
    dropout: float = 0.1
    pre_norm: bool = False
    where: str = "block"

    def check(self) -> None:
        """Ranks are positive, dropout is a probability."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def numbers(self, site: Site) -> dict[str, Any]:
        """The bottleneck's, as the settings say."""
        return {"rank": self.rank, "act": "relu", "init": "zero", "std": 0.0, "scale": 1.0 if self.learned else self.scale,
                "learned": self.learned, "dropout": self.dropout}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per block a tap where x' is read, and the bottleneck where the block ends.

        Raises:
            Unfit: the model has no pre-norm blocks over patches.
        """
        for half in halves(at, choose(at, image_tower(at)[1], self.where)):
            reads = half.reads if self.pre_norm else half.second
            at.put(reads, Tap, key=reads.path)
            at.put(half.block, BesideNetwork, key=reads.path, width=half.second.dout, **self.numbers(half.block))
