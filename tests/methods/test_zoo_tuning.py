"""Zoo-Tuning: mixtures of convolutions, against loops and reference arrays; counts of ResNet-50; Lite as one plain network."""
from __future__ import annotations

import pytest
import small_zoos as small
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import golden
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods.depth.flops import flops
from thrifty.methods.zoo_tuning import collapse
from thrifty.testing import PROMISES, contract
from thrifty.zoo import gather
from thrifty.zoo.aggregation import Aggregated

EXAMPLE = {"pixel_values": small.pictures(2, 3)}


class Convolutions(nn.Module):
    """One convolution for each model, beside each other."""

    def __init__(self, count: int, *numbers: int, **more: object) -> None:
        super().__init__()
        self.every = nn.ModuleList(nn.Conv2d(*numbers, **more) for _ in range(count))  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.every[0](x)


def aggregate(model: Convolutions, align: bool = True, lite: bool = False) -> tuple[thrifty.Attachment, Aggregated]:
    at = thrifty.core.Attachment(model)
    paths = [f"every.{i}" for i in range(len(model.every))]
    edit = at.put(thrifty.core.site.at_path(model, "every.0", "conv", None, -1, "", at.seen), Aggregated, models=paths, align=align,
                  lite=lite)
    return at, edit  # type: ignore[return-value]


def shake(edit: nn.Module, size: float = 0.5) -> None:
    with torch.no_grad():
        for p in edit.parameters():
            p.add_(size * torch.randn(p.shape))


def gates_of(edit: Aggregated, x: torch.Tensor) -> torch.Tensor:
    hidden = torch.clamp(x.mean((2, 3)) @ edit.U1.T, min=0)
    return 1 / (1 + torch.exp(-(hidden @ edit.U2.T + edit.b2)))


@pytest.mark.parametrize("more", [{}, {"padding": 1, "stride": 2, "bias": False}, {"groups": 2, "padding": 2, "dilation": 2},
                                  {"padding": 1, "padding_mode": "circular"}], ids=str)
@pytest.mark.parametrize("align", [True, False])
def test_one_grouped_convolution_is_a_loop_over_pictures(align: bool, more: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = Convolutions(3, 6, 8, 3, **more)
    _, edit = aggregate(model, align)
    shake(edit)
    x = torch.randn(4, 6, 7, 7)
    y, gates = model(x), gates_of(edit, x)
    for b in range(4):
        weight = sum(g * (torch.einsum("op,pikl->oikl", edit.T[e], conv.weight) if align else conv.weight)
                     for e, (g, conv) in enumerate(zip(gates[b], model.every, strict=True)))
        bias = None if model.every[0].bias is None else sum(g * conv.bias for g, conv in zip(gates[b], model.every, strict=True))
        plain = nn.Conv2d(6, 8, 3, **more)  # type: ignore[arg-type]
        plain.weight = nn.Parameter(weight)
        if bias is not None:
            plain.bias = nn.Parameter(bias)
        assert torch.allclose(y[b], plain(x[b : b + 1])[0], atol=1e-5)


def test_one_model_with_an_open_gate_is_that_model() -> None:
    model = Convolutions(1, 4, 5, 3)
    x = torch.randn(2, 4, 6, 6)
    wanted = model(x)
    _, edit = aggregate(model)
    with torch.no_grad():
        edit.b2.fill_(200.0)
    assert torch.allclose(model(x), wanted, atol=1e-6)


def test_models_alike_are_scaled_by_the_sum_of_gates() -> None:
    model = Convolutions(3, 4, 5, 3, bias=False)
    for conv in model.every:
        conv.weight = nn.Parameter(model.every[0].weight.detach().clone())
    x = torch.randn(2, 4, 6, 6)
    plain = model(x)
    _, edit = aggregate(model)
    assert torch.equal(edit.T, torch.eye(5).repeat(3, 1, 1)) and not edit.b2.any()
    assert torch.allclose(model(x), gates_of(edit, x).sum(1)[:, None, None, None] * plain, atol=1e-5)


def test_one_open_gate_picks_one_model() -> None:
    model = Convolutions(3, 4, 5, 3)
    x = torch.randn(2, 4, 6, 6)
    wanted = F.conv2d(x, model.every[2].weight, model.every[2].bias)
    _, edit = aggregate(model, align=False)
    with torch.no_grad():
        edit.U2.zero_()
        edit.b2.copy_(torch.tensor([-200.0, -200.0, 200.0]))
    assert torch.allclose(model(x), wanted, atol=1e-6)


def test_lite_against_reference_arrays() -> None:
    g = golden("vision_zoo_lite1")
    model = Convolutions(3, 6, 8, 3, padding=1, bias=False)
    _, edit = aggregate(model, lite=True)
    with torch.no_grad():
        for conv, weight in zip(model.every, g["w/weight"], strict=True):
            conv.weight.copy_(weight)
        edit.T.copy_(g["w/align_conv"].view(3, 8, 8))
        edit.U1.copy_(g["w/attention.1.weight"].flatten(1))
        edit.U2.copy_(g["w/attention.3.weight"].flatten(1))
        edit.b2.copy_(g["w/attention.3.bias"])
    edit.train()
    assert torch.allclose(model(g["in/x"]), g["out/out_train"], atol=1e-5)
    assert torch.allclose(edit.G, g["out/buffer_after_one_step"], atol=1e-6) and not edit.G.requires_grad
    edit.eval()
    assert torch.allclose(model(g["in/x"]), g["out/out_eval"], atol=1e-5)


def test_counts_of_five_resnet_50() -> None:
    with torch.device("meta"):
        models = [hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=2)) for _ in range(5)]
        zoo = gather(models, list("abcde"), 2)
    at = thrifty.attach(zoo, thrifty.ZooTuning(), check=False)
    sizes = {name: p.numel() for name, p in at.named_parameters() if "#zoo-head" not in name}
    aligned = {name: n for name, n in sizes.items() if name.endswith(":T")}
    gates = sum(n for name, n in sizes.items() if name.endswith((":U1", ":U2", ":b2")))
    norms = sum(n for name, n in sizes.items() if "normalization" in name)
    models_own = sum(n for name, n in sizes.items() if name.endswith("convolution.weight"))
    assert (models_own, sum(aligned.values()), gates, norms) == (117_274_560, 5_918_720, 5_007_381, 53_120)
    assert len(aligned) == 10 and sum(sizes.values()) == 128_253_781


def tuned(lite: bool = False, **more: object) -> tuple[nn.Module, thrifty.Attachment]:
    zoo = small.zoo(small.resnet(1), small.resnet(2))
    return zoo, thrifty.attach(zoo, thrifty.ZooTuning(lite=lite, **more), example=EXAMPLE)


def test_batch_norms_start_from_the_mean_and_anew() -> None:
    zoo, at = tuned()
    fresh = small.zoo(small.resnet(1), small.resnet(2))
    path = "resnet.embedder.embedder.normalization"
    mine = zoo.trunk.base0.get_submodule(path)
    one, two = (fresh.trunk.base(i).get_submodule(path) for i in range(2))
    assert torch.equal(mine.weight, (one.weight + two.weight) / 2) and torch.equal(mine.bias, (one.bias + two.bias) / 2)
    assert not mine.running_mean.any() and bool((mine.running_var == 1).all())
    at.detach()
    assert torch.equal(mine.weight, one.weight) and torch.equal(mine.running_mean, one.running_mean)
    zoo, _ = tuned(reset=False)
    mine = zoo.trunk.base0.get_submodule(path)
    assert torch.equal(mine.running_var, (one.running_var + two.running_var) / 2)


def test_lite_does_not_look_at_the_batch_and_collapses() -> None:
    torch.manual_seed(1)
    zoo, at = tuned(lite=True, align="all")
    for edit in at.edits.values():
        shake(edit, 0.1)
    zoo.train()
    for turn in range(3):
        zoo(small.pictures(6, turn))
    zoo.eval()
    x = small.pictures(5, 9)
    with torch.no_grad():
        together = zoo(x)["logits"]
        assert float(together.std(0).min()) > 1e-4
        assert torch.allclose(zoo(x[2:3])["logits"][0], together[2], atol=1e-6)
        plain = collapse(at)
        assert type(plain) is hf.ResNetForImageClassification and not any("edits" in name for name, _ in plain.named_modules())
        assert torch.allclose(plain(x).logits, together, atol=1e-5)
        assert torch.equal(zoo(x)["logits"], together), "collapsing leaves the zoo as it was"
    with pytest.raises(Unfit, match="lite=True"):
        collapse(tuned()[1])


def test_only_one_architecture_of_convolutions_is_merged() -> None:
    with pytest.raises(Unfit, match=r"'b' has not that of 'a'.*resnet\.encoder\.stages\.0\.layers\.1"):
        thrifty.attach(small.zoo(small.resnet(1), small.resnet(2, depths=(1, 2))), thrifty.ZooTuning(), example=EXAMPLE)
    with pytest.raises(Unfit, match="'b' has not that of 'a'"):
        thrifty.attach(small.zoo(small.resnet(1), small.vit(2)), thrifty.ZooTuning(), example=EXAMPLE)
    with pytest.raises(Unfit, match="'a' has 'vit"):
        thrifty.attach(small.zoo(small.vit(1), small.vit(2)), thrifty.ZooTuning(), example=EXAMPLE)
    with pytest.raises(NoSuchSetting, match="align"):
        thrifty.attach(small.zoo(small.resnet(1), small.resnet(2)), thrifty.ZooTuning(align="some"), example=EXAMPLE)


@pytest.mark.parametrize("lite", [False, True])
def test_limits_are_on_what_runs(lite: bool) -> None:
    def sizes() -> tuple[int, int]:
        zoo, at = tuned(lite=lite)
        if not lite:
            return sum(p.numel() for p in at.parameters()), flops(zoo, {"pixel_values": small.pictures(1)}) // 2
        plain = collapse(at)
        return sum(p.numel() for p in plain.parameters()), flops(plain, {"pixel_values": small.pictures(1)}) // 2

    parameters, operations = sizes()
    tuned(lite=lite, params=parameters / 1e6, flops=operations / 1e9)
    with pytest.raises(Unfit, match=r"M parameters here, more than params="):
        tuned(lite=lite, params=(parameters - 1) / 1e6)
    with pytest.raises(Unfit, match=r"G operations for a picture here, more than flops="):
        tuned(lite=lite, flops=(operations - 1) / 1e9)
    with pytest.raises(NoSuchSetting, match="flops"):
        tuned(flops=-1.0)


@pytest.mark.parametrize("promise", [p for p in PROMISES if p is not contract.routes_rows], ids=lambda p: p.__name__)
def test_promises(promise: contract.Promise) -> None:
    promise(thrifty.ZooTuning(), small.backbone(small.zoo(*(small.resnet(i, depths=(1, 1)) for i in (1, 2)))))
