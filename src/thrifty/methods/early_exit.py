"""Early exits: Faster Domain Adaptation Networks (Li, Jing, Su, Lu, Zhu, Shen; IEEE TKDE 34, 2022, doi 10.1109/TKDE.2021.3060473),
with the thresholds of Dynamic Domain Adaptation for Efficient Inference (Li, Zhang, Ma, Liu, Li; CVPR 2021)."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import Method, Site, base, need
from ..core.errors import Unfit
from ..core.probe import guess_example
from ..core.site import at_path
from .depth import exit_budget
from .depth.exit_measuring import confidences, describe, exit_flops, set_thresholds
from .depth.exits import Begin, Exit, Gather, Skip, listening
from .depth.said import Said
from .depth.slow_trunk import slow_down
from .features import pictures
from .full import FullFineTuning
from .heads import last_linear

if TYPE_CHECKING:
    from ..core import Attachment

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


@dataclass
class EarlyExit(Method):
    """Heads inside the network, by which a picture that is easy leaves early: later blocks do not compute it. A reconstruction.

        loss = sum_k gamma_k CE(C_k(f_k), y);   a picture leaves at the first exit k whose confidence is at least T_k

    f_k is pooled from block ``after[k]`` (counted from 1): the class token, or the mean over tokens or places. By default a
    network of several stages has an exit after each but the last, and one of L equal blocks after L/4, L/2 and 3L/4 of them.
    The network's own head is the last exit. Confidence is the largest "probability", or minus the "entropy".

    T_k are set on the validation split: with q = ``budget`` a share of q^k / sum_j q^j should leave at exit k, so that below 1
    most leave early, above 1 late, and with 0 nobody leaves before the end; the papers sweep q from 0.05 to 4.95. ``gammas``
    are one per exit, all 1 if empty. ``trunk="full"`` trains the whole network, at a tenth of the rate of the exits; "frozen"
    trains the exits alone. A source and an unlabelled target are trained together with ``thrifty.methods.depth.discrepancy``.
    """

    name = "early-exit"
    aliases = ("fda-es", "early-exits")
    route = "structure"
    modalities = ("image",)
    paper = "Li et al., Faster Domain Adaptation Networks, IEEE TKDE 2022; Li et al., Dynamic Domain Adaptation, CVPR 2021"
    trains = "heads inside the network, and the network"
    inference = "less: later blocks run only for pictures that did not leave"
    rate = 2e-4

    after: list[int] = field(default_factory=list)
    measure: str = "probability"
    budget: float = 1.0
    gammas: list[float] = field(default_factory=list)
    trunk: str = "full"

    def check(self) -> None:
        """Places rise, the measure and the trunk are known, the budget and the weights are not negative."""
        need(self.after == sorted({n for n in self.after if n >= 1}), self, "after", "rising numbers of blocks, from 1")
        need(self.measure in ("probability", "entropy"), self, "measure", "'probability' or 'entropy'")
        need(self.budget >= 0 and math.isfinite(self.budget), self, "budget", "at least 0")
        need(all(gamma >= 0 for gamma in self.gammas), self, "gammas", "at least 0, each of them")
        need(self.trunk in ("full", "frozen"), self, "trunk", "'full' or 'frozen'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Exits after the chosen blocks; what comes behind the first of them may be skipped.

        Raises:
            Unfit: the model reads no pictures, its blocks do not follow each other, or it does not end in a linear layer.
            NoSuchSetting: there is no such block, or the weights are not as many as the exits.
        """
        pictures.example(at)
        blocks = chain(at)
        after = self.after or places(blocks)
        need(bool(after) and after[-1] < len(blocks), self, "after", f"numbers from 1 to {len(blocks) - 1}, all but the last block")
        need(len(self.gammas) in (0, len(after) + 1), self, "gammas", f"{len(after) + 1} weights, one for each exit and the end")
        held = at.seen.example if at.seen.example is not None else guess_example(at.model)
        assert held is not None  # or there were no pictures
        head = at_path(at.model, last_linear(at.model, held), "head", None, -1, "", at.seen)
        first = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in at.model.named_parameters())
        root = at.sites("model")[0]
        at.put(root, Begin)
        for number, n in enumerate(after):
            at.put(blocks[n - 1], Exit, number=number, classes=head.dout, first=first, measure=self.measure)
        for site in (*blocks[after[0] :], head):
            at.put(site, Skip)
        at.put(root, Gather, exits=len(after) + 1)
        if self.trunk == "full":
            FullFineTuning.make().attach(at)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The sum of the task's losses at all exits, each with its weight."""
        with listening(at) as heard:
            total, count = super().loss(at, task, model, batch)
        *gammas, last = self.gammas or [1.0] * len(heard)
        inside = [gamma * task.loss(Said(logits), batch)[0] for gamma, (logits, _) in zip(gammas, heard, strict=False)]
        return last * total + sum(inside), count

    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Set the thresholds for the budget, and leave what that costs in ``at.about["measured"]``; see ``describe``."""
        given = (task.inputs(at.model, batch) for batch in batches)
        one = next(given)
        c = confidences(at, itertools.chain([one], given))
        t = exit_budget.thresholds(c, self.budget) if self.budget else [math.inf] * (len(c) - 1) + [-math.inf]
        set_thresholds(at, t)
        at.about["measured"] = describe(c, t, exit_flops(at, one))

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """The trunk at a tenth of the rate of exits and head."""
        return slow_down(at, super().groups(at, rate, decay))


def chain(at: Attachment) -> list[Site]:
    """The blocks of a network that does nothing else between the first and the last of them.

    Raises:
        Unfit: it does, as Swin and ConvNeXt do between their stages.
    """
    blocks = at.sites("block")
    paths = tuple(site.path + "." for site in blocks)
    names = [name for name, _ in base.parameters(at.model)]
    inside = [i for i, name in enumerate(names) if name.startswith(paths)]
    between = [name for name in names[inside[0] : inside[-1]] if not name.startswith(paths)] if inside else []
    if between:
        raise Unfit(f"{type(at.model).__name__} computes {between[0]!r} between its blocks: exits need blocks that follow each "
                    "other, as those of a plain vision transformer or a ResNet do")
    return blocks


def places(blocks: Sequence[Site]) -> list[int]:
    """After how many blocks there are exits: at the end of each stage but the last, or at the quarters of a single one."""
    stages = [site.path.rpartition(".")[0] for site in blocks]
    ends = [i + 1 for i in range(len(stages) - 1) if stages[i] != stages[i + 1]]
    return ends or sorted({len(blocks) * k // 4 for k in (1, 2, 3)} - {0})
