"""TPT: Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models (Shu, Nie, Huang, Yu, Goldstein, Anandkumar,
Xiao; NeurIPS 2022, arXiv:2209.07511)."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Attachment
from ..core.errors import NoSuchSetting, Unfit
from ..methods.prompts.context import Context


class TPT:
    """The vectors around class names move so that the likeliest views of one picture agree, and return for the next picture:

        P = softmax of the logits of the views [V, K];  S the int(``share`` V) views of least entropy
        pbar = mean over S of P;  L = -sum_k pbar_k log pbar_k;  ``steps`` steps of AdamW;  answer: logits of the first view

    ``at`` holds such vectors and trains nothing else: ``attach(model, thrifty.CoOp(words="a photo of a"))`` as in the paper, or a
    CoOp that was trained. Values and moments of the optimiser begin anew for each picture, so the order of pictures does not
    matter. Pictures' features are computed once for all steps, as their tower is frozen. The authors take 64 views, the picture
    itself and 63 random cuts of it, some mirrored; for fine-grained sets they mix changes of AugMix into the cuts, which is left
    out here.

    Raises:
        Unfit: ``at`` trains something else, or vectors that depend on the picture.
        NoSuchSetting: a number that has no meaning.
    """

    def __init__(self, at: Attachment, *, share: float = 0.1, rate: float = 5e-3, decay: float = 0.01, steps: int = 1) -> None:
        for name, holds, wanted in (("share", 0 < share <= 1, "in (0, 1]"), ("rate", rate >= 0, "at least 0"),
                                    ("decay", decay >= 0, "at least 0"), ("steps", steps >= 1, "at least 1")):
            if not holds:
                raise NoSuchSetting(f"TPT: {name} must be {wanted}, not {locals()[name]!r}")
        if [type(edit) for edit in at.edits.values()] != [Context] or len(at.parameters()) != 1:
            held = sorted({row.edit for row in at.plan})
            raise Unfit(f"TPT moves the vectors of thrifty.CoOp and nothing else; {at.name!r} holds {held}")
        self.at, self.share, self.rate, self.decay, self.steps = at, share, rate, decay, steps
        (self.ctx,) = at.parameters()
        self.start = self.ctx.detach().clone()

    def __call__(self, views: Tensor) -> Tensor:
        """Logits [K] of the first of the ``views`` [V, C, H, W] of one picture, after learning from all of them."""
        model: Any = self.at.model
        with torch.no_grad():
            features = F.normalize(model.image_features(views), dim=-1)
        optimiser = torch.optim.AdamW([self.ctx], lr=self.rate, weight_decay=self.decay)
        try:
            for _ in range(self.steps):
                with torch.enable_grad():
                    (self.ctx.grad,) = torch.autograd.grad(entropy_of_mean(likeliest(self.ask(features), self.share)), [self.ctx])
                optimiser.step()
            with torch.no_grad():
                return self.ask(features[:1])[0]
        finally:
            self.ctx.grad = None
            with torch.no_grad():
                self.ctx.copy_(self.start)

    def ask(self, features: Tensor) -> Tensor:
        """Logits [V, K] of unit features [V, d]."""
        model: Any = self.at.model
        return model.scores(features, F.normalize(model.classes(model.class_features()), dim=-1))


def likeliest(logits: Tensor, share: float) -> Tensor:
    """Those rows of [V, K], at least one, whose answers have the least entropy."""
    count = max(1, int(share * len(logits)))
    surprise = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return logits[surprise.argsort(stable=True)[:count]]


def entropy_of_mean(logits: Tensor) -> Tensor:
    """The entropy of the mean of the answers [V, K]."""
    mean = logits.float().log_softmax(-1).logsumexp(0) - torch.tensor(float(len(logits)), device=logits.device).log()
    return -(mean.exp() * mean).sum()
