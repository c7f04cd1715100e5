"""TaskRes: Task Residual for Tuning Vision-Language Models (Yu, Lu, Jin, Chen, Wang; CVPR 2023, arXiv:2211.10277)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from .prompts.context import place, refuse_others

if TYPE_CHECKING:
    from ..core import Attachment


@register("class-residual")
class ClassResidual(Edit):
    """t_k + alpha x_k, x [K, d] zero at the start, before the length is taken away.

    t [K, d] is what passes, or ``base``, which is kept where the classes have several sentences each.
    """

    base: Tensor | None

    def __init__(self, site: Site, names: list[str], width: int, alpha: float, several: bool = False):
        super().__init__(site)
        self.names, self.alpha = names, alpha
        self.x = nn.Parameter(torch.zeros(len(names), width))
        self.register_buffer("base", torch.zeros(len(names), width) if several else None)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [K, d], or [B, K, d] -> the same."""
        module: Any = self.site.module
        refuse_others(self, module.texts)
        t = y if self.base is None else self.base
        return (t + self.alpha * self.x).to(y.dtype)


@dataclass
class TaskRes(Method):
    """A residual for each class, added to the feature of its sentence: logits = s cos(f, t_k + alpha x_k), x [K, d] from zero.

    With several templates t_k is the mean of features whose length was left, as the authors have it, where zero-shot takes the
    mean of unit features; with one template the start is zero-shot exactly. How far a step goes depends on the length of t_k,
    which is well above one.

    The authors take alpha 0.5 (1 on Flowers102) and Adam at 2e-3 (2e-4 on ImageNet), decay 5e-4, batch 256, 100 epochs with 1, 2 or
    4 shots, 200 with 8 or 16, a cosine, random crops. Their "enhanced base", which trains the text projection first, is not here.
    """

    name = "taskres"
    route = "few weights"
    modalities = ("image", "text")
    paper = "Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023, arXiv:2211.10277"
    trains = "a vector for each class, added to the feature of its sentence"
    inference = "nothing: class features are computed once"
    needs = "an image-text model"
    rate = 2e-3

    alpha: float = 0.5

    def check(self) -> None:
        """Residuals count."""
        need(self.alpha > 0, self, "alpha", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Residuals where class features pass.

        Raises:
            Unfit: the model does not know classes by their names.
        """
        site, model = place(at, "classes"), cast(Any, at.model)
        texts, several = model.texts, len(model.texts.templates) > 1
        made: Any = at.put(site, ClassResidual, names=texts.labels, width=model.towers.width, alpha=self.alpha, several=several)
        if several:
            made.base.copy_(model.sentence_features(texts.templates).mean(0))
