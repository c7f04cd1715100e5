"""Prompt tuning: equality with real tokens in front, pooling and losses that mean what they meant, generation, refusals."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, published, run, shake, tiny

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit

FRONT = torch.tensor([40, 41, 42])


def prompt_of(at: thrifty.Attachment) -> torch.nn.Parameter:
    (prompt,) = at.parameters()
    return prompt


def with_tokens(model: Any, kind: str) -> thrifty.Attachment:
    """A prompt that is the embeddings of three real tokens."""
    at = thrifty.attach(model, thrifty.PromptTuning(length=3))
    with torch.no_grad():
        prompt_of(at).copy_(model.get_input_embeddings()(FRONT))
    return at


@pytest.mark.parametrize(("backbone", "length", "wanted"), [
    ("t5-base", 100, 76_800), ("bert-base", 100, 76_800), ("llama-7b", 100, 409_600)])
def test_counts(backbone: str, length: int, wanted: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.PromptTuning(length=length))) == wanted


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_real_tokens_in_front_of_an_encoder(kind: str) -> None:
    model = tiny(kind).double()
    ids, mask = torch.cat([FRONT.expand(2, -1), IDS], 1), F.pad(MASK, (3, 0), value=1)
    expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=IDS[:, :3]).logits
    at = with_tokens(model, kind)
    torch.testing.assert_close(run(model), expected, atol=1e-6, rtol=1e-6)
    at.detach()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_real_tokens_in_front_of_a_decoder(kind: str) -> None:
    model = tiny(kind).double()
    ids, mask = torch.cat([FRONT.expand(2, -1), IDS], 1), F.pad(MASK, (3, 0), value=1)
    expected = model(input_ids=ids, attention_mask=mask).logits[:, 3:]
    with_tokens(model, kind)
    y = model(input_ids=IDS, attention_mask=MASK, labels=IDS)
    torch.testing.assert_close(y.logits[MASK.bool()], expected[MASK.bool()])
    by_hand = F.cross_entropy(expected[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(y.loss.double(), by_hand, atol=1e-6, rtol=1e-6)


def test_the_class_token_is_still_the_one_that_is_pooled() -> None:
    model = tiny("bert").double()
    ids, mask = torch.cat([FRONT.expand(2, -1), IDS], 1), F.pad(MASK, (3, 0), value=1)
    states = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = model.classifier(torch.tanh(model.bert.pooler.dense(states[:, 3])))  # [P; CLS ...]: the fourth place is CLS
    with_tokens(model, "bert")
    torch.testing.assert_close(run(model), expected)
    tokens = tiny("bert-tokens")
    thrifty.attach(tokens, thrifty.PromptTuning(length=3))
    assert run(tokens).shape[:2] == IDS.shape


def test_a_decoder_that_classifies_reads_the_last_real_token() -> None:
    model = tiny("llama-class").double()
    ids, mask = torch.cat([FRONT.expand(2, -1), IDS], 1), F.pad(MASK, (3, 0), value=1)
    expected = model(input_ids=ids, attention_mask=mask).logits
    with_tokens(model, "llama-class")
    torch.testing.assert_close(run(model), expected)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5", "bart"])
def test_only_the_prompt_moves_and_padding_does_not_matter(kind: str) -> None:
    model = tiny(kind)
    table = model.get_input_embeddings().weight.clone()
    at = thrifty.attach(model, thrifty.PromptTuning(length=4))
    assert len(frozen_stay(model, at)) == 1
    assert torch.equal(model.get_input_embeddings().weight, table) and prompt_of(at).grad is not None
    y = run(model)
    pad = getattr(model.config, "pad_token_id", None) or 0
    more: Any = {"decoder_input_ids": IDS[:, :3]} if kind in ("t5", "bart") else {}
    padded = model(input_ids=F.pad(IDS, (0, 2), value=pad), attention_mask=F.pad(MASK, (0, 2)), **more).logits
    if kind in ("gpt2", "llama"):
        padded, y = padded[:, :5][MASK.bool()], y[MASK.bool()]
    torch.testing.assert_close(padded, y, atol=1e-5, rtol=1e-5)


def test_given_types_positions_and_embeddings() -> None:
    model = tiny("bert").double()
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    ids, mask = torch.cat([FRONT.expand(2, -1), IDS], 1), F.pad(MASK, (3, 0), value=1)
    states = model.bert(ids, mask, F.pad(types, (3, 0))).last_hidden_state
    at = with_tokens(model, "bert")
    torch.testing.assert_close(model.bert(IDS, MASK, types).last_hidden_state, states[:, 3:])
    places = torch.arange(5).expand(2, -1)
    torch.testing.assert_close(model.bert(IDS, MASK, types, places).last_hidden_state, states[:, 3:])
    vectors = model.get_input_embeddings()(IDS)
    torch.testing.assert_close(
        model.bert(inputs_embeds=vectors, attention_mask=MASK, token_type_ids=types).last_hidden_state, states[:, 3:])
    tupled = model.bert(IDS, MASK, types, return_dict=False)
    torch.testing.assert_close(tupled[0], states[:, 3:])
    at.detach()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_generation_with_a_cache_equals_generation_after_real_tokens(kind: str) -> None:
    model = tiny(kind).double()
    settings: Any = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True,
                     "output_logits": True}
    left = torch.tensor([[5, 9, 11, 3, 7], [0, 0, 6, 2, 8]]) if kind in ("gpt2", "llama") else IDS
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]) if kind in ("gpt2", "llama") else MASK
    ids, mask = torch.cat([FRONT.expand(2, -1), left], 1), F.pad(seen, (3, 0), value=1)
    wanted = model.generate(input_ids=ids, attention_mask=mask, **settings)
    at = with_tokens(model, kind)
    for cache in (True, False):
        made = model.generate(input_ids=left, attention_mask=seen, use_cache=cache, **settings)
        start = 5 if kind in ("gpt2", "llama") else 0
        assert torch.equal(made.sequences[:, start:], wanted.sequences[:, start + 3 if start else 0:]), cache
        for a, b in zip(made.logits, wanted.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    beams = [model.generate(input_ids=left, attention_mask=seen, max_new_tokens=5, num_beams=2, pad_token_id=0, use_cache=c)
             for c in (True, False)]
    assert torch.equal(*beams)
    at.detach()


def test_start_values() -> None:
    model = tiny("bert", vocab_size=6000)
    table = model.get_input_embeddings().weight
    drawn = prompt_of(thrifty.attach(model, thrifty.PromptTuning(length=30)))
    rows = [int((table == row).all(1).nonzero()) for row in drawn]
    assert len(set(rows)) == 30 and max(rows) < 5000
    flat = prompt_of(thrifty.attach(tiny("bert"), thrifty.PromptTuning(length=60, init="uniform")))
    assert float(flat.min()) >= 0 and float(flat.max()) < 0.5 and float(flat.mean()) == pytest.approx(0.25, abs=0.02)
    model = tiny("bert")
    table = model.get_input_embeddings().weight
    named = prompt_of(thrifty.attach(model, thrifty.PromptTuning(length=5, init="labels", labels=[[7], [8, 9]])))
    torch.testing.assert_close(named[:2].detach(), torch.stack([table[7], (table[8] + table[9]) / 2]).detach())
    assert all((table == row).all(1).any() for row in named[2:])


def test_two_prompts_and_a_file(tmp_path: Any) -> None:
    model = tiny("bert")
    base = run(model)
    first = thrifty.attach(model, thrifty.PromptTuning(length=3), "first")
    shake(first)
    alone = run(model)
    first.save(tmp_path / "first")
    second = thrifty.attach(model, thrifty.PromptTuning(length=5), "second", seed=1)
    shake(second)
    assert not torch.allclose(run(model), alone, atol=1e-4)
    second.detach()
    assert torch.equal(run(model), alone)
    first.detach()
    torch.testing.assert_close(run(model), base)
    fresh = tiny("bert")
    thrifty.load(fresh, tmp_path / "first")
    assert torch.equal(run(fresh), alone)


def test_refusals() -> None:
    for settings, setting in (({"length": 0}, "length"), ({"init": "zeros"}, "init"), ({"init": "labels"}, "labels"),
                              ({"labels": [[1]]}, "labels"), ({"init": "labels", "labels": [[1], []]}, "labels")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), thrifty.PromptTuning(**settings))
    with pytest.raises(Unfit, match="vocabulary of 64"):
        thrifty.attach(tiny("bert"), thrifty.PromptTuning(length=65))
    with pytest.raises(Unfit, match="no room in the 64 positions"):
        thrifty.attach(tiny("gpt2"), thrifty.PromptTuning(length=64, init="uniform"))
    with pytest.raises(Unfit, match="VPT"):
        thrifty.attach(tiny("vit"), thrifty.PromptTuning())
    with pytest.raises(Unfit, match="get_input_embeddings"):
        thrifty.attach(torch.nn.Sequential(torch.nn.Linear(2, 2)), thrifty.PromptTuning())
    for kind in ("gpt2", "roberta"):  # RoBERTa has 66 rows, two of them for padding
        model = tiny(kind)
        thrifty.attach(model, thrifty.PromptTuning(length=10))
        assert model(input_ids=torch.full((1, 54), 5)).logits.isfinite().all()
        with pytest.raises(Unfit, match="55 tokens and a prompt of 10 are more than the 64 positions"):
            model(input_ids=torch.full((1, 55), 5))
    model = tiny("llama")
    thrifty.attach(model, thrifty.PromptTuning(length=3))
    with pytest.raises(Unfit, match="attention_mask"):
        model(input_ids=IDS, attention_mask=torch.zeros(2, 1, 5, 5))
