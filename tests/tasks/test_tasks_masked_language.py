"""Hidden words: which are hidden, what counts in the loss, and what is said of them."""
from __future__ import annotations

from typing import Any

import pytest
import tiny_folders as tiny
import torch
import torch.nn.functional as F

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models import Backbone

TABLE = {"text": ["abc d e f g hij klm no pq rst", "u v", "abcdefghij klmnopqrstu"]}
MASK = 33  # the apostrophe


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.masked_bert(tmp_path_factory.mktemp("bert"))), "masked-language")


def test_how_many_are_hidden_and_what_becomes_of_them(backbone: Backbone) -> None:
    task = tasks.get("masked-language", backbone)
    assert backbone.preprocess.mask_token_id == MASK
    ids = torch.cat([torch.full((400, 1), 2), torch.randint(5, 30, (400, 58)), torch.full((400, 1), 3)], 1)
    ids[200:, 30:] = torch.tensor([3] + [0] * 29)
    free = (ids > 4).long()
    hidden, labels = task.hide(ids, free)
    chosen = labels != -100
    assert bool((chosen.sum(-1)[:200] == 9).all()) and bool((chosen.sum(-1)[200:] == 5).all())  # round(0.15 n), n = 60 and 31
    assert not bool((chosen & (free == 0)).any()) and torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(hidden[~chosen], ids[~chosen])
    now, was = hidden[chosen], ids[chosen]
    assert float((now == MASK).double().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((now == was).double().mean()) == pytest.approx(0.1, abs=0.03)
    few = tasks.get("masked-language", backbone, share=0.5, most=4)
    assert bool(((few.hide(ids, free)[1] != -100).sum(-1) == 4).all())
    assert bool(((tasks.get("masked-language", backbone, share=0.001).hide(ids, free)[1] != -100).sum(-1) == 1).all())


def test_training_hides_anew_and_judging_does_not(backbone: Backbone) -> None:
    task = tasks.get("masked-language", backbone)
    examples = task.encode(TABLE)
    assert task.encode(TABLE) == examples
    other_way_round = task.encode({"text": TABLE["text"][::-1]})
    assert other_way_round[::-1] == examples  # a function of the text alone
    batch = task.collate(examples)
    torch.manual_seed(0)
    first, _ = task.loss(backbone.model, batch)
    second, _ = task.loss(backbone.model, batch)
    assert float(first) != float(second)
    assert task.judge(backbone.model, batch) == task.judge(backbone.model, batch)
    torch.manual_seed(0)
    assert float(task.loss(backbone.model, batch)[0]) == float(first)


def test_the_loss_is_that_of_the_hidden_tokens(backbone: Backbone) -> None:
    task = tasks.get("masked-language", backbone)
    examples = task.encode(TABLE)
    batch = task.collate(examples)
    torch.manual_seed(3)
    hidden, labels = task.hide(batch["input_ids"], batch["free"])
    wanted = backbone.model(input_ids=hidden, attention_mask=batch["attention_mask"], labels=labels).loss
    torch.manual_seed(3)
    loss, items = task.loss(backbone.model, batch)
    torch.testing.assert_close(loss, wanted)
    assert items == int((labels != -100).sum())
    found = task.predict(backbone.model, batch)
    for row, example in zip(found, examples, strict=True):  # alone, without padding
        at = torch.tensor([i for i, label in enumerate(example["labels"]) if label != -100])
        with torch.no_grad():
            logits = backbone.model(input_ids=torch.tensor([example["hidden"]])).logits[0][at]
        right = torch.tensor(example["labels"])[at]
        assert row["loss"] == pytest.approx(float(F.cross_entropy(logits, right, reduction="sum")), rel=1e-4)
        assert (row["tokens"], row["right"]) == (len(at), int((logits.argmax(-1) == right).sum()))
        assert row["input"].count("'") == len(at) and "[PAD]" not in row["prediction"]
    values = task.metrics(found, TABLE)
    assert values["loss"] == pytest.approx(sum(r["loss"] for r in found) / sum(r["tokens"] for r in found))
    assert values["negative_loss"] == -values["loss"] and 0 <= values["accuracy"] <= 1
    assert task.metrics(task.judge(backbone.model, batch), TABLE) == values


def test_the_head_trains_but_not_the_embeddings_that_it_shares(backbone: Backbone) -> None:
    task = tasks.get("masked-language", backbone)
    assert task.head_parameters and all(name.startswith("cls.") for name in task.head_parameters)
    assert "cls.predictions.decoder.weight" not in task.head_parameters
    assert {"cls.predictions.bias", "cls.predictions.transform.dense.weight"} <= set(task.head_parameters)


@pytest.mark.parametrize(("limits", "words"), [({"share": 0.0}, "share"), ({"share": 1}, "share"), ({"most": 0}, "most"),
                                               ({"most": 2.5}, "most"), ({"shares": 0.1}, "shares")])
def test_limits_that_do_not_fit(backbone: Backbone, limits: dict[str, Any], words: str) -> None:
    with pytest.raises(NoSuchSetting, match=words):
        tasks.get("masked-language", backbone, **limits)


def test_models_and_texts_that_do_not_fit(backbone: Backbone, tmp_path: Any) -> None:
    with pytest.raises(BadData, match="row 1"):
        tasks.get("masked-language", backbone).encode({"text": ["a", "'"]})
    with pytest.raises(NoSuchSetting, match="no form for masked-language"):
        models.load(str(tiny.llama(tmp_path / "llama")), "masked-language")
    bare = models.load(str(tiny.bert(tmp_path / "bert", "BertForMaskedLM")), "masked-language")
    with pytest.raises(NoSuchSetting, match="mask token"):
        tasks.get("masked-language", bare)
