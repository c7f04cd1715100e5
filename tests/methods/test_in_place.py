"""Methods that train the base's own parameters: full fine-tuning, the linear probe, BitFit, LayerNorm tuning."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import HalfAdapted, NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods import find

# -- BitFit ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "subset", "wanted"), [
    ("bert-base", "all", 102_912), ("bert-base", "query+intermediate", 46_848), ("bert-large", "all", 272_384)])
def test_bitfit_counts(backbone: str, subset: str, wanted: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.BitFit(subset=subset))) == wanted


def test_bitfit_moves_biases_alone() -> None:
    model = tiny("bert")
    moved = frozen_stay(model, thrifty.attach(model, thrifty.BitFit()))
    assert moved <= {n for n, _ in model.named_parameters() if n.endswith(".bias")}
    assert {"bert.embeddings.LayerNorm.bias", "bert.pooler.dense.bias", "bert.encoder.layer.1.output.LayerNorm.bias"} <= moved


def test_the_bias_of_the_keys_gets_no_gradient() -> None:
    model = tiny("bert").double()
    thrifty.attach(model, thrifty.BitFit())
    run(model).square().sum().backward()
    attention = model.bert.encoder.layer[0].attention.self
    assert attention.key.bias.grad.abs().max() < 1e-9 * attention.query.bias.grad.abs().max()


@pytest.mark.parametrize("kind", ["t5", "llama", "llama-class"])
def test_bitfit_says_that_there_are_no_biases(kind: str) -> None:
    with pytest.raises(Unfit, match="no biases"):
        thrifty.attach(tiny(kind), thrifty.BitFit())


def test_the_query_part_of_a_fused_bias() -> None:
    model = tiny("gpt2")
    before = {n: p.clone() for n, p in model.named_parameters()}
    at = thrifty.attach(model, thrifty.BitFit(subset="query+intermediate"))
    optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
    for _ in range(2):
        run(model).square().mean().backward()
        optimiser.step()
    for name, p in model.named_parameters():
        change = (p - before[name]).detach()
        if name.endswith("attn.c_attn.bias"):
            assert change[:16].any() and not change[16:].any()
        else:
            assert bool(change.any()) == name.endswith("mlp.c_fc.bias"), name
    assert thrifty.attach(tiny("gpt2"), thrifty.BitFit(subset="query+intermediate")).summary().in_place == 2 * (16 + 64)


def test_biases_of_stock_attention_count_too() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    at = thrifty.attach(model, thrifty.BitFit(), example=torch.randn(1, 3, 16))
    assert count(at) == 48 + 16 + 32 + 16 + 2 * 16


def test_tasks_swap(tmp_path: Any) -> None:
    model = tiny("bert")
    base = run(model)
    outputs = {}
    for i, name in enumerate("ab"):
        at = thrifty.attach(model, thrifty.BitFit())
        shake(at, 0.1 * (i + 1))
        outputs[name] = run(model)
        at.save(tmp_path / name)
        at.detach()
        torch.testing.assert_close(run(model), base)
    for name in "aba":
        at = thrifty.load(model, tmp_path / name)
        torch.testing.assert_close(run(model), outputs[name], atol=0, rtol=0)
        at.detach()


def test_a_shift_of_a_linear_model_is_the_change_of_its_bias() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4)
    y = model(x)
    at = thrifty.attach(model, thrifty.BitFit(), example=x)
    with torch.no_grad():
        at.parameters()[0].add_(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(model(x) - y, torch.tensor([1.0, 2.0, 3.0]).expand(5, 3))


def test_an_unknown_subset() -> None:
    with pytest.raises(NoSuchSetting, match="subset"):
        thrifty.attach(tiny("bert"), thrifty.BitFit(subset="some"))


# -- LayerNorm tuning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "wanted"), [("bert-base", 38_400), ("t5-base", 47_616), ("llama-7b", 65 * 4096)])
def test_layernorm_counts(backbone: str, wanted: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.LayerNormTuning())) == wanted


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "vit", "resnet"])
def test_layernorm_moves_norms_alone(kind: str) -> None:
    model = tiny(kind)
    if kind == "resnet":
        model.train()
    moved = frozen_stay(model, thrifty.attach(model, thrifty.LayerNormTuning()))
    norms = {n for n, m in model.named_modules() if "Norm" in type(m).__name__}
    assert moved and all(n.rpartition(".")[0] in norms and n.rpartition(".")[2] in ("weight", "bias") for n in moved)


def test_a_parameter_called_norm_does_not_hide_the_others() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)])
            self.norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.layers[0](x))

    assert count(thrifty.attach(Plain(), thrifty.LayerNormTuning(), example=torch.randn(1, 3, 8))) == 3 * 16


# -- linear probe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "wanted"), [("bert", 34), ("vit", 34), ("deit", 68), ("resnet", 34)])
def test_the_probe_trains_the_head(kind: str, wanted: int) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.LinearProbe())
    assert count(at) == wanted and not at.plan
    before = run(model)
    assert all("classifier" in n for n in frozen_stay(model, at))
    assert not torch.equal(run(model), before)
    at.detach()
    assert torch.equal(run(model), before)


def test_a_probe_needs_a_head_of_its_own() -> None:
    with pytest.raises(NoSuchSite, match="head"):
        thrifty.attach(published("bert-base"), thrifty.LinearProbe())
    with pytest.raises(HalfAdapted, match="tied"):  # GPT-2's head is its embedding
        thrifty.attach(tiny("gpt2"), thrifty.LinearProbe())


# -- full fine-tuning -----------------------------------------------------------------------------------------------------


def test_full_trains_everything_and_gives_it_back() -> None:
    model = tiny("bert")
    base, before = run(model), {n: p.clone() for n, p in model.state_dict().items()}
    at = thrifty.attach(model, thrifty.FullFineTuning())
    assert count(at) == sum(p.numel() for p in model.parameters())
    assert torch.equal(run(model), base)
    frozen_stay(model, at)
    at.detach()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_full_counts() -> None:
    for backbone, wanted in (("bert-base", 109_482_240), ("t5-base", 222_903_552), ("gpt2-medium", 354_823_168)):
        assert count(thrifty.attach(published(backbone), thrifty.FullFineTuning())) == wanted


def test_full_moves_statistics_and_keeps_them_in_the_file(tmp_path: Any) -> None:
    model = tiny("resnet").train()
    at = thrifty.attach(model, thrifty.FullFineTuning())
    shake(at, 0.05)
    start = model.resnet.embedder.embedder.normalization.running_mean.clone()
    run(model)
    assert not torch.equal(model.resnet.embedder.embedder.normalization.running_mean, start)
    at.save(tmp_path / "full")
    fresh = tiny("resnet")
    thrifty.load(fresh, tmp_path / "full")
    assert torch.equal(run(fresh.eval()), run(model.eval()))
    at.detach()
    assert torch.equal(model.resnet.embedder.embedder.normalization.running_mean, start)


def test_what_the_model_keeps_fixed_stays_fixed() -> None:
    model = tiny("bert")
    table = model.bert.embeddings.position_embeddings.weight.requires_grad_(False)
    at = thrifty.attach(model, thrifty.FullFineTuning())
    assert count(at) == sum(p.numel() for p in model.parameters()) - table.numel() and not table.requires_grad


def test_names() -> None:
    assert find("full") is thrifty.FullFineTuning and find("probe") is find("head") is thrifty.LinearProbe
    with pytest.raises(NoSuchSetting, match="bitfit"):
        find("bitfti")
