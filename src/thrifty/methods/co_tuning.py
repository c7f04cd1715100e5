"""Co-Tuning for Transfer Learning (You, Kou, Long, Wang; NeurIPS 2020)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import need
from ..core.errors import ThriftyError, Unfit
from ..core.probe import run_once
from .features.reading import inputs_of
from .full import FullFineTuning
from .guidance.relationship import relate_directly, relate_in_reverse
from .guidance.source_head import drop_source_head, features, keep_source_head, source_head

if TYPE_CHECKING:
    from ..core import Attachment

RELATIONSHIP = "relationship"


@dataclass
class CoTuning(FullFineTuning):
    """Full fine-tuning in which the head of the source goes on learning, from what the classes of the task are to it:

        L + weight · mean_b( - sum_s R[y_b, s] log softmax(G_s(f_b))_s ),   R [target classes, source classes], rows sum to 1

    G_s is the classifier of the base's checkpoint, on the features f that the new head reads too; it is thrown away in the end.
    R = p(y_s | y_t) is learned before training, from what the source says in evaluation mode to the training rows: "reverse", the
    authors' own, by way of a calibrated softmax regression, or "direct", the mean of what it says to each class (see
    ``relationship``). "reverse" multiplies the source's logits by ``calibration``, which calibrates it on its own task:
    0.8840456605 for the ImageNet ResNet-50. The authors search ``weight`` in 0 to 10.
    """

    name = "co-tuning"
    aliases = ("cotuning",)
    paper = "You et al., Co-Tuning for Transfer Learning, NeurIPS 2020"
    trains = "every weight of the model, and the classifier it came with"
    needs = "the head of a trained classifier"

    head_factor: float = 10.0
    weight: float = 2.3
    relationship: str = "reverse"
    calibration: float = 1.0

    def check(self) -> None:
        """Numbers are positive, the kind of relationship is known."""
        super().check()
        need(self.weight >= 0, self, "weight", "at least 0")
        need(self.relationship in ("reverse", "direct"), self, "relationship", "'reverse' or 'direct'")
        need(self.calibration > 0, self, "calibration", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, keep the source head, and relate the classes.

        Raises:
            Unfit: the source head is not known. ThriftyError: there is no data. BadData: a class has no row.
        """
        super().attach(at, batches)
        head = keep_source_head(at)
        if next(at.model.parameters()).is_meta:
            return
        if batches is None:
            raise ThriftyError("Co-Tuning relates the classes of the task to those of the source by the data: attach with batches= "
                               "(dicts of tensors, with labels)")
        said, labels = [], []
        for batch in batches:
            run_once(at.model, inputs_of(batch))
            with torch.no_grad():
                said.append(head.answer(features(at)))
            labels.append(batch["labels"])
        if not labels:
            raise ThriftyError("there is no row of data by which Co-Tuning could relate classes")
        at.memory[RELATIONSHIP] = self.relate(torch.cat(said), torch.cat(labels), head.site.dout).float()

    def relate(self, logits: Tensor, labels: Tensor, classes: int) -> Tensor:
        """R [classes, C_s] from what the source says, ``logits`` [n, C_s], to rows of the task's classes ``labels`` [n].

        Raises:
            BadData: a class has no row. Unfit: the task has no classes.
        """
        if labels.is_floating_point() or labels.dim() != 1:
            raise Unfit("Co-Tuning relates classes, one per example, and this task's labels are none")
        if self.relationship == "direct":
            return relate_directly(logits.double().softmax(1), labels, classes)
        return relate_in_reverse((self.calibration * logits.double()).softmax(1), labels, classes)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss, and that of the source head against its relationship with the rows' classes."""
        mean, count = super().loss(at, task, model, batch)
        logits = source_head(at).answer(features(at))
        return mean + self.weight * agreement(logits, at.memory[RELATIONSHIP].to(logits.device), batch["labels"]), count

    def finish(self, at: Attachment) -> None:
        """Only the new head is needed any more."""
        drop_source_head(at)


def agreement(logits: Tensor, relationship: Tensor, labels: Tensor) -> Tensor:
    """mean_b( - sum_s R[y_b, s] log softmax(logits_b)_s ), of the source head's ``logits`` [batch, C_s] and R [C_t, C_s]."""
    return -(relationship[labels] * logits.log_softmax(1)).sum(1).mean()
