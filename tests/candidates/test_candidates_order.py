"""From scores to an order: ranks, voices, intervals over halves of the rows, what was measured before, and mistakes by name."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thrifty.candidates import record
from thrifty.candidates.candidate import Candidate, read_candidates
from thrifty.candidates.ordering import counted, order, rank_down
from thrifty.candidates.sample import Sample, draw
from thrifty.candidates.scoring import Question, Value, choose, draw_halves, measure
from thrifty.candidates.seeing import Seen
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.data import Dataset
from thrifty.rank import SCORES, Entry, Score, find, leep, logme, ncti, over_hub

RANDOM = np.random.default_rng(0)
Y = np.arange(90) % 3


def sample(labels: Any = Y, names: tuple[str, ...] | None = ("a", "b", "c")) -> Sample:
    return Sample("text-classification" if names else "regression", {"text": ["x"] * len(labels)}, np.asarray(labels),
                  list(names) if names else None)


def seen(name: str, signal: float, width: int = 6, **more: Any) -> Seen:
    return Seen(name, RANDOM.normal(size=(90, width)) + signal * np.eye(3, width)[Y], **more)


def voices(**scores: dict[str, float | None]) -> dict[str, dict[str, Value]]:
    return {name: {model: Value(value) for model, value in values.items()} for name, values in scores.items()}


# -- the order ------------------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_other_software() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = RANDOM.integers(0, 4, size=12).astype(float)
    np.testing.assert_allclose(rank_down(values), stats.rankdata(-values))
    assert rank_down([9 - 5e-15, 8.9, 9.0, 9 + 3e-15]).tolist() == [2.0, 4.0, 2.0, 2.0]


def test_the_order_is_the_mean_rank_and_equal_ones_share_a_place() -> None:
    found = order(["x", "y", "z"], voices(p={"x": 1.0, "y": 2.0, "z": 0.0}, q={"x": 5.0, "y": 4.0, "z": 4.0}))
    assert [(s.name, s.place, s.mean_rank) for s in found] == [("x", 1, 1.5), ("y", 2, 1.75), ("z", 3, 2.75)]
    tied = order(["x", "y"], voices(p={"x": 1.0, "y": 2.0}, q={"x": 2.0, "y": 1.0}))
    assert [s.place for s in tied] == [1, 1] and all(s.low is None and len(s.like) == 1 for s in tied)


def test_a_score_without_a_value_for_all_has_no_voice() -> None:
    scores = voices(p={"x": 1.0, "y": 2.0}, q={"x": 9.0, "y": None})
    assert counted(scores) == ["p"] and [s.name for s in order(["x", "y"], scores)] == ["y", "x"]
    assert [s.place for s in order(["x", "y"], voices(q={"x": 9.0, "y": None}))] == [1, 1]


def test_who_cannot_be_told_apart() -> None:
    draws = {"x": (3.0, 3.1, 2.9), "y": (2.0, 2.1, 1.9), "z": (2.05, 1.95, 2.2)}
    found = order(list(draws), {"p": {name: Value(float(np.mean(own)), 0.0, 0.0, own) for name, own in draws.items()}})
    by_name = {s.name: s for s in found}
    assert by_name["x"].like == [] and by_name["y"].like == ["z"] and by_name["z"].like == ["y"]
    assert (by_name["x"].low, by_name["x"].high) == (1.0, 1.0) and by_name["y"].mean_rank == 3.0
    assert by_name["z"].low == pytest.approx(2.0) and by_name["z"].high == pytest.approx(2.95)  # ranks 2, 3, 2 in the draws
    assert by_name["y"].low == pytest.approx(2.05) and by_name["y"].high == pytest.approx(3.0)


# -- intervals ------------------------------------------------------------------------------------------------------------


def test_halves_hold_half_of_every_class() -> None:
    labels = np.array([0] * 10 + [1] * 7 + [2])
    halves = draw_halves(Question(sample(labels), None), 50, 0)
    sizes = np.array([[np.sum(labels[one.rows] == k) for k in range(3)] for one in halves])
    assert set(sizes[:, 0]) == {5} and set(sizes[:, 1]) == {3, 4} and set(sizes[:, 2]) == {1}
    assert all(len(set(one.rows)) == len(one.rows) for one in halves) and len({tuple(one.rows) for one in halves}) == 50
    again = draw_halves(Question(sample(labels), None), 50, 0)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(halves, again, strict=True))


def test_the_interval_of_a_mean_is_that_of_a_mean() -> None:
    def average(features: Any, labels: Any) -> Score:
        return Score(float(np.mean(features)))

    entry = Entry("mean", average, "", ("features", "labels"), ("none", "none"), "")
    values = RANDOM.normal(size=(400, 1))
    question = Question(sample(np.zeros(400)), None)
    question.draws = draw_halves(question, 600, 1)
    found = measure(entry, [Seen("m", values)], question)["m"]
    wanted = float(values.std(ddof=1)) / 20
    assert np.std(found.draws) == pytest.approx(wanted, rel=0.1) and found.value == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.964 * np.std(found.draws, ddof=1), rel=1e-3)  # type: ignore[operator]
    bounded = Entry("mean", average, "", ("features", "labels"), ("0", "1"), "")
    low = measure(bounded, [Seen("m", np.abs(values) * 1e-3)], question)["m"].low
    assert low is not None and low >= 0


def test_values_are_those_of_the_functions_and_every_candidate_sees_the_same_draws() -> None:
    one, other = seen("good", 2.0), seen("bad", 0.1)
    question = Question(sample(), None)
    question.draws = draw_halves(question, 3, 0)
    found = measure(find("logme"), [one, other], question)
    for each in (one, other):
        assert found[each.name].value == float(logme(each.features, Y))
        assert list(found[each.name].draws) == [float(logme(each.features[d.rows], Y[d.rows])) for d in question.draws]
    hub = measure(find("ncti"), [one, other], question)
    assert [hub[name].value for name in ("good", "bad")] == list(map(float, over_hub([ncti(x.features, Y) for x in (one, other)])))
    assert order(["good", "bad"], {"logme": found, "ncti": hub})[0].name == "good"


def test_scores_of_label_spaces_ask_the_models_own_classifier() -> None:
    heads = RANDOM.dirichlet(np.ones(5), size=90)
    known, without = seen("known", 1.0, probabilities=heads), seen("without", 1.0)
    question = Question(sample(), None)
    found = measure(find("leep"), [known, without], question)
    assert found["known"].value == float(leep(heads, Y)) and found["without"].value is None
    assert "no classifier" in found["without"].why
    nce = measure(find("nce"), [known], question)["known"]
    assert nce.value == float(SCORES["nce"].function(heads.argmax(1), Y)) and nce.low is None


def test_what_has_no_meaning_is_said_and_refused_by_name() -> None:
    chosen, lacking = choose(None, sample(), None)
    assert "otce" in lacking and {"logme", "nce"} <= {entry.name for entry in chosen}
    numbers = sample(RANDOM.normal(size=90), None)
    assert {entry.name for entry in choose(None, numbers, None)[0]} == {"logme", "etran"}
    with pytest.raises(NoSuchSetting, match="'otce'.*--source"):
        choose(["otce"], sample(), None)
    with pytest.raises(NoSuchSetting, match="'sfda'.*labels are numbers"):
        choose(["sfda"], numbers, None)
    with pytest.raises(NoSuchSetting, match="Did you mean 'logme'"):
        choose(["logm"], sample(), None)
    with pytest.raises(NoSuchSetting, match="twice"):
        choose(["logme", "logme"], sample(), None)


def test_a_score_that_fails_on_halves_keeps_its_value() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    question = Question(sample(labels), None)
    question.draws = draw_halves(question, 3, 0)
    found = measure(find("parc"), [Seen("m", RANDOM.normal(size=(6, 4)))], question)["m"]
    assert found.value is not None and found.low is None and "half of the rows" in found.why  # one row per class is left


# -- what is given --------------------------------------------------------------------------------------------------------


def test_candidates_by_name_and_by_function(tmp_path: Path) -> None:
    def mine(rows: Any) -> Any:
        return np.zeros((len(rows["text"]), 2))

    assert [one.name for one in read_candidates("a, ./b")] == ["a", "./b"]
    found = read_candidates({"first": "a", "own": mine})
    assert found[0].model == "a" and found[1].features is mine
    assert read_candidates([mine])[0].name == "mine"
    for given, match in (("a,b,a", "'a' is there twice"), ([f"{tmp_path}", f"{tmp_path}/."], "twice as"), ("", "no model to rank"),
                         ([7], "is no model"), ([Candidate("x")], "'x' needs either")):
        with pytest.raises(NoSuchSetting, match=match):
            read_candidates(given)


def dataset(labels: list[int], names: list[str], task: str = "text-classification") -> Dataset:
    table = {"text": [f"t{i}" for i in range(len(labels))], "label": labels}
    return Dataset({"train": table, "validation": table}, {}, task, names)


def test_rows_are_drawn_by_class_or_refused() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 3
    found = draw(dataset(labels, ["a", "b", "c"]), 31, 0)
    assert np.bincount(found.labels).tolist() == [20, 10, 1]
    assert found.rows["text"] == [f"t{i}" for i in sorted(int(t[1:]) for t in found.rows["text"])] and "label" not in found.rows
    assert all(labels[int(t[1:])] == y for t, y in zip(found.rows["text"], found.labels, strict=True))
    assert len(draw(dataset(labels, ["a", "b", "c"]), None, 0).labels) == 93
    with pytest.raises(BadData, match="2 rows for 3 classes"):
        draw(dataset(labels, ["a", "b", "c"]), 2, 0)
    with pytest.raises(BadData, match="all 5 training rows are 'b'"):
        draw(dataset([1] * 5, ["a", "b"]), None, 0)
    with pytest.raises(Unfit, match="token-classification"):
        draw(dataset(labels, ["a", "b", "c"], "token-classification"), None, 0)


# -- what was measured before ---------------------------------------------------------------------------------------------


def test_the_record_is_quoted() -> None:
    held = record.Record("somewhere", {"logme": {"lora": {"tau": 0.5, "pearson": 0.4, "sets": 6}},
                                       "parc": {"lora": {"tau": 0.1, "pearson": 0.4, "sets": 6}}},
                         {"parameters": {"lora": {"tau": 0.3, "pearson": 0.2, "sets": 6}},
                          "dimension": {"lora": {"tau": 0.2, "pearson": 0.2, "sets": 6}}})
    assert held.say("logme") == "tau 0.50 with lora (6 sets)" and held.say("sfda") == record.NONE
    assert [held.beats_size(name) for name in ("logme", "parc", "sfda")] == [True, False, None]


def test_what_ships_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record.resources, "files", lambda name: tmp_path)
    assert record.read() is None
    (tmp_path / record.FILE).write_text(json.dumps({"about": "a", "scores": {}, "baselines": {}}))
    assert record.read() == record.Record("a", {}, {})
