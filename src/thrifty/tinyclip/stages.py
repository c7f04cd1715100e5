"""From a teacher through stages of students, each begun with the weights of the one before."""
from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from thrifty import data as rooms
from thrifty import tasks
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.models import Backbone, load
from thrifty.tasks.contrastive import Contrastive
from thrifty.tinyclip.inheriting import check_teacher, inherit
from thrifty.tinyclip.masks import Masks
from thrifty.tinyclip.settings import Distilling
from thrifty.tinyclip.shapes import Shape, count, parse
from thrifty.tinyclip.sparsity import expected_size
from thrifty.tinyclip.teaching import Seen, Stage, ask, to
from thrifty.train.files import write_json

KEPT = (0.75, 0.5, 0.25)


def compress(teacher: str | Backbone, data: Any, out: str | Path, *, shapes: Sequence[str | Shape] = (),
             keep: Sequence[float] = (), settings: Mapping[str, Any] | None = None, progress: bool = True) -> dict[str, Any]:
    """Make ``teacher``, a CLIPModel, smaller on pairs of pictures and captions; what every stage came to.

    Args:
        shapes: one stage for each, of that size, made by hand: see `thrifty.tinyclip.shapes.parse`.
        keep: one stage for each, whose gates leave that share of the numbers in the teacher's blocks; 0.75, 0.5, 0.25 by default.
        settings: fields of `Distilling`.

    ``out`` receives ``stage-1``, ``stage-2``, …, each a model of its own that `thrifty.models.load` reads; ``log.jsonl``; and
    ``compression.json``, which is what is returned. The test split is read once, at the end.

    Raises:
        ThriftyError: ``out`` is not empty, or the teacher, the data or a setting does not fit.
    """
    own = Distilling.make(settings or {})
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ThriftyError(f"{out} exists and is not empty: choose a new folder")
    goals = plan(shapes, keep)
    backbone = load(teacher, "contrastive") if isinstance(teacher, str) else teacher
    check_teacher(backbone.model)
    rows = rooms.read(data, task="contrastive", columns=own.columns, seed=own.split_seed, allow_leak=own.allow_leak,
                      skip_bad=own.skip_bad, limit=own.limit)
    return Compression(backbone, rows, out, own, progress).run(goals)


def plan(shapes: Sequence[str | Shape], keep: Sequence[float]) -> list[Shape | float]:
    """The goal of every stage.

    Raises:
        NoSuchSetting: both kinds, or shares that do not fall.
    """
    if shapes and keep:
        raise NoSuchSetting("shapes are chosen by hand and keep is for gates: give one of them")
    if shapes:
        return [parse(shape) if isinstance(shape, str) else shape for shape in shapes]
    kept = list(keep or KEPT)
    if any(not 0 < share < 1 for share in kept) or kept != sorted(set(kept), reverse=True):
        raise NoSuchSetting(f"keep must be shares between 1 and 0, each smaller than the one before, not {kept}")
    return list(kept)


class Compression:
    """All stages, and the folder they are written to."""

    def __init__(self, teacher: Backbone, data: Any, out: Path, settings: Distilling, progress: bool) -> None:
        self.teacher, self.data, self.out, self.settings, self.progress = teacher, data, out, settings, progress
        chosen = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(chosen)
        limits = {"max_length": settings.max_length} if settings.max_length is not None else {}
        self.task = cast(Contrastive, tasks.get("contrastive", teacher, **limits))
        self.stages: list[dict[str, Any]] = []

    def run(self, goals: Sequence[Shape | float]) -> dict[str, Any]:
        """Train, save and measure."""
        teacher: Any = self.teacher.model.to(self.device).eval()
        examples = self.task.encode(self.data.splits["train"])
        students = [copy.deepcopy(teacher)]
        whole = prunable(teacher)
        targets: list[float | None] = []
        seen = ask(self.task, teacher, examples, self.settings.batch)
        self.out.mkdir(parents=True, exist_ok=True)
        for number, goal in enumerate(goals, 1):
            student = inherit(students[-1], goal) if isinstance(goal, Shape) else copy.deepcopy(students[-1])
            targets.append(None if isinstance(goal, Shape) else max(0.0, 1 - goal * whole / prunable(student)))
            self.teach(student, seen, examples, number, goal, targets[-1])
            students.append(student)
        return self.finish(teacher, students[1:])

    def teach(self, student: Any, seen: Seen, examples: list[dict[str, Any]], number: int, goal: Shape | float,
              target: float | None) -> None:
        """One stage, its log, and the folder of its student."""
        def note(line: dict[str, Any]) -> None:
            text = json.dumps({"stage": number, **line})
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
            if self.progress and (line["step"] % 20 == 0 or "pruned" in line):
                print(text, flush=True)

        Stage(self.task, student, seen, examples, self.settings, target, self.settings.seed + number).run(note)
        folder = self.out / f"stage-{number}"
        save(student, self.teacher.preprocess, folder)
        self.stages.append({"stage": number, "goal": str(goal) if isinstance(goal, Shape) else goal, "folder": folder.name,
                            "parameters": count(student), "validation": self.measure(student, self.data.splits["validation"])})

    def finish(self, teacher: Any, students: Sequence[Any]) -> dict[str, Any]:
        """Read the test split, and write down what came out."""
        test = self.data.test()
        for stage, student in zip(self.stages, students, strict=True):
            stage["test"] = self.measure(student, test)
        record = {"teacher": {"model": self.teacher.source.get("id"), "parameters": count(teacher),
                              "test": self.measure(teacher, test)},
                  "stages": self.stages, "settings": self.settings.plain(), "data": self.data.record}
        write_json(self.out / "compression.json", record)
        return record

    def measure(self, model: Any, table: Any) -> dict[str, float]:
        """Recalls of a model on a table of pairs."""
        examples, size = self.task.encode(table), self.settings.batch
        batches = [self.task.collate(examples[start : start + size]) for start in range(0, len(examples), size)]
        return self.task.metrics([row for batch in batches for row in self.task.predict(model, to(batch, self.device))], table)


def prunable(model: Any) -> float:
    """Numbers in the blocks of both towers."""
    return sum(expected_size(Masks(tower, ()))[1] for tower in (model.vision_model, model.text_model))


def save(student: Any, readers: Any, folder: Path) -> None:
    """The student as a model of its own: configuration, weights, tokenizer and image processor."""
    student.save_pretrained(folder)
    readers.save_pretrained(folder)
