"""Teachers: trained models that a student asks about its batches, by the name of a model, the folder of a run, or as they are."""
from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.errors import Unfit
from ...core.hooks import main
from ..features.pictures import are_pictures

if TYPE_CHECKING:
    from ...models import Backbone


class Teacher:
    """A model in evaluation mode that answers without gradients. Its class ``order[c]`` is the student's class c."""

    def __init__(self, backbone: Backbone, order: list[int], device: torch.device):
        self.backbone, self.order = backbone, order
        self.model = backbone.model.to(device).eval()
        self.takes = list(inspect.signature(self.model.forward).parameters)

    @torch.no_grad()
    def answer(self, task: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The student's ``inputs`` -> logits [..., classes] in the student's order of classes.

        The same pictures as the student's, augmented as they are, at the size and with the means that the teacher wants.

        Raises:
            Unfit: the teacher cannot read what the student reads, or answers with another number of classes.
        """
        self.model.eval()
        pictures = next(filter(are_pictures, inputs.values()), None)
        out = self.model(**self._read(task, inputs)) if pictures is None else self.model(self._look(task, pictures))
        logits = main(out)
        if logits.shape[-1] != len(self.order):
            raise Unfit(f"the teacher ({type(self.model).__name__}) answers with {logits.shape[-1]} classes, the task has "
                        f"{len(self.order)}")
        return logits[..., self.order]

    def _look(self, task: Any, pixels: Tensor) -> Tensor:
        from ...models.sight import show, sight

        seen, wanted = sight(task.backbone), sight(self.backbone)
        return pixels if seen is None or wanted is None else show(pixels, seen, wanted)

    def _read(self, task: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        own, theirs = (getattr(side.preprocess, "get_vocab", None) for side in (self.backbone, task.backbone))
        if own is not None and theirs is not None and own() != theirs():
            raise Unfit("teacher and student cut texts into other tokens, so that what the student reads means nothing to the "
                        "teacher: choose one with the student's tokenizer")
        return {key: value for key, value in inputs.items() if key in self.takes}


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
    backbone, theirs = _from_run(folder, task) if (folder / ABOUT).is_file() else _by_name(name, task)
    return Teacher(backbone, _order(name, theirs, labels), device)


def _from_run(folder: Path, task: Any) -> tuple[Backbone, list[str]]:
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

    backbone = load(name, task.name, task.labels)
    if new := backbone.source["new_tensors"]:
        raise Unfit(f"the teacher {name!r} has no trained head for the {len(task.labels)} classes of the task ({new[0]!r} would be "
                    "new): train it first, and give the folder of that run")
    return backbone, _own_labels(name) or list(task.labels)


def _own_labels(name: str) -> list[str] | None:
    """What a checkpoint calls its classes, in order; None where it only numbers them."""
    from ...models.finding import find

    if name.startswith("timm:"):
        return None
    known = json.loads((find(name).folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    names = [str(known[key]) for key in sorted(known, key=int)]
    return None if not names or names == [f"LABEL_{i}" for i in range(len(names))] else names


def _order(name: str, theirs: list[str], labels: list[str]) -> list[int]:
    """Where each of ``labels`` stands among the teacher's."""
    if sorted(theirs) != sorted(labels):
        other = [label for label in labels if label not in theirs] or [label for label in theirs if label not in labels]
        raise Unfit(f"the teacher {name!r} knows other classes than the task: {', '.join(map(repr, other[:5]))} "
                    f"{'is' if len(other) == 1 else 'are'} on one side only")
    return [theirs.index(label) for label in labels]
