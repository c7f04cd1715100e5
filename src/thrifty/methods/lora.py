"""LoRA: Low-Rank Adaptation of Large Language Models (Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen; ICLR 2022,
arXiv:2106.09685), and two papers that change one number of it each:

rsLoRA: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski 2023, arXiv:2312.03732);
LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou, Ghosh, Yu; ICML 2024, arXiv:2402.12354).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Branch, Edit, Method, Product, Site, apply_weight, need, register

if TYPE_CHECKING:
    from ..core import Attachment


@register("low-rank")
class LowRank(Branch):
    """y + s B A x, with A [rank, din], B [dout, rank] and s = alpha / rank, or alpha / sqrt(rank) if ``stable``.

    B starts at zero, so the model starts unchanged. On an embedding it is A that starts at zero, and B ~ N(0, 1). On a
    convolution A is a convolution with the site's own geometry into rank channels, and B is 1 × 1.
    """

    additive = True
    rowwise = True

    def __init__(self, site: Site, rank: int, alpha: float, dropout: float = 0.0, stable: bool = False):
        super().__init__(site)
        module: Any = site.module
        self.scale = alpha / rank**0.5 if stable else alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.kind = "embedding" if isinstance(module, nn.Embedding) else "conv" if _is_conv(module) else "linear"
        if self.kind == "conv":
            kernel = tuple(module.kernel_size)
            if module.groups != 1:
                raise _unfit(site, f"{module.groups} convolution groups: A would mix the groups that the layer keeps apart")
            self.A = nn.Parameter(torch.empty(rank, site.din, *kernel))
            self.B = nn.Parameter(torch.zeros(site.dout, rank))
        else:
            self.A = nn.Parameter(torch.empty(rank, site.din))
            self.B = nn.Parameter(torch.zeros(site.dout, rank))
        if self.kind == "embedding":
            nn.init.zeros_(self.A)
            nn.init.normal_(self.B)
        else:
            nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def __init_subclass__(cls, **keywords: Any) -> None:
        """One that computes something else is no product, unless it says which."""
        super().__init_subclass__(**keywords)
        if "product" not in vars(cls) and {"forward", "read", "branch", "update", "write"} & vars(cls).keys():
            cls.product = Edit.product  # type: ignore[method-assign, assignment]

    def product(self) -> Product:
        """s B A dropout(x)."""
        return Product(self.down(), self.B, self.scale, self.dropout if self.training and self.dropout.p else None)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """x [..., din]; token ids for an embedding, images for a convolution."""
        return x

    def branch(self, h: Tensor) -> Tensor:
        """s B A dropout(h)."""
        return self.update(h if self.kind == "embedding" else self.dropout(h.to(self.A.dtype)))

    def by_row(self, own: dict[str, Tensor], *given: Tensor) -> Any:
        """s B_i A_i dropout(h_i) for each row i: two batched products."""
        if self.kind != "linear":
            return super().by_row(own, *given)
        h = self.dropout(given[0].to(self.A.dtype))
        low = torch.bmm(h.reshape(len(h), -1, h.shape[-1]), own["A"].transpose(1, 2))
        return self.scale * torch.bmm(low, own["B"].transpose(1, 2)).view(*h.shape[:-1], -1)

    def update(self, x: Tensor) -> Tensor:
        """s B A x."""
        if self.kind == "conv":
            low = apply_weight(self.site.module, self.down(), x)
            up = self.B.reshape(*self.B.shape, *(1 for _ in self.A.shape[2:]))
            return self.scale * getattr(F, f"conv{self.A.dim() - 2}d")(low, up)
        low = apply_weight(self.site.module, self.down(), x) if self.kind == "embedding" else F.linear(x, self.down())
        # As rows of B^T: so autograd multiplies the thin matrix by the wide one for its gradient, not the other way round
        return low @ (self.scale * self.B).t().contiguous()

    def down(self) -> Tensor:
        """What x is multiplied by first [rank, din, ...]."""
        return self.A

    def delta(self, weight: Tensor) -> Tensor:
        """s B A, in the shape of ``weight``."""
        return (self.scale * self.B @ self.down().flatten(1)).view(-1, *self.A.shape[1:])

    @classmethod
    def combine(cls, edits: list[Any], weights: list[float]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The sum of w s B A over edits is one low-rank edit whose rank is the sum of theirs."""
        A = torch.cat([e.A.detach() for e in edits])
        B = torch.cat([w * e.scale * e.B.detach() for e, w in zip(edits, weights, strict=True)], 1)
        return {"rank": len(A), "alpha": float(len(A))}, {"A": A, "B": B}


@dataclass
class LoRA(Method):
    """Low-rank updates of the query and value projections; ``where="attn.?|mlp.*"`` is every linear layer of a block.

    ``ratio`` above 1 is LoRA+: B learns ``ratio`` times faster than A. ``stable`` is rsLoRA.
    """

    name = "lora"
    presets = {"rslora": {"stable": True}, "lora+": {"ratio": 16.0}}
    route = "inject parameters"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685"
    trains = "A [rank, in] and B [out, rank] beside each chosen weight"
    mergeable = True
    inference = "none once merged"
    rate = 5e-4
    Edit = LowRank
    elsewhere: ClassVar[tuple[str, ...]] = ("where", "ratio")

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    stable: bool = False
    ratio: float = 1.0
    where: str = "attn.q|attn.v"

    def check(self) -> None:
        """Ranks are positive, dropout is a probability."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.ratio > 0, self, "ratio", "positive")

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """LoRA+: matrices of shape B, and one-dimensional tensors, at ``ratio`` times the rate of all else."""
        if self.ratio == 1:
            return super().groups(at, rate, decay)
        fast = [p for n, p in at.named_parameters() if n.endswith(":B") and p.dim() > 1]
        thin = [p for _, p in at.named_parameters() if p.dim() <= 1]
        slow = [p for n, p in at.named_parameters() if not n.endswith(":B") and p.dim() > 1]
        kinds = ((slow, rate, decay), (fast, self.ratio * rate, decay), (thin, self.ratio * rate, 0.0))
        return [{"params": p, "lr": lr, "weight_decay": wd} for p, lr, wd in kinds if p]


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _unfit(site: Site, why: str) -> Exception:
    from ..core.errors import Unfit

    return Unfit(f"LoRA at {site.path!r}: {why}")
