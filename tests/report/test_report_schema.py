"""Files that do not say what they must are refused, with the key and the place."""
from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_samples

from thrifty.core.errors import BrokenArtifact
from thrifty.report import write
from thrifty.report.schema import check, check_prediction

GOOD = run_samples.metrics("text-classification", "accuracy", 2, 0.8, {"macro_f1": 0.79}, ["a", "b", "c"])
ROW = {"index": 0, "seed": 0, "input": "x", "target": "a", "prediction": "b", "scores": [0.2, 0.7, 0.1]}


def test_good_metrics_pass_and_are_returned_unchanged() -> None:
    before = copy.deepcopy(GOOD)
    assert check(GOOD) is GOOD
    assert before == GOOD


def test_every_top_level_key_is_needed() -> None:
    for key in GOOD:
        with pytest.raises(BrokenArtifact, match=rf"metrics\.json: {key} is missing"):
            check({k: v for k, v in GOOD.items() if k != key})


def _put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(found: Any) -> None:
        *way, last = path.split("/")
        for step in way:
            found = found[int(step) if step.isdigit() else step]
        found[int(last) if last.isdigit() else last] = value
    return change


@pytest.mark.parametrize(("change", "said"), [
    (_put("schema", 2), "schema is 2"),
    (_put("task", "text-clasification"), "Did you mean 'text-classification'"),
    (_put("metrik", 1), "metrik is not a key of Metrics. Did you mean 'metric'"),
    (_put("seeds/1/history/4/loss", float("nan")), r"seeds\[1\]\.history\[4\]\.loss must be a finite number or null"),
    (_put("seeds/0/evaluations/2/step", "60"), r"seeds\[0\]\.evaluations\[2\]\.step must be a whole number, found '60'"),
    (_put("seeds/0/evaluations/2/values", {"acc": 0.5}), r"evaluations\[2\]\.values lacks the primary metric 'accuracy'"),
    (_put("seeds/0/best_step", 7), r"seeds\[0\]\.best_step is 7"),
    (_put("seeds/1/seed", 0), "same seed twice"),
    (_put("seeds", []), "seeds is empty"),
    (_put("parameters/tuner", True), r"parameters\.tuner must be a whole number, found True"),
    (_put("test/accuracy/low", 0.9), r"test\.accuracy has the interval 0\.9 to"),
    (_put("test/accuracy/low", None), r"test\.accuracy has the interval None to"),
    (_put("baselines/1/difference", 0.03), r"baselines\[1\]\.difference must be an object or null, found 0\.03"),
    (_put("baselines/1/test", {"f1": {"value": 0.1, "low": None, "high": None, "spread": None}}), "lacks the primary metric"),
    (_put("labels", None), "labels is null"),
    (_put("labels", ["a", "a"]), "same name twice"),
    (_put("warnings", [3]), r"warnings\[0\] must be a text, found 3"),
    (_put("memory/kind", "gpu"), r"memory\.kind is 'gpu'"),
])
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Any]], None], said: str) -> None:
    broken = copy.deepcopy(GOOD)
    change(broken)
    with pytest.raises(BrokenArtifact, match=said):
        check(broken)


def test_metrics_must_be_an_object() -> None:
    with pytest.raises(BrokenArtifact, match="the whole must be an object"):
        check([1, 2])


@pytest.mark.parametrize(("parts", "said"), [
    ({"target": "d"}, "target 'd' is not one of the labels"),
    ({"prediction": 1}, "prediction must be a text for text-classification, found 1"),
    ({"scores": [0.5, 0.5]}, "scores holds 2 numbers where 3 are possible"),
    ({"scores": [3.0, 1.0, -2.0]}, "not probabilities"),
    ({"scores": [0.5, 0.5, 0.5]}, "add up to 1.5"),
    ({"prediction": "a"}, "prediction 'a' is not the likeliest by scores, which is 'b'"),
    ({"seed": 9}, "seed 9 is not one of the seeds"),
    ({"image": "https://example.org/a.png"}, "image is not a data:image"),
    ({"image": 'data:image/png;base64,AAAA" onerror="x'}, "image is not a data:image"),
    ({"image": "data:image/svg+xml;base64,AAAA"}, "image is not a data:image"),
    ({"confidence": 1}, "confidence is not a key of Prediction"),
])
def test_predictions_that_do_not_fit_are_named(parts: dict[str, Any], said: str) -> None:
    metrics = check(GOOD)
    check_prediction(ROW, metrics, "predictions.jsonl, line 1")
    with pytest.raises(BrokenArtifact, match=f"line 1: .*{said}"):
        check_prediction({**ROW, **parts}, metrics, "predictions.jsonl, line 1")


@pytest.mark.parametrize(("task", "labels", "row", "said"), [
    ("regression", None, {"target": "1.0", "prediction": 1.0}, "target must be a finite number for regression"),
    ("multiple-choice", None, {"target": 1, "prediction": "2"}, "prediction must be a whole number"),
    ("seq2seq-generation", None, {"target": ["a", "b"], "prediction": ["a"]}, "prediction must be a text"),
    ("regression", None, {"target": 1.0, "prediction": 1.0, "scores": [1.0]}, "scores must be null for regression"),
    ("multiple-choice", None, {"target": 4, "prediction": 0, "choices": ["a", "b"], "scores": [0.6, 0.4]}, "target is 4"),
    ("token-classification", ["O"], {"input": ["x", "y"], "target": ["O", "O"], "prediction": ["O"]}, "equally long lists"),
    ("token-classification", ["O"], {"target": "O", "prediction": ["O"]}, "target must be a list"),
    ("token-classification", ["O"], {"input": ["x"], "target": ["B-a"], "prediction": ["O"]}, "'B-a' is not one of the labels"),
])
def test_predictions_fit_their_task(task: str, labels: list[str] | None, row: dict[str, Any], said: str) -> None:
    metrics = check(run_samples.metrics(task, "score", 1, 0.5, {}, labels))
    with pytest.raises(BrokenArtifact, match=said):
        check_prediction({**ROW, "scores": None, **row}, metrics, "p")


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenArtifact, match=r"holds no metrics\.json"):
        write(tmp_path)


@pytest.mark.parametrize(("file", "content", "said"), [
    ("metrics.json", b"{", r"metrics\.json is not JSON"),
    ("config.json", b"[1]", r"config\.json must hold an object"),
    ("data.json", b"\xff", r"data\.json is not JSON"),
    ("predictions.jsonl", b'{"index": 0}\n', r"predictions\.jsonl, line 1: .* is missing"),
    ("predictions.jsonl", json.dumps(ROW).encode() + b"\n{oops\n", r"predictions\.jsonl, line 1: target 'a'"),
])
def test_broken_files_are_named_and_no_report_is_left(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    run = run_samples.classification(tmp_path / "run", items=20)
    (run / file).write_bytes(content)
    with pytest.raises(BrokenArtifact, match=said):
        write(run)
    assert not [path for path in run.iterdir() if "report" in path.name]
