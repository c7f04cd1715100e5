"""Answers from demonstrations: the likelihoods, what fits and what does not, and the job around them."""
from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import thrifty
from thrifty import models
from thrifty.cli import main
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.data import read
from thrifty.formats.ablations import Shown, show
from thrifty.formats.demonstrations import Demonstration, Item
from thrifty.models import Backbone
from thrifty.tasks.in_context import InContext
from thrifty.train import Run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders as tiny  # noqa: E402

LABELS = ["no", "yes"]
ITEMS = [Item("ab c", ("no", "yes"), 1), Item("d", ("no", "yes"), 0), Item("e f gh i", ("no", "yes"), 1)]
SHOWN = Shown([Demonstration("x y", "yes", ("no", "yes")), Demonstration("z", "no", ("no", "yes"))])
QUICK: dict[str, Any] = {"shots": 4, "seeds": "100,13", "progress": False, "max_length": 40}


def get(backbone: Backbone, **limits: Any) -> InContext:
    return InContext("text-classification", backbone, LABELS, **limits)


def predict(task: InContext, items: list[Item], shown: Shown) -> list[dict[str, Any]]:
    return task.predict(task.backbone.model, task.collate(task.ask(items, shown)))


def likelihood(backbone: Backbone, before: list[str], scored: str, mean: bool) -> float:
    """log p(scored | before), one token after the other, each part tokenised by itself, alone and without a cache."""
    read, model = backbone.preprocess, backbone.model
    ids = [token for part in before if part for token in read(part, add_special_tokens=False)["input_ids"]]
    wanted = read(scored, add_special_tokens=False)["input_ids"]
    reads = model.config.is_encoder_decoder
    wanted, written = ([*wanted, read.eos_token_id], [0]) if reads else (wanted, ids)
    total = 0.0
    for token in wanted:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, read.eos_token_id]]), decoder_input_ids=torch.tensor([written])).logits \
                if reads else model(input_ids=torch.tensor([written])).logits
        total += float(logits[0, -1].double().log_softmax(-1)[token])
        written = [*written, token]
    return total / len(wanted) if mean else total


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("scoring", ["direct", "channel"])
def test_answers_are_ranked_behind_the_demonstrations(backbone: Backbone, scoring: str, mean: bool) -> None:
    task = get(backbone, scoring=scoring, likelihood="mean" if mean else "sum")
    found = predict(task, ITEMS, SHOWN)
    for item, row in zip(ITEMS, found, strict=True):
        if scoring == "direct":
            before = ["x y", "\nyes", "\n\n\nz", "\nno", f"\n\n\n{item.input}"]
            scores = [likelihood(backbone, before, f"\n{label}", mean) for label in LABELS]
        else:
            before = ["yes", "\nx y", "\n\n\nno", "\nz"]
            scores = [likelihood(backbone, [*before, f"\n\n\n{label}"], f"\n{item.input}", mean) for label in LABELS]
        shares = np.exp(np.array(scores) - max(scores))
        assert row["prediction"] == int(np.argmax(scores))
        assert row["scores"] == pytest.approx(shares / shares.sum(), abs=2e-4)


def test_without_demonstrations_the_bare_question_is_asked(backbone: Backbone) -> None:
    for row, item in zip(predict(get(backbone), ITEMS, Shown([])), ITEMS, strict=True):
        scores = [likelihood(backbone, [item.input], f"\n{label}", True) for label in LABELS]
        assert row["prediction"] == int(np.argmax(scores))


def test_what_is_read_once_is_as_if_read_each_time(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = predict(get(llama), ITEMS, SHOWN)
    task = get(llama)
    examples = task.ask(ITEMS, SHOWN)
    assert len(task.writer.before) > 5 and all(len(p["input_ids"]) < 20 for e in examples for p in e["pairs"])
    calls: list[int] = []
    real = llama.model.forward
    monkeypatch.setattr(llama.model, "forward", lambda *a, **k: (calls.append(k["input_ids"].shape[1]), real(*a, **k))[1])
    task.predict(llama.model, task.collate(examples))
    task.predict(llama.model, task.collate(examples))
    assert calls.count(len(task.writer.before)) == 1, "the demonstrations went through the model once"
    monkeypatch.undo()
    monkeypatch.setattr(type(task.writer), "held", object())
    task.writer.held = object()     # a model that keeps nothing that can be given to many rows
    again = task.predict(llama.model, task.collate(examples))
    for one, other in zip(kept, again, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_order_of_answers_and_size_of_batches_change_nothing(backbone: Backbone) -> None:
    task = get(backbone)
    whole = predict(task, ITEMS, SHOWN)
    for item, row in zip(ITEMS, whole, strict=True):
        alone = predict(task, [item], SHOWN)[0]
        turned = predict(task, [Item(item.input, item.options[::-1], 0)], SHOWN)[0]
        assert alone["scores"] == pytest.approx(row["scores"], abs=1e-5)
        assert turned["scores"] == pytest.approx(row["scores"][::-1], abs=1e-5)
    other = Shown(SHOWN.fixed[::-1])
    assert predict(task, ITEMS, other)[0]["scores"] != pytest.approx(whole[0]["scores"], abs=1e-9), "their order does matter"


@pytest.mark.parametrize("scoring", ["direct", "channel"])
def test_long_texts_lose_their_end_and_answers_never_do(backbone: Backbone, scoring: str) -> None:
    task = get(backbone, max_length=10, scoring=scoring)
    long = Item("a b c d e f g h i j k l", ("no", "yes"), 0)
    shown = Shown([Demonstration("m n o p q r s t u v", "yes", ("no", "yes"))])
    pairs = task.ask([long], shown)[0]["pairs"]
    read = backbone.preprocess
    whole = [*task.writer.before, *pairs[1]["input_ids"]] if not task.reads else pairs[1]["input_ids"]
    text = read.convert_ids_to_tokens(whole) + (read.convert_ids_to_tokens(pairs[1]["labels"]) if task.reads else [])
    kept = 10 - 2 - 3       # tokens of the longest answer: y, ##e, ##s
    assert text.count("y") == text.count("##e") == text.count("##s") == 2, "both answers are whole"
    assert [letter for letter in "mnopqrstuv" if letter in text] == list("mnopq"[:kept]) and task.truncated == 2
    assert [letter for letter in "abcdefghijkl" if letter in text] == list("abcde"[:kept])
    lengths = {len([token for token in pair["labels"] if token != -100]) for pair in pairs}
    assert len(lengths) == 1 or scoring == "direct", "the same text is scored behind every answer"
    with pytest.raises(BadData, match="demonstration 1: an answer has 9 tokens, which leaves no room"):
        task.ask([long], Shown([Demonstration("a", "abcdefghi", ("abcdefghi", "no"))]))
    with pytest.raises(BadData, match="row 0: an answer has 9 tokens"):
        task.ask([Item("a", ("no", "abcdefghi"), 0)], Shown([]))


def test_demonstrations_that_overflow_name_the_row_and_the_tokens(llama: Backbone) -> None:
    shown = Shown([Demonstration("a b c d", "yes", ("no", "yes"))] * 8)
    each, question = 4 + 3, 6 + 3
    items = [ITEMS[1], Item("a b c d e f", ("no", "yes"), 0)]
    with pytest.raises(BadData, match=rf"row 1: 8 demonstrations of {8 * each} tokens and a question of {question} make "
                                      rf"{8 * each + question}, more than the context of 64 tokens. About 7 demonstrations fit"):
        get(llama).ask(items, shown)
    with pytest.raises(BadData, match="more than the context of 40 tokens.*or set context higher"):
        get(llama, context=40).ask(items, shown)
    assert len(get(llama).ask(items, Shown(shown.fixed[:7]))) == 2
    with pytest.raises(NoSuchSetting, match="context=65 is more than the 64 positions"):
        get(llama, context=65)


def test_each_question_with_sentences_of_its_own(backbone: Backbone) -> None:
    corpus = [f"{a} {b}" for a in "abcdef" for b in "ghijkl"]
    pool = [Item(f"t {i}", ("no", "yes"), i % 2) for i in range(8)]
    task = get(backbone)
    asked = task.ask(ITEMS[:2], show("ood_inputs", pool[:3], pool, 1, corpus))
    again = show("ood_inputs", pool[:3], pool, 1, corpus)
    for item, example in zip(ITEMS, asked, strict=False):
        alone = get(backbone)
        fixed = alone.ask([item], Shown(again.before(item.input)))[0]
        before = [] if alone.reads else list(alone.writer.before)
        assert [pair["input_ids"] for pair in example["pairs"]] == [[*before, *pair["input_ids"]] for pair in fixed["pairs"]]


def test_limits_that_make_no_sense(llama: Backbone) -> None:
    with pytest.raises(NoSuchSetting, match="likelihood is 'median'"):
        get(llama, likelihood="median")
    with pytest.raises(NoSuchSetting, match="scoring is 'noisy'"):
        get(llama, scoring="noisy")
    with pytest.raises(Unfit, match="regression lists none"):
        InContext("regression", llama)
    with pytest.raises(Unfit, match="trains nothing"):
        get(llama).loss(llama.model, {})
    from thrifty.models import wrap

    with pytest.raises(Unfit, match="Linear writes no text"):
        InContext("text-classification", wrap(torch.nn.Linear(2, 2)), LABELS)


# -- the job ------------------------------------------------------------------------------------------------------------------
def rows(count: int = 44, seed: int = 1) -> dict[str, list[dict[str, Any]]]:
    drawn = random.Random(seed)
    made = [{"text": " ".join(drawn.choices("abcdefg", k=3)) + f" {'hijklmnop'[i % 9]} {'qrstu'[i // 9]}", "label": LABELS[i % 2]}
            for i in range(count)]
    return {"train": made[:24], "validation": made[24:34], "test": made[34:]}


def lines(folder: Path, name: str = "predictions") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_from_rows_to_a_report(model: str, tmp_path: Path) -> None:
    folder = str(getattr(tiny, model)(tmp_path / "model"))
    run = thrifty.in_context(folder, rows(), tmp_path / "run", **QUICK)
    metrics = run.metrics
    assert metrics["method"] == "in-context" and metrics["parameters"]["tuner"] == metrics["parameters"]["head"] == 0
    assert [seed["seed"] for seed in metrics["seeds"]] == [100, 13] and metrics["metric"] == "macro_f1"
    assert [baseline["name"] for baseline in metrics["baselines"]] == ["majority", "zero-shot"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000 and "0 of" in str(run)
    told, shown = lines(tmp_path / "run"), lines(tmp_path / "run", "demonstrations")
    assert len(told) == 20 and len(shown) == 8 and all(line["output"] == line["true"] for line in shown)
    train = rows()["train"]
    assert all(train[line["row"]]["text"] == line["input"] and train[line["row"]]["label"] == line["output"] for line in shown)
    first = Shown([Demonstration(line["input"], line["output"], ("no", "yes")) for line in shown[:4]])
    backbone = models.load(folder, "seq2seq-generation" if model == "t5" else "causal-generation")
    again = predict(get(backbone, max_length=40), [Item(row["text"], ("no", "yes"), 0) for row in rows()["test"]], first)
    assert [LABELS[row["prediction"]] for row in again] == [row["prediction"] for row in told[:10]]
    same = thrifty.in_context(folder, rows(), tmp_path / "again", **QUICK)
    assert same.metrics["test"] == metrics["test"] and lines(tmp_path / "again") == told
    assert Run.read(tmp_path / "run").metrics == metrics


def test_variants_choices_and_formats(tmp_path: Path) -> None:
    folder = str(tiny.llama(tmp_path / "model"))
    flipped = thrifty.in_context(folder, rows(), tmp_path / "a", demonstrations="0_correct", choose="balanced", **QUICK)
    shown = lines(tmp_path / "a", "demonstrations")
    assert all(line["output"] != line["true"] for line in shown)
    assert sorted(line["true"] for line in shown[:4]) == ["no", "no", "yes", "yes"]
    assert any("ablation" in warning for warning in flipped.metrics["warnings"])
    choices = [{"text": f"{'abcdef'[i % 6]} {'ghijk'[i // 6]}", "choices": ["l m", "n", "o p q"], "label": i % 3}
               for i in range(30)]
    split = {"train": choices[:18], "validation": choices[18:24], "test": choices[24:]}
    many = thrifty.in_context(folder, split, tmp_path / "b", **{**QUICK, "shots": 2})
    assert many.metrics["task"] == "multiple-choice" and many.metrics["metric"] == "accuracy" and len(lines(tmp_path / "b")) == 12
    pairs = {part: [{"sentence1": row["text"], "sentence2": "v", "label": row["label"]} for row in table]
             for part, table in rows().items()}
    thrifty.in_context(folder, pairs, tmp_path / "c", **{**QUICK, "shots": 1})
    assert lines(tmp_path / "c", "demonstrations")[0]["input"].endswith("\nv")
    thrifty.in_context(folder, rows(), tmp_path / "d", format="Is {text} so?", words={"yes": "ok"}, **{**QUICK, "shots": 2})
    shown = lines(tmp_path / "d", "demonstrations")
    assert shown[0]["input"].startswith("Is ") and {line["output"] for line in shown} <= {"ok", "no"}
    assert {row["prediction"] for row in lines(tmp_path / "d")} <= {"yes", "no"}
    coined = thrifty.in_context(folder, rows(), tmp_path / "e", demonstrations="permutated_labels", **{**QUICK, "shots": 2})
    assert {row["prediction"] for row in lines(tmp_path / "e")} <= {"yes", "no"} and coined.metrics["labels"] == LABELS


def test_wordings_that_tell_the_answer_are_not_shown(tmp_path: Path) -> None:
    folder = str(tiny.t5(tmp_path / "model"))
    backbone = models.load(folder, "seq2seq-generation")
    backbone.preprocess.model_max_length = 2000
    data = {part: [{"text": row["text"], "label": ["negative", "positive"][row["label"] == "yes"]} for row in table]
            for part, table in rows().items()}
    asked = {**QUICK, "shots": 12, "max_length": 200, "context": 2000}
    thrifty.in_context(backbone, data, tmp_path / "run", format="flan:sst2", **asked)
    shown = lines(tmp_path / "run", "demonstrations")
    assert len(shown) == 24 and {line["output"] for line in shown} == {"negative", "positive"}
    with pytest.raises(NoSuchSetting, match="answers to t5:wsc are not listed"):
        schemas = [{"text": f"Tom saw Bob {i} when he left.", "span1_text": "Tom", "span2_text": "he", "span2_index": 5,
                    "label": i % 2} for i in range(30)]
        thrifty.in_context(folder, schemas, tmp_path / "wsc", format="t5:wsc", **QUICK)


@pytest.mark.parametrize(("settings", "error", "said"), [
    ({"shot": 3}, NoSuchSetting, "no setting 'shot'.*Did you mean 'shots'"), ({"seeds": "1,x"}, NoSuchSetting, "whole numbers"),
    ({"seeds": "1,1"}, NoSuchSetting, "different numbers"), ({"demonstrations": "golden"}, NoSuchSetting, "one of gold, random"),
    ({"choose": "even"}, NoSuchSetting, "choose is 'even'"), ({"words": {"a": "b"}}, NoSuchSetting, "is a setting of formats"),
    ({"shots": 25}, BadData, "25 demonstrations were asked for, but there are 24"), ({"shots": -1}, NoSuchSetting, "at least 0"),
    ({"shots": 0, "demonstrations": "random"}, NoSuchSetting, "gold where none are shown"),
    ({"demonstrations": "ood_inputs"}, BadData, "give one"), ({"corpus": "/nowhere"}, BadData, "cannot be read"),
    ({"shots": 12}, BadData, "row 0: 12 demonstrations of"), ({"metric": "f1"}, NoSuchSetting, "cannot select by metric 'f1'"),
])
def test_mistakes_are_named(settings: dict[str, Any], error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        thrifty.in_context(str(tiny.llama(tmp_path / "model")), rows(), tmp_path / "run", **{**QUICK, **settings})


def test_data_that_lists_no_answers(tmp_path: Path) -> None:
    folder = str(tiny.llama(tmp_path / "model"))
    numbers = [{"text": f"some words here {i}", "label": i + 0.5} for i in range(30)]
    with pytest.raises(BadData, match="the data is for regression"):
        thrifty.in_context(folder, numbers, tmp_path / "run", **QUICK)
    with pytest.raises(NoSuchSetting, match="read with the format None, not 't5:cola'"):
        thrifty.in_context(folder, read(rows()), tmp_path / "run", format="t5:cola", **QUICK)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.llama(tmp_path / "model")
    with (tmp_path / "table.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for part in rows().values() for row in part)
    words = ["in-context", "--model", folder, "--data", tmp_path / "table.jsonl", "--out", tmp_path / "run", "--shots", 3,
             "--seeds", "1,2", "--max-length", 40, "--no-baselines"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "macro F1 on" in said.out and "adapter on disk       none" in said.out and "seed 2: macro_f1" in said.err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["command"].startswith("thrifty in-context --model")
    assert main(["in-context", "--config", str(tmp_path / "run" / "config.json"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert lines(tmp_path / "again") == lines(tmp_path / "run")
    assert main([str(word) for word in words]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["in-context", "--data", "x"]) == 2 and "needs --model" in capsys.readouterr().err
    assert main(["tune", "--model", str(folder), "--data", str(tmp_path / "table.jsonl"), "--method", "in-context"]) == 2
    assert "thrifty in-context" in capsys.readouterr().err


def test_a_real_model_reads_real_demonstrations(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from test_reading import ASSETS

    if not (ASSETS / "mr").is_dir():
        pytest.skip(f"no set mr in {ASSETS}")
    model = str(tiny.weights("stories15m"))
    data = read(ASSETS / "mr", limit=40)
    data._test = {role: column[:6] for role, column in data.test().items()}
    data._test_rows = 6
    run = thrifty.in_context(model, data, tmp_path / "run", shots=2, seeds="100", max_length=48, progress=False, words=None)
    assert run.metrics["items"]["test"] == 6 and len(lines(tmp_path / "run", "demonstrations")) == 2
    with pytest.raises(BadData, match="row 0: 16 demonstrations of .* more than the context of 256 tokens"):
        thrifty.in_context(model, read(ASSETS / "mr", limit=40), tmp_path / "b", seeds="100", max_length=48, progress=False)


def test_a_real_model_knows_more_behind_demonstrations() -> None:
    backbone = models.load(str(tiny.weights("smollm2-135m")), "causal-generation")
    cities = ("Paris", "London", "Berlin", "Madrid", "Rome")
    items = [Item(f"The capital of {land}", cities, i) for i, land in enumerate(("France", "England", "Germany", "Spain", "Italy"))]
    capitals = (("The capital of Portugal", "Lisbon"), ("The capital of Greece", "Athens"), ("The capital of Austria", "Vienna"))
    task = InContext("text-classification", backbone, list(cities))
    sure = []
    for shown in (Shown([Demonstration(x, y, cities) for x, y in capitals]), Shown([])):
        found = predict(task, items, shown)
        sure.append(np.mean([row["scores"][item.label] for row, item in zip(found, items, strict=True)]))
        if shown.fixed:
            assert [row["prediction"] for row in found] == [0, 1, 2, 3, 4]
    assert sure[0] > sure[1] + 0.1
