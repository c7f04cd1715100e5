"""Teachers: trained models that a student asks about its batches, by the name of a model, the folder of a run, or as they are."""
from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.errors import Unfit
from ...core.hooks import main
from ..features.pictures import are_pictures

if TYPE_CHECKING:
    from ...models import Backbone


class Onlooker:
    """A model in evaluation mode that is shown what a student reads, and keeps no graph."""

    def __init__(self, backbone: Backbone, device: torch.device):
        self.backbone = backbone
        self.model = backbone.model.to(device).eval()
        self.takes = list(inspect.signature(self.model.forward).parameters)

    @torch.no_grad()
    def ask(self, task: Any, inputs: dict[str, Tensor]) -> Any:
        """What the model says to the student's ``inputs``, as ``show`` makes them its own.

        Raises:
            Unfit: see ``show``.
        """
        self.model.eval()
        given = self.show(task, inputs)
        return self.model(given) if isinstance(given, Tensor) else self.model(**given)

    def show(self, task: Any, inputs: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The student's pictures, augmented as they are, at the size and with the means that this model wants; or its tokens.

        Without a ``task``, nothing is known of how the student's were prepared: they are shown as they are.

        Raises:
            Unfit: the model cannot read what the student reads.
        """
        pictures = next(filter(are_pictures, inputs.values()), None)
        return self._read(task, inputs) if pictures is None else self._look(task, pictures)

    def _look(self, task: Any, pixels: Tensor) -> Tensor:
        from ...models.sight import show, sight

        seen, wanted = None if task is None else sight(task.backbone), sight(self.backbone)
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), pixels.dtype)
        return (pixels if seen is None or wanted is None else show(pixels, seen, wanted)).to(own)

    def _read(self, task: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        sides = (self.backbone, self.backbone if task is None else task.backbone)
        own, theirs = (getattr(side.preprocess, "get_vocab", None) for side in sides)
        if own is not None and theirs is not None and own() != theirs():
            raise Unfit("teacher and student cut texts into other tokens, so that what the student reads means nothing to the "
                        "teacher: choose one with the student's tokenizer")
        return {key: value for key, value in inputs.items() if key in self.takes}


class Teacher(Onlooker):
    """One that answers the student's own question. Its class ``order[c]`` is the student's class c."""

    def __init__(self, backbone: Backbone, order: list[int], device: torch.device):
        super().__init__(backbone, device)
        self.order = order

    def answer(self, task: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The student's ``inputs`` -> logits [..., classes] in the student's order of classes.

        Raises:
            Unfit: the teacher cannot read what the student reads, or answers with another number of classes.
        """
        logits = main(self.ask(task, inputs))
        if logits.shape[-1] != len(self.order):
            raise Unfit(f"the teacher ({type(self.model).__name__}) answers with {logits.shape[-1]} classes, the task has "
                        f"{len(self.order)}")
        return logits[..., self.order]


def find_teacher(given: Any, task: Any, device: torch.device) -> Teacher:
    """The teacher for ``task``: a module or `models.Backbone`, the folder of a run or adapter, or a model's name.

    Raises:
        Unfit: it was trained for other classes, or for none. ThriftyError: see `models.load` and `artifact.load`.
    """
    from ...models import Backbone, wrap

    if getattr(task, "labels", None) is None:
        raise Unfit(f"a teacher is asked for probabilities of classes, and {task.name} has none")
    labels = list(task.labels)
    if isinstance(given, nn.Module):
        given = wrap(given)
    if isinstance(given, Backbone):
        return Teacher(given, list(range(len(labels))), device)
    from ...artifact.files import ABOUT, adapter_folder

    folder, name = adapter_folder(given), str(given)
    backbone, theirs = load_run(folder, task) if (folder / ABOUT).is_file() else _by_name(name, task)
    return Teacher(backbone, _order(name, theirs, labels), device)


def load_run(folder: Path, task: Any) -> tuple[Backbone, list[str]]:
    """The model that a run of the same kind of task trained, and its labels.

    Raises:
        Unfit: the adapter in ``folder`` is of another kind of task. ThriftyError: see `models.load` and `artifact.load`.
    """
    from ... import artifact
    from ...models import load

    about = artifact.inspect(folder)["about"]
    if about.get("task") != task.name or about.get("form", task.name) != task.name or "model" not in about:
        raise Unfit(f"the teacher in {folder} was trained for {about.get('task', 'a task that it does not say')}, not for "
                    f"{task.name}")
    backbone = load(about["model"], task.name, about["labels"])
    artifact.load(backbone.model, folder)
    return backbone, list(about["labels"])


def _by_name(name: str, task: Any) -> tuple[Backbone, list[str]]:
    from ...models import load
    from ...models.source_head import name_classes

    backbone = load(name, task.name, task.labels)
    if new := backbone.source["new_tensors"]:
        raise Unfit(f"the teacher {name!r} has no trained head for the {len(task.labels)} classes of the task ({new[0]!r} would be "
                    "new): train it first, and give the folder of that run")
    return backbone, name_classes(name) or list(task.labels)


def _order(name: str, theirs: list[str], labels: list[str]) -> list[int]:
    """Where each of ``labels`` stands among the teacher's."""
    if sorted(theirs) != sorted(labels):
        other = [label for label in labels if label not in theirs] or [label for label in theirs if label not in labels]
        raise Unfit(f"the teacher {name!r} knows other classes than the task: {', '.join(map(repr, other[:5]))} "
                    f"{'is' if len(other) == 1 else 'are'} on one side only")
    return [theirs.index(label) for label in labels]
