"""LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP (Huang, Shakeri, Dolz, Boudiaf, Bahig, Ben Ayed; CVPR 2024,
arXiv:2404.02285)."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from .few_shot.support import Seen, keep, look, own_scores
from .prompts.context import refuse_others

if TYPE_CHECKING:
    from ..core import Attachment

EVERY = 10        # epochs between two steps of what texts count, in the released code
MOMENTUM = 0.9    # of the probe, there
KEPT = ("features of training pictures", "their classes", "features of the classes")
Values = tuple[Tensor, Tensor, Tensor]  # w [K, d], b [K], a [K]


@register("linear-and-text")
class LinearAndText(Edit):
    """z_k = w_k . f + b_k + a_k (f . t_k), f and t_k of length one; w [K, d], b [K], a [K]."""

    port = "around"

    def __init__(self, site: Site, names: list[str], width: int):
        super().__init__(site)
        self.names = names
        self.weight = nn.Parameter(torch.zeros(len(names), width))
        self.bias = nn.Parameter(torch.empty(len(names)).uniform_(-(width**-0.5), width**-0.5))
        self.alpha = nn.Parameter(torch.zeros(len(names)))

    def forward(self, run: Any, image: Tensor, classes: Tensor) -> Tensor:
        """Unit features image [B, d] and classes [K, d] -> logits [B, K]."""
        scores: Any = self.site.module
        refuse_others(self, scores.texts)
        cosines = scores.cosines(image, classes)
        f, own = image.to(self.weight.dtype), cosines.to(self.weight.dtype)
        return (F.linear(f, self.weight, self.bias) + self.alpha * own).to(cosines.dtype)


@dataclass
class LPPlusPlus(Method):
    """A linear probe beside the text, which has a weight for each class; solved at once, on all training pictures together.

        z_k = w_k . f + b_k + a_k (f . t_k),   CE;   w starts as the sum of the class's features, a at 250 mean f . t_k

    No step size is tuned: the probe's is 4 N / lambda_max(F^T F), the one of a is N / (4 max_k sum_i (f_i . t_k)²), F the N
    training features. ``variant`` "code" is the released one: momentum 0.9 on w and b, and every tenth epoch a step of a along the
    sum of all its gradients so far, which were never zeroed; "paper" takes a plain step of the probe, then one of a, in every
    epoch, with the bias as one more feature in F, so that the loss never goes up: a reconstruction. Of ``steps`` epochs the one is
    kept that is right most often on the validation split; the authors give that as many pictures as there are shots.

    Features are those of ``views`` chance crops, in the mean; the authors take one. Nothing else of the model is needed twice, so
    no training loop runs: `thrifty.tune` solves it in ``calibrate``.
    """

    name = "lp++"
    aliases = ("lp-plus-plus", "lpplusplus")
    route = "add modules"
    modalities = ("image", "text")
    paper = "Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, CVPR 2024, arXiv:2404.02285"
    trains = "a linear head, and how much the text of each class counts"
    inference = "a linear head"
    needs = "an image-text model"
    identity_at_start = False
    solved = True

    steps: int = 300
    start: float = 250.0
    views: int = 1
    variant: str = "code"

    def check(self) -> None:
        """There are steps, and the variant is known."""
        need(self.steps >= 1, self, "steps", "at least 1")
        need(self.start >= 0, self, "start", "at least 0")
        need(self.views >= 0, self, "views", "at least 0")
        need(self.variant in ("code", "paper"), self, "variant", "'code' or 'paper'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The head where it starts; the features are remembered until it is solved.

        Raises:
            Unfit, HalfAdapted: see ``own_scores``. ThriftyError, BadData: see ``keep``.
        """
        site, seen = own_scores(at), keep(at, batches, self.views)
        scores: Any = site.module
        made: Any = at.put(site, LinearAndText, names=scores.texts.labels, width=seen.raw.shape[1])
        w, a = begin(seen, self.start)
        with torch.no_grad():
            made.weight.copy_(w)
            made.alpha.copy_(a)
        at.memory |= dict(zip(KEPT, (seen.raw, seen.labels, seen.classes), strict=True))

    @torch.no_grad()
    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Solve, and keep the epoch that the validation split prefers."""
        seen, held = Seen(*(at.memory[name] for name in KEPT)), look(at, batches)
        edit: Any = next(e for e in at.edits.values() if isinstance(e, LinearAndText))
        best: tuple[int, int, Values] | None = None
        f, cosines = held.unit, held.cosines

        def judge(epoch: int, w: Tensor, b: Tensor, a: Tensor) -> None:
            nonlocal best
            right = int(((f @ w.T + b + a * cosines).argmax(-1) == held.labels).sum())
            if best is None or right > best[0]:
                best = right, epoch, (w.clone(), b.clone(), a.clone())

        solve(seen, (edit.weight, edit.bias, edit.alpha), self.steps, self.variant, judge)
        assert best is not None
        for parameter, value in zip((edit.weight, edit.bias, edit.alpha), best[2], strict=True):
            parameter.copy_(value)
        at.about["measured"] = {"epoch": best[1], "of": self.steps, "validation accuracy": best[0] / len(f), "pictures": len(f)}
        at.about["notes"] = [f"Epoch {best[1]} of {self.steps} of {self.name} is the one that was right most often on the {len(f)} "
                             "pictures of the validation split. The test split had no part in it."]

    def finish(self, at: Attachment) -> None:
        """Forget the features."""
        for name in KEPT:
            at.memory.pop(name, None)


def begin(seen: Seen, start: float) -> tuple[Tensor, Tensor]:
    """w [K, d], the sum of each class's unit features, and a [K], ``start`` times the mean over classes of mean f . t_k."""
    told = F.one_hot(seen.labels, len(seen.classes)).to(seen.raw.dtype)
    own = (told * seen.cosines).sum(0) / told.sum(0)
    return told.T @ seen.unit, (start * own.mean()).expand(len(seen.classes)).clone()


def rates(seen: Seen, bias: bool = False) -> tuple[float, float]:
    """The step sizes of the probe and of a, as the data gives them.

    With ``bias`` the probe's own is counted as one more feature, without which a step may go up.
    """
    f, n = seen.unit, len(seen.raw)
    f = torch.cat([f, torch.ones_like(f[:, :1])], 1) if bias else f
    curvature = float(torch.linalg.matrix_norm(f, 2)) ** 2  # the largest eigenvalue of F^T F
    return 4 * n / curvature, n / (4 * float(seen.cosines.square().sum(0).max()))


def gradients(seen: Seen, w: Tensor, b: Tensor, a: Tensor) -> Values:
    """Of the mean cross-entropy."""
    f, cosines = seen.unit, seen.cosines
    off = (f @ w.T + b + a * cosines).softmax(-1) - F.one_hot(seen.labels, len(b)).to(f.dtype)
    off = off / len(f)
    return off.T @ f, off.sum(0), (off * cosines).sum(0)


def solve(seen: Seen, start: Values, steps: int, variant: str, judge: Callable[[int, Tensor, Tensor, Tensor], None]) -> None:
    """Go ``steps`` epochs from ``start``, and show ``judge`` the values after each."""
    w, b, a = (value.detach().clone() for value in start)
    rate, rate_a = rates(seen, bias=variant == "paper")
    fast_w, fast_b, summed = (torch.zeros_like(value) for value in (w, b, a))
    for epoch in range(1, steps + 1):
        g_w, g_b, g_a = gradients(seen, w, b, a)
        if variant == "paper":
            w, b = w - rate * g_w, b - rate * g_b
            a = a - rate_a * gradients(seen, w, b, a)[2]
        else:
            fast_w, fast_b, summed = MOMENTUM * fast_w + g_w, MOMENTUM * fast_b + g_b, summed + g_a
            w, b = w - rate * fast_w, b - rate * fast_b
            a = a - rate_a * summed if epoch % EVERY == 0 else a
        judge(epoch, w, b, a)
