"""Choices ranked by models that write: what each is worth, what trains, and how little is computed."""
from __future__ import annotations

from typing import Any

import pytest
import tiny_folders as tiny
import torch
from torch import Tensor

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models import Backbone

TABLE = {"text": ["ab c d", "e"], "choices": [["f", "g hi", "jk"], ["lmn", "o"]], "label": [1, 0]}


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.t5(tmp_path_factory.mktemp("t5"))), "multiple-choice")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return models.load(str(tiny.llama(tmp_path_factory.mktemp("llama"))), "multiple-choice")


def likelihoods(backbone: Backbone, text: str, choice: str) -> Tensor:
    """log p of each token of a choice with its end, one call per choice and no padding."""
    read = lambda t: backbone.preprocess(t, add_special_tokens=False)["input_ids"]  # noqa: E731
    target = [*read(choice), 4]
    with torch.no_grad():
        if backbone.model.config.is_encoder_decoder:
            logits = backbone.model(input_ids=torch.tensor([[*read(text), 4]]),
                                    decoder_input_ids=torch.tensor([[0, *target[:-1]]])).logits[0]
        else:
            prompt = read(text + "\n")
            logits = backbone.model(input_ids=torch.tensor([prompt + target])).logits[0][len(prompt) - 1:-1]
    return logits.double().log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
@pytest.mark.parametrize("power", [1.0, 0.0, 0.5])
def test_choices_are_ranked_by_their_likelihood(kind: str, power: float, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(kind)
    task = tasks.get("multiple-choice", backbone, length_norm=power)
    batch = task.collate(task.encode(TABLE))
    beta = task._logits(backbone.model, batch)
    found = task.predict(backbone.model, batch)
    for row, choices in enumerate(TABLE["choices"]):
        logs = [likelihoods(backbone, TABLE["text"][row], choice) for choice in choices]
        wanted = torch.stack([log.sum() / len(log)**power for log in logs])
        torch.testing.assert_close(beta[row, :len(choices)].double(), wanted, atol=1e-5, rtol=1e-5)
        assert found[row]["prediction"] == int(wanted.argmax())
        torch.testing.assert_close(torch.tensor(found[row]["scores"], dtype=torch.double), wanted.softmax(0), atol=1e-5, rtol=1e-5)
    assert bool((beta[1, 2:] == -torch.inf).all())
    right = [likelihoods(backbone, TABLE["text"][row], TABLE["choices"][row][label]) for row, label in enumerate(TABLE["label"])]
    loss, items = task.loss(backbone.model, batch)
    assert items == sum(map(len, right)) and float(loss) == pytest.approx(-float(torch.cat(right).mean()), rel=1e-5)


def test_nothing_new_trains_and_labels_are_not_needed(seq2seq: Backbone) -> None:
    assert type(seq2seq.model).__name__ == "T5ForConditionalGeneration" and not seq2seq.source["new_tensors"]
    task = tasks.get("multiple-choice", seq2seq)
    assert task.head is None and task.metric == "accuracy" and task.answers_untrained
    known = task.predict(seq2seq.model, task.collate(task.encode(TABLE)))
    bare = {"text": TABLE["text"], "choices": TABLE["choices"]}
    assert task.predict(seq2seq.model, task.collate(task.encode(bare))) == known
    again = tasks.get("multiple-choice", seq2seq, **task.limits)
    assert again.limits == task.limits
    assert 0 <= task.metrics(known, TABLE)["accuracy"] <= 1


def test_the_encoder_reads_each_text_once(seq2seq: Backbone) -> None:
    task = tasks.get("multiple-choice", seq2seq)
    batch = task.collate(task.encode(TABLE))
    seen: list[tuple[int, int]] = []
    model = seq2seq.model
    handles = [model.encoder.block[0].register_forward_hook(lambda m, a, y: seen.append((len(a[0]), 0))),
               model.decoder.block[0].register_forward_hook(lambda m, a, y: seen.append((0, len(a[0]))))]
    losses, wanted, _ = task.weigh(model, batch)
    for handle in handles:
        handle.remove()
    assert seen == [(2, 0), (0, 6)]
    whole = model(**task.inputs(model, batch)).logits.log_softmax(-1)
    targets = batch["targets"].flatten(0, 1)
    plain = whole.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
    torch.testing.assert_close(losses.flatten(0, 1), -plain)
    assert torch.equal(wanted.flatten(0, 1), targets != -100)
    assert not model.encoder._forward_pre_hooks and not model.encoder._forward_hooks
    losses.sum().backward()
    together = model.encoder.block[0].layer[0].SelfAttention.q.weight.grad.clone()
    model.zero_grad()
    (-plain).sum().backward()
    torch.testing.assert_close(together, model.encoder.block[0].layer[0].SelfAttention.q.weight.grad, atol=1e-5, rtol=1e-4)
    model.zero_grad()


def test_choices_and_texts_that_are_cut_are_counted_once_a_row(seq2seq: Backbone) -> None:
    task = tasks.get("multiple-choice", seq2seq, max_length=8, max_new_tokens=4)
    task.encode({"text": ["a b c d e f g h i j", "a", "b"], "choices": [["g", "h"], ["i j k l m", "a b c d e"], ["a", "b"]]})
    assert task.truncated == 2


@pytest.mark.parametrize(("limits", "words"), [({"length_norm": -1.0}, "length_norm"), ({"length_norm": True}, "length_norm"),
                                               ({"separator": " "}, "separator"), ({"max_new_tokens": 2}, "max_new_tokens")])
def test_limits_that_do_not_fit(seq2seq: Backbone, limits: dict[str, Any], words: str) -> None:
    with pytest.raises(NoSuchSetting, match=words):
        tasks.get("multiple-choice", seq2seq, **limits)


@pytest.mark.parametrize(("change", "words"), [({"label": [3, 0]}, "row 0: label 3"), ({"choices": [["a"], ["b", "c"]]}, "row 0")])
def test_choices_that_do_not_fit(seq2seq: Backbone, change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadData, match=words):
        tasks.get("multiple-choice", seq2seq).encode({**TABLE, **change})


def test_a_model_with_a_head_for_choices_uses_it(tmp_path: Any) -> None:
    backbone = models.load(str(tiny.bert(tmp_path)), "multiple-choice")
    assert type(tasks.get("multiple-choice", backbone)).__name__ == "MultipleChoice"
    with pytest.raises(NoSuchSetting, match="no form for multiple-choice"):
        models.load(str(tiny.vit(tmp_path / "vit")), "multiple-choice")
