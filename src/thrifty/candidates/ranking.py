"""The ranking of candidates on a data set: every step, what failed on the way, and the result as plain data."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thrifty.candidates import record
from thrifty.candidates.candidate import Candidate, read_candidates
from thrifty.candidates.cost import Planner
from thrifty.candidates.ordering import Standing, counted, order, rank_down
from thrifty.candidates.sample import Sample, draw
from thrifty.candidates.scoring import Question, Value, choose, draw_halves, measure
from thrifty.candidates.seeing import Seen, Terms, see
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.data import Dataset, read
from thrifty.train.processes import find_device

Scores = dict[str, dict[str, Value]]


@dataclass(frozen=True)
class Ranking:
    """Candidates in their order, ``failed`` ones by name with the error, and all scores. ``plain`` is what ranking.json holds."""

    standings: list[Standing]
    seen: dict[str, dict[str, Any]]        # candidate -> how it was seen and what that took
    scores: Scores                         # score -> candidate -> value
    left_out: dict[str, str]               # score -> why it was not asked
    failed: dict[str, str]
    data: dict[str, Any]
    settings: dict[str, Any]

    @property
    def order(self) -> list[str]:
        """The names, the best first."""
        return [standing.name for standing in self.standings]

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        known, voices = record.read(), counted(self.scores)
        scores = {name: {"counts": name in voices, "foretold": known.say(name) if known else record.NONE,
                         "beats_size": known.beats_size(name) if known else None, "values": _describe_values(values)}
                  for name, values in self.scores.items()}
        return {"models": [{**asdict(standing), **self.seen[standing.name]} for standing in self.standings], "failed": self.failed,
                "scores": scores, "left_out": self.left_out, "record": known.about if known else record.NONE, "data": self.data,
                "settings": self.settings}

    def write(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Put ranking.json and ranking.html into a ``folder``, which appears whole or not at all; returns its path.

        Raises:
            ThriftyError: the folder holds something else, or a ranking that is not to be overwritten.
        """
        from thrifty.candidates.writing import write

        return write(self.plain(), Path(folder), overwrite)

    def __str__(self) -> str:
        from thrifty.candidates.words import table

        return table(self.plain())


def rank(models: Any, data: Any, *, task: str | None = None, columns: Mapping[str, Any] | None = None, rows: int | None = 1000,
         scores: Sequence[str] | None = None, draws: int = 20, source: Any = None, seed: int = 0, batch: int = 32,
         device: str = "auto", cache: bool = True, planner: Planner | None = None, progress: bool = True) -> Ranking:
    """Which of ``models`` will transfer best to ``data``, by every score that has a meaning for it; nothing is tuned.

    Args:
        models: see `thrifty.candidates.candidate.read_candidates`: names, modules, functions that make features.
        data, task, columns: as for `thrifty.tune`. Only training rows are looked at.
        rows: how many of them, every class in its share, drawn with ``seed``; None for all.
        scores: names of scores (`thrifty.rank.SCORES`); by default all. NCE and LEEP ask the classifier that a checkpoint was saved
            with, what it says of the rows, and so exist only for models that have one. OTCE compares with rows of the ``source``.
        draws: of half of the rows, which intervals are made of; 0 for none.
        source: labelled rows of what the models were pretrained on, read as ``data`` is: for OTCE, and for PED's scale.
        batch, device, cache: how features are computed, and whether they are kept for the next time.
        planner: estimates what tuning each would take; see `thrifty.candidates.cost`.

    Raises:
        NoSuchSetting: no model, one twice, an unknown score, a setting out of bounds. BadData, Unfit: the data; see `read` and
            `draw`. ThriftyError: no candidate could be seen; the message says why of each.
    """
    if draws < 0 or draws == 1 or batch < 1 or (rows is not None and rows < 2):
        raise NoSuchSetting(f"draws={draws}, batch={batch}, rows={rows}: draws are 0 or at least 2, a batch is at least 1, rows "
                            "are at least 2 or None for all")
    candidates = read_candidates(models)
    dataset = _read(data, task, columns, seed)
    sample = draw(dataset, rows, seed)
    other = None if source is None else draw(_read(source, sample.task, None, seed), rows, seed)
    chosen, left_out = choose(scores, sample, other)
    say: Callable[[str], None] = (lambda line: print(line, file=sys.stderr, flush=True)) if progress else (lambda line: None)
    seen, failed = _see_all(candidates, sample, other, Terms(batch, find_device(device), cache, seed), say)
    question = Question(sample, other)
    question.draws = draw_halves(question, draws, seed)
    found: Scores = {}
    for entry in chosen:
        began = time.monotonic()
        values = measure(entry, seen, question)
        if any(one.value is not None for one in values.values()):
            found[entry.name] = values
        else:
            left_out[entry.name] = values[seen[0].name].why
        say(f"{entry.name}: {time.monotonic() - began:.1f} s")
    about = {one.name: one.about for one in seen}
    for candidate in candidates:
        if planner is not None and candidate.name in about and (cost := planner(candidate, dataset)) is not None:
            about[candidate.name]["cost"] = asdict(cost)
    return Ranking(order([one.name for one in seen], found), about, found, left_out, failed, _describe(dataset, sample, other), {
        "rows": rows, "draws": draws, "seed": seed, "batch": batch, "scores": None if scores is None else list(scores)})


def _describe_values(values: Mapping[str, Value]) -> dict[str, Any]:
    """A score of every candidate as plain data; ranks are among those that have a value."""
    known = {name: one.value for name, one in values.items() if one.value is not None}
    ranks = dict(zip(known, rank_down(list(known.values())).tolist(), strict=True))
    return {name: {"value": one.value, "low": one.low, "high": one.high, "rank": ranks.get(name), "why": one.why}
            for name, one in values.items()}


def _see_all(candidates: Sequence[Candidate], sample: Sample, source: Sample | None, terms: Terms,
             say: Callable[[str], None]) -> tuple[list[Seen], dict[str, str]]:
    """What every candidate that can be loaded sees; of the others why not.

    Raises:
        ThriftyError: none can.
    """
    seen: list[Seen] = []
    failed: dict[str, str] = {}
    for candidate in candidates:
        try:
            seen.append(see(candidate, sample, source, terms))
        except Exception as error:  # of a checkpoint or function of anybody's: the others are ranked all the same
            failed[candidate.name] = str(error) if isinstance(error, ThriftyError) else f"{type(error).__name__}: {error}"
            say(f"{candidate.name}: left out, {failed[candidate.name]}")
        else:
            took = seen[-1].about["seconds"]["features"]
            say(f"{candidate.name}: features {'found' if seen[-1].about['reused'] else 'computed'} in {took:.1f} s")
    if not seen:
        raise ThriftyError("none of the models could be ranked:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    return seen, failed


def _read(data: Any, task: str | None, columns: Mapping[str, Any] | None, seed: int) -> Dataset:
    """Rows that test rows repeat do no harm here, as no test row is looked at."""
    return data if isinstance(data, Dataset) else read(data, task=task, columns=columns, seed=seed, allow_leak=True)


def _describe(dataset: Dataset, sample: Sample, source: Sample | None) -> dict[str, Any]:
    return {"name": dataset.record.get("source", {}).get("name") or "data", "task": sample.task, "rows": len(sample.labels),
            "of": len(dataset.splits["train"]["label"]), "labels": sample.names,
            "source_rows": None if source is None else len(source.labels)}
