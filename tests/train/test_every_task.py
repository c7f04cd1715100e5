"""The main job on each of the eight tasks: from rows in memory to a folder that the report accepts and `predict` repeats."""
from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import thrifty
from thrifty.train import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
QUICK: dict[str, Any] = {"epochs": 1, "batch": 8, "rate": 1e-3, "progress": False}


def sentences(drawn: random.Random) -> str:
    return " ".join(drawn.choices(WORDS, k=drawn.randint(4, 7)))


def row(task: str, i: int, drawn: random.Random) -> dict[str, Any]:
    text = f"{sentences(drawn)} {WORDS[i % 10]} {WORDS[i // 10]}"
    if task == "text-classification":
        return {"text": text, "text_pair": sentences(drawn), "label": "even" if i % 2 else "odd"}
    if task == "regression":
        return {"text": text, "label": 1000 + i + 0.5}
    if task == "token-classification":
        tokens = text.split()
        return {"tokens": tokens, "tags": ["B-cat" if token == "cat" else "O" for token in tokens]}
    if task == "multiple-choice":
        return {"text": text, "choices": drawn.sample(WORDS, 2 + i % 3), "label": i % 2}
    if task == "masked-language":
        return {"text": text}
    if task == "image-classification":
        return {"image": picture(drawn, i), "label": "dark" if i % 2 else "bright"}
    return {"source": text, "target": " ".join(reversed(text.split()))}


def picture(drawn: random.Random, i: int) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    tone = drawn.randint(0, 100) if i % 2 else drawn.randint(150, 255)
    image = Image.new("RGB", (20, 24), (tone, tone, i))
    image.putpixel((0, 0), (i, i, i))
    image.save(held, "PNG")
    return held.getvalue()


MODELS = {"token-classification": tiny_folders.distilbert, "causal-generation": tiny_folders.llama,
          "seq2seq-generation": tiny_folders.t5, "masked-language": tiny_folders.masked_bert,
          "image-classification": tiny_folders.vit}
TASKS = ["text-classification", "regression", "token-classification", "multiple-choice", "causal-generation", "seq2seq-generation",
         "masked-language", "image-classification"]


@pytest.mark.parametrize("task", TASKS)
def test_from_rows_to_a_report_and_back(task: str, tmp_path: Path) -> None:
    if task == "image-classification":
        pytest.importorskip("PIL")
    if task.endswith("generation"):
        pytest.importorskip("sacrebleu")
        more = {"max_new_tokens": 6}
    else:
        more = {}
    drawn = random.Random(1)
    rows = [row(task, i, drawn) for i in range(60)]
    data = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    model = MODELS.get(task, tiny_folders.bert)(tmp_path / "model")
    # two texts: which is first is for the user to say; everything else is inferred, and seq2seq by the model
    columns = {"columns": {"text": "text", "text_pair": "text_pair"}} if task == "text-classification" else {}
    if task in ("regression", "masked-language"):
        more["task"] = task
    run = thrifty.tune(str(model), data, out=tmp_path / "run", **QUICK, **more, **columns)
    assert run.metrics["task"] == task and run.metrics["items"] == {"train": 40, "validation": 10, "test": 10}
    assert run.metrics["test"][run.metrics["metric"]] and (tmp_path / "run" / "report.html").stat().st_size > 10_000
    names = [baseline["name"] for baseline in run.metrics["baselines"]]
    one_answer = task in ("text-classification", "regression", "image-classification")
    likely = task.endswith(("generation", "language"))
    assert names == (["untrained"] if likely else ["majority", "linear"] if one_answer else ["majority"])
    reported = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    again = predict(tmp_path / "run", data, split="test")
    for old, new in zip(reported, again, strict=True):
        assert new["input"] == old["input"]
        same = pytest.approx(old["prediction"], rel=1e-4) if task == "regression" else old["prediction"]
        assert new["prediction"] == same


@pytest.mark.parametrize("method", ["full", "bitfit", "linear-probe", "ia3", "pfeiffer", "prefix", "prompt"])
def test_methods_of_every_route_train_and_load(method: str, tmp_path: Path) -> None:
    drawn = random.Random(1)
    rows = [row("multiple-choice", i, drawn) | {"label": i % 2} for i in range(60)]
    rows = [{"text": r["text"], "label": "even" if i % 2 else "odd"} for i, r in enumerate(rows)]
    data = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    model = tiny_folders.bert(tmp_path / "model")
    run = thrifty.tune(str(model), data, method, tmp_path / "run", baselines=False, **QUICK)
    assert run.metrics["method"] == method and run.metrics["parameters"]["head"] > 0
    assert (run.metrics["parameters"]["tuner"] == 0) == (method == "linear-probe")
