"""Classification as text through the main job: trained, measured, reported, predicted again."""
from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import thrifty
from thrifty.cli import main
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.data import read
from thrifty.report.schema import check_prediction
from thrifty.train import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders as tiny  # noqa: E402

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
QUICK: dict[str, Any] = {"epochs": 1, "batch": 8, "rate": 1e-2, "progress": False}


def rows(count: int = 60, **more: Any) -> dict[str, list[dict[str, Any]]]:
    drawn = random.Random(1)
    made = [{"sentence": " ".join(drawn.choices(WORDS, k=4)) + f" {WORDS[i % 10]} {WORDS[i // 10]}", "label": i % 2}
            for i in range(count)]
    return {"train": made[:40], "validation": made[40:50], "test": made[50:]}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("model", "answer"), [("t5", "auto"), ("t5", "ranked"), ("llama", "ranked-mean")])
def test_from_rows_to_a_report_and_back(model: str, answer: str, tmp_path: Path) -> None:
    folder = getattr(tiny, model)(tmp_path / "model")
    run = thrifty.tune(str(folder), rows(), out=tmp_path / "run", format="t5:cola", answer=answer, **QUICK)
    metrics = run.metrics
    assert metrics["task"] == "text-classification" and metrics["metric"] == "matthews"
    assert metrics["labels"] == ["unacceptable", "acceptable"] and metrics["parameters"]["head"] == 0
    assert [baseline["name"] for baseline in metrics["baselines"]] == ["majority", "untrained", "linear"]
    written = lines(tmp_path / "run")
    assert written[0]["input"].startswith("cola sentence: ") and written[0]["target"] == "unacceptable"
    right = sum(row["prediction"] == row["target"] for row in written) / len(written)
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right)
    assert all(("written" in row) == (answer == "auto") and (row["scores"] is None) == (answer == "auto") for row in written)
    again = predict(tmp_path / "run", rows(), split="test")
    assert [row["prediction"] for row in again] == [row["prediction"] for row in written]
    typed = predict(tmp_path / "run", texts=[rows()["test"][0]["sentence"]])[0]
    assert typed["input"] == written[0]["input"] and typed["prediction"] == written[0]["prediction"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["format"], config["answer"], config["task"]) == ("t5:cola", answer, "text-classification")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["format"]["name"] == "t5:cola"


def test_t_few_learns_from_wrong_answers(tmp_path: Path) -> None:
    folder = str(tiny.t5(tmp_path / "model"))
    run = thrifty.tune(folder, rows(), "t-few", tmp_path / "run", format="flan:cola:0", **QUICK)
    assert run.metrics["method"] == "t-few" and run.metrics["test"]["brier"]
    with pytest.raises(Unfit, match="needs multiple choice and a model that writes"):
        thrifty.tune(folder, rows(), "t-few", tmp_path / "written", format="t5:cola", **QUICK)


def test_it_learns(tmp_path: Path) -> None:
    folder = tiny.t5(tmp_path / "model")
    drawn = random.Random(2)
    easy = [{"text": " ".join(drawn.choices("bcdefg", k=3) + ["a" if i % 2 else "z"] + drawn.choices("bcdefg", k=3)),
             "label": "good" if i % 2 else "bad"} for i in range(260)]
    data = {"train": easy[:200], "validation": easy[200:230], "test": easy[230:]}
    run = thrifty.tune(str(folder), data, "full", tmp_path / "run", format="Is {text} good?", words={"good": "y", "bad": "n"},
                       allow_leak=True, **{**QUICK, "epochs": 12}, patience=0)
    assert run.metrics["test"]["accuracy"]["value"] >= 0.9
    assert {row["written"] for row in lines(tmp_path / "run")} <= {"y", "n"}
    assert predict(tmp_path / "run", texts=["b c z d"])[0]["prediction"] == "bad"


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.t5(tmp_path / "model")
    with (tmp_path / "table.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for part in rows().values() for row in part)
    words = ["tune", "--model", folder, "--data", tmp_path / "table.jsonl", "--out", tmp_path / "run", "--format", "flan:cola",
             "--words", "acceptable=fine,unacceptable=poor", "--epochs", 1, "--batch", 8, "--rate", "1e-2", "--quiet",
             "--no-baselines"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert "Matthews correlation on" in capsys.readouterr().out
    assert lines(tmp_path / "run")[0]["input"].endswith("OPTIONS:\n- poor\n- fine")
    assert main(["tune", "--config", str(tmp_path / "run" / "config.json"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again" / "predictions.jsonl").read_text() == (tmp_path / "run" / "predictions.jsonl").read_text()
    assert main(["predict", str(tmp_path / "run"), "--data", str(tmp_path / "table.jsonl")]) == 0
    assert main(["convert", str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "peft")]) == 0
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    assert main(["tune", "--model", str(folder), "--data", str(tmp_path / "table.jsonl"), "--format", "t5:colla"]) == 2
    assert "Did you mean 't5:cola'" in capsys.readouterr().err


def test_settings_that_contradict_the_data(tmp_path: Path) -> None:
    folder = str(tiny.t5(tmp_path / "model"))
    with pytest.raises(NoSuchSetting, match="words is a setting of formats"):
        thrifty.tune(folder, rows(), out=tmp_path / "a", words={"0": "no"}, **QUICK)
    with pytest.raises(NoSuchSetting, match="answer is a setting of formats"):
        thrifty.tune(folder, rows(), out=tmp_path / "b", answer="ranked", **QUICK)
    with pytest.raises(NoSuchSetting, match="format 't5:cola', not 't5:sst2'"):
        thrifty.tune(folder, read(rows(), format="t5:cola"), out=tmp_path / "c", format="t5:sst2", **QUICK)
    with pytest.raises(BadData, match="no column is clearly the premise"):
        thrifty.tune(folder, rows(), out=tmp_path / "d", format="t5:mnli", **QUICK)
    run = thrifty.tune(folder, read(rows(), format="t5:cola"), out=tmp_path / "e", **QUICK)
    assert run.metrics["metric"] == "matthews"
    with pytest.raises(BadData, match="sees sentence1 and sentence2"):
        from thrifty import formats
        from thrifty.train.inputs import from_texts

        from_texts(["a"], "text-classification", formats.find("t5:rte"))


def test_reports_show_what_names_no_class() -> None:
    metrics: Any = {"task": "text-classification", "labels": ["a", "b"], "seeds": [{"seed": 0}]}
    row = {"index": 0, "seed": 0, "input": "x", "target": "a", "prediction": None, "scores": None, "written": "c"}
    assert check_prediction(row, metrics, "here") == row
    from thrifty.core.errors import BrokenArtifact

    with pytest.raises(BrokenArtifact, match="prediction must be"):
        check_prediction({key: value for key, value in row.items() if key != "written"}, metrics, "here")
    with pytest.raises(BrokenArtifact, match="prediction must be"):
        check_prediction({**row, "target": 1.0}, {**metrics, "task": "regression", "labels": None}, "here")


def test_a_real_model_answers_real_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from test_reading import ASSETS

    if not (ASSETS / "glue_mrpc").is_dir():
        pytest.skip(f"no set glue_mrpc in {ASSETS}")
    model = str(tiny.weights("flan-t5-small"))
    data = read(ASSETS / "glue_mrpc", format="t5:mrpc", limit=16)
    data.splits["validation"] = {role: column[:6] for role, column in data.splits["validation"].items()}
    data._test = {role: column[:6] for role, column in data.test().items()}
    data._test_rows = 6
    run = thrifty.tune(model, data, "lora", tmp_path / "run", epochs=1, batch=8, progress=False, max_length=96, baselines=False)
    assert run.metrics["metric"] == "f1" and set(run.metrics["test"]) >= {"f1", "accuracy", "valid_share"}
    assert all(row["target"] in ("equivalent", "not_equivalent") for row in lines(tmp_path / "run"))
