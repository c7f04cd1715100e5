"""Monolingual adapters: counts, and what their sheet promises about source and target languages."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, ThriftyError, Unfit
from thrifty.core.routing import tell
from thrifty.methods import make

PAIRS = ["de-en", "en-de", "fr-en", "en-fr"]


def attached(kind: str = "t5", double: bool = True, tasks: list[str] = PAIRS, **settings: Any) -> tuple[Any, Any]:
    model = tiny(kind).double() if double else tiny(kind)
    return model, thrifty.attach(model, make("monolingual-adapters", **{"rank": 4, **settings}), tasks=tasks)


def answer(model: Any, told: Any) -> Tensor:
    with thrifty.task(model, told):
        return run(model)


def adapters(at: Any, side: str, language: str) -> list[Any]:
    """Those of a language in the layers of the encoder, or of the decoder."""
    edits = [edit for key, edit in at.edits.items() if key.startswith((side, f"model.{side}"))]
    return [edit.adapters[edit.languages.index(language)] for edit in edits]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_only_the_sources_encoder_and_the_targets_decoder_speak(kind: str) -> None:
    model, at = attached(kind)
    with at.disabled():
        base = run(model)
    assert torch.equal(answer(model, "fr-en"), base)
    shake(at)
    before = answer(model, "fr-en")
    assert not torch.allclose(before, base, atol=1e-3)
    for side in ("encoder", "decoder"):
        for language in ("de", "en", "fr"):
            own = (side, language) in (("encoder", "fr"), ("decoder", "en"))
            touched = adapters(at, side, language)
            assert len(touched) == 2
            state = [{k: v.clone() for k, v in adapter.state_dict().items()} for adapter in touched]
            with torch.no_grad():
                for adapter in touched:
                    adapter.up.bias.add_(torch.randn(16))
            assert torch.equal(answer(model, "fr-en"), before) == (not own), (side, language)
            for adapter, values in zip(touched, state, strict=True):
                adapter.load_state_dict(values)
    answer(model, "fr-en").square().sum().backward()
    speaking = [*adapters(at, "encoder", "fr"), *adapters(at, "decoder", "en")]
    mine = {p for adapter in speaking for p in adapter.parameters()}
    assert all((p.grad is not None and bool(p.grad.any())) == (p in mine) for p in at.parameters())


def test_counts() -> None:
    method = make("monolingual", rank=64)
    at = thrifty.attach(published("t5-base"), method, tasks=PAIRS)
    each = 2 * 768 * 64 + 64 + 3 * 768
    assert count(at) == 3 * 24 * each and not at.base
    assert count(thrifty.attach(published("bert-base"), make("monolingual"), tasks=["de"])) == 1_208_064
    assert count(thrifty.attach(published("bert-base"), make("monolingual", rank=1024), tasks=["de"])) == 18_914_304
    wide = thrifty.attach(published("t5-base"), method, tasks=[f"{a}-{b}" for a in "abcd" for b in "abcd" if a != b])
    assert count(wide) == 4 * 24 * each  # and not 12 * 24


def test_an_adapter_by_hand() -> None:
    model, at = attached("bert", tasks=["de", "en"])
    block, x = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    with at.disabled():
        z = block(x)
    z = z if isinstance(z, Tensor) else z[0]
    shake(at)
    with thrifty.task(model, "en"):
        y = block(x)
    y = y if isinstance(y, Tensor) else y[0]
    adapter = next(iter(at.edits.values())).adapters[1]
    normed = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    h = (normed * adapter.norm.weight + adapter.norm.bias) @ adapter.down.weight.T + adapter.down.bias
    torch.testing.assert_close(y, z + h.clamp_min(0) @ adapter.up.weight.T + adapter.up.bias)
    assert torch.allclose(adapter.branch(1000 * z), adapter.branch(z), atol=1e-4)


def test_a_direction_that_was_never_trained(tmp_path: Any) -> None:
    model, at = attached(double=False)
    shake(at)
    at.save(tmp_path / "adapter")
    foreseen, _ = attached(double=False, tasks=[*PAIRS, "de-fr"])
    thrifty.attachments(foreseen)["default"].load_state(at.state())
    fresh = tiny("t5")
    loaded = thrifty.load(fresh, tmp_path / "adapter")
    thrifty.add_tasks(loaded, ["de-fr", "home"], languages={"home": "fr-fr"})
    assert count(loaded) == count(at) and loaded.tasks == [*PAIRS, "de-fr", "home"]
    y = answer(fresh, "de-fr")
    assert torch.equal(y, answer(foreseen, "de-fr")) and not torch.equal(y, answer(fresh, "de-en"))
    loaded.save(tmp_path / "wider", unchanged=True)
    again = tiny("t5")
    assert thrifty.load(again, tmp_path / "wider").tasks == loaded.tasks
    assert torch.equal(answer(again, "de-fr"), y) and torch.equal(answer(again, "home"), answer(fresh, "home"))
    with pytest.raises(NoSuchSetting, match="'decoder.block' has no adapter for 'yo', which 'de-yo' asks for.* Known: de, en, fr"):
        thrifty.add_tasks(loaded, ["fr-de", "de-yo"])
    assert len(loaded.tasks) == 6 and all(len(edit.speaks) == 6 for edit in loaded.edits.values())


def test_rows_of_different_directions() -> None:
    model, at = attached()
    shake(at)
    mixed = answer(model, ["en-fr", "de-en"])
    torch.testing.assert_close(mixed[:1], answer(model, "en-fr")[:1])
    torch.testing.assert_close(mixed[1:], answer(model, "de-en")[1:])
    torch.testing.assert_close(answer(model, ["en-fr", "en-de"])[:1], answer(model, "en-fr")[:1])
    with thrifty.task(model, "en-fr"):
        padded = model(input_ids=F.pad(IDS, (0, 3)), attention_mask=F.pad(MASK, (0, 3)), decoder_input_ids=IDS[:, :3]).logits
    torch.testing.assert_close(padded, answer(model, "en-fr"))
    mixed.square().sum().backward()
    spoken = (("encoder", "en"), ("encoder", "de"), ("decoder", "fr"), ("decoder", "en"))
    mine = {p for side, language in spoken for a in adapters(at, side, language) for p in a.parameters()}
    assert {p for p in at.parameters() if p.grad is not None} == mine
    with pytest.raises(ThriftyError, match="of 3 rows were told, but 2"):
        answer(model, ["en-fr", "en-fr", "de-en"])


def test_generating_with_and_without_a_cache() -> None:
    model, at = attached(double=False)
    shake(at)
    with thrifty.task(model, ["en-fr", "de-en"]):
        written = [model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6, min_new_tokens=6, use_cache=cache)
                   for cache in (True, False)]
    assert torch.equal(*written)


def test_what_moves() -> None:
    model, at = attached(double=False)
    tell(model, "de-en")
    moved = frozen_stay(model, at)
    assert moved and all(".edits." in n for n in moved)
    mine = {p for a in (*adapters(at, "encoder", "de"), *adapters(at, "decoder", "en")) for p in a.parameters()}
    assert moved == {n for n, p in model.named_parameters() if p in mine}


def test_names_of_languages() -> None:
    model, at = attached(tasks=["pt-BR>en", "en>pt-BR"], separator=">")
    assert {tuple(edit.languages) for edit in at.edits.values()} == {("pt-BR", "en"), ("en", "pt-BR")}
    model, at = attached(tasks=["wmt14", "en-de"], languages={"wmt14": "de-en"})
    assert [edit.languages[edit.speaks[0]] for edit in at.edits.values()] == ["de", "de", "en", "en"]
    _, at = attached("llama", tasks=["sw", "yo"])
    assert all(edit.languages == ["sw", "yo"] and edit.speaks == [0, 1] for edit in at.edits.values())


def test_refusals() -> None:
    for tasks in (["deen"], ["pt-br-en"], ["de-"], ["-"]):
        with pytest.raises(NoSuchSetting, match="must name a source and a target language, like 'de-en'"):
            attached(tasks=tasks)
    with pytest.raises(NoSuchSetting, match="one language and no '-', in a model of one stack"):
        attached("bert")
    with pytest.raises(NoSuchSetting, match="speaks of 'wmt'.*Did you mean 'wmt14'"):
        attached(tasks=["wmt14"], languages={"wmt": "de-en"})
    with pytest.raises(NoSuchSetting, match="must be like 'de-en', not 3"):
        attached(tasks=["wmt14"], languages={"wmt14": 3})
    for settings in ({"rank": 0}, {"separator": ""}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            attached(**settings)
    with pytest.raises(NoSuchSetting, match="serves several tasks"):
        thrifty.attach(tiny("t5"), make("monolingual"))
    with pytest.raises(Unfit, match=r"gives out \[2, 8, \d+, \d+\]"):
        thrifty.attach(tiny("resnet"), make("monolingual"), tasks=["de"], example={"pixel_values": torch.randn(2, 3, 32, 32)})
    model, at = attached()
    with pytest.raises(CannotMerge):
        at.merge()
    with pytest.raises(NoSuchSetting, match="has no task 'de-fr'"):
        answer(model, "de-fr")
    with pytest.raises(NoSuchSetting, match="must name a source and a target"):
        thrifty.add_tasks(at, ["fr"])
