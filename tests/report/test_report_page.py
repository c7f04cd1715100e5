"""The page says what the files say, shows users' text as text, and loads nothing."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import run_samples

from thrifty.report import write
from thrifty.report.examples import unlike

SAMPLES: dict[str, Callable[[Path], Path]] = {
    "classification": run_samples.classification,
    "three seeds": lambda folder: run_samples.classification(folder, seeds=3),
    "many classes": lambda folder: run_samples.classification(folder, classes=77, items=600),
    "images": lambda folder: run_samples.classification(folder, classes=7, images=True),
    "regression": run_samples.regression,
    "generation": run_samples.generation,
    "tokens": run_samples.tokens,
    "choice": run_samples.choice,
}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects the visible text, the tags and their attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def read(page: Path) -> tuple[Reader, str]:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert not reader.open
    return reader, re.sub(r"\s+", " ", " ".join(reader.words))


def change(run: Path, **parts: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    found.update(parts)
    (run / "metrics.json").write_text(json.dumps(found))
    return found


@pytest.fixture(scope="module", params=SAMPLES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(SAMPLES[request.param](tmp_path_factory.mktemp("runs") / "run"))


def test_the_page_nests_and_loads_nothing(page: Path) -> None:
    reader, _ = read(page)
    assert page.name == "report.html"
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video", "use", "image"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name in ("href", "srcset", "xlink:href", "action") for name in attributes)
        if "src" in attributes:
            assert tag == "img" and (attributes["src"] or "").startswith("data:image/png;base64,")
    raw = page.read_text(encoding="utf-8")
    assert not re.search(r"@import|@font-face|https?:", raw)
    assert re.findall(r"url\(([^)]*)\)", raw) == [use for use in re.findall(r"url\(([^)]*)\)", raw) if use.startswith("#")]
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")


def test_every_drawing_is_well_formed_named_and_within_its_frame(page: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), re.S)
    assert drawings
    seen: set[str] = set()
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        title, told = root.find("title"), root.find("desc")
        assert title is not None and title.text and told is not None and told.text
        keys = {node.get("id") for node in root.iter() if node.get("id")}
        assert (root.get("aria-labelledby") or "").split() == [title.get("id"), told.get("id")]
        assert not keys & seen
        seen |= {key for key in keys if key}
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        for node in root.iter():
            for name, most in (("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height)):
                assert -1 <= float(node.get(name, 0)) <= most + 1, ElementTree.tostring(node)


def test_the_numbers_are_there(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run")
    found = change(run, warnings=["12 of 640 training texts were cut after 128 tokens."])
    _, words = read(write(run))
    value = found["test"]["accuracy"]["value"]
    assert f"{100 * value:.1f}" in words
    assert f"{100 * (value - 0.045):.1f} to {100 * (value + 0.045):.1f}" in words
    assert "Better than frozen features with a linear head: +3.2 points, 95 % interval 0.9 to 5.5." in words
    for said in ("77,578", "73,728", "3,850", "0.34 % of 22.7 M", "318 kB", "912 MB", "2 min 23 s", "4.31 s", "89.4 / s",
                 "12 of 640 training texts were cut", "rank 8", "60303ae2", "2.13.0",
                 "thrifty tune --model minilm", "split_seed"):
        assert said in words, said
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    wrong = sum(row["target"] != row["prediction"] for row in rows)
    assert f"{wrong} of 200 predictions are wrong" in words


@pytest.mark.parametrize("make", [run_samples.classification, run_samples.choice])
def test_the_calibration_is_the_one_of_the_predictions(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    run = make(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    labels = json.loads((run / "metrics.json").read_text())["labels"] or range(4)
    if labels == range(4):    # questions may differ in how many choices they have
        rows[0].update(choices=["a", "b"], scores=[0.4, 0.6], target=0, prediction=1)
        (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gaps, loss = [0.0] * 15, 0.0
    for row in rows:
        sure = max(row["scores"])
        gaps[max(math.ceil(sure * 15) - 1, 0)] += (row["target"] == row["prediction"]) - sure
        loss -= math.log(row["scores"][list(labels).index(row["target"])])
    _, words = read(write(run))
    assert f"Expected calibration error {100 * sum(map(abs, gaps)) / len(rows):.1f} points" in words
    assert f"Negative log likelihood {loss / len(rows):.3f} nats per item" in words


def test_a_small_lead_is_not_called_better(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run", rival=-0.008)
    _, words = read(write(run))
    assert "Cannot be told apart from frozen features with a linear head on 200 test items (+0.8 points" in words
    run = run_samples.classification(tmp_path / "worse", rival=0.05)
    _, words = read(write(run))
    assert "Worse than frozen features with a linear head: −5.0 points, 95 % interval −7.3 to −2.7." in words


EVIL = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&'</style></svg>\x00\ud800 https://example.org"
SHOWN = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&'</style></svg>\ufffd\ufffd https://example.org"


def test_what_users_wrote_shows_as_text(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run", classes=3, items=60)
    labels = [EVIL + str(i) for i in range(3)]
    old = json.loads((run / "metrics.json").read_text())
    swap = dict(zip(old["labels"], labels, strict=True))
    baselines = [{**b, "title": EVIL} for b in old["baselines"]]
    change(run, model=EVIL, data=EVIL, method=EVIL, settings={EVIL: EVIL}, warnings=[EVIL], labels=labels, command=EVIL,
           created=EVIL, baselines=baselines)
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        row.update(input=EVIL, target=swap[row["target"]], prediction=swap[row["prediction"]])
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in ("config.json", "environment.json", "data.json"):
        (run / file).write_text(json.dumps({EVIL: [{EVIL: EVIL}], "list": [EVIL, None, True], "nested": {EVIL: EVIL}}))
    path = write(run)
    reader, words = read(path)
    assert not {tag for tag, _ in reader.tags} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert words.count(SHOWN) > 20
    for drawing in re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), re.S):
        ElementTree.fromstring(drawing)


@pytest.mark.parametrize("make", [
    run_samples.regression, run_samples.generation, run_samples.tokens, run_samples.choice,
    lambda folder: run_samples.classification(folder, images=True)])
def test_other_tasks_show_users_texts_as_text(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    run = make(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        if isinstance(row["input"], list):
            row["input"] = [EVIL[:30] for _ in row["input"]]
        elif row["input"] is not None:
            row["input"] = EVIL
        if "choices" in row:
            row["choices"] = [EVIL] * 4
        if json.loads((run / "metrics.json").read_text())["task"] == "seq2seq-generation":
            row.update(target=[EVIL, EVIL], prediction=EVIL)
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader, _ = read(write(run))
    assert "script" not in {tag for tag, _ in reader.tags}


def test_one_seed_and_three(tmp_path: Path) -> None:
    _, words = read(write(run_samples.classification(tmp_path / "one")))
    assert "this run" in words and "mean of" not in words and "standard deviation" not in words
    _, words = read(write(run_samples.classification(tmp_path / "three", seeds=3)))
    assert "mean of 3 seeds, standard deviation 1.1 points, each on 200 test items" in words
    for seed in range(3):
        assert re.search(rf"seed {seed}: best \d\d\.\d %, step \d+", words)
    assert "of 600 predictions are wrong, counted over all 3 seeds" in words
    assert "in 3 of 3 seeds" in words or "in 2 of 3 seeds" in words or "in 1 of 3 seeds" in words


def test_one_item_is_listed_once_whatever_the_seeds() -> None:
    rows: list[Any] = [{"index": i // 2, "seed": i % 2} for i in range(40)]
    assert [row["index"] for row in unlike(rows)] == list(range(10))


def test_up_to_thirty_classes_are_drawn_more_are_listed_in_pairs(tmp_path: Path) -> None:
    page = write(run_samples.classification(tmp_path / "thirty", classes=30, items=300)).read_text()
    assert "Confusion matrix" in page and "The pairs confused most" not in page
    run = run_samples.classification(tmp_path / "more", classes=31, items=300)
    page = write(run).read_text()
    assert "Confusion matrix" not in page and "The pairs confused most" in page
    table = page[page.index("The pairs confused most"):]
    assert table[: table.index("</tbody>")].count("<tr>") == 21


def test_the_ten_wrong_items_are_the_most_confident_ones(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    wrong = sorted((row for row in rows if row["prediction"] != row["target"]), key=lambda row: -max(row["scores"]))
    page = write(run).read_text()
    assert re.findall(r">row (\d+)<", page) == [str(row["index"]) for row in wrong[:10]]


def test_optional_parts_may_be_missing(tmp_path: Path) -> None:
    for task, make in SAMPLES.items():
        run = make(tmp_path / task)
        for file in ("predictions.jsonl", "config.json", "environment.json", "data.json"):
            (run / file).unlink()
        _, words = read(write(run))
        assert "no test predictions" in words or "no probabilities" in words
        assert "Not in the folder: config.json, data.json, environment.json." in words


def test_null_parts_are_said_in_words(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run")
    found = json.loads((run / "metrics.json").read_text())
    seed = {**found["seeds"][0], "history": [], "evaluations": [], "best_step": None}
    change(run, seeds=[seed], baselines=[], adapter_bytes=None, memory={"peak_bytes": None, "kind": "device"}, command=None,
           timing={**found["timing"], "examples_per_second": None}, settings={},
           test={"accuracy": {"value": 0.5, "low": None, "high": None, "spread": None}})
    rows = [{**json.loads(line), "scores": None} for line in (run / "predictions.jsonl").read_text().splitlines()]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, words = read(write(run))
    for said in ("no interval was computed", "recorded no steps", "kept no probabilities", "not saved", "not measured",
                 "Wrong test items"):
        assert said in words, said


def test_an_interrupted_run_says_so_and_shows_no_test_value(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run")
    found = json.loads((run / "metrics.json").read_text())
    seed = {**found["seeds"][0], "stopped": "interrupted", "test": {}}
    change(run, seeds=[seed], test={}, baselines=[])
    (run / "predictions.jsonl").unlink()
    _, words = read(write(run))
    best = max(e["values"]["accuracy"] for e in seed["evaluations"])
    assert f"The test split has not been read. The best accuracy on validation was {100 * best:.1f}" in words
    assert "Training was interrupted after step 400" in words and "Before you trust this" in words


def test_stopping_early_is_said_without_alarm(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run")
    found = json.loads((run / "metrics.json").read_text())
    change(run, seeds=[{**found["seeds"][0], "stopped": "early"}])
    _, words = read(write(run))
    assert "Training stopped early at step 400" in words and "Worth knowing" in words and "Before you trust" not in words


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run", items=30)
    before = {path.name for path in run.iterdir()}
    first = write(str(run)).read_bytes()
    assert write(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_long_lists_in_a_record_are_cut_and_counted(tmp_path: Path) -> None:
    run = run_samples.classification(tmp_path / "run", items=30)
    skipped = [{"file": "a.csv", "row": 100_000 + i, "reason": "no label"} for i in range(250)]
    (run / "data.json").write_text(json.dumps({"skipped": skipped, "empty": [], "nothing": {}, "mixed": [1, {"a": [2]}]}))
    _, words = read(write(run))
    assert "100199" in words and "100200" not in words and "and 50 more" in words
