"""CLIP-Adapter: Better Vision-Language Models with Feature Adapters (Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao; IJCV 2024,
arXiv:2110.04544)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from .prompts.context import place

if TYPE_CHECKING:
    from ..core import Attachment


@register("feature-adapter")
class FeatureAdapter(Edit):
    """r A(v) + (1 - r) v with A(v) = ReLU(W2 ReLU(W1 v)), W1 [d / reduction, d], W2 [d, d / reduction], without biases.

    v [..., d] is the feature before its length is taken away. A(v) is never negative, so it can only add.
    """

    def __init__(self, site: Site, width: int, ratio: float, reduction: int):
        super().__init__(site)
        self.ratio = ratio
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def adapted(self, v: Tensor) -> Tensor:
        """A(v) [..., d]."""
        found: Tensor = self.up(self.down(v).relu()).relu()
        return found

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., d] -> [..., d]."""
        v = y.to(self.down.weight.dtype)
        return (self.ratio * self.adapted(v) + (1 - self.ratio) * v).to(y.dtype)


@dataclass
class CLIPAdapter(Method):
    """A bottleneck on the picture's feature, mixed with what it was:

        v' = ratio A(v) + (1 - ratio) v,  A(v) = ReLU(W2 ReLU(W1 v)),  logits = s cos(v', t)

    ``text_ratio`` above 0 puts another such bottleneck on the class features, which the paper describes and the released code
    lacks. The code fixes the ratio at 0.2, as here; the paper searches it for each data set. (A survey gives the feature as it
    was the ratio instead, and exchanges the names of the two adapters.) The paper trains with batch 32 at rate 1e-5.
    """

    name = "clip-adapter"
    route = "add modules"
    modalities = ("image", "text")
    paper = "Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, IJCV 2024, arXiv:2110.04544"
    trains = "a bottleneck on the picture's feature"
    inference = "two small products for each picture"
    needs = "an image-text model"
    identity_at_start = False
    rate = 1e-3

    ratio: float = 0.2
    text_ratio: float = 0.0
    reduction: int = 4

    def check(self) -> None:
        """Ratios lie between 0 and 1, and something is left to train."""
        need(0 <= self.ratio <= 1, self, "ratio", "in [0, 1]")
        need(0 <= self.text_ratio <= 1, self, "text_ratio", "in [0, 1]")
        need(self.ratio > 0 or self.text_ratio > 0, self, "ratio", "above 0, or text_ratio must be")
        need(self.reduction >= 1, self, "reduction", "at least 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A bottleneck where features come out of their towers.

        Raises:
            Unfit: the model does not know classes by their names. NoSuchSetting: nothing of the width would be left.
        """
        for name, ratio in (("image", self.ratio), ("classes", self.text_ratio)):
            if ratio > 0:
                site, width = place(at, name), cast(Any, at.model).towers.width
                need(self.reduction <= width, self, "reduction", f"at most {width}, the width of the features")
                at.put(site, FeatureAdapter, width=width, ratio=ratio, reduction=self.reduction)
