"""Text classification and regression: what is cut, padded, lost, predicted and measured."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch
from torch import nn

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.models import Backbone, wrap

LABELS = ["no", "yes", "perhaps"]
TABLE = {"text": ["ab c", "d", "efg hij klm", "n"], "label": [0, 2, 1, 0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def backbone(folder: str) -> Backbone:
    return models.load(folder, "text-classification", LABELS)


def test_pairs_are_encoded_as_pairs(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    examples = task.encode({"text": ["ab"], "text_pair": ["c d"], "label": [1]})
    pieces = backbone.preprocess.convert_ids_to_tokens(examples[0]["input_ids"])
    assert pieces == ["[CLS]", "a", "##b", "[SEP]", "c", "d", "[SEP]"]
    assert examples[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1] and examples[0]["label"] == 1


def test_long_texts_are_cut_and_counted(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS, max_length=8)
    examples = task.encode({"text": ["a b c", "a b c d e f", "a b c d e f g"]})
    assert [len(e["input_ids"]) for e in examples] == [5, 8, 8] and task.truncated == 1
    assert examples[2]["input_ids"][-1] == 3, "the end of a cut text still has its separator"
    pair = tasks.get("text-classification", backbone, LABELS, max_length=8)
    cut = pair.encode({"text": ["a b c d e f g"], "text_pair": ["h i"]})[0]["input_ids"]
    assert backbone.preprocess.convert_ids_to_tokens(cut) == ["[CLS]", "a", "b", "c", "[SEP]", "h", "i", "[SEP]"]
    assert pair.truncated == 1


def test_limits_of_the_model_hold(folder: str, tmp_path: Path) -> None:
    assert tasks.get("regression", models.load(folder, "regression")).limits["max_length"] == 64
    offset = models.load(str(tiny.roberta(tmp_path)), "text-classification", LABELS)
    task = tasks.get("text-classification", offset, LABELS)
    assert task.limits["max_length"] == 39, "40 positions, of which the first belongs to padding"
    batch = task.collate(task.encode({"text": ["a " * 80]}))
    assert batch["input_ids"].shape == (1, 39) and math.isfinite(task.predict(offset.model, batch)[0]["scores"][0])
    with pytest.raises(NoSuchSetting, match="max_length=40 is more than the 39 positions"):
        tasks.get("text-classification", offset, LABELS, max_length=40)


@pytest.mark.parametrize("wrong", [0, 3, -5, "12", True, 7.0])
def test_lengths_that_make_no_sense(backbone: Backbone, wrong: Any) -> None:
    with pytest.raises(NoSuchSetting, match="max_length"):
        tasks.get("text-classification", backbone, LABELS, max_length=wrong)


def test_padding_to_eight_changes_nothing(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    examples = task.encode(TABLE)
    batch = task.collate(examples)
    assert batch["input_ids"].shape == (4, 16) and batch["attention_mask"].sum(dim=1).tolist() == [5, 3, 11, 3]
    assert "token_type_ids" in batch and batch["labels"].tolist() == TABLE["label"]
    together = task.predict(backbone.model, batch)
    alone = [task.predict(backbone.model, task.collate([example]))[0] for example in examples]
    np.testing.assert_allclose([r["scores"] for r in together], [r["scores"] for r in alone], atol=1e-6)
    json.dumps(together)


def test_loss_is_that_of_the_model_itself(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    batch = task.collate(task.encode(TABLE))
    loss, items = task.loss(backbone.model, batch)
    assert items == 4
    torch.testing.assert_close(loss, backbone.model(**batch).loss)
    rows = [row["scores"] for row in task.predict(backbone.model, batch)]
    assert loss.item() == pytest.approx(np.mean([-np.log(row[label]) for row, label in zip(rows, TABLE["label"], strict=True)]))


def test_predicting_leaves_every_module_in_its_mode(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    model = backbone.model.train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    batch = task.collate(task.encode(TABLE))
    first, second = (task.predict(model, batch) for _ in range(2))
    assert first == second, "no dropout while predicting"
    assert [module.training for module in model.modules()] == modes
    model.eval()


def test_metrics_intervals_and_the_majority(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    predictions = [{"prediction": p, "scores": [0.1, 0.1, 0.1][:p] + [0.8] + [0.1] * (2 - p)} for p in (0, 2, 0, 0)]
    found = task.metrics(predictions, TABLE)
    assert found["accuracy"] == 0.75 and found["negative_log_likelihood"] == pytest.approx((3 * -np.log(0.8) - np.log(0.1)) / 4)
    assert set(found) == {"accuracy", "macro_f1", "matthews", "negative_log_likelihood", "brier", "expected_calibration_error"}
    interval = task.interval(predictions, TABLE)
    assert interval["accuracy"] == (0.25, 1.0) and set(interval) == set(found) - {"expected_calibration_error"}
    majority = task.majority(TABLE, {"text": ["x", "y"]})
    assert majority == [{"prediction": 0, "scores": [0.5, 0.25, 0.25]}] * 2
    assert task.compare(predictions, predictions, TABLE).verdict == "cannot tell apart"


def test_the_metric_that_selects_can_be_named(backbone: Backbone) -> None:
    assert tasks.get("text-classification", backbone, LABELS).metric == "accuracy"
    assert tasks.get("text-classification", backbone, LABELS, metric="matthews").metric == "matthews"
    with pytest.raises(NoSuchSetting, match="Did you mean 'matthews'"):
        tasks.get("text-classification", backbone, LABELS, metric="mathews")
    with pytest.raises(NoSuchSetting, match="Did you mean 'max_length'"):
        tasks.get("text-classification", backbone, LABELS, max_lenght=32)
    with pytest.raises(NoSuchSetting, match="Did you mean 'regression'"):
        tasks.get("regresion", backbone)


@pytest.mark.parametrize(("table", "words"), [
    ({"txt": ["a"]}, "needs a column 'text'"), ({"text": []}, "no rows"),
    ({"text": ["a", "b"], "label": [0, 3]}, "row 1: label 3"), ({"text": ["a"], "label": ["no"]}, "row 0: label 'no'"),
    ({"text": ["a"], "label": [True]}, "row 0"), ({"text": ["a"], "label": [-1]}, "row 0"),
])
def test_rows_that_cannot_be_used(backbone: Backbone, table: dict[str, Any], words: str) -> None:
    with pytest.raises(BadData, match=words):
        tasks.get("text-classification", backbone, LABELS).encode(table)


def test_predictions_that_do_not_pair(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    with pytest.raises(BadData, match="do not pair"):
        task.metrics([{"prediction": 0, "scores": None}], TABLE)


def test_a_classifier_on_a_decoder_reads_the_last_token(tmp_path: Path) -> None:
    backbone = models.load(str(tiny.llama(tmp_path)), "text-classification", LABELS)
    task = tasks.get("text-classification", backbone, LABELS)
    assert task.head_parameters == ["score.weight"] and task.head == "head"
    examples = task.encode({"text": ["a b c", "d"]})
    batch = task.collate(examples)
    assert "token_type_ids" not in batch
    with torch.no_grad():
        states = backbone.model.model(input_ids=torch.tensor([examples[1]["input_ids"]]))[0][0, -1]
        wanted = (backbone.model.score.weight @ states).softmax(dim=0)
    np.testing.assert_allclose(task.predict(backbone.model, batch)[1]["scores"], wanted.numpy(), atol=1e-5)


def test_features_are_the_mean_over_the_tokens(backbone: Backbone) -> None:
    task = tasks.get("text-classification", backbone, LABELS)
    examples = task.encode(TABLE)
    found = task.features(backbone.model, task.collate(examples))
    for row, example in zip(found, examples, strict=True):
        with torch.no_grad():
            states = backbone.model.bert(input_ids=torch.tensor([example["input_ids"]])).last_hidden_state[0]
        torch.testing.assert_close(row, states.mean(dim=0), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize(("build", "head"), [
    (tiny.roberta, [f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")]),
    (tiny.distilbert, [f"{part}.{kind}" for part in ("pre_classifier", "classifier") for kind in ("weight", "bias")]),
])
def test_the_whole_head_trains(tmp_path: Path, build: Any, head: list[str]) -> None:
    backbone = models.load(str(build(tmp_path)), "text-classification", LABELS)
    assert tasks.get("text-classification", backbone, LABELS).head_parameters == head


def test_a_head_from_the_checkpoint_trains_as_well(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path, "BertForSequenceClassification", num_labels=3)
    backbone = models.load(str(folder), "text-classification", LABELS)
    assert tasks.get("text-classification", backbone, LABELS).head_parameters == ["classifier.weight", "classifier.bias"]


def test_regression_learns_scaled_labels_and_answers_in_their_units(folder: str) -> None:
    backbone = models.load(folder, "regression")
    task = tasks.get("regression", backbone)
    table = {"text": ["a", "b c", "d"], "text_pair": ["x", "y", "z"], "label": [1000.0, 3000, 2000.0]}
    task.fit(table)
    assert task.limits["centre"] == 2000.0 and task.limits["scale"] == pytest.approx(np.std(table["label"]))
    batch = task.collate(task.encode(table))
    assert batch["labels"].tolist() == pytest.approx([-1.2247449, 1.2247449, 0.0])
    loss, items = task.loss(backbone.model, batch)
    torch.testing.assert_close(loss, backbone.model(**batch).loss)
    predictions = task.predict(backbone.model, batch)
    errors = (np.array([row["prediction"] for row in predictions]) - table["label"]) / task.limits["scale"]
    assert items == 3 and loss.item() == pytest.approx(np.mean(errors**2), rel=1e-4)
    again = tasks.get("regression", backbone, None, **json.loads(json.dumps(task.limits)))
    assert again.predict(backbone.model, batch) == predictions
    found = task.metrics(predictions, table)
    assert found["negative_mse"] == -found["mse"] and task.metric == "pearson"
    assert task.majority(table, table)[0]["prediction"] == 2000.0


def test_regression_with_one_label_value_and_with_its_own_scale(folder: str) -> None:
    backbone = models.load(folder, "regression")
    task = tasks.get("regression", backbone)
    task.fit({"text": ["a", "b"], "label": [3.0, 3.0]})
    assert (task.limits["centre"], task.limits["scale"]) == (3.0, 1.0)
    fixed = tasks.get("regression", backbone, centre=1.0, scale=2.0)
    fixed.fit({"text": ["a", "b"], "label": [3.0, 4.0]})
    assert (fixed.limits["centre"], fixed.limits["scale"]) == (1.0, 2.0)
    for wrong in ({"scale": 0}, {"scale": -1.0}, {"centre": "x"}, {"centre": math.inf}):
        with pytest.raises(NoSuchSetting, match="must be a finite number"):
            tasks.get("regression", backbone, **wrong)
    for label in ("4", None, math.nan, True):
        with pytest.raises(BadData, match="row 1"):
            task.encode({"text": ["a", "b"], "label": [1.0, label]})


def test_a_text_task_needs_a_tokenizer() -> None:
    with pytest.raises(NoSuchSetting, match="no tokenizer"):
        tasks.get("text-classification", wrap(nn.Linear(2, 2)), LABELS)


def test_minilm_separates_what_it_knows() -> None:
    """Frozen features of the real encoder with a linear head: an end to end check of encoding, pooling and the baseline."""
    from thrifty.evaluate import linear_head

    food = ["the soup was cold", "a tasty burger", "fresh bread and cheese", "the pasta was salty", "sweet ripe mangoes",
            "a spicy curry"]
    travel = ["the train was late", "a flight to oslo", "our hotel near the beach", "the bus left early",
              "a ferry to the island", "the airport queue"]
    backbone = models.load("minilm", "text-classification", ["food", "travel"])
    task = tasks.get("text-classification", backbone, ["food", "travel"])
    found = task.features(backbone.model, task.collate(task.encode({"text": food + travel}))).numpy()
    target = np.array([0] * 6 + [1] * 6)
    train, test = np.r_[0:4, 6:10], np.r_[4:6, 10:12]
    fit = linear_head(found[train], target[train], found[train], target[train], found[test], classes=2)
    assert (fit.probabilities.argmax(axis=1) == target[test]).all()


def test_tasks_without_one_answer_have_no_features(folder: str) -> None:
    backbone = models.load(folder, "token-classification", LABELS)
    with pytest.raises(Unfit, match="token-classification"):
        tasks.get("token-classification", backbone, LABELS).features(backbone.model, {})
