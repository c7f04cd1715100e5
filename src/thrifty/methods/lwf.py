"""LWF: Learning without Forgetting (Li, Hoiem; ECCV 2016, arXiv:1606.09282), as a regulariser of fine-tuning."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import need
from .full import FullFineTuning
from .guidance.soft_targets import divergence
from .guidance.source import ask_source
from .guidance.source_head import drop_source_head, features, first_answer, keep_source_head, source_head

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class LWF(FullFineTuning):
    """Full fine-tuning in which the head of the source goes on saying of the task's inputs what it said before:

        L + weight · KL( softmax(G0_s(f0) / T) || softmax(G_s(f) / T) ),   a mean over the batch

    G_s is the classifier of the base's checkpoint on the features f that the new head reads too, and trains with them; G0_s and f0
    are both as the source has them. The authors record G0_s(f0) of every training row beforehand; here the source is asked for
    each batch, in evaluation mode, which is the same where rows are not augmented, and fits what is seen where they are.
    """

    name = "lwf"
    aliases = ("learning-without-forgetting",)
    paper = "Li and Hoiem, Learning without Forgetting, ECCV 2016, arXiv:1606.09282"
    trains = "every weight of the model, and the classifier it came with"
    needs = "the head of a trained classifier"

    head_factor: float = 10.0
    weight: float = 4.0
    temperature: float = 3.0

    def check(self) -> None:
        """Numbers are positive."""
        super().check()
        need(self.weight >= 0, self, "weight", "at least 0")
        need(self.temperature > 0, self, "temperature", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, and keep the source head.

        Raises:
            Unfit: it is not known.
        """
        super().attach(at, batches)
        keep_source_head(at)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss, and how far the source head is from its first answers."""
        ask_source(at, task.inputs(at.model, batch))
        before = first_answer(at, features(at))
        mean, count = super().loss(at, task, model, batch)
        now = source_head(at).answer(features(at))
        return mean + self.weight * divergence(now, before, self.temperature, squared=False), count

    def finish(self, at: Attachment) -> None:
        """Only the new head is needed any more."""
        drop_source_head(at)
