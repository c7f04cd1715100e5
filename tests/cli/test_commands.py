"""Each command on a small run: what it prints and writes, checked by other means."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_jobs
import torch
import transformers

import thrifty
from thrifty.cli import main
from thrifty.core.errors import NoSuchSetting
from thrifty.models import load
from thrifty.train.predict import open_adapter


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    words = ["tune", "--model", place / "bert", "--data", place / "table", "--out", place / "run", "--set", "rank=4",
             "--epochs", 4, "--batch", 8, "--rate", "1e-2", "--quiet"]
    assert main([str(word) for word in words]) == 0
    return place / "run"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_tune_prints_the_result_and_records_its_command(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["command"].startswith("thrifty tune --model") and "--quiet" not in metrics["command"]
    words = ["tune", "--config", str(run / "config.json"), "--out", str(place / "again"), "--quiet"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "untouched test items" in out and str(place / "again" / "report.html") in out
    assert small_jobs.numbers(place / "again") == small_jobs.numbers(run)


def test_predict_repeats_the_predictions_of_the_run(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), "--data", str(place / "table" / "test.csv"), "--out", str(place / "answers.jsonl")]) == 0
    found, reported = lines((place / "answers.jsonl").read_text()), lines((run / "predictions.jsonl").read_text())
    assert [row["prediction"] for row in found] == [row["prediction"] for row in reported]
    assert [row["input"] for row in found] == [row["input"] for row in reported]
    capsys.readouterr()
    assert main(["predict", str(run / "adapter"), "--text", str(reported[0]["input"]), "--text", str(reported[1]["input"])]) == 0
    typed = lines(capsys.readouterr().out)
    for row, known in zip(typed, reported, strict=False):
        assert row["prediction"] == known["prediction"] and row["scores"] == pytest.approx(known["scores"], abs=1e-5)


def test_predict_needs_no_labels_and_names_what_it_lacks(run: Path, tmp_path: Path, place: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.csv").write_text("id,text\n1,the pipe leak flood\n2,lamp bulb glow\n")
    assert main(["predict", str(run), "--data", str(tmp_path / "new.csv")]) == 0
    assert len(lines(capsys.readouterr().out)) == 2
    (tmp_path / "other.csv").write_text("id,txet\n1,the pipe leak flood\n")
    assert main(["predict", str(run), "--data", str(tmp_path / "other.csv")]) == 2
    assert "Did you mean 'txet'" in capsys.readouterr().err
    (tmp_path / "empty.csv").write_text("id,text\n1,the pipe\n2,\n")
    assert main(["predict", str(run), "--data", str(tmp_path / "empty.csv")]) == 2
    assert "row 2" in capsys.readouterr().err
    assert main(["predict", str(run), "--data", str(place / "table")]) == 2
    assert "--split" in capsys.readouterr().err
    assert main(["predict", str(run), "--data", str(place / "table"), "--split", "validation"]) == 0
    assert main(["predict", str(run), "--data", str(place / "table"), "--split", "dev"]) == 2


def test_predict_refuses_another_base(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_jobs.bert(tmp_path / "bert")
    model = transformers.BertModel.from_pretrained(folder)
    torch.nn.init.zeros_(model.encoder.layer[0].output.dense.weight)
    model.save_pretrained(folder)
    assert main(["predict", str(run), "--text", "a", "--model", str(folder)]) == 2
    assert "is not the base" in capsys.readouterr().err


def test_inspect_counts_what_attaching_would_train(place: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bert" / "model.safetensors").rename(place / "weights")  # none are needed
    try:
        assert main(["inspect", str(place / "bert"), "--method", "lora", "--set", "rank=3", "--paths"]) == 0
        out = capsys.readouterr().out
    finally:
        (place / "weights").rename(place / "bert" / "model.safetensors")
    assert "attn.q" in out and "encoder.layer.1.attention.self.query" in out
    assert f"{2 * 2 * 3 * (32 + 32):,} of " in out
    assert main(["inspect", str(place / "bert"), "--method", "lora", "--task", "text-classification", "--labels", "5"]) == 0
    assert "165 parameters of the base" in capsys.readouterr().out  # a head of 5 × 32 + 5
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "rank=4" in out and "task: text-classification" in out and "classifier.weight" in out
    assert main(["inspect", str(place / "bert"), "--method", "lora", "--set", "where=attn.w"]) == 2
    assert "no site matches 'attn.w'" in capsys.readouterr().err


def test_merge_gives_the_outputs_of_the_adapted_model(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(run), "--out", str(place / "merged")]) == 0
    assert "worst rounding error" in capsys.readouterr().out
    labels = json.loads((run / "metrics.json").read_text())["labels"]
    backbone = load(str(place / "bert"), "text-classification", labels)
    thrifty.load(backbone.model, run / "adapter")
    merged = transformers.AutoModel.from_pretrained(place / "merged").eval()
    batch = transformers.AutoTokenizer.from_pretrained(place / "merged")(["the pipe leak flood"], return_tensors="pt")
    with torch.no_grad():
        hidden = backbone.model.base_model(**batch)[0]
        torch.testing.assert_close(merged(**batch)[0], hidden, rtol=1e-4, atol=1e-5)
    assert main(["merge", str(run), "--out", str(place / "merged")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_convert_to_peft_and_back(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(run), "--to", "peft", "--out", str(place / "peft")]) == 0
    assert json.loads((place / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    words = ["convert", str(place / "peft"), "--to", "thrifty", "--model", str(place / "bert"), "--task", "text-classification",
             "--labels", "light,road,water", "--out", str(place / "back")]
    assert main(words) == 0, capsys.readouterr().err
    answers = []
    for folder in (run / "adapter", place / "back"):
        backbone = load(str(place / "bert"), "text-classification", ["light", "road", "water"])
        thrifty.load(backbone.model, folder)
        with torch.no_grad():
            answers.append(backbone.model(**backbone.preprocess(["the pipe leak"], return_tensors="pt"))["logits"])
    torch.testing.assert_close(*answers)


def test_report_makes_the_page_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before and "report.html" in capsys.readouterr().out


def test_four_bits_from_training_to_merging(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes", reason='weights in four bits need bitsandbytes: pip install "thrifty[quantised]"')
    folder = place / "four"
    words = ["tune", "--model", place / "bert", "--data", place / "table", "--out", folder, "--set", "rank=4", "--weights", "nf4",
             "--epochs", 1, "--batch", 8, "--rate", "1e-2", "--quiet"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["weights"] == "nf4"
    reported = lines((folder / "predictions.jsonl").read_text())
    capsys.readouterr()
    assert main(["predict", str(folder), "--text", str(reported[0]["input"])]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(reported[0]["scores"], abs=1e-5)
    assert main(["merge", str(folder), "--out", str(place / "four-merged")]) == 0
    assert "into the base as its four bits stand for it" in capsys.readouterr().out
    opened = open_adapter(folder)
    batch = transformers.AutoTokenizer.from_pretrained(place / "bert")(["the pipe leak flood"], return_tensors="pt")
    with torch.no_grad():
        hidden = opened.backbone.model.base_model(**batch)[0]
        merged = transformers.AutoModel.from_pretrained(place / "four-merged").eval()
        torch.testing.assert_close(merged(**batch)[0], hidden, rtol=1e-4, atol=1e-5)
    assert main(["merge", str(folder), "--onto", "full", "--out", str(place / "four-full")]) == 0
    said = capsys.readouterr().out
    assert "into the full base: the weights that training saw lie" in said and "evaluate what came out" in said
    assert main(["merge", str(place / "run"), "--onto", "full", "--out", str(place / "one-full")]) == 0
    assert "rounding error" in capsys.readouterr().out


def test_what_four_bits_and_paged_states_need(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--model", str(place / "bert"), "--data", str(place / "table"), "--out", str(place / "none"), "--quiet"]
    assert main([*words, "--optimizer", "paged-adamw", "--device", "cpu"]) == 2
    assert "pages its states out of the memory of a CUDA card, and this trains on cpu" in capsys.readouterr().err
    backbone = load(str(place / "bert"), "text-classification", ["light", "road", "water"])
    with pytest.raises(NoSuchSetting, match="weights='nf4' is for models given by name"):
        thrifty.tune(backbone, place / "table", out=place / "module", weights="nf4", progress=False)
