"""MAD-X: the coupling inverts exactly and keeps volumes; languages are swapped under a task adapter that stays."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from backbones import published
from torch import Tensor

import thrifty
from thrifty.core.errors import BrokenArtifact, CannotCombine, NoSuchSetting, Unfit, WrongBase
from thrifty.methods.mad_x import Coupling
from thrifty.testing import tiny
from thrifty.testing.measuring import stir


def language(folder: Path, seed: int, **settings: Any) -> str:
    at = thrifty.attach(tiny.make("bert").fresh(), thrifty.MADXLanguage(**settings))
    stir(at, seed, 0.2)
    return str(at.save(folder))


def coupling(width: int = 6) -> Coupling:
    torch.manual_seed(0)
    made = Coupling(width, 2).double()
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


def small(width: int, heads: int) -> transformers.BertConfig:
    return transformers.BertConfig(vocab_size=40, hidden_size=width, num_hidden_layers=1, num_attention_heads=heads,
                                   intermediate_size=24)


def test_the_coupling_inverts_and_keeps_volumes() -> None:
    c, e = coupling(), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(c.inverse(c(e)), e, atol=1e-10, rtol=0)
    torch.testing.assert_close(c(c.inverse(e)), e, atol=1e-10, rtol=0)
    jacobian: Any = torch.autograd.functional.jacobian(c, e[0])
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-9)
    first, second = e.chunk(2, -1)
    o1 = first + c.F[2](torch.relu(c.F[0](second)))
    torch.testing.assert_close(c(e), torch.cat([o1, second + c.G[2](torch.relu(c.G[0](o1)))], -1))


def test_published_counts() -> None:
    at = thrifty.attach(published("bert-base"), thrifty.MADXLanguage())
    shared = sum(p.numel() for n, p in at.named_parameters() if n.startswith("shared:"))
    assert shared == 296_064 and sum(p.numel() for p in at.parameters()) - shared == 7_091_712


def test_the_invertible_adapter_stands_behind_the_finished_embeddings() -> None:
    model = tiny.make("bert").fresh()
    at = thrifty.attach(model, thrifty.MADXLanguage())
    stir(at, 1)
    place = next(row.path for row in at.plan if row.edit == "invertible")
    assert place.endswith("embeddings") and not any(row.edit == "invertible-back" for row in at.plan)
    seen: dict[str, Tensor] = {}
    module: Any = model.get_submodule(place)
    module.LayerNorm.register_forward_hook(lambda m, a, out: seen.update(e=out))
    module.register_forward_hook(lambda m, a, out: seen.update(o=out))
    tiny.make("bert").run(model)
    torch.testing.assert_close(seen["o"], at.context.shared(seen["e"]))


def test_before_a_tied_head_the_inverse() -> None:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(small(16, 2)).eval()
    ids = torch.randint(0, 40, (2, 5))
    base = model(ids).logits
    at = thrifty.attach(model, thrifty.MADXLanguage(), example={"input_ids": ids})
    stir(at, 1)
    back = next(row.path for row in at.plan if row.edit == "invertible-back")
    seen: dict[str, Tensor] = {}
    model.bert.register_forward_hook(lambda m, a, out: seen.update(h=out[0]))
    logits = model(ids).logits
    with at.disabled():
        torch.testing.assert_close(logits, model.get_submodule(back)(at.context.shared.inverse(seen["h"])))
        assert torch.equal(model(ids).logits, base)


def test_odd_widths_are_refused() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(small(15, 3))
    with pytest.raises(Unfit, match="odd width, 15"):
        thrifty.attach(model, thrifty.MADXLanguage())


def test_languages_are_swapped_under_the_task(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    en, de = language(tmp_path / "en", 1), language(tmp_path / "de", 2)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.MADX(language=en), also_train="head")
    assert all("leaves.task." in n or n.startswith("base:classifier") for n, _ in at.named_parameters())
    stir(at, 3, 0.3)
    before, english = at.state(), backbone.output(model)
    thrifty.swap(at, "language", de)
    german = backbone.output(model)
    assert not torch.allclose(english, german, atol=1e-3)
    after = at.state()
    assert all(torch.equal(after[n], t) for n, t in before.items() if "leaves.task." in n or n.startswith("base:"))
    other = backbone.fresh()
    fresh = thrifty.attach(other, thrifty.MADX(language=de), also_train="head")
    fresh.load_state({n: before[n] if "leaves.task." in n or n.startswith("base:") else t for n, t in fresh.state().items()})
    torch.testing.assert_close(backbone.output(other), german)
    thrifty.swap(at, "language", en)
    assert torch.equal(backbone.output(model), english)
    at.save(tmp_path / "ner")
    third = backbone.fresh()
    thrifty.swap(thrifty.load(third, tmp_path / "ner"), "language", de)
    torch.testing.assert_close(backbone.output(third), german)


def test_a_language_learned_under_another_head_serves_a_task(tmp_path: Path) -> None:
    """The language-model head stays behind with the inverse that stood before it; the trunk must be the same."""
    torch.manual_seed(0)
    spoken = transformers.BertForMaskedLM(small(32, 4))
    tagger = transformers.BertForTokenClassification(small(32, 4))
    trunk = {n: p.clone() for n, p in spoken.bert.state_dict().items()}
    tagger.bert.load_state_dict(trunk)
    at = thrifty.attach(spoken, thrifty.MADXLanguage(), example={"input_ids": torch.tensor([[1, 2, 3]])})
    stir(at, 1, 0.3)
    folder = str(at.save(tmp_path / "en"))
    task = thrifty.attach(tagger, thrifty.MADX(language=folder), also_train="head")
    assert task.about["dropped"] == {"cls#invertible-back": ["language"]}
    held = {n.rpartition("leaves.language.0.")[2]: t for n, t in task.state().items() if "layer.0" in n and "language.0" in n}
    learned = {n.rpartition(":")[2]: t for n, t in at.state().items() if "layer.0" in n}
    assert learned and held.keys() == learned.keys() and all(torch.equal(held[n], t) for n, t in learned.items())
    ids = {"input_ids": torch.tensor([[1, 2, 3]])}
    before = tagger.eval()(**ids).logits
    task.save(tmp_path / "task", unchanged=True)
    other = transformers.BertForTokenClassification(small(32, 4))
    other.bert.load_state_dict(trunk)
    task.detach()
    thrifty.load(tagger, tmp_path / "task")
    assert torch.equal(tagger(**ids).logits, before)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(WrongBase, match="layer.0.output.dense"):
        thrifty.attach(other, thrifty.MADX(language=folder))
    longer = small(32, 4)
    longer.num_hidden_layers += 1
    deep = transformers.BertForTokenClassification(longer)
    with pytest.raises(WrongBase, match="in a stack of blocks that both have"):
        thrifty.attach(deep, thrifty.MADX(language=folder))


def test_without_the_language_the_answer_is_another(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model, plain = backbone.fresh(), backbone.fresh()
    at = thrifty.attach(model, thrifty.MADX(language=language(tmp_path / "en", 1)))
    alone = thrifty.attach(plain, thrifty.Pfeiffer())
    task = {n.split("leaves.task.0.")[1]: t for n, t in at.state().items() if "leaves.task.0." in n and ".0.output" in n}
    assert set(task) == {"down.weight", "down.bias", "up.weight", "up.bias"}
    alone.load_state({n: next(t for m, t in at.state().items() if m.startswith(n.split("#")[0]) and m.endswith(
        "leaves.task.0." + n.rpartition(":")[2])) for n in alone.state()})
    assert not torch.allclose(backbone.output(model), backbone.output(plain), atol=1e-3)


def test_languages_that_do_not_fit(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    en = language(tmp_path / "en", 1)
    at = thrifty.attach(backbone.fresh(), thrifty.MADX(language=en))
    with pytest.raises(BrokenArtifact):
        thrifty.swap(at, "language", tmp_path / "fr")
    with pytest.raises(NoSuchSetting, match="Did you mean 'language'"):
        thrifty.swap(at, "langauge", en)
    with pytest.raises(CannotCombine, match="at 'bert.encoder.layer.0"):
        thrifty.swap(at, "language", language(tmp_path / "narrow", 2, rank=3))
    with pytest.raises(CannotCombine, match="do not act at the same places"):
        thrifty.swap(at, "language", language(tmp_path / "plain", 2, invertible=False))
    with pytest.raises(NoSuchSetting, match="language must be the folder"):
        thrifty.attach(backbone.fresh(), thrifty.MADX())
