"""UDapter: reference arrays, published counts, and what its sheet promises."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, NoSuchSite, Unfit
from thrifty.core.routing import tell
from thrifty.methods.branches.generated import specialise

FEATURES = {"de": [1.0, 0.0, 1.0, 0.0, 1.0], "fi": [0.0, 1.0, 1.0, 0.0, 0.0], "tr": [0.0, 1.0, 0.0, 1.0, 1.0]}
LANGUAGES = list(FEATURES)
SMALL: dict[str, Any] = {"features": FEATURES, "rank": 4, "size": 3, "dropout": 0.0}


def attached(kind: str = "bert", double: bool = True, **settings: Any) -> tuple[Any, Any]:
    model = tiny(kind).double() if double else tiny(kind)
    return model, thrifty.attach(model, thrifty.UDapter.make(**{**SMALL, **settings}), tasks=LANGUAGES)


def answer(model: Any, told: Any) -> Tensor:
    with thrifty.task(model, told):
        return run(model)


class Result(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.result = nn.Parameter(torch.zeros(1)), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.result(x)


def test_reference_arrays() -> None:
    g = golden("nlp_udapter")
    model, method = Result().double(), thrifty.UDapter(features={"xx": [1.0, 0.0]}, rank=4, size=5, where="after.mlp")
    at = thrifty.attach(model, method, tasks=["xx"], example=g["in/x"], roles={r"^result$": "after.mlp"})
    (edit,) = at.edits.values()
    names = {"down_weight": "down_W", "down_bias": "down_b", "up_weight": "up_W", "up_bias": "up_b"}
    shared = at.context.shared
    with torch.no_grad():
        for ours, theirs in names.items():
            edit.P[ours].copy_(g[f"w/{theirs}"])
        shared.second.weight.zero_()
        shared.second.bias.copy_(g["in/language_embedding"])
    with thrifty.task(model, "xx"):
        y = model(g["in/x"])
    torch.testing.assert_close(y, g["out/y"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    for ours, theirs in names.items():
        torch.testing.assert_close(edit.P[ours].grad, g[f"grad/{theirs}"], atol=1e-10, rtol=0)
    torch.testing.assert_close(shared.second.bias.grad, g["grad/language_embedding"], atol=1e-10, rtol=0)


def test_counts_on_bert_base() -> None:
    languages = ["sv", "zh", "ja", "it", "ko", "eu", "en", "fi", "tr", "hi", "ru", "ar", "he"]
    method = thrifty.UDapter(features={language: [0.0] * 289 for language in languages})
    at = thrifty.attach(published("bert-base"), method, tasks=languages)
    assert sum(p.numel() for e in at.edits.values() for p in e.parameters()) == 302_776_320 and not at.base
    assert sum(p.numel() for p in at.context.shared.parameters()) == 93_090
    assert count(at) == 302_869_410
    specialise(at, "fi")
    assert count(at) == 9_461_760


def test_the_language_network_by_hand() -> None:
    _, at = attached()
    shared = at.context.shared
    f = torch.tensor(FEATURES["tr"], dtype=torch.float64)
    hidden = (shared.first.weight @ f + shared.first.bias).clamp_min(0)
    torch.testing.assert_close(shared(2), shared.second.weight @ hidden + shared.second.bias)
    assert shared.first.weight.shape == (5, 5) and shared.second.weight.shape == (3, 5)
    assert not any(name.endswith("features") for name, _ in at.named_parameters())


def test_dropout_is_in_the_language_network() -> None:
    model, at = attached(dropout=0.5)
    shake(at)
    at.context.shared.train()
    torch.manual_seed(0)
    assert len({tuple(at.context.shared(0).tolist()) for _ in range(20)}) > 1
    at.context.shared.eval()
    assert torch.equal(at.context.shared(0), at.context.shared(0))


def test_adapters_are_linear_in_the_embedding() -> None:
    _, at = attached()
    shake(at)
    edit, shared = next(iter(at.edits.values())), at.context.shared
    with torch.no_grad():
        shared.second.weight.zero_()

    def made(values: list[float]) -> dict[str, Tensor]:
        with torch.no_grad():
            shared.second.bias.copy_(torch.tensor(values))
            return edit.make(0)

    a, b, both = made([1.0, -2, 0.5]), made([0.0, 3, 1]), made([2.0, 5, 4])
    for name, P in edit.P.items():
        torch.testing.assert_close(both[name], 2 * a[name] + 3 * b[name])
        torch.testing.assert_close(made([0.0, 1, 0])[name], P[1])
        assert not made([0.0, 0, 0])[name].any()


def test_an_embedding_of_zeros_is_the_base_and_gradients_scale_with_it() -> None:
    model, at = attached()
    with at.disabled():
        base = run(model)
    torch.testing.assert_close(answer(model, "de"), base, atol=1e-6, rtol=1e-6)  # the start, at N(0, 1e-4)
    shake(at)
    assert not torch.allclose(answer(model, "de"), base, atol=1e-3)
    shared = at.context.shared
    with torch.no_grad():
        shared.second.weight.zero_()
        shared.second.bias.copy_(torch.tensor([0.5, -1.0, 0.0]))
    answer(model, "de").square().sum().backward()
    for edit in at.edits.values():
        for P in edit.P.values():
            torch.testing.assert_close(P.grad[0], -0.5 * P.grad[1])
            assert not P.grad[2].any() and P.grad[1].any()
    with torch.no_grad():
        shared.second.bias.zero_()
    torch.testing.assert_close(answer(model, "de"), base)


def test_a_layer_by_hand() -> None:
    model, at = attached()
    shake(at)
    first, second = (e.make(1) for n, e in at.edits.items() if "layer.0." in n)
    layer, x = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    with thrifty.task(model, "fi"):
        y = layer(x)
    y = y if isinstance(y, Tensor) else y[0]

    def adapter(made: dict[str, Tensor], h: Tensor) -> Tensor:
        z = h @ made["down_weight"] + made["down_bias"]
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        return h + z @ made["up_weight"] + made["up_bias"]

    attention, out = layer.attention, layer.output
    a = attention.output.LayerNorm(x + adapter(first, attention.output.dense(attention.self(x)[0])))
    torch.testing.assert_close(y, out.LayerNorm(a + adapter(second, out.dense(F.gelu(layer.intermediate.dense(a))))))


def test_start_and_what_moves() -> None:
    model, at = attached(double=False, rank=64)
    for edit in at.edits.values():
        for name, P in edit.P.items():
            if name.endswith("bias"):
                assert not P.any()
            else:
                assert float(P.detach().std()) == pytest.approx(1e-4, rel=0.1)
    shake(at)
    tell(model, "tr")
    moved = frozen_stay(model, at)
    assert all(".edits." in n or n.startswith("edits.") for n in moved) and not any(n.endswith("features") for n in moved)


def test_languages_are_told_apart_by_their_features_alone() -> None:
    twins = {**FEATURES, "tr": FEATURES["de"]}
    model, at = attached(features=twins)
    shake(at)
    assert torch.equal(answer(model, "de"), answer(model, "tr")) and not torch.allclose(answer(model, "de"), answer(model, "fi"))
    mixed = answer(model, ["fi", "de"])
    torch.testing.assert_close(mixed[:1], answer(model, "fi")[:1])
    torch.testing.assert_close(mixed[1:], answer(model, "de")[1:])
    with thrifty.task(model, "fi"):
        padded = model(input_ids=F.pad(IDS, (0, 3)), attention_mask=F.pad(MASK, (0, 3))).logits
    torch.testing.assert_close(padded, answer(model, "fi"))


def test_a_language_that_was_never_seen(tmp_path: Any) -> None:
    model, at = attached(double=False)
    shake(at)
    parameters = count(at)
    wanted = {language: answer(model, language) for language in LANGUAGES}
    at.save(tmp_path / "adapter")
    fresh = tiny("bert")
    loaded = thrifty.load(fresh, tmp_path / "adapter")
    thrifty.add_tasks(loaded, ["et", "yo"], features={"et": FEATURES["fi"], "yo": [1, 1, 0, 0, 1]})
    assert count(loaded) == parameters and loaded.tasks == ["de", "fi", "tr", "et", "yo"]
    assert all(torch.equal(answer(fresh, language), y) for language, y in wanted.items())
    assert torch.equal(answer(fresh, "et"), wanted["fi"])
    assert not any(torch.allclose(answer(fresh, "yo"), y) for y in wanted.values())
    loaded.save(tmp_path / "wider", unchanged=True)
    again = tiny("bert")
    assert thrifty.load(again, tmp_path / "wider").tasks == loaded.tasks
    assert torch.equal(answer(again, "yo"), answer(fresh, "yo"))


def test_a_new_task_on_top_of_languages(tmp_path: Any) -> None:
    model, at = attached(double=False, rank=8)
    shake(at)
    at.save(tmp_path / "languages")
    wanted = answer(model, "fi")
    both = tiny("bert")
    composed = thrifty.compose(both, thrifty.Stack(tmp_path / "languages", thrifty.Pfeiffer(rank=4, reads="sublayer")))
    assert composed.tasks == LANGUAGES and all("pfeiffer" in name for name in map(str, composed.active()))
    moved = answer(both, "fi")
    assert not torch.equal(moved, wanted) and not torch.allclose(moved, answer(both, "de"))


def test_kept_adapters_are_the_made_ones(tmp_path: Any) -> None:
    model, at = attached(double=False, dropout=0.3)
    shake(at)
    wanted = answer(model, "fi")
    model.train()
    specialise(at, "fi")
    model.eval()
    assert torch.equal(run(model), wanted) and count(at) == 4 * (2 * 16 * 4 + 4 + 16)
    at.save(tmp_path / "one", unchanged=True)
    fresh = tiny("bert")
    assert thrifty.load(fresh, tmp_path / "one").tasks == ["fi"]
    assert torch.equal(run(fresh), wanted)
    with pytest.raises(Unfit, match="specialised to 'fi'"):
        thrifty.add_tasks(at, ["et"], features={"et": FEATURES["fi"]})


def test_refusals() -> None:
    with pytest.raises(NoSuchSetting, match=r"'fin' has no features.*Did you mean 'fi'"):
        thrifty.attach(tiny("bert"), thrifty.UDapter(**SMALL), tasks=["de", "fin"])
    with pytest.raises(NoSuchSetting, match="'de' has no features.*features="):
        thrifty.attach(tiny("bert"), thrifty.UDapter(), tasks=["de"])
    with pytest.raises(NoSuchSetting, match="serves several tasks"):
        thrifty.attach(tiny("bert"), thrifty.UDapter(**SMALL))
    for table, said in (({**FEATURES, "yo": [1.0]}, "'yo' has 1 features, 'de' has 5"), ({"yo": [math.nan]}, "'yo' are not a list"),
                        ({"yo": []}, "'yo' are not a list"), ({"yo": "10110"}, "'yo' are not a list")):
        with pytest.raises(NoSuchSetting, match=said):
            thrifty.attach(tiny("bert"), thrifty.UDapter(features=table), tasks=["yo"])  # type: ignore[arg-type]
    for setting, value in (("rank", 0), ("size", 0), ("dropout", 1.0), ("std", 0.0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), thrifty.UDapter.make(**{**SMALL, setting: value}), tasks=LANGUAGES)
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), thrifty.UDapter(**SMALL), tasks=LANGUAGES)
    model, at = attached()
    with pytest.raises(CannotMerge):
        at.merge()
    with pytest.raises(NoSuchSetting, match="'yo' has no features"):
        thrifty.add_tasks(at, ["yo"])
    with pytest.raises(NoSuchSetting, match="'yo' has 2 features"):
        thrifty.add_tasks(at, ["yo"], features={"yo": [1, 0]})
    assert at.tasks == LANGUAGES and len(at.context.shared.features) == 3
