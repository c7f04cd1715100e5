"""Tags per word, and choices."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models import Backbone

TAGS = ["O", "B-PER", "I-PER"]
ROWS = {"tokens": [["abc", "d", "ef"], ["g"]], "tags": [[1, 2, 0], [0]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def tagger(folder: str) -> Backbone:
    return models.load(folder, "token-classification", TAGS)


@pytest.fixture(scope="module")
def chooser(folder: str) -> Backbone:
    return models.load(folder, "multiple-choice")


def test_only_the_first_piece_of_a_word_is_tagged(tagger: Backbone) -> None:
    task = tasks.get("token-classification", tagger, TAGS)
    examples = task.encode(ROWS)
    #                         [CLS] a ##b   ##c   d  e ##f   [SEP]
    assert examples[0]["labels"] == [-100, 1, -100, -100, 2, 0, -100, -100]
    batch = task.collate(examples)
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 8)
    loss, items = task.loss(tagger.model, batch)
    assert items == 4
    torch.testing.assert_close(loss, tagger.model(**batch).loss)
    predictions = task.predict(tagger.model, batch)
    assert [len(row["prediction"]) for row in predictions] == [3, 1]
    logits = tagger.model(**task.inputs(tagger.model, batch)).logits
    assert predictions[0]["prediction"] == logits[0, [1, 4, 5]].argmax(dim=-1).tolist()


def test_words_without_pieces_are_tagged_too(tagger: Backbone) -> None:
    task = tasks.get("token-classification", tagger, TAGS)
    examples = task.encode({"tokens": [["a", "\u200b\x07 ", "b"]], "tags": [[1, 2, 0]]})
    assert [label for label in examples[0]["labels"] if label != -100] == [1, 2, 0]


def test_prediction_needs_no_tags(tagger: Backbone) -> None:
    task = tasks.get("token-classification", tagger, TAGS)
    known = task.predict(tagger.model, task.collate(task.encode(ROWS)))
    assert task.predict(tagger.model, task.collate(task.encode({"tokens": ROWS["tokens"]}))) == known


def test_words_that_were_cut_off_count_as_outside(tagger: Backbone) -> None:
    task = tasks.get("token-classification", tagger, TAGS, max_length=5)
    table = {"tokens": [["a", "b", "c", "d", "e"]], "tags": [[0, 0, 0, 1, 0]]}
    predictions = task.predict(tagger.model, task.collate(task.encode(table)))
    assert task.truncated == 1 and len(predictions[0]["prediction"]) == 3
    predictions[0]["prediction"] = [0, 0, 0]
    assert task.metrics(predictions, table)["token_accuracy"] == pytest.approx(0.8)


def test_entity_tags_are_judged_by_entities_others_by_accuracy(tagger: Backbone, folder: str) -> None:
    task = tasks.get("token-classification", tagger, TAGS)
    predictions = [{"prediction": [1, 2, 0]}, {"prediction": [1]}]
    assert task.metric == "entity_f1"
    assert task.metrics(predictions, ROWS) == {"entity_f1": pytest.approx(2 / 3), "token_accuracy": 0.75}
    assert task.interval(predictions, ROWS)["token_accuracy"] == (0.0, 1.0)
    speech = ["NOUN", "VERB"]
    plain = tasks.get("token-classification", models.load(folder, "token-classification", speech), speech)
    assert plain.metric == "token_accuracy"
    assert plain.metrics([{"prediction": [1, 1]}], {"tokens": [["a", "b"]], "tags": [[0, 1]]}) == {"token_accuracy": 0.5}
    with pytest.raises(NoSuchSetting, match="entity_f1"):
        tasks.get("token-classification", plain.backbone, speech, metric="entity_f1")


def test_the_commonest_tag(tagger: Backbone) -> None:
    assert tasks.get("token-classification", tagger, TAGS).majority(ROWS, {"tokens": [["x", "y"]]})[0]["prediction"] == [0, 0]


@pytest.mark.parametrize(("tags", "words"), [([[0, 0], [0]], "row 0: 3 tokens but 2 tags"), ([[0, 0, 3], [0]], "row 0: tag 3"),
                                             ([[0, 0, 0], ["O"]], "row 1: tag 'O'")])
def test_tags_that_do_not_fit(tagger: Backbone, tags: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        tasks.get("token-classification", tagger, TAGS).encode({"tokens": ROWS["tokens"], "tags": tags})


def test_more_predicted_tags_than_words(tagger: Backbone) -> None:
    with pytest.raises(BadData, match="row 1: 2 predicted"):
        tasks.get("token-classification", tagger, TAGS).metrics([{"prediction": [0]}, {"prediction": [0, 0]}], ROWS)


CHOICES = {"text": ["ab", "c"], "choices": [["d", "ef", "g h i"], ["j", "k"]], "label": [1, 0]}


def test_rows_with_fewer_choices_are_not_distorted(chooser: Backbone) -> None:
    task = tasks.get("multiple-choice", chooser)
    examples = task.encode(CHOICES)
    batch = task.collate(examples)
    assert batch["input_ids"].shape == (2, 3, 8)
    together = task.predict(chooser.model, batch)
    assert [len(row["scores"]) for row in together] == [3, 2]
    alone = task.predict(chooser.model, task.collate(examples[1:]))
    np.testing.assert_allclose(together[1]["scores"], alone[0]["scores"], atol=1e-6)
    loss, items = task.loss(chooser.model, batch)
    likelihood = together[0]["scores"][1] * together[1]["scores"][0]
    assert items == 2 and loss.item() == pytest.approx(-np.log(likelihood) / 2, rel=1e-5)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in chooser.model.parameters())


def test_choices_follow_their_text(chooser: Backbone) -> None:
    first = tasks.get("multiple-choice", chooser).encode(CHOICES)[0]["choices"]
    read = chooser.preprocess.convert_ids_to_tokens
    assert read(first[2]["input_ids"]) == ["[CLS]", "a", "##b", "[SEP]", "g", "h", "i", "[SEP]"]
    bare = tasks.get("multiple-choice", chooser).encode({"choices": [["a", "b"]]})[0]["choices"]
    assert read(bare[1]["input_ids"]) == ["[CLS]", "b", "[SEP]"]


def test_rows_with_cut_choices_are_counted_once(chooser: Backbone) -> None:
    task = tasks.get("multiple-choice", chooser, max_length=8)
    task.encode({"text": ["a b c d e f", "a"], "choices": [["g", "h"], ["i", "j"]]})
    assert task.truncated == 1


def test_choice_metrics(chooser: Backbone) -> None:
    task = tasks.get("multiple-choice", chooser)
    predictions = [{"prediction": 1, "scores": [0.2, 0.5, 0.3]}, {"prediction": 1, "scores": [0.4, 0.6]}]
    found = task.metrics(predictions, CHOICES)
    assert found["accuracy"] == 0.5 and found["negative_log_likelihood"] == pytest.approx(-np.log(0.5 * 0.4) / 2)
    shares = task.majority({"choices": [["a", "b", "c"]] * 4, "label": [2, 2, 0, 1]}, CHOICES)
    assert [row["prediction"] for row in shares] == [2, 0] and sum(shares[1]["scores"]) == pytest.approx(1.0)


@pytest.mark.parametrize(("change", "words"), [
    ({"label": [3, 0]}, "row 0: label 3"), ({"choices": [["a"], ["b", "c"]]}, "row 0"),
    ({"choices": ["ab", ["b", "c"]]}, "row 0"),
])
def test_choices_that_do_not_fit(chooser: Backbone, change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadData, match=words):
        tasks.get("multiple-choice", chooser).encode({**CHOICES, **change})
