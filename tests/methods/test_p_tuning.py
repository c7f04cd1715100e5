"""P-tuning: its encoders against torch's own LSTM, templates against real tokens in their places, the cached prompt."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.p_tuning import Pseudo

FRONT = torch.tensor([40, 41, 42])
WITHIN = [[1, 2], [-1, 1]]  # behind the first token and before the last, for the batch of IDS:
WITHIN_IDS = torch.tensor([[5, 40, 41, 9, 11, 3, 42, 7], [6, 40, 41, 2, 42, 8, 0, 0]])
WITHIN_MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]])
WENT = torch.tensor([[0, 3, 4, 5, 7], [0, 3, 5, 6, 7]])  # where the tokens of IDS are now


def with_tokens(model: Any, template: list[list[int]], name: str = "default", tokens: Tensor = FRONT) -> thrifty.Attachment:
    """Pseudo tokens that are the embeddings of real ones."""
    at = thrifty.attach(model, thrifty.PTuning(template=template, encoder="none"), name)
    with torch.no_grad():
        at.parameters()[0].copy_(model.get_input_embeddings()(tokens))
    return at


def picked(logits: Tensor) -> Tensor:
    return logits.gather(1, WENT[..., None].expand(-1, -1, logits.shape[-1]))


def test_counts() -> None:
    at = thrifty.attach(published("bert-base"), thrifty.PTuning())
    assert count(at) == 8_278_272 == 6_912 + 7_090_176 + 1_181_184
    few = thrifty.attach(published("bert-base"), thrifty.PTuning(encoder="few-shot"))
    first, second = (2 * (4 * 768 * width + 4 * 768 * 768 + 8 * 768) for width in (768, 1536))
    assert count(few) == 6_912 + first + second + (1536 * 768 + 768) + (768 * 768 + 768)
    assert count(thrifty.attach(published("bert-base"), thrifty.PTuning(encoder="none"))) == 9 * 768


@pytest.mark.parametrize(("kind", "hidden"), [("lama", 8), ("few-shot", 16)])
def test_the_encoder_is_a_bidirectional_lstm_and_two_layers(kind: str, hidden: int) -> None:
    at = thrifty.attach(tiny("bert"), thrifty.PTuning(template=[[0, 4]], encoder=kind))
    made = at.context.shared
    lstm = nn.LSTM(16, hidden, num_layers=2, bidirectional=True)
    for theirs, ours in zip(lstm.parameters(), made.lstm, strict=True):
        theirs.data = ours.detach()
    h = lstm(made.table.weight[:, None])[0][:, 0]
    assert h.shape == (4, 2 * hidden)
    p = torch.relu(h @ made.first.weight.T + made.first.bias) @ made.second.weight.T + made.second.bias
    torch.testing.assert_close(made(), p)


def test_real_tokens_inside_the_text_of_an_encoder() -> None:
    model = tiny("bert-tokens").double()
    expected = picked(model(input_ids=WITHIN_IDS, attention_mask=WITHIN_MASK).logits)
    with_tokens(model, WITHIN)
    torch.testing.assert_close(run(model)[MASK.bool()], expected[MASK.bool()])


def test_given_types_and_positions_follow_the_tokens() -> None:
    model = tiny("bert-tokens").double()
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    widened = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]])  # each of the type of what it stands before
    places = torch.tensor([[10, 11, 12, 13, 14]])
    expected = picked(model(WITHIN_IDS, WITHIN_MASK, token_type_ids=widened, position_ids=torch.arange(10, 18)[None]).logits)
    with_tokens(model, WITHIN)
    y = model(input_ids=IDS, attention_mask=MASK, token_type_ids=types, position_ids=places).logits
    torch.testing.assert_close(y[MASK.bool()], expected[MASK.bool()])


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_real_tokens_inside_the_text_of_an_encoder_decoder(kind: str) -> None:
    model = tiny(kind).double()
    given = {"input_ids": WITHIN_IDS, "attention_mask": WITHIN_MASK}
    expected = model(**given, decoder_input_ids=IDS[:, :3]).logits
    written = model.generate(**given, max_new_tokens=5, num_beams=2, pad_token_id=0)
    at = with_tokens(model, WITHIN)
    torch.testing.assert_close(run(model), expected)
    again = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=5, num_beams=2, pad_token_id=0)
    assert torch.equal(again, written)
    at.detach()


def test_a_decoder_that_classifies_takes_places_at_the_end() -> None:
    model = tiny("llama-class").double()
    expected = model(input_ids=WITHIN_IDS, attention_mask=WITHIN_MASK).logits
    with_tokens(model, WITHIN)
    torch.testing.assert_close(run(model), expected)
    past = model.model(input_ids=IDS[:1], attention_mask=MASK[:1], use_cache=True).past_key_values
    with pytest.raises(Unfit, match="counts from the end"):
        model.model(input_ids=IDS[:1, :1], past_key_values=past, use_cache=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generation_with_a_cache_equals_generation_from_real_tokens(kind: str) -> None:
    model = tiny(kind).double()
    ids, mask = torch.tensor([[5, 9, 11, 3, 7], [0, 0, 6, 2, 8]]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    wide = torch.tensor([[40, 5, 9, 41, 42, 11, 3, 7], [0, 0, 40, 6, 2, 41, 42, 8]])
    seen = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]])
    settings: Any = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True,
                     "output_logits": True}
    wanted = model.generate(input_ids=wide, attention_mask=seen, **settings)
    with_tokens(model, [[0, 1], [2, 2]])
    for cache in (True, False):
        made = model.generate(input_ids=ids, attention_mask=mask, use_cache=cache, **settings)
        assert torch.equal(made.sequences[:, 5:], wanted.sequences[:, 8:]), cache
        for a, b in zip(made.logits, wanted.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5"])
def test_in_front_without_an_encoder_it_is_prompt_tuning(kind: str) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.PromptTuning(length=3))
    prompt, expected = at.parameters()[0].detach().clone(), run(model)
    at.detach()
    at = thrifty.attach(model, thrifty.PTuning(template=[[0, 3]], encoder="none"))
    with torch.no_grad():
        at.parameters()[0].copy_(prompt)
    torch.testing.assert_close(run(model)[MASK.bool()] if kind == "gpt2" else run(model),
                               expected[MASK.bool()] if kind == "gpt2" else expected)


def test_two_templates_nest() -> None:
    """The newer one counts the tokens that it is given, and the older one counts what it makes of them."""
    model = tiny("bert-tokens").double()
    ids = torch.tensor([[5, 40, 41, 9, 42, 11, 3, 7], [6, 40, 41, 2, 42, 8, 0, 0]])
    went = torch.tensor([[0, 3, 5, 6, 7], [0, 3, 5, 6, 7]])
    logits = model(input_ids=ids, attention_mask=WITHIN_MASK).logits
    expected = logits.gather(1, went[..., None].expand(-1, -1, logits.shape[-1]))
    older = with_tokens(model, [[1, 2]], "older", FRONT[:2])
    newer = with_tokens(model, [[2, 1]], "newer", FRONT[2:])
    torch.testing.assert_close(run(model)[MASK.bool()], expected[MASK.bool()])
    older.detach()
    alone = run(model)
    newer.detach()
    with_tokens(model, [[2, 1]], tokens=FRONT[2:])
    torch.testing.assert_close(run(model), alone)


@pytest.mark.parametrize("encoder", ["lama", "few-shot"])
def test_the_cached_prompt_is_what_the_encoder_made(encoder: str, tmp_path: Any) -> None:
    model, method = tiny("bert"), thrifty.PTuning(template=[[0, 2], [1, 2]], encoder=encoder, dropout=0.2)
    at = thrifty.attach(model, method)
    shake(at, 0.2)
    y, whole = run(model), count(at)
    at.save(tmp_path / "whole")
    model.train()
    method.finish(at)
    model.eval()
    assert torch.equal(run(model), y)
    assert count(at) == 4 * 16 < whole and at.context.shared is None
    at.save(tmp_path / "cached")
    for name, numbers in (("whole", whole), ("cached", 64)):
        fresh = tiny("bert")
        loaded = thrifty.load(fresh, tmp_path / name)
        assert torch.equal(run(fresh), y) and count(loaded) == numbers, name
    for _ in range(4):
        run(model).square().mean().backward()
    assert all(p.grad is not None for p in at.parameters())


def test_what_moves() -> None:
    model = tiny("bert")
    moved = frozen_stay(model, thrifty.attach(model, thrifty.PTuning()))
    assert moved and all("edits" in n.split(".") for n in moved)
    model = tiny("bert")
    at = thrifty.attach(model, make("p-tuning-few-shot"))
    assert at.method == thrifty.PTuning(encoder="few-shot", model=True) and at.method.start_rate() == 2e-5
    moved = frozen_stay(model, at)
    assert {"bert.encoder.layer.0.attention.self.query.weight", "classifier.weight"} <= moved
    assert any("edits" in n.split(".") for n in moved)
    assert count(at) == sum(p.numel() for p in at.context.shared.parameters()) + sum(p.numel() for p in tiny("bert").parameters())


def test_dropout_between_the_layers_acts_in_training_only() -> None:
    model = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    thrifty.attach(model, thrifty.PTuning(dropout=0.5))
    assert torch.equal(run(model), run(model))
    model.train()
    assert not torch.equal(run(model), run(model))


@pytest.mark.parametrize("template", [[], [[0, 0]], [[0]], [[0, 1.0]], [0, 3], "3,3,3", [[True, 2]]])
def test_templates_that_are_none(template: Any) -> None:
    with pytest.raises(NoSuchSetting, match="template"):
        thrifty.attach(tiny("bert"), thrifty.PTuning(template=template))


def test_refusals() -> None:
    for settings in ({"encoder": "lstm"}, {"dropout": 1.0}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("bert"), thrifty.PTuning(**settings))
    with pytest.raises(Unfit, match="GPT2LMHeadModel writes on there"):
        thrifty.attach(tiny("gpt2"), thrifty.PTuning(template=[[-1, 2]]))
    with pytest.raises(Unfit, match="no room in the 64 positions"):
        thrifty.attach(tiny("gpt2"), thrifty.PTuning(template=[[0, 60], [1, 4]]))
    with pytest.raises(Unfit, match="odd width, 15"):
        thrifty.attach(tiny("bert", hidden_size=15, num_attention_heads=3), thrifty.PTuning())
    model = tiny("bert-tokens")
    thrifty.attach(model, thrifty.PTuning(template=[[3, 1]]))
    with pytest.raises(Unfit, match=r"row 1 has 3 tokens: .* \[\[3, 1\]\]"):
        run(model)
    model = tiny("gpt2")
    at = thrifty.attach(model, thrifty.PTuning(template=[[0, 9], [1, 1]]))
    with pytest.raises(Unfit, match="55 tokens and a prompt of 10 are more than the 64 positions"):
        model(input_ids=torch.full((1, 55), 5))
    assert next(e for e in at.edits.values() if isinstance(e, Pseudo)).limit == 64


def test_padding_does_not_matter() -> None:
    model = tiny("bert")
    thrifty.attach(model, thrifty.PTuning(template=WITHIN))
    y = run(model)
    padded = model(input_ids=F.pad(IDS, (0, 2)), attention_mask=F.pad(MASK, (0, 2))).logits
    torch.testing.assert_close(padded, y, atol=1e-5, rtol=1e-5)
