"""Answers about pictures from a model that was told the names of the classes and no more."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from thrifty import tasks
from thrifty.clip import ImageTextModel
from thrifty.core import attach
from thrifty.core.errors import NoSuchSetting, Unfit, nearest
from thrifty.models import Backbone, load
from thrifty.online import TPT
from thrifty.tasks.image_classification import ImageClassification
from thrifty.train.inputs import read_inputs
from thrifty.train.precision import Precision, choose
from thrifty.train.predict import write_answers
from thrifty.train.predicting import answer
from thrifty.train.processes import Processes, here, move

WAYS = ("zero-shot", "tpt")
WORDS, VIEWS = "a photo of a", 64  # as TPT's authors have them


def zero_shot(model: str | Backbone, data: Any, classes: Sequence[str], *, method: str = "zero-shot",
              templates: str | Sequence[str] | None = None, split: str | None = None, batch: int = 32, device: str = "auto",
              precision: str = "auto", seed: int = 0) -> list[dict[str, Any]]:
    """One answer per picture, as `predict` gives.

    Args:
        model: a folder or hub id of CLIP or SigLIP, or a backbone that holds a `thrifty.clip.ImageTextModel`.
        data: pictures: a folder of them, by class or not, or anything that `thrifty.data.read` takes; labels are not looked at.
        classes: their names.
        method: "zero-shot"; or "tpt", which learns from each picture before it answers, and forgets it (see `thrifty.online.TPT`).
        templates: sentences that the names are put into; see `thrifty.clip.resolve`. "tpt" has words of its own.
        seed: of the views that "tpt" makes of a picture.

    Raises:
        Unfit: the model does not know classes by their names.
        NoSuchSetting: an unknown method, or templates for one that has its own.
        ThriftyError: as `predict`; or fewer than two classes, or two that read alike.
    """
    if method not in WAYS:
        raise NoSuchSetting(f"method is {method!r}." + nearest(method, WAYS))
    if method == "tpt" and templates is not None:
        raise NoSuchSetting(f"templates: tpt starts from the words {WORDS!r} in front of the name, and takes no others")
    processes = here(device)
    backbone = load(model, "image-classification", list(classes)) if isinstance(model, str) else model
    if not isinstance(backbone.model, ImageTextModel):
        raise Unfit(f"answers without training need a model that knows classes by their names, such as CLIP or SigLIP; "
                    f"{type(backbone.model).__name__} does not: train it (thrifty tune), or take another")
    backbone.model.to(processes.device)
    varied = {"augment": "crop-flip"} if method == "tpt" else {}
    task = tasks.get("image-classification", backbone, list(classes), templates=templates, **varied)
    table, precise = read_inputs(data, task.name, {"image": "image"}, split), choose(precision, processes.device)
    if method == "tpt":
        found = ask_views(cast(ImageClassification, task), backbone.model, task.encode(table), processes, precise, seed)
    else:
        found = answer(task.predict, task, backbone.model, task.encode(table), batch, processes, precise)
    return write_answers(task, found, table)


def ask_views(task: ImageClassification, model: ImageTextModel, examples: list[dict[str, Any]], processes: Processes,
              precision: Precision, seed: int) -> list[dict[str, Any]]:
    """What `TPT` answers about each picture from views of it; the model is afterwards as it was."""
    from thrifty.methods import make

    model.eval()
    example = move(task.collate([{k: v for k, v in examples[0].items() if k != "label"}]), processes.device)
    at = attach(model, make("coop", words=WORDS), name="tpt", example=example)
    found = []
    try:
        adapt = TPT(at)
        for one in examples:
            views = [one, *(task.vary([one], seed, view)[0] for view in range(1, VIEWS))]
            batch = move(task.collate(views), processes.device)
            with precision.autocast():
                shares = adapt(batch[task.key]).double().softmax(-1).tolist()
            found.append({"prediction": int(np.argmax(shares)), "scores": shares})
    finally:
        at.detach()
    return found
