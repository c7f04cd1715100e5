"""A job that trains nothing: answer the test rows from demonstrations, measure that as a training is measured, write it down."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from thrifty import formats, report
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data import Dataset, read
from thrifty.formats.ablations import Shown, show
from thrifty.formats.demonstrations import Item, choose
from thrifty.models import Backbone, load, wrap
from thrifty.report.schema import check
from thrifty.tasks.in_context import InContext
from thrifty.train import results
from thrifty.train.asking import Asking
from thrifty.train.baselines import title
from thrifty.train.environment import environment
from thrifty.train.files import write_json, write_lines
from thrifty.train.folder import claim, free_name
from thrifty.train.forms import encodes_and_decodes
from thrifty.train.memory import peak
from thrifty.train.precision import Precision
from thrifty.train.precision import choose as choose_precision
from thrifty.train.predicting import answer
from thrifty.train.processes import Processes, here
from thrifty.train.rows import write_out
from thrifty.train.run import Run
from thrifty.train.tune import brief, name_model


def in_context(model: str | nn.Module | Backbone, data: Any, out: str | os.PathLike[str] | None = None, *,
               settings: Asking | Mapping[str, Any] | None = None, overwrite: bool = False, progress: bool = True,
               command: str | None = None, **changes: Any) -> Run:
    """Answer the test rows of ``data`` by a language model that sees demonstrations of training rows, and say how well that goes.

    Args:
        model: a local folder, a hub id; or a module with its tokenizer as a `thrifty.models.Backbone`. It must write text.
        data: anything that `thrifty.data.read` takes, for classification or multiple choice.
        out: the run's folder; by default a new one under ``runs/``.
        settings, changes: see `thrifty.train.Asking`; ``changes`` are single settings by name, and come last.
        overwrite: replace the run in ``out``.
        progress: say on stderr how each seed went.
        command: the command line that repeats the run, for the report.

    Raises:
        ThriftyError: one of its kinds for every mistake in model, data, setting or folder, or demonstrations that overflow.
    """
    given = Asking.make({**(settings.plain() if isinstance(settings, Asking) else settings or {}), **changes})
    processes = here(given.device)
    if processes.world > 1:
        raise NoSuchSetting("answering in context runs in one process: start it without a launcher")
    dataset = read_data(data, given)
    names = {"model": name_model(model), "data": dataset.record["source"]["name"] or "data"}
    config = {**names, **given.plain(), "task": dataset.task, "format": dataset.format, "words": dataset.words}
    name = "-".join(brief(part) for part in (*names.values(), "in-context"))
    folder = Path(out) if out is not None else free_name(Path("runs"), name)
    asked = Asked(given, dataset, prepare(model, dataset, given), processes, choose_precision(given.precision, processes.device))
    claim(folder, resume=False, overwrite=overwrite)
    write_json(folder / "config.json", config)
    return asked.run(folder, names, progress, command)


def read_data(data: Any, given: Asking) -> Dataset:
    """The data.

    Raises:
        BadData: it is no classification of texts and no multiple choice.
        NoSuchSetting: another format than data was read with.
    """
    if isinstance(data, Dataset):
        if given.format not in (None, data.format):
            raise NoSuchSetting(f"the data was read with the format {data.format!r}, not {given.format!r}")
        dataset = data
    else:
        dataset = read(data, task=given.task, columns=given.columns, seed=given.split_seed, allow_leak=given.allow_leak,
                       skip_bad=given.skip_bad, limit=given.limit, format=given.format, words=given.words)
    if dataset.task not in ("text-classification", "multiple-choice"):
        raise BadData(f"the data is for {dataset.task}; answers in context are ranked, so that it must be text-classification or "
                      "multiple-choice.")
    return dataset


def prepare(model: str | nn.Module | Backbone, dataset: Dataset, given: Asking) -> InContext:
    """The task on its model."""
    if isinstance(model, str):
        backbone = load(model, "seq2seq-generation" if encodes_and_decodes(model) else "causal-generation")
    else:
        backbone = model if isinstance(model, Backbone) else wrap(model)
    limits = {name: getattr(given, name) for name in ("max_length", "context", "scoring", "separator", "likelihood")}
    if given.metric is not None:
        limits["metric"] = given.metric
    return InContext(dataset.task, backbone, dataset.labels, **limits)


@dataclass
class Asked:
    """One call of `in_context`."""

    settings: Asking
    dataset: Dataset
    task: InContext
    processes: Processes
    precision: Precision
    shown: list[dict[str, Any]] = field(default_factory=list)

    def run(self, folder: Path, names: Mapping[str, str], progress: bool, command: str | None) -> Run:
        """Answer with every seed, measure, write the folder."""
        given, task = self.settings, self.task
        task.backbone.model.to(self.processes.device)
        pool, began = self.items(self.dataset.splits["train"], taught=True), time.monotonic()
        prompts = {seed: self.draw(pool, seed) for seed in given.numbers()}
        table = self.dataset.test()
        questions = self.items(table)
        answers = []
        for seed, prompt in prompts.items():
            answers.append(self.answer(questions, prompt))
            if progress:
                print(f"seed {seed}: {task.metric} {task.metrics(answers[-1], table)[task.metric]:.4f}", file=sys.stderr)
        seconds = time.monotonic() - began
        rivals = self.rivals(questions, table, answers) if given.baselines else []
        measured = [results.over_items(task, said, table) for said in answers]
        lines = [line for seed, said in zip(prompts, answers, strict=True) for line in write_out(task, said, table, seed)]
        metrics = {**self.describe(names, command), "test": results.over_seeds(measured), "baselines": rivals, "seeds": [
            {"seed": seed, "history": [], "evaluations": [], "best_step": None, "stopped": "finished", "test": test}
            for seed, test in zip(prompts, measured, strict=True)]}
        metrics["timing"]["evaluate_seconds"] = seconds
        write_json(folder / "environment.json", environment(self.processes, self.precision))
        write_json(folder / "data.json", self.dataset.record)
        write_lines(folder / "demonstrations.jsonl", self.shown)
        write_lines(folder / "predictions.jsonl", lines)
        write_json(folder / "metrics.json", check(metrics))
        report.write(folder)
        return Run(folder, metrics)

    def items(self, table: Mapping[str, Sequence[Any]], taught: bool = False) -> list[Item]:
        """Rows as questions with their answers; of lessons only those that ask for the answer.

        Raises:
            NoSuchSetting: a format whose answers are not listed.
        """
        dataset = self.dataset
        texts = [f"{one}\n{two}" for one, two in zip(table["text"], table["text_pair"], strict=True)
                 ] if "text_pair" in table else table["text"]
        same = tuple(dataset.labels or ())
        if dataset.format is not None and dataset.task == "text-classification":
            same = formats.find(dataset.format, task=dataset.task, labels=dataset.labels, words=dataset.words).options({})
            if not same:
                raise NoSuchSetting(f"answers to {dataset.format} are not listed, so they cannot be ranked in context")
        options = [tuple(row) for row in table["choices"]] if "choices" in table else [same] * len(texts)
        made = [Item(*row) for row in zip(texts, options, table["label"], strict=True)]
        if not taught or "target" not in table:
            return made
        return [item for item, target in zip(made, table["target"], strict=True) if item.options[item.label] == target]

    def draw(self, pool: Sequence[Item], seed: int) -> Shown:
        """The demonstrations of one seed, also written down."""
        given = self.settings
        rows = choose([item.label for item in pool], given.shots, seed, given.choose == "balanced")
        shown = show(given.demonstrations, [pool[i] for i in rows], pool, seed, read_corpus(given.corpus))
        self.shown += [{"seed": seed, "place": place, "row": row, "input": one.input, "output": one.output,
                        "true": pool[row].options[pool[row].label]}
                       for place, (row, one) in enumerate(zip(rows, shown.fixed, strict=True))]
        return shown

    def answer(self, questions: Sequence[Item], shown: Shown) -> results.Answers:
        """What the model says to all questions."""
        task = self.task
        examples = task.ask(questions, shown)
        return answer(task.predict, task, task.backbone.model, examples, self.settings.batch, self.processes, self.precision)

    def rivals(self, questions: Sequence[Item], table: Any, answers: Sequence[results.Answers]) -> list[dict[str, Any]]:
        """What never looks, and what sees no demonstration, on the same rows."""
        cut = self.task.truncated
        said = {"majority": self.task.majority(self.dataset.splits["train"], table)}
        if self.settings.shots:
            said["zero-shot"] = self.answer(questions, Shown([]))
        self.task.truncated = cut
        return [{"name": name, "title": title(name, self.task.name), "test": results.over_items(self.task, theirs, table),
                 "difference": results.ahead(self.task, answers, theirs, table)} for name, theirs in said.items()]

    def describe(self, names: Mapping[str, str], command: str | None) -> dict[str, Any]:
        """What metrics.json says besides the numbers."""
        given, splits = self.settings, self.dataset.splits
        sizes = {split: len(next(iter(splits[split].values()))) for split in ("train", "validation")}
        wanted = ("shots", "choose", "demonstrations", "scoring", "separator", "likelihood", "max_length", "format")
        base = sum(p.numel() for p in self.task.backbone.model.parameters())
        return {
            "schema": 1, "created": datetime.now().astimezone().isoformat(timespec="seconds"), "command": command,
            "task": self.task.name, "method": "in-context", "settings": {name: getattr(given, name) for name in wanted},
            **names, "metric": self.task.metric, "labels": self.task.labels, "items": {**sizes, "test": self.dataset.test_rows},
            "timing": {"train_seconds": 0.0, "evaluate_seconds": 0.0, "steps": 0, "examples_per_second": None},
            "memory": peak(self.processes.device), "parameters": {"base": base, "tuner": 0, "head": 0}, "adapter_bytes": None,
            "warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """What a reader should know before trusting the numbers."""
        record, said = self.dataset.record, []
        if pairs := record.get("leaks", {}).get("pairs"):
            said.append(f"Rows of equal content lie in different splits ({pairs} pairs), as allowed: the score may be too good.")
        if skipped := record.get("skipped"):
            said.append(f"{len(skipped)} rows could not be used and were left out; data.json says which and why.")
        if self.task.truncated:
            said.append(f"{self.task.truncated:,} texts were longer than {self.settings.max_length} tokens with their answers, and "
                        "lost their end.")
        if self.settings.demonstrations != "gold":
            said.append(f"The demonstrations do not show the truth ({self.settings.demonstrations}): this is an ablation.")
        return said


def read_corpus(path: str | None) -> list[str]:
    """Sentences, one a line.

    Raises:
        BadData: the file cannot be read, or holds none.
    """
    if path is None:
        return []
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"the corpus {path!r} cannot be read: {error}") from None
    found = [line for line in lines if line]
    if not found:
        raise BadData(f"the corpus {path!r} holds no sentence.")
    return found
