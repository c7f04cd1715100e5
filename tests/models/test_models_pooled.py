"""Sentence encoders: the mean over tokens, checked against the trunk alone."""
from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import tiny_folders as tiny
import torch
import transformers as T

from thrifty.cli.merge import save
from thrifty.core.errors import BrokenArtifact
from thrifty.models import load
from thrifty.models.finding import find
from thrifty.models.pooled import SentenceClassifier, pools_by_mean

LABELS = ["no", "yes", "perhaps"]
MEAN = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.bert(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(MEAN))
    return tmp_path


def test_minilm_reads_the_mean_of_its_tokens() -> None:
    backbone = load("minilm", "text-classification", LABELS)
    assert backbone.source["pooling"] == "mean" and isinstance(backbone.model, SentenceClassifier)
    texts = ["a short one", "a second text that is a little longer than the first one"]
    batch = backbone.preprocess(texts, padding=True, return_tensors="pt")
    trunk = T.AutoModel.from_pretrained(find("minilm").folder).eval()
    head = backbone.model.classifier
    with torch.no_grad():
        found = backbone.model(**batch).logits
        for row, text in enumerate(texts):  # one at a time, so that nothing is padded
            states = trunk(**backbone.preprocess(text, return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(found[row], states.mean(dim=0) @ head.weight.T + head.bias, atol=1e-5, rtol=1e-5)


def test_names_are_those_of_the_family_without_the_pooler(folder: Path) -> None:
    model = load(str(folder), "text-classification", LABELS).model
    usual = T.BertForSequenceClassification(T.BertConfig.from_pretrained(folder, num_labels=3))
    assert set(model.state_dict()) == {key for key in usual.state_dict() if "pooler" not in key}


def test_embeddings_in_place_of_ids(folder: Path) -> None:
    backbone = load(str(folder), "text-classification", LABELS)
    batch = backbone.preprocess(["abc de", "f"], padding=True, return_tensors="pt")
    with torch.no_grad():
        direct = backbone.model(**batch).logits
        embeddings = backbone.model.get_input_embeddings()(batch.pop("input_ids"))
        torch.testing.assert_close(backbone.model(inputs_embeds=embeddings, **batch).logits, direct)


def test_choices_are_scored_one_by_one(folder: Path) -> None:
    backbone = load(str(folder), "multiple-choice")
    batch = backbone.preprocess(["a", "bcd", "ef g", "h"], padding=True, return_tensors="pt")
    with torch.no_grad():
        flat = backbone.model(**batch).logits
        stacked = {key: value.view(2, 2, -1) for key, value in batch.items()}
        assert torch.equal(backbone.model(**stacked).logits, flat.view(2, 2))


def test_labels_give_the_usual_loss(folder: Path) -> None:
    backbone = load(str(folder), "text-classification", LABELS)
    batch = backbone.preprocess(["a b", "c"], padding=True, return_tensors="pt")
    output = backbone.model(**batch, labels=torch.tensor([2, 0]))
    picked = output.logits.log_softmax(dim=-1)[[0, 1], [2, 0]]
    torch.testing.assert_close(output.loss, -picked.mean())
    numbers = load(str(folder), "regression").model(**batch, labels=torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(numbers.loss, ((numbers.logits[:, 0] - torch.tensor([1.0, 2.0])) ** 2).mean())


def test_copied_pickled_compiled(folder: Path) -> None:
    backbone = load(str(folder), "text-classification", LABELS)
    batch = dict(backbone.preprocess(["a b", "c"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        wanted = backbone.model(**batch).logits
        assert torch.equal(copy.deepcopy(backbone.model)(**batch).logits, wanted)
        assert torch.equal(pickle.loads(pickle.dumps(backbone.model))(**batch).logits, wanted)
        compiled = torch.compile(backbone.model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**batch).logits, wanted)


def test_only_a_pure_mean_counts(folder: Path) -> None:
    config = folder / "1_Pooling" / "config.json"
    assert pools_by_mean(folder)
    config.write_text(json.dumps({**MEAN, "pooling_mode_cls_token": True}))
    assert not pools_by_mean(folder)
    config.write_text("{")
    with pytest.raises(BrokenArtifact, match="not JSON"):
        pools_by_mean(folder)


def test_a_merged_model_keeps_its_head(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    merged = tmp_path_factory.mktemp("merged")
    first = load(str(folder), "text-classification", LABELS)
    save(first, merged)
    again = load(str(merged), "text-classification", LABELS, seed=1)
    assert again.source["new_tensors"] == [] and any("head of this size" in note for note in again.source["notes"])
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    other = load(str(merged), "text-classification", LABELS[:2])
    assert other.source["new_tensors"] == ["classifier.weight", "classifier.bias"]
