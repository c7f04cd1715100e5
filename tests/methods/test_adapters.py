"""Houlsby, Pfeiffer and parallel adapters: reference arrays, published counts, and what their equations promise."""
from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, DeadEdit, NoSuchSetting, NoSuchSite
from thrifty.methods import make
from thrifty.methods.branches.bottleneck import ACTS


class Tail(nn.Module):
    """How a post-norm layer ends: the sub-layer's result, the residual, the normalisation."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.result, self.norm = nn.Identity(), nn.LayerNorm(width, eps)

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.result(h) + residual)


class Tails(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.layers = nn.ModuleList([Tail(width, eps)])

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.layers[0](h, residual)


@pytest.mark.parametrize(("name", "method"), [
    ("nlp_houlsby_adapterhub", thrifty.Houlsby(rank=4, preset="adapterhub", where="after.mlp")),
    ("nlp_pfeiffer", thrifty.Pfeiffer(rank=4))])
def test_reference_arrays(name: str, method: Any) -> None:
    g = golden(name)
    model = Tails(12, g["hp/layernorm_eps"]).double()
    model.layers[0].norm.load_state_dict({"weight": g["w/layernorm_weight"], "bias": g["w/layernorm_bias"]})
    example = (g["in/sublayer_out"], g["in/layer_residual"])
    at = thrifty.attach(model, method, example=example, roles={r"\.result$": "after.mlp", r"\.norm$": "norm.mlp"})
    (edit,) = at.edits.values()
    with torch.no_grad():
        for layer in ("down", "up"):
            for kind in ("weight", "bias"):
                getattr(getattr(edit, layer), kind).copy_(g[f"w/{layer}_{kind}"])
    y = model(*example)
    torch.testing.assert_close(y, g["out/layer"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.branch(g["out/adapter_input"]), g["out/up"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    for layer in ("down", "up"):
        for kind in ("weight", "bias"):
            grad = getattr(getattr(edit, layer), kind).grad
            torch.testing.assert_close(grad, g[f"grad/{layer}_{kind}"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("backbone", "rank", "adapters", "norms"), [
    ("bert-base", 8, 313_536, 38_400), ("bert-base", 48, 1_789_056, 38_400), ("bert-base", 64, 2_379_264, 38_400),
    ("bert-base", 256, 9_461_760, 38_400), ("t5-base", 24, 1_807_488, 47_616), ("llama-7b", 64, 33_820_672, 65 * 4096)])
def test_counts_of_houlsby(backbone: str, rank: int, adapters: int, norms: int) -> None:
    summary = thrifty.attach(published(backbone), thrifty.Houlsby(rank=rank)).summary()
    assert (summary.tuner, summary.in_place) == (adapters, norms)


@pytest.mark.parametrize(("backbone", "rank", "wanted"), [
    ("bert-base", 0, 894_528), ("bert-base", 8, 156_768), ("bert-base", 64, 1_189_632), ("bert-base", 256, 4_730_880),
    ("llama-7b", 0, 67_248_128)])
def test_counts_of_pfeiffer(backbone: str, rank: int, wanted: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.Pfeiffer(rank=rank))) == wanted


@pytest.mark.parametrize(("backbone", "rank", "wanted"), [("bart-large", 512, 25_202_688), ("roberta-base", 16, 304_320)])
def test_counts_of_the_parallel_adapter(backbone: str, rank: int, wanted: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.ParallelAdapter(rank=rank))) == wanted


def test_houlsby_defaults_are_the_authors() -> None:
    model = published("bert-base")
    assert thrifty.attach(model, thrifty.Houlsby()).summary().tuner == 2_379_264
    assert make("double_seq_bn") == thrifty.Houlsby(preset="adapterhub")
    hub = thrifty.attach(published("bert-base"), make("double_seq_bn")).summary()
    assert (hub.tuner, hub.in_place) == (1_789_056, 0)


def test_houlsby_starts_near_the_base_and_at_it_without_the_second_projection() -> None:
    model = tiny("bert")
    base = run(model)
    at = thrifty.attach(model, thrifty.Houlsby())
    for edit in at.edits.values():
        for weight in (edit.down.weight, edit.up.weight):
            assert 5e-4 < float(weight.std()) < 1e-3 and float(weight.abs().max()) <= 2e-3
        assert not edit.down.bias.any() and not edit.up.bias.any()
    assert 0 < float((run(model) - base).abs().max()) < 1e-3
    for edit in at.edits.values():
        nn.init.zeros_(edit.up.weight)
    assert torch.equal(run(model), base)


def test_what_moves_with_houlsby() -> None:
    model = tiny("bert")
    moved = frozen_stay(model, thrifty.attach(model, thrifty.Houlsby(rank=4)))
    own = {n for n in moved if ".edits." not in n}
    assert own == {n for n, _ in model.named_parameters() if "LayerNorm" in n and ".edits." not in n} and len(own) == 10
    assert not any("pooler" in n or "classifier" in n for n in moved)
    assert len(moved - own) == 2 * 2 * 4


def test_a_houlsby_layer_by_hand() -> None:
    model = tiny("bert").double()
    at = thrifty.attach(model, thrifty.Houlsby(rank=4))
    shake(at)
    first, second = (e for n, e in at.edits.items() if "layer.0." in n)
    layer, x = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    y = layer(x)
    y = y if isinstance(y, Tensor) else y[0]
    at.disable(lambda row: True)
    with torch.no_grad():
        for name, p in at.named_parameters():  # switched off, the normalisations are those of the base
            if name.startswith("base:"):
                p.copy_(at.stash[name[5:]])

    def adapter(edit: Any, h: Tensor) -> Tensor:
        return h + edit.up(F.gelu(edit.down(h), approximate="tanh"))

    attention, out = layer.attention, layer.output
    a = attention.output.LayerNorm(x + adapter(first, attention.output.dense(attention.self(x)[0])))
    expected = out.LayerNorm(a + adapter(second, out.dense(F.gelu(layer.intermediate.dense(a)))))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
@pytest.mark.parametrize("method", [
    thrifty.Houlsby(rank=4), thrifty.Pfeiffer(rank=4), thrifty.Pfeiffer(rank=4, reads="sublayer"),
    thrifty.ParallelAdapter(rank=4)
], ids=["houlsby", "pfeiffer", "sublayer", "parallel"])
def test_identity_with_a_zero_second_projection_on_every_family(kind: str, method: Any) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, method)
    with at.disabled():
        base = run(model)
    for edit in at.edits.values():
        if hasattr(edit, "up"):
            nn.init.zeros_(edit.up.weight)
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)
    shake(at)
    assert not torch.allclose(run(model), base, atol=1e-3)
    run(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in at.named_parameters() if n.startswith("edit:"))
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)
    assert not any("edits" in n for n in model.state_dict())


def test_t5_adapts_no_cross_attention_unless_asked() -> None:
    assert len(thrifty.attach(tiny("t5"), thrifty.Houlsby(rank=2)).edits) == 8
    wide = thrifty.attach(tiny("t5"), thrifty.Houlsby(rank=2, where="after.*"))
    assert sum(row.role == "after.cross" for row in wide.plan) == 2 and len(wide.plan) == 10


def test_padding_and_the_order_of_units_do_not_matter() -> None:
    model = tiny("bert").double()
    at = thrifty.attach(model, thrifty.Houlsby(rank=4))
    shake(at)
    y = run(model)
    padded = model(input_ids=F.pad(IDS, (0, 3)), attention_mask=F.pad(MASK, (0, 3))).logits
    torch.testing.assert_close(padded, y)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for edit in at.edits.values():
            edit.down.weight.copy_(edit.down.weight[order]), edit.down.bias.copy_(edit.down.bias[order])
            edit.up.weight.copy_(edit.up.weight[:, order])
    torch.testing.assert_close(run(model), y)


def test_a_pre_norm_pfeiffer_reads_the_sum() -> None:
    model = tiny("llama")
    block, x = model.model.layers[0], torch.randn(1, 3, 16)
    rotary = model.model.rotary_emb(x, torch.arange(3)[None])
    base = block(x, position_embeddings=rotary)
    base = base if isinstance(base, Tensor) else base[0]
    at = thrifty.attach(model, thrifty.Pfeiffer(rank=4))
    shake(at)
    edit = next(iter(at.edits.values()))
    y = block(x, position_embeddings=rotary)
    y = y if isinstance(y, Tensor) else y[0]
    torch.testing.assert_close(y, base + edit.up(F.relu(edit.down(base))))


def test_pfeiffer_freezes_every_norm_and_starts_as_adapterhub() -> None:
    model = tiny("bert", hidden_size=64)
    at = thrifty.attach(model, thrifty.Pfeiffer())
    assert all(p.shape[0] in (4, 64) for p in at.parameters()) and not at.base
    drawn = torch.cat([e.up.weight.flatten() for e in at.edits.values()] + [e.down.weight.flatten() for e in at.edits.values()])
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.1)
    assert all(".edits." in n for n in frozen_stay(model, at))


def test_parallel_reads_what_the_network_reads() -> None:
    model = tiny("bert").double()
    base = run(model)
    at = thrifty.attach(model, thrifty.ParallelAdapter(rank=4, where="block[0]"))
    assert torch.equal(run(model), base)
    shake(at)
    edit = next(e for e in at.edits.values() if hasattr(e, "up"))
    layer, a = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    y = layer.output(layer.intermediate(a), a)
    at.disable()
    h = layer.output.dense(F.gelu(layer.intermediate.dense(a)))
    expected = layer.output.LayerNorm(a + h + 2.0 * edit.up(F.relu(edit.down(a))))
    torch.testing.assert_close(y, expected)


def test_scales_of_the_parallel_adapter() -> None:
    outputs = {}
    for scale, stretch in ((4.0, 1.0), (1.0, 4.0), (0.0, 1.0)):
        model = tiny("bert").double()
        base = run(model)
        at = thrifty.attach(model, thrifty.ParallelAdapter(rank=4, scale=scale))
        shake(at)
        with torch.no_grad():
            for edit in at.edits.values():
                if hasattr(edit, "up"):
                    edit.up.weight.mul_(stretch), edit.up.bias.mul_(stretch)
        outputs[scale, stretch] = run(model)
    torch.testing.assert_close(outputs[4.0, 1.0], outputs[1.0, 4.0])
    torch.testing.assert_close(outputs[0.0, 1.0], base)


def test_without_activation_the_parallel_adapter_is_a_low_rank_update_of_a_linear_network() -> None:
    model = tiny("bert", hidden_act="linear").double()
    at = thrifty.attach(model, thrifty.ParallelAdapter(rank=4, scale=0.5, act="identity", where="block[0]"))
    shake(at)
    edit = next(e for e in at.edits.values() if hasattr(e, "up"))
    layer, a = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    y = layer.output(layer.intermediate(a), a)
    at.disable()
    product = layer.output.dense.weight @ layer.intermediate.dense.weight + 0.5 * edit.up.weight @ edit.down.weight
    bias = layer.output.dense.weight @ layer.intermediate.dense.bias + layer.output.dense.bias
    bias = bias + 0.5 * (edit.up.weight @ edit.down.bias + edit.up.bias)
    torch.testing.assert_close(y, layer.output.LayerNorm(a @ product.T + bias + a))


def test_taps_survive_checkpoints_copies_and_files() -> None:
    model = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    at = thrifty.attach(model, thrifty.ParallelAdapter(rank=4))
    shake(at)
    run(model).square().sum().backward()
    plain = [p.grad.clone() for p in at.parameters()]
    for p in at.parameters():
        p.grad = None
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    y = run(model)
    twin = copy.deepcopy(model)
    y.square().sum().backward()
    for p, grad in zip(at.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, grad)
    model.eval(), twin.eval()
    assert torch.equal(run(twin), run(model)) and not at.context.taps


def test_pickled() -> None:
    model = tiny("bert")
    shake(thrifty.attach(model, thrifty.ParallelAdapter(rank=4, act="identity")))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(run(torch.load(file, weights_only=False)), run(model))


@pytest.mark.parametrize("method", [thrifty.Houlsby(rank=4), thrifty.Pfeiffer(rank=4), thrifty.ParallelAdapter(rank=4)],
                         ids=lambda m: m.name)
def test_saved_and_loaded(method: Any, tmp_path: Any) -> None:
    model = tiny("bert")
    at = thrifty.attach(model, method)
    shake(at)
    at.save(tmp_path / "adapter")
    y = run(model)
    fresh = tiny("bert")
    thrifty.load(fresh, tmp_path / "adapter")
    assert torch.equal(run(fresh), y)


def test_activations() -> None:
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(ACTS["gelu_tanh"](x), 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))))
    torch.testing.assert_close(ACTS["swish"](x), x * torch.sigmoid(x))


def test_refusals() -> None:
    for method, setting in ((thrifty.Houlsby(preset="google"), "preset"), (thrifty.Pfeiffer(act="gelu_new"), "act"),
                            (thrifty.Pfeiffer(reads="x"), "reads"), (thrifty.ParallelAdapter(rank=0), "rank"),
                            (thrifty.ParallelAdapter(dropout=1.0), "dropout")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), method)
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), thrifty.ParallelAdapter())
    with pytest.raises(NoSuchSite, match="feed-forward"):
        thrifty.attach(tiny("resnet"), thrifty.Pfeiffer())
    for method in (thrifty.Houlsby(), thrifty.Pfeiffer(), thrifty.ParallelAdapter()):
        with pytest.raises(CannotMerge):
            thrifty.attach(tiny("llama"), method).merge()
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.ParallelAdapter())
    at.disable(lambda row: row.role == "mlp.in")
    with pytest.raises(DeadEdit, match="tap"):
        run(model)
