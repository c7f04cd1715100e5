"""Convpass: Convolutional Bypasses Are Better Vision Transformer Adapters (Jie, Deng; 2022, arXiv:2207.07039)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Site, need, register
from .branches.drop_path import DropPath
from .branches.stream import Aside, halves, join
from .features.tower import as_map, as_tokens, choose, image_tower, specials

if TYPE_CHECKING:
    from ..core import Attachment


@register("convpass")
class Bypass(Aside):
    """s DP(W_u dropout(phi(conv(phi(W_d u + b_d)))) + b_u) for the output u of a norm, which itself stays as it is.

    conv is 3 × 3, from rank to rank channels, over the grid of patches; on each special token only its centre acts. W_d is
    Xavier-uniform, W_u and all biases are zero. ``init``: conv starts as the "identity", or "xavier"-uniform.
    """

    def __init__(self, site: Site, key: str, rank: int, special: int, scale: float, init: str, dropout: float, drop_path: float):
        super().__init__(site, key)
        self.special, self.scale = special, scale
        self.down, self.up = nn.Linear(site.dout, rank), nn.Linear(rank, site.dout)
        self.conv = nn.Conv2d(rank, rank, 3, padding=1)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)
        nn.init.xavier_uniform_(self.down.weight)
        (nn.init.dirac_ if init == "identity" else nn.init.xavier_uniform_)(self.conv.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def branch(self, t: Tensor) -> Tensor:
        """t [batch, special + patches, d], or [batch, height, width, d] -> [batch, tokens, d].

        Raises:
            Unfit: the patches are no square.
        """
        low = _phi(self.down(t.to(self.up.weight.dtype)))
        mixed = as_tokens(self.conv(as_map(self.site, low, self.special)))
        if self.special:
            alone = F.linear(low[:, : self.special], self.conv.weight[:, :, 1, 1], self.conv.bias)
            mixed = torch.cat([alone, mixed], 1)
        return self.drop_path(self.scale * self.up(self.dropout(_phi(mixed))))


@dataclass
class Convpass(Method):
    """Convolutional bottlenecks over the grid of patches, beside attention and feed-forward network of every block.

        x' = x + MHSA(LN1 x) + s DP(Conv1(LN1 x)),   y = x' + MLP(LN2 x') + s DP(Conv2(LN2 x'))

    with Conv(u) = W_u dropout(phi(conv3×3(phi(W_d u)))), W_d [rank, d], W_u [d, rank], phi(z) = z sigmoid(1.702 z). W_u starts at
    zero, so the model starts unchanged. DP is stochastic depth, whose rate rises from 0 in the first block to ``drop_path`` in
    the last. ``beside="attn"`` leaves Conv2 out, "mlp" Conv1. The authors choose s from 0.01 to 100 and ``init`` task by task.

    ViT, where a class token passes through the centre of conv alone, and Swin, over each stage's map before it is shifted.
    """

    name = "convpass"
    presets = {"convpass-attn": {"beside": "attn"}}
    route = "add modules"
    modalities = ("image",)
    paper = "Jie & Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022, arXiv:2207.07039"
    trains = "a small convolutional bottleneck beside each attention and feed-forward network"
    inference = "two small convolutional networks more per block"
    rate = 1e-3
    Edit = Bypass

    rank: int = 8
    scale: float = 1.0
    init: str = "identity"
    dropout: float = 0.1
    drop_path: float = 0.1
    beside: str = "both"
    where: str = "block"

    def check(self) -> None:
        """Ranks are positive, rates are probabilities, the start and the places are known."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.init in ("identity", "xavier"), self, "init", "'identity' or 'xavier'")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(0 <= self.drop_path < 1, self, "drop_path", "in [0, 1)")
        need(self.beside in ("both", "attn", "mlp"), self, "beside", "'both', 'attn' or 'mlp'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per block the bypasses where its norms give out, and where the stream takes up what they leave.

        Raises:
            Unfit: the model has no pre-norm blocks over patches.
        """
        blocks = choose(at, image_tower(at)[1], self.where)
        for i, half in enumerate(halves(at, blocks)):
            numbers = {"rank": self.rank, "special": specials(at.model), "scale": self.scale, "init": self.init,
                       "dropout": self.dropout, "drop_path": self.drop_path * i / max(1, len(blocks) - 1)}
            first, second = ([half.first] if self.beside != "mlp" else []), ([half.second] if self.beside != "attn" else [])
            for norm in (*first, *second):
                at.put(norm, Bypass, key=norm.path, **numbers)
            join(at, half, [n.path for n in first], [n.path for n in second])


def _phi(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)
