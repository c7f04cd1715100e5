"""Tasks answered in words: what is learned, what is written and read back, what is ranked, and by what it is judged."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.models import Backbone

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders as tiny  # noqa: E402

LABELS = ["unacceptable", "acceptable"]
TABLE: dict[str, list[Any]] = {"text": ["cola sentence: ab c", "cola sentence: d", "cola sentence: e f g"], "label": [1, 0, 1],
                               "target": ["acceptable", "unacceptable", "acceptable"]}


def get(backbone: Backbone, format: str = "t5:cola", task: str = "text-classification", labels: list[str] | None = LABELS,
        **limits: Any) -> tasks.Task:
    return tasks.get(task, backbone, labels, format=format, **limits)


def log_likelihood(backbone: Backbone, source: str, answer: str, mean: bool = False) -> float:
    """log p(answer and end | source), one token after the other, without padding or batches."""
    read, end = backbone.preprocess, backbone.preprocess.eos_token_id
    ids = [*read(answer, add_special_tokens=False)["input_ids"], end]
    total, before = 0.0, [0] if backbone.model.config.is_encoder_decoder else read(source + "\n")["input_ids"]
    for token in ids:
        with torch.no_grad():
            if backbone.model.config.is_encoder_decoder:
                logits = backbone.model(input_ids=read(source, return_tensors="pt")["input_ids"],
                                        decoder_input_ids=torch.tensor([before])).logits
            else:
                logits = backbone.model(input_ids=torch.tensor([before])).logits
        total += float(logits[0, -1].double().log_softmax(dim=-1)[token])
        before = [*before, token]
    return total / len(ids) if mean else total


def test_the_loss_is_that_of_the_targets(backbone: Backbone) -> None:
    task = get(backbone)
    loss, items = task.loss(backbone.model, task.collate(task.encode(TABLE)))
    tokens = [len(backbone.preprocess(target, add_special_tokens=False)["input_ids"]) + 1 for target in TABLE["target"]]
    wanted = -sum(log_likelihood(backbone, *pair) for pair in zip(TABLE["text"], TABLE["target"], strict=True)) / sum(tokens)
    assert items == sum(tokens) and loss.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("answer", ["ranked", "ranked-mean"])
def test_ranking_is_by_the_likelihood_of_each_answer(backbone: Backbone, answer: str) -> None:
    task = get(backbone, answer=answer)
    assert (task.right(task.collate(task.encode(TABLE))) == torch.tensor([1, 0, 1])).all()  # type: ignore[attr-defined]
    for table in (TABLE, {"text": TABLE["text"]}):  # what is right is not looked at
        found = task.predict(backbone.model, task.collate(task.encode(table)))
        for row, text in zip(found, table["text"], strict=True):
            scores = np.array([log_likelihood(backbone, text, label, answer == "ranked-mean") for label in LABELS])
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            assert row["scores"] == pytest.approx(shares, abs=1e-4) and row["prediction"] == int(scores.argmax())


def test_what_is_written_is_read_back(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    task = get(backbone)
    said = ["acceptable", " unacceptable", "Acceptable"]
    ids = [backbone.preprocess(text, add_special_tokens=False)["input_ids"] for text in said]
    width = max(map(len, ids))
    monkeypatch.setattr(type(task.encoder.tokenizer), "batch_decode", lambda *_, **__: said)
    monkeypatch.setattr(type(task.writer), "write", lambda *_: torch.zeros(3, width))
    found = task.predict(backbone.model, task.collate(task.encode(TABLE)))
    assert found == [{"prediction": p, "scores": None, "written": text.strip()} for p, text in zip([1, 0, -1], said, strict=True)]
    metrics = task.metrics(found, TABLE)
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["valid_share"] == pytest.approx(2 / 3)
    assert metrics["f1"] == pytest.approx(2 / 3) and set(task.interval(found, TABLE)) == set(metrics)


def test_greedy_writing_is_the_models_own(t5: Backbone) -> None:
    task = get(t5)
    text = task.predict(t5.model, task.collate(task.encode(TABLE)))[0]["written"]
    written = [0]
    while len(written) <= task.limits["max_new_tokens"] and written[-1] != 4:
        with torch.no_grad():
            logits = t5.model(input_ids=t5.preprocess(TABLE["text"][0], return_tensors="pt")["input_ids"],
                              decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
    assert text == t5.preprocess.decode(written, skip_special_tokens=True).strip()


def test_limits_settle_and_give_the_same_task_again(backbone: Backbone) -> None:
    task = get(backbone, words={"acceptable": "ok"})
    longest = max(len(backbone.preprocess(answer, add_special_tokens=False)["input_ids"]) for answer in ("unacceptable", "ok"))
    assert task.limits["max_new_tokens"] == longest + 1 and task.metric == "matthews" and not task.head_parameters
    assert tasks.get(task.name, backbone, LABELS, **task.limits).limits == task.limits
    assert get(backbone, "flan:cola", max_length=48).limits["max_new_tokens"] == 24, "inverse wordings write sentences"


def test_the_published_metric_selects(backbone: Backbone) -> None:
    chosen = {"t5:mrpc": "f1", "t5:cola": "matthews", "t5:cb": "macro_f1", "t5:multirc": "f1", "t5:boolq": "accuracy",
              "t5:rte": "accuracy"}
    from thrifty import formats

    for name, metric in chosen.items():
        labels = list(formats.find(name).labels)  # type: ignore[attr-defined]
        assert get(backbone, name, labels=labels).metric == metric
    assert get(backbone, "t5:stsb", "regression", None).metric == "pearson"
    with pytest.raises(NoSuchSetting, match="cannot select by metric 'f1'"):
        get(backbone, metric="f1")


def test_a_number_in_words(backbone: Backbone) -> None:
    task = get(backbone, "t5:stsb", "regression", None)
    table = {"text": ["stsb sentence1: a sentence2: b"] * 3, "label": [1.0, 2.0, 4.8], "target": ["1.0", "2.0", "4.8"]}
    found = task.metrics([{"prediction": value} for value in (1.2, -1.0, 5.0)], table)
    assert found["pearson"] == pytest.approx(np.corrcoef([1.0, 2.0, 4.8], [1.2, -1.0, 5.0])[0, 1])
    assert task.majority(table, table)[0]["prediction"] == pytest.approx(2.6)
    ranked = get(backbone, "flan:stsb:0", "regression", None)
    said = ranked.predict(backbone.model, ranked.collate(ranked.encode(table)))
    assert all(row["prediction"] in range(6) and row["scores"] is None for row in said)


def test_choices_of_each_row_are_ranked(backbone: Backbone) -> None:
    task = get(backbone, "flan:arc:0", "multiple-choice", None)
    table = {"text": ["q a", "q b"], "choices": [["a", "bc", "d"], ["e", "f g"]], "label": [0, 1], "target": ["a", "f g"]}
    found = task.predict(backbone.model, task.collate(task.encode(table)))
    assert [len(row["scores"]) for row in found] == [3, 2]
    for row, text, choices in zip(found, table["text"], table["choices"], strict=True):
        scores = [log_likelihood(backbone, text, choice) for choice in choices]  # type: ignore[arg-type]
        assert row["prediction"] == int(np.argmax(scores))
    assert set(task.metrics(found, table)) >= {"accuracy", "brier"} and len(task.majority(table, table)[1]["scores"]) == 2
    with pytest.raises(BadData, match="row 1: label 2 is no number of its 2 choices"):
        task.metrics(found, {**table, "label": [0, 2]})


def test_answers_to_one_question_are_judged_together(backbone: Backbone) -> None:
    task = get(backbone, "t5:multirc", labels=["False", "True"])
    table = {"text": ["a"] * 5, "label": [1, 0, 1, 1, 0], "group": ["p", "p", "q", "q", "r"], "target": ["True"] * 5}
    found = task.metrics([{"prediction": p} for p in (1, 0, 1, 0, -1)], table)
    assert found["exact_match"] == pytest.approx(1 / 3) and found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert task.groups(table).tolist() == [0, 0, 1, 1, 2]


def test_free_answers(backbone: Backbone) -> None:
    task = get(backbone, "t5:record", backbone.source["task"], None, max_new_tokens=4)
    table = {"source": ["a", "a", "b"], "target": ["x", "y", "z"], "references": [["x", "y"], ["x", "y"], ["z"]],
             "group": ["1", "1", "2"]}
    said = [{"prediction": text} for text in ("Y!", "nothing", "z w")]
    assert task.metrics(said, table) == pytest.approx({"f1": (1 + 2 / 3) / 2, "exact_match": 0.5})
    assert task.metric == "f1" and "loss" in task.predict(backbone.model, task.collate(task.encode(table)))[0]
    assert task.majority(table, table)[0]["prediction"] in "xyz"


def test_schemas_are_judged_by_their_candidates(backbone: Backbone) -> None:
    task = get(backbone, "t5:wsc", labels=["False", "True"])
    table = {"text": ["wsc: a *b* c"], "label": [0], "span1_text": ["the dog"], "target": ["the dog"]}
    batch = task.collate(task.encode(table))
    row = task.predict(backbone.model, batch)[0]
    assert row["prediction"] == task.format.read(row["written"], {"span1_text": "the dog"})  # type: ignore[attr-defined]
    with pytest.raises(Unfit, match="no single answer"):
        task.features(backbone.model, batch)


def test_features_see_the_text_and_no_answer(backbone: Backbone) -> None:
    task = get(backbone)
    seen = task.features(backbone.model, task.collate(task.encode(TABLE)))
    blind = task.features(backbone.model, task.collate(task.encode({"text": TABLE["text"]})))
    torch.testing.assert_close(seen, blind)
    alone = task.features(backbone.model, task.collate(task.encode({"text": TABLE["text"][:1]})))
    torch.testing.assert_close(seen[:1], alone, rtol=1e-4, atol=1e-5)


def test_methods_may_learn_from_wrong_answers(backbone: Backbone) -> None:
    task = get(backbone, answer="ranked-mean")
    batch = task.collate(task.encode(TABLE))
    losses, tokens, beta = task.weigh(backbone.model, batch)  # type: ignore[attr-defined]
    assert losses.shape == tokens.shape and losses.requires_grad == any(p.requires_grad for p in backbone.model.parameters())
    for row, text in enumerate(TABLE["text"]):
        for number, label in enumerate(LABELS):
            assert float(beta[row, number]) == pytest.approx(log_likelihood(backbone, text, label, True), rel=1e-4)
    taught = get(backbone, "flan:cola", max_new_tokens=20)
    table = {"text": ["Make up a sentence"], "label": [1], "target": ["ab"]}
    with pytest.raises(Unfit, match="choose one that asks, such as flan:cola:0"):
        taught.weigh(backbone.model, taught.collate(taught.encode(table)))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("limits", "error", "said"), [
    ({"answer": "rank"}, NoSuchSetting, "Did you mean 'ranked'"), ({"separator": 3}, NoSuchSetting, "separator"),
    ({"format": "t5:wsc", "labels": ["False", "True"], "answer": "ranked"}, NoSuchSetting, "are not listed"),
    ({"format": "t5:mnli"}, NoSuchSetting, "has the classes entailment"), ({"lenght": 3}, NoSuchSetting, "no limit 'lenght'"),
])
def test_limits_that_make_no_sense(llama: Backbone, limits: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        get(llama, **limits)


def test_an_answer_that_finds_no_room(backbone: Backbone) -> None:
    with pytest.raises(BadData, match="row 0: the answer 'unacceptable' has no room in max_new_tokens=6"):
        get(backbone, answer="ranked", max_new_tokens=6).encode(TABLE)


def test_real_t5_tokens_give_answers_back() -> None:
    backbone = models.load(str(tiny.weights("flan-t5-small")), "seq2seq-generation")
    from thrifty import formats
    from thrifty.formats.classes import Classes
    from thrifty.formats.t5 import T5

    read = backbone.preprocess
    for format in T5.values():
        if isinstance(format, Classes):
            for number, answer in enumerate(format.answers):
                ids = read(answer, add_special_tokens=False)["input_ids"]
                text = read.decode([*ids, read.eos_token_id], skip_special_tokens=True)
                assert text == answer and formats.find(format.name).options({}) == format.options({})
                if format.options({}):
                    assert format.read(text, {}) == number
    task = get(backbone, "flan:rte:0", labels=["entailment", "not_entailment"])
    table = {"text": [formats.find("flan:rte:0").write({"premise": "A dog sleeps on the mat.", "hypothesis": "An animal sleeps."})]}
    row = task.predict(backbone.model, task.collate(task.encode(table)))[0]
    scores = []
    for answer in ("yes", "no"):
        ids = read([answer], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = backbone.model(**read(table["text"], return_tensors="pt"), labels=ids)
        scores.append(-float(out.loss) * ids.numel())
    assert row["prediction"] == int(np.argmax(scores))
    assert row["scores"][0] == pytest.approx(1 / (1 + np.exp(scores[1] - scores[0])), abs=1e-3)
