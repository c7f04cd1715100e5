"""Hub-Pathway: Transfer Learning from A Hub of Pre-trained Models (Shu, Cao, Zhang, Wang, Long; NeurIPS 2022, arXiv:2206.03726)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core import need
from ..core.errors import Unfit
from ..zoo.costs import Measure, refuse_beyond
from ..zoo.pathway import OwnHeads, Pathway
from ..zoo.places import trunk_site, zoo_of
from ..zoo.zoo import Alone, Zoo
from .features import pictures
from .full import FullFineTuning

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class HubPathway(FullFineTuning):
    """Models of any architecture, of which each picture sees a few; see ``Pathway``. Everything trains, from the task's loss and

        L + exploit · mean_b sum_{i in R(x_b)} CE(h_i(f_i(x_b)), y_b) - explore · H( mean_b w(x_b) )

    so that a model learns from the pictures that it is chosen for, and all models are chosen for some. R(x) are the ``top`` models,
    H the entropy, at most log m; h_i are heads that training alone has. In evaluation nothing is left to chance.

    ``params`` and ``flops`` refuse hubs of more million parameters, or of more billion operations for a picture whose choice is the
    dearest (a multiplication with its addition is one); 0 is no limit.

    The equations are reconstructed from the abstract and the authors' other work: their code was not at hand. ``exploit``,
    ``explore`` and the size of the network that chooses are our own; the authors train as in Zoo-Tuning.
    """

    name = "hub-pathway"
    aliases = ("hubpathway",)
    route = "structure"
    modalities = ("image",)
    paper = "Shu et al., Hub-Pathway: Transfer Learning from A Hub of Pre-trained Models, NeurIPS 2022, arXiv:2206.03726"
    trains = "every weight of all models, a small network that chooses among them, and a new head"
    inference = "the small network, and the few models that it chose for the picture"
    identity_at_start: ClassVar[bool] = False
    needs = "several models"
    intermittent = True  # models that no picture of a batch is sent to
    rate = 1e-4

    top: int = 2
    exploit: float = 1.0
    explore: float = 0.1
    params: float = 0.0
    flops: float = 0.0

    def check(self) -> None:
        """Numbers are in their bounds."""
        super().check()
        need(self.top >= 1, self, "top", "at least 1")
        need(self.exploit >= 0, self, "exploit", "at least 0")
        need(self.explore >= 0, self, "explore", "at least 0")
        need(self.params >= 0, self, "params", "at least 0")
        need(self.flops >= 0, self, "flops", "at least 0")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, and put the choice where all features come together.

        Raises:
            Unfit: there is one model only, or they are beyond the limits. NoSuchSetting: more are to be chosen than there are.
        """
        site, zoo = trunk_site(at), zoo_of(at)
        need(self.top <= len(zoo.trunk), self, "top", f"at most {len(zoo.trunk)}, the number of models")
        super().attach(at, batches)
        at.put(site, Pathway, widths=zoo.trunk.widths, top=self.top)
        if self.params or self.flops:
            choice = next(e for e in at.edits.values() if isinstance(e, Pathway))
            refuse_beyond(self.name, self.params, self.flops, sum(p.numel() for p in zoo.parameters()),
                          dearest(zoo, choice, pictures.example(at)))
        at.put(site, OwnHeads, widths=zoo.trunk.widths, outputs=zoo.head.out_features)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss, what the models' own heads say of the pictures that they saw, and how evenly models are chosen.

        Raises:
            Unfit: the task has no class for each picture, or the model was compiled.
        """
        labels = batch.get("labels") if isinstance(batch, dict) else None
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            raise Unfit(f"{self.name} teaches models the classes of their pictures: {getattr(task, 'name', 'this task')} has none")
        choice = next(e for e in at.edits.values() if isinstance(e, Pathway))
        own = next(e for e in at.edits.values() if isinstance(e, OwnHeads))
        with choice.explore():
            mean, count = super().loss(at, task, model, batch)
        if choice.said is None:
            raise Unfit(f"{self.name} learns which models see which pictures, which a compiled model does not tell: train it as "
                        "it is")
        said, choice.said = choice.said, None
        parts = [F.cross_entropy(own.say(i, f), labels[rows], reduction="sum")
                 for i, (rows, f) in enumerate(said.seen) if len(rows)]
        return mean + self.exploit * sum(parts) / len(labels) - self.explore * evenness(said.weights), count

    def finish(self, at: Attachment) -> None:
        """The models' own heads have done their work."""
        at.take_away(next(row.key for row in at.plan if row.edit == OwnHeads.registered))


def dearest(zoo: Zoo, choice: Pathway, pixel_values: Tensor) -> int:
    """Operations for a picture such as one of [B, 3, h, w], if it is sent to the models that need most."""
    measure, shape = Measure(), tuple(pixel_values.shape[1:])
    each = sorted(measure.run([Alone(zoo.trunk, i)], shape)[0] for i in range(len(zoo.trunk)))
    looking = measure.run([choice.look], shape)[0] + choice.choose.weight.numel()
    return sum(each[-choice.top :]) + looking + zoo.head.weight.numel()


def evenness(weights: Tensor) -> Tensor:
    """H( mean_b w_b ) of w [B, m]: log m where all models are chosen alike, 0 where it is always one."""
    mean = weights.mean(0)
    return -(mean * mean.clamp_min(1e-12).log()).sum()
