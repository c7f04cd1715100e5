"""B-Tuning: Ranking and Tuning Pre-trained Models: A New Paradigm for Exploiting Model Hubs (You, Liu, Zhang, Wang, Jordan, Long;
JMLR 2022, arXiv:2110.10545)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import need
from ..core.errors import ThriftyError, Unfit
from ..core.probe import run_once
from ..rank import blend, maximise, penalty, weigh
from .features.reading import find_reader, heard, inputs_of, listen, stop_listening
from .full import FullFineTuning
from .guidance.reference import Reference, find_references, name_model

if TYPE_CHECKING:
    from ..core import Attachment

MEAN, WEIGHTS, SCORES, CHOSEN = "posterior mean", "weights", "LogME", "teachers"  # what is remembered between steps
REFERENCES = "references"


@dataclass
class BTuning(FullFineTuning):
    """Full fine-tuning in which features stay near to what several pretrained models together say of the labels:

        L + weight · mean_{b, c} ( f_b M^T - sum_k pi_k f_kb M_k^T )²,    pi = softmax(LogME_k / temperature)

    f_b [d] is what the student's head reads, f_kb [d_k] what the head of teacher k would. M [classes, d] and M_k [classes, d_k]
    are the posterior means of the linear models of the labels' one-hot columns (``thrifty.rank.maximise``), learned from what all
    training rows look like to each model before anything trains, and fixed from then on; rows of a class that has no training row
    are 0. Teachers see the student's own batch, are frozen, and are gone after training: only the head answers.

    ``teachers`` are names of models, folders of runs, or from Python modules and `models.Backbone`s; of the command line a text
    with commas between. Those ``top`` that have the most evidence are asked. ``scores`` are LogME of each if you know them, as from
    `thrifty rank`; they are computed otherwise. The student may be its own teacher; if it is the only one, the term begins at 0.
    The authors train by SGD with Nesterov's momentum at 1e-3, the head ten times as fast.
    """

    name = "b-tuning"
    aliases = ("btuning",)
    paper = "You et al., Ranking and Tuning Pre-trained Models, JMLR 2022, arXiv:2110.10545"
    trains = "every weight of the model, near to what other models know"
    needs = "other pretrained models"

    head_factor: float = 10.0
    teachers: list[Any] | str = field(default_factory=list)
    top: int = 3
    scores: list[float] = field(default_factory=list)
    temperature: float = 0.1
    weight: float = 100.0

    def check(self) -> None:
        """There are teachers, each once, and numbers are in their bounds."""
        super().check()
        listed = self.listed()
        need(bool(listed), self, "teachers", "names of models, folders of runs, or modules: one at least")
        names = [one for one in listed if isinstance(one, str)]
        need(len(set(names)) == len(names), self, "teachers", "different models")
        need(self.top >= 1, self, "top", "at least 1")
        need(not self.scores or len(self.scores) == len(listed), self, "scores", f"one number for each of {len(listed)} teachers")
        need(self.temperature > 0, self, "temperature", "positive")
        need(self.weight >= 0, self, "weight", "at least 0")

    def listed(self) -> list[Any]:
        """The teachers one by one."""
        if isinstance(self.teachers, str):
            return [name.strip() for name in self.teachers.split(",") if name.strip()]
        return list(self.teachers)

    def settings(self) -> dict[str, Any]:
        """The fields as plain data; of teachers that are modules their class."""
        return {**super().settings(), "teachers": [name_model(one) for one in self.listed()]}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, tap what the head reads, and learn what every model knows of the labels.

        Raises:
            Unfit: a model does not answer from one vector per example; labels are no classes; there are several tasks; a teacher
                is the student itself, and not a copy. ThriftyError: there is no data.
        """
        if at.tasks:
            raise Unfit(f"B-Tuning compares what models know of the classes of one task, but this adapter serves "
                        f"{', '.join(at.tasks)}")
        super().attach(at, batches)
        listen(at)
        if next(at.model.parameters()).is_meta:
            return
        if batches is None:
            raise ThriftyError("B-Tuning learns from the training rows what each model knows of the labels: attach with batches= "
                               "(dicts of tensors, with labels)")
        references = find_references(self.listed(), getattr(batches, "task", None), at.seen.device)
        if any(one.model is at.model for one in references):
            raise Unfit("a teacher of B-Tuning is the module that trains, and would move with it: give a copy")
        at.memory |= self.learn(at, references, batches)
        at.guests[REFERENCES] = [references[i] for i in at.memory[CHOSEN].tolist()]

    def learn(self, at: Attachment, references: list[Reference], batches: Iterable[Any]) -> dict[str, Tensor]:
        """The posterior means of the student and of the chosen teachers, and those teachers' places, LogME and weights.

        Raises:
            Unfit: labels are no classes, one per example. ThriftyError: there is no row. BadData: all rows are of one class.
        """
        rows, labels = see(at, references, batches)
        found = [maximise(seen, labels.cpu()) for seen in rows]
        scores = self.scores or [float(one.evidence.mean()) for one in found[1:]]
        chosen = sorted(range(len(references)), key=lambda k: -scores[k])[: self.top]
        classes, kind = find_reader(at).dout, torch.promote_types(rows[0].dtype, torch.float32)

        def spread(mean: Any) -> Tensor:
            whole = torch.zeros(classes, mean.shape[1], dtype=kind, device=at.seen.device)
            whole[labels.unique()] = torch.from_numpy(mean).to(at.seen.device, kind)
            return whole

        best = [scores[k] for k in chosen]
        weights = weigh(best, self.temperature).tolist()
        return {MEAN: spread(found[0].means), **{f"{MEAN} {i}": spread(found[1 + k].means) for i, k in enumerate(chosen)},
                CHOSEN: torch.tensor(chosen), SCORES: torch.tensor(best), WEIGHTS: torch.tensor(weights)}

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss, and how far the student's features are from what the teachers say.

        Raises:
            Unfit: the task has no classes.
        """
        mean, count = super().loss(at, task, model, batch)
        features = heard(at)
        if getattr(task, "labels", None) is None:
            raise Unfit(f"B-Tuning is about classes, one per example, and {task.name} has none")
        own, inputs = at.memory[MEAN], task.inputs(at.model, batch)
        theirs = [one.features(task, inputs).to(own.dtype) for one in at.guests[REFERENCES]]
        means = [at.memory[f"{MEAN} {i}"] for i in range(len(theirs))]
        target = blend(theirs, means, at.memory[WEIGHTS].tolist())
        return mean + penalty(features.to(own.dtype), own, target, self.weight), count

    def finish(self, at: Attachment) -> None:
        """Only the student is needed any more; who taught it, and with which weight, is written down."""
        stop_listening(at)
        at.guests.pop(REFERENCES, None)
        if CHOSEN in at.memory:
            names = self.settings()["teachers"]
            at.about["measured"] = {"teachers": [names[k] for k in at.memory[CHOSEN].tolist()],
                                    SCORES: at.memory[SCORES].tolist(), WEIGHTS: at.memory[WEIGHTS].tolist()}
        at.memory.clear()


def see(at: Attachment, references: list[Reference], batches: Iterable[Any]) -> tuple[list[Tensor], Tensor]:
    """What all rows look like to the student, in evaluation mode, and to each reference model, [n, d] each; the labels [n].

    Raises:
        Unfit: labels are no classes, one per example. ThriftyError: there is no row.
    """
    task = getattr(batches, "task", None)
    rows: list[list[Tensor]] = [[] for _ in range(1 + len(references))]
    labels = []
    for batch in batches:
        inputs = inputs_of(batch)
        run_once(at.model, inputs)
        for place, seen in enumerate((heard(at), *(one.features(task, inputs) for one in references))):
            rows[place].append(seen.cpu())
        labels.append(batch["labels"])
    if not labels:
        raise ThriftyError("there is no row of data by which B-Tuning could learn what the models know")
    classes = torch.cat(labels)
    if classes.is_floating_point() or classes.dim() != 1:
        raise Unfit("B-Tuning is about classes, one per example, and this task's labels are none")
    return [torch.cat(part) for part in rows], classes
