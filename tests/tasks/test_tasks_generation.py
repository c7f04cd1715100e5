"""Both kinds of generation: which tokens count, how prompts are cut, and what is written."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models import Backbone

TABLE = {"source": ["abc d", "e"], "target": ["f g", "hijk"]}
END = 4


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.llama(tmp_path_factory.mktemp("llama"))), "causal-generation")


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.t5(tmp_path_factory.mktemp("t5"))), "seq2seq-generation")


def get(backbone: Backbone, **limits: Any) -> tasks.Task:
    return tasks.get(backbone.source["task"], backbone, **limits)


def test_only_the_target_counts_in_a_causal_loss(causal: Backbone) -> None:
    task = get(causal)
    examples = task.encode(TABLE)
    read = causal.preprocess.convert_ids_to_tokens
    assert read(examples[0]["input_ids"]) == ["a", "##b", "##c", "d", "f", "g", "</s>"]
    assert examples[0]["labels"][:4] == [-100] * 4 and examples[0]["labels"][4:] == examples[0]["input_ids"][4:]
    loss, items = task.loss(causal.model, task.collate(examples))
    total, count = 0.0, 0
    for example in examples:  # alone, without padding, one target token after the other
        with torch.no_grad():
            logits = causal.model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(dim=-1)
        for place, label in enumerate(example["labels"]):
            if label != -100:
                total, count = total - float(logits[place - 1, label]), count + 1
    assert (items, count) == (8, 8) and loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_causal_model_writes_as_it_does_alone(causal: Backbone) -> None:
    task = get(causal, max_new_tokens=6)
    examples = task.encode(TABLE)
    found = task.predict(causal.model, task.collate(examples))
    for row, example in zip(found, examples, strict=True):
        ids = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label == -100]
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(causal.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == END:
                break
        written = ids[example["labels"].count(-100):]
        assert row["prediction"] == causal.preprocess.decode(written, skip_special_tokens=True).strip()
    bare = task.predict(causal.model, task.collate(task.encode({"source": TABLE["source"]})))
    assert [row["prediction"] for row in bare] == [row["prediction"] for row in found] and "loss" not in bare[0]


def test_judging_needs_no_writing(causal: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    task = get(causal)
    batch = task.collate(task.encode(TABLE))
    full = task.predict(causal.model, batch)
    monkeypatch.setattr(causal.model, "generate", None)
    quick = task.judge(causal.model, batch)
    assert [row["loss"] for row in quick] == [row["loss"] for row in full] and "prediction" not in quick[0]
    found = task.metrics(quick, TABLE)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"])) and found["negative_loss"] == -found["loss"]
    assert found["loss"] == pytest.approx(task.loss(causal.model, batch)[0].item(), rel=1e-6)
    assert task.metric == "negative_loss" and "bleu" not in found


def test_prompts_lose_their_beginning_and_targets_their_end(causal: Backbone) -> None:
    task = get(causal, max_length=12, max_new_tokens=4)
    examples = task.encode({"source": ["a b c d e f g h i j", "a"], "target": ["k", "l m n o p"]})
    read = causal.preprocess.convert_ids_to_tokens
    assert read(examples[0]["input_ids"]) == [*"cdefghij", "k", "</s>"]
    assert read(examples[1]["input_ids"]) == ["a", *"lmno"], "a cut target has no end, or the model would learn to stop there"
    assert task.truncated == 2
    full = task.encode({"source": ["a"], "target": ["l m n o"]})[0]
    assert read(full["input_ids"]) == ["a", *"lmno"] and task.truncated == 2, "only the end token found no room"
    assert task.encode_prompt("a b c d e f g h i j")[0] == examples[0]["input_ids"][:8], "cut alike when predicting"


def test_the_metrics_of_text(causal: Backbone) -> None:
    task = get(causal)
    table = {"source": ["a", "b"], "target": ["f g h i", "j"], "references": [["f g h i"], ["k", "j"]]}
    found = task.metrics([{"prediction": "f g h i"}, {"prediction": "k"}], table)
    assert found["exact_match"] == 1.0 and found["chrf"] == pytest.approx(100.0) and "loss" not in found
    assert set(task.interval([{"prediction": "f g"}, {"prediction": "k"}], table)) == {"bleu", "chrf", "cider", "exact_match"}
    assert task.majority({"target": ["x", "y", "x"]}, table)[1]["prediction"] == "x"
    with pytest.raises(BadData, match="row 1: references"):
        task.metrics([{"prediction": "f"}, {"prediction": "k"}], {**table, "references": [["f"], []]})
    with pytest.raises(NoSuchSetting, match="negative_loss"):
        task.compare([{"prediction": "f"}] * 2, [{"prediction": "k"}] * 2, table)


def test_selecting_by_text_writes_it(causal: Backbone) -> None:
    task = get(causal, metric="chrf", max_new_tokens=4)
    assert "prediction" in task.judge(causal.model, task.collate(task.encode(TABLE)))[0]


def test_generation_has_no_head(causal: Backbone, seq2seq: Backbone) -> None:
    assert [(task.head, task.head_parameters) for task in (get(causal), get(seq2seq))] == [(None, [])] * 2


@pytest.mark.parametrize(("limits", "words"), [
    ({"max_length": 8, "max_new_tokens": 8}, "no room"), ({"max_new_tokens": 65}, "64 positions"),
    ({"separator": 3}, "separator"),
])
def test_limits_that_make_no_sense(causal: Backbone, limits: dict[str, Any], words: str) -> None:
    with pytest.raises(NoSuchSetting, match=words):
        get(causal, **limits)


def test_an_empty_prompt_and_a_batch_without_targets(causal: Backbone) -> None:
    with pytest.raises(BadData, match="row 1: the source is empty"):
        get(causal).encode({"source": ["a", "  "], "target": ["b", "c"]})
    task = get(causal)
    batch = task.collate(task.encode({"source": ["a"], "target": ["b"]}))
    batch["labels"][:] = -100
    with pytest.raises(BadData, match="without target tokens"):
        task.loss(causal.model, batch)


def test_a_model_without_an_end_token(tmp_path: Path) -> None:
    backbone = models.load(str(tiny.llama(tmp_path, pad=True)), "causal-generation")
    backbone.preprocess.eos_token = None
    with pytest.raises(NoSuchSetting, match="end token"):
        get(backbone)


def test_seq2seq_loss_is_that_of_the_model_itself(seq2seq: Backbone) -> None:
    task = get(seq2seq)
    examples = task.encode(TABLE)
    assert examples[0]["input_ids"][-1] == END and examples[0]["labels"][-1] == END
    batch = task.collate(examples)
    loss, items = task.loss(seq2seq.model, batch)
    assert items == 3 + 5
    torch.testing.assert_close(loss, seq2seq.model(**{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss)
    assert batch["decoder_input_ids"][0, :4].tolist() == [0, *examples[0]["labels"]]


def test_seq2seq_writes_as_it_does_alone(seq2seq: Backbone) -> None:
    task = get(seq2seq, max_new_tokens=5)
    examples = task.encode(TABLE)
    found = task.predict(seq2seq.model, task.collate(examples))
    for row, example in zip(found, examples, strict=True):
        written = [0]
        while len(written) < 6 and written[-1] != END:
            with torch.no_grad():
                logits = seq2seq.model(input_ids=torch.tensor([example["input_ids"]]),
                                       decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
        assert row["prediction"] == seq2seq.preprocess.decode(written, skip_special_tokens=True).strip()
    bare = task.predict(seq2seq.model, task.collate(task.encode({"source": TABLE["source"]})))
    assert [row["prediction"] for row in bare] == [row["prediction"] for row in found]


def test_seq2seq_counts_an_example_once(seq2seq: Backbone) -> None:
    task = get(seq2seq, max_length=8, max_new_tokens=4)
    task.encode({"source": ["a " * 20, "a", "a"], "target": ["b " * 20, "c " * 20, "d"]})
    assert task.truncated == 2


def test_without_sacrebleu_nothing_begins(causal: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from thrifty.core.errors import Missing

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Missing, match="thrifty\\[generation\\]"):
        get(causal)


def test_a_real_model_continues_a_story() -> None:
    backbone = models.load(str(tiny.weights("stories15m")), "causal-generation")
    task = get(backbone, max_new_tokens=12, separator="")
    likely = {"source": ["Once upon a time, there was a little"], "target": ["girl named Lily. She loved to play outside"]}
    odd = {"source": likely["source"], "target": ["tax declaration of mixed bolts over Wednesday"]}
    batches = [task.collate(task.encode(table)) for table in (likely, odd)]
    found = task.predict(backbone.model, batches[0])[0]
    assert found["prediction"].startswith("girl named Lily")
    assert task.loss(backbone.model, batches[0])[0] < task.loss(backbone.model, batches[1])[0] / 2
