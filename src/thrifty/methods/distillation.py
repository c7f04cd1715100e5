"""Knowledge distillation: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; NeurIPS 2014 workshop,
arXiv:1503.02531)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import need
from ..core.errors import Unfit
from .branches.side import SideTap, said
from .full import FullFineTuning
from .guidance.outer import Around
from .guidance.soft_targets import REDUCTIONS, divergence
from .guidance.teacher import Teacher, find_teacher

if TYPE_CHECKING:
    from ..core import Attachment

ROOT = said("")  # where a tap at the model leaves its answer
TEACHERS = "the folder of a run, the name of a model, or a module"


@dataclass
class Distillation(Around):
    """Another method, whose student also learns what a trained teacher says of each example, z and v [batch, classes]:

        L = (1 - alpha) CE(z, y) + alpha T² KL(softmax(v / T) || softmax(z / T)),   a mean over the batch

    ``teacher`` is the folder of a run of `thrifty tune`, the name of a model that has a head for these classes, or (from Python) a
    module or `models.Backbone` whose classes are in the task's order. It sees the student's own pictures, augmented as they are, or
    the student's tokens. The student is trained by the method ``around``, full fine-tuning by default, with ``settings_of``; it is
    alone at inference.

    ``temperature`` is T, of 1 to 20. Without ``squared`` there is no T². ``mixing="sum"`` is CE + alpha KL. With T = 1, alpha = 1
    and both it is what the Transfer-Learning-Library does: ``tllib-distillation``. ``reduction="deit_legacy"`` divides the
    divergence by the number of classes too. At alpha = 0 it is the other method.
    """

    name = "distillation"
    aliases = ("kd", "knowledge-distillation")
    presets = {"tllib-distillation": {"alpha": 1.0, "temperature": 1.0, "squared": False, "mixing": "sum"}}
    route = "few weights"
    paper = "Hinton et al., Distilling the Knowledge in a Neural Network, NeurIPS 2014 workshop, arXiv:1503.02531"
    trains = "what the method trains that it goes around, by default every weight"
    inference = "that method's"
    rate = FullFineTuning.rate

    teacher: str | Any = ""
    around: str = "full"
    settings_of: dict[str, Any] = field(default_factory=dict)
    alpha: float = 0.5
    temperature: float = 4.0
    squared: bool = True
    mixing: str = "convex"
    reduction: str = "batchmean"

    def check(self) -> None:
        """There is a teacher and a method, and numbers are in their bounds."""
        need(self.teacher is not None and self.teacher != "", self, "teacher", TEACHERS)
        need(self.temperature > 0, self, "temperature", "positive")
        need(self.mixing in ("convex", "sum"), self, "mixing", "'convex' or 'sum'")
        most = 1.0 if self.mixing == "convex" else float("inf")
        need(0 <= self.alpha <= most, self, "alpha", "in [0, 1]; with mixing='sum' at least 0")
        need(self.reduction in REDUCTIONS, self, "reduction", " or ".join(map(repr, REDUCTIONS)))
        super().check()

    def settings(self) -> dict[str, Any]:
        """The fields as plain data; of a teacher that is a module its class."""
        return {**super().settings(), "teacher": name_teacher(self.teacher)}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The other method, and a tap that hears the student's answer.

        Raises:
            Unfit: the adapter serves several tasks, which no teacher does.
        """
        refuse_tasks(at, self.name)
        super().attach(at, batches)
        at.put(at.sites("model")[0], SideTap, port="output", cut=False)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The other method's loss and the divergence from the teacher, mixed.

        Raises:
            Unfit: the task has no classes, or the teacher does not fit it.
        """
        hard, count = super().loss(at, task, model, batch)
        student = at.context.taps.pop(ROOT)
        teacher = ask_teacher(at, self.teacher, task, batch)
        student, teacher = answered(student, batch["labels"]), answered(teacher, batch["labels"])
        soft = divergence(student, teacher, self.temperature, self.squared, self.reduction)
        return (1 - self.alpha if self.mixing == "convex" else 1) * hard + self.alpha * soft, count

    def finish(self, at: Attachment) -> None:
        """The other method's; the tap is no longer needed, nor is the teacher."""
        super().finish(at)
        dismiss(at)
        at.take_away(next(row.key for row in reversed(at.plan) if row.edit == SideTap.registered and not row.path))


def ask_teacher(at: Attachment, given: Any, task: Any, batch: Any) -> Tensor:
    """The teacher's logits for a batch of ``task``; it is found when it is asked for the first time.

    Raises:
        Unfit: see ``find_teacher``.
    """
    if "teacher" not in at.guests:
        at.guests["teacher"] = find_teacher(given, task, at.seen.device)
    teacher: Teacher = at.guests["teacher"]
    return teacher.answer(task, task.inputs(at.model, batch))


def dismiss(at: Attachment) -> None:
    """Let the teacher go."""
    at.guests.pop("teacher", None)


def name_teacher(teacher: Any) -> str:
    """What is written down of a teacher."""
    return str(teacher) if isinstance(teacher, (str, PathLike)) else type(getattr(teacher, "model", teacher)).__name__


def refuse_tasks(at: Attachment, name: str) -> None:
    """Raises: Unfit where the attachment serves several tasks."""
    if at.tasks:
        raise Unfit(f"{name} learns from one teacher, who knows one task, but this adapter serves {', '.join(at.tasks)}")


def answered(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits [n, classes] of what has a label: of all examples [n], or of those tokens [batch, tokens] that are not left out.

    Raises:
        Unfit: logits and labels are not of one place each.
    """
    if logits.shape[:-1] != labels.shape:
        raise Unfit(f"a teacher is asked for probabilities of classes, and this task's labels {list(labels.shape)} are not one for "
                    f"each of the answers {list(logits.shape)}")
    return logits[labels >= 0]
