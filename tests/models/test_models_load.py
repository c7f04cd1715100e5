"""Loading a model: every tensor accounted for, the same numbers from the same seed, and damage named."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_folders as tiny
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from torch import nn

from thrifty.core.errors import BadData, BrokenArtifact, NoSuchSetting, NoSuchSite
from thrifty.models import load, wrap

LABELS = ["no", "yes", "perhaps"]


def alter(folder: Path, **change: Any) -> None:
    """Replace tensors of a saved model; None drops one. Names are given with __ for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in change.items():
        path = name.replace("__", ".")
        assert path in tensors
        tensors.pop(path)
        if value is not None:
            tensors[path] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_only_the_head_is_new_and_labels_are_known(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    backbone = load(str(folder), "text-classification", LABELS)
    model, source = backbone.model, backbone.source
    assert source["new_tensors"] == ["classifier.weight", "classifier.bias"]
    assert model.config.id2label == dict(enumerate(LABELS)) and model.classifier.out_features == 3
    assert not model.training and source["attention"] == "sdpa" and source["dtype"] == "float32"
    assert source["config_sha256"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert source["parameters"] == sum(p.numel() for p in model.parameters())
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()["bert." + key]) for key, value in stored.items())
    json.dumps(source)


def test_the_seed_decides_the_head_and_nothing_outside(tmp_path: Path) -> None:
    folder = str(tiny.bert(tmp_path))
    state = torch.get_rng_state()
    heads = [load(folder, "text-classification", LABELS, seed=seed).model.classifier.weight for seed in (3, 3, 4)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(state, torch.get_rng_state())


def test_a_head_of_another_size_is_replaced_one_of_this_size_kept(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path, "BertForSequenceClassification", num_labels=3)
    stored = load_file(folder / "model.safetensors")["classifier.weight"]
    kept = load(str(folder), "text-classification", LABELS)
    assert torch.equal(kept.model.classifier.weight, stored) and kept.source["new_tensors"] == []
    assert any("head of this size" in note for note in kept.source["notes"])
    replaced = load(str(folder), "text-classification", LABELS[:2])
    assert replaced.source["new_tensors"] == ["classifier.weight", "classifier.bias"]
    assert replaced.model.classifier.weight.shape == (2, 16)


@pytest.mark.parametrize(("build", "task", "new"), [
    (tiny.roberta, "text-classification",
     ["classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"]),
    (tiny.distilbert, "text-classification",
     ["pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"]),
    (tiny.llama, "text-classification", ["score.weight"]),
    (tiny.bert, "token-classification", ["classifier.weight", "classifier.bias"]),
    (tiny.vit, "image-classification", ["classifier.weight", "classifier.bias"]),
    (tiny.resnet, "image-classification", ["classifier.1.weight", "classifier.1.bias"]),
])
def test_new_tensors_of_each_family(tmp_path: Path, build: Any, task: str, new: list[str]) -> None:
    assert load(str(build(tmp_path)), task, LABELS).source["new_tensors"] == new


def test_one_output_for_regression_and_for_each_choice(tmp_path: Path) -> None:
    folder = str(tiny.bert(tmp_path))
    regression = load(folder, "regression").model
    assert regression.classifier.out_features == 1 and regression.config.problem_type == "regression"
    assert load(folder, "multiple-choice").model.classifier.out_features == 1


def test_float32_unless_told_otherwise(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    half = T.BertModel.from_pretrained(folder).half()
    half.save_pretrained(folder)
    assert {p.dtype for p in load(str(folder), "text-classification", LABELS).model.parameters()} == {torch.float32}
    brain = load(str(folder), "text-classification", LABELS, dtype="bfloat16")
    assert {p.dtype for p in brain.model.parameters()} == {torch.bfloat16} and brain.source["dtype"] == "bfloat16"
    with pytest.raises(NoSuchSetting, match="float32"):
        load(str(folder), "text-classification", LABELS, dtype="float31")


def test_a_missing_padding_token_is_replaced_and_said(tmp_path: Path) -> None:
    backbone = load(str(tiny.llama(tmp_path)), "text-classification", LABELS)
    assert backbone.preprocess.pad_token == "</s>" and backbone.model.config.pad_token_id == 4
    assert any("padding token" in note for note in backbone.source["notes"])


def test_architectures_without_sdpa_are_loaded_as_they_are(tmp_path: Path) -> None:
    backbone = load(str(tiny.resnet(tmp_path)), "image-classification", LABELS)
    assert backbone.source["attention"] != "sdpa" and type(backbone.model).__name__ == "ResNetForImageClassification"


def test_how_pictures_are_prepared_is_recorded(tmp_path: Path) -> None:
    backbone = load(str(tiny.vit(tmp_path)), "image-classification", LABELS)
    assert backbone.source["image"]["image_mean"] == [0.5, 0.4, 0.3]
    assert backbone.source["image"]["size"] == {"height": 32, "width": 32}
    assert backbone.source["image"]["processor"].endswith("Pil")


def test_a_checkpoint_without_part_of_the_body(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    alter(folder, encoder__layer__1__output__dense__weight=None)
    with pytest.raises(BrokenArtifact, match="bert.encoder.layer.1.output.dense.weight"):
        load(str(folder), "text-classification", LABELS)


def test_a_body_tensor_of_another_shape(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    alter(folder, encoder__layer__0__output__dense__weight=torch.zeros(16, 16))
    with pytest.raises(BrokenArtifact, match="bert.encoder.layer.0.output.dense.weight"):
        load(str(folder), "text-classification", LABELS)


def test_a_missing_pooler_belongs_to_the_new_head(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    alter(folder, pooler__dense__weight=None, pooler__dense__bias=None)
    new = load(str(folder), "text-classification", LABELS).source["new_tensors"]
    assert new == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]


def test_generation_takes_no_new_tensors(tmp_path: Path) -> None:
    with pytest.raises(BrokenArtifact, match="cls.predictions"):
        load(str(tiny.bert(tmp_path)), "causal-generation")


def test_an_architecture_without_a_form_for_the_task(tmp_path: Path) -> None:
    with pytest.raises(NoSuchSetting, match="seq2seq-generation; it serves .*token-classification"):
        load(str(tiny.bert(tmp_path)), "seq2seq-generation")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(BrokenArtifact, match="cannot be read"):
        load(str(folder), "text-classification", LABELS)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BrokenArtifact, match="tokenizer"):
        load(str(folder), "text-classification", LABELS)
    (folder / "config.json").write_text("{ no json")
    with pytest.raises(BrokenArtifact, match="config.json"):
        load(str(folder), "text-classification", LABELS)


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    reader = T.AutoTokenizer.from_pretrained(folder)
    reader.add_tokens(["<new>"])
    reader.save_pretrained(folder)
    with pytest.raises(BrokenArtifact, match="tokens, but the model has"):
        load(str(folder), "text-classification", LABELS)


def test_code_beside_a_model_is_never_run(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(NoSuchSetting):
        load(str(folder), "text-classification", LABELS)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_does_not_say_how_to_prepare_pictures(tmp_path: Path) -> None:
    folder = tiny.vit(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BrokenArtifact, match="preprocessor_config.json"):
        load(str(folder), "image-classification", LABELS)


@pytest.mark.parametrize(("task", "labels", "error", "words"), [
    ("text-clasification", LABELS, NoSuchSetting, "Did you mean 'text-classification'"),
    ("text-classification", None, BadData, "at least two labels"),
    ("text-classification", ["a"], BadData, "at least two labels"),
    ("text-classification", ["a", "b", "a"], BadData, "repeat: 'a'"),
    ("regression", LABELS, BadData, "no label space"),
])
def test_tasks_and_labels_that_do_not_fit(task: str, labels: list[str] | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load("minilm", task, labels)


def test_any_module_can_be_wrapped() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert wrap(module, new=["1"]).source["new_tensors"] == ["1.weight", "1.bias"]
    assert wrap(module).source["new_tensors"] == []
    with pytest.raises(NoSuchSite, match="'2'"):
        wrap(module, new=["2"])
