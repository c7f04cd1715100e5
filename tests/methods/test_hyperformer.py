"""HyperFormer and HyperFormer++: reference arrays, published counts, and what their sheet promises."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotCombine, CannotMerge, NoSuchSetting, NoSuchSite, ThriftyError, Unfit
from thrifty.core.routing import tell
from thrifty.methods import make
from thrifty.methods.branches.generated import specialise
from thrifty.methods.hyperformer import Hypernetwork

TASKS = ["rte", "mrpc", "cola"]
GLUE = ["rte", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "cola"]
SMALL = {"rank": 4, "embedding": 8, "hidden": 8}


def attached(kind: str = "bert", name: str = "hyperformer", double: bool = True, **settings: Any) -> tuple[Any, Any]:
    model = tiny(kind).double() if double else tiny(kind)
    return model, thrifty.attach(model, make(name, **{**SMALL, **settings}), tasks=TASKS)


def answer(model: Any, told: Any, **more: Any) -> Tensor:
    with thrifty.task(model, told):
        return run(model, **more)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attended, self.fed = nn.Identity(), nn.Identity()


class Layers(nn.Module):
    """Two results in each of three layers, all from one input, so that every adapter's output can be seen alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.stack([layer.fed(x), layer.attended(x)]) for layer in self.layers])


OFFICIAL = {"up_weight": "up_sampler_hyper_net.weight_generator.0", "up_bias": "up_sampler_hyper_net.bias_generator.0",
            "down_weight": "down_sampler_hyper_net.weight_generator.0", "down_bias": "down_sampler_hyper_net.bias_generator.0",
            "gamma": "post_layernorm_hypernet.weight_generator", "beta": "post_layernorm_hypernet.bias_generator"}


def fill(network: Any, g: dict[str, Any]) -> None:
    linears = [(network.first, "task_hypernet.task_embeding_generator.0"), (network.norm, "LayerNorm"),
               (network.second, "task_hypernet.task_embeding_generator.2")]
    for kind, prefix in enumerate(("feed_forward", "self_attention")):
        linears += [(network.generators[kind][ours], f"{prefix}_{theirs}") for ours, theirs in OFFICIAL.items()]
    with torch.no_grad():
        network.layers.weight.copy_(g["w/layer_id_embeddings.weight"])
        for module, name in linears:
            module.weight.copy_(g[f"w/{name}.weight"])
            module.bias.copy_(g[f"w/{name}.bias"])


def test_reference_arrays() -> None:
    g = golden("nlp_hyperformer")
    x, names = g["in/x"], ("feed_forward", "self_attention")
    model = Layers().double()
    model.register_parameter("anchor", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    method = thrifty.HyperFormer(rank=4, embedding=6, hidden=10, norms=False)
    at = thrifty.attach(model, method, tasks=["a", "b"], example=x,
                        roles={r"\.attended$": "after.attn", r"\.fed$": "after.mlp"})
    shared = at.context.shared
    fill(shared.stacks[0], g)
    with torch.no_grad():
        shared.tasks[1].copy_(g["in/task_embedding"])
    with thrifty.task(model, "b"):
        y = model(x)
    for layer in (0, 2):
        for kind, name in enumerate(names):
            for key, made in shared(1, 0, layer, kind).items():
                wanted = {"gamma": "ln_weight", "beta": "ln_bias"}.get(key, key)
                torch.testing.assert_close(made, g[f"out/layer{layer}.{name}.{wanted}"], atol=1e-10, rtol=0)
            torch.testing.assert_close(y[layer, kind], g[f"out/layer{layer}.{name}.output"], atol=1e-10, rtol=0)
    (y[2, 1] * g["in/probe"]).sum().backward()
    torch.testing.assert_close(shared.tasks[1].grad, g["grad/task_embedding"], atol=1e-10, rtol=0)
    torch.testing.assert_close(shared.stacks[0].layers.weight.grad, g["grad/layer_id_embeddings.weight"], atol=1e-10, rtol=0)
    assert shared.tasks[0].grad is None


@pytest.mark.parametrize(("name", "stack", "whole"), [
    ("hyperformer", 5_120_624, 10_289_376), ("hyperformer++", 2_581_464, 5_211_056)])
def test_counts_on_t5_base(name: str, stack: int, whole: int) -> None:
    at = thrifty.attach(published("t5-base"), make(name), tasks=GLUE)
    assert [sum(p.numel() for p in network.parameters()) for network in at.context.shared.stacks] == [stack, stack]
    assert (at.summary().tuner, at.summary().in_place, count(at)) == (2 * stack + 512, 47_616, whole)
    alone = thrifty.attach(published("t5-base"), make(name), tasks=GLUE[:1])
    assert count(at) - count(alone) == 7 * 64


def test_start() -> None:
    torch.manual_seed(0)
    network = Hypernetwork(64, 128, True, 12, 2, 256, 8)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.1) and not module.bias.any()
    assert float(network.layers.weight.detach().std()) == pytest.approx(1, rel=0.1)
    assert network.norm.eps == 1e-6
    with torch.no_grad():
        spread = [float(network(torch.randn(64), layer, kind)[name].std()) for name in ("gamma", "beta")
                  for layer in range(12) for kind in range(2)]
    assert sum(spread) / len(spread) == pytest.approx(0.08, rel=0.05)  # I has norm 8, the generators deviation 0.01
    model, at = attached("t5")
    assert float((answer(model, 0) - _base(model, at)).abs().max()) > 1e-4


def _base(model: Any, at: Any) -> Tensor:
    with at.disabled():
        return run(model)


@pytest.mark.parametrize("name", ["hyperformer", "hyperformer++"])
def test_a_layer_by_hand(name: str) -> None:
    model, at = attached(name=name)
    shake(at)
    shared, layer, x = at.context.shared, model.bert.encoder.layer[1], torch.randn(2, 5, 16, dtype=torch.float64)
    network = shared.stacks[0]
    with thrifty.task(model, "mrpc"):
        y = layer(x)
    y = y if isinstance(y, Tensor) else y[0]

    def adapter(h: Tensor, kind: int) -> Tensor:
        code = [shared.tasks[1], network.layers.weight[1]] + ([network.kinds.weight[kind]] if name.endswith("++") else [])
        made = network.second(network.first(torch.cat(code)).clamp_min(0))
        made = (made - made.mean()) / (made.var(unbiased=False) + 1e-6).sqrt() * network.norm.weight + network.norm.bias
        made = {k: f(made) for k, f in network.generators[0 if name.endswith("++") else kind].items()}
        low = h @ made["down_weight"].view(4, 16).T + made["down_bias"]
        low = 0.5 * low * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (low + 0.044715 * low**3)))
        high = low @ made["up_weight"].view(16, 4).T + made["up_bias"]
        high = (high - high.mean(-1, keepdim=True)) / (high.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return h + made["gamma"] * high + made["beta"]

    attention, out = layer.attention, layer.output
    a = attention.output.LayerNorm(x + adapter(attention.output.dense(attention.self(x)[0]), 1))
    torch.testing.assert_close(y, out.LayerNorm(a + adapter(out.dense(F.gelu(layer.intermediate.dense(a))), 0)))


def test_where_it_acts_in_t5() -> None:
    model, at = attached("t5")
    assert sorted({row.role for row in at.plan}) == ["after.attn", "after.mlp"] and len(at.plan) == 8
    assert all(at.edits[row.key].port == "input" for row in at.plan)  # of the dropout, which comes after the adapter
    assert [(row.numbers["stack"], row.numbers["layer"], row.numbers["kind"]) for row in at.plan] == [
        (s, layer, kind) for s in (0, 1) for layer in (0, 1) for kind in (1, 0)]
    assert len(at.context.shared.stacks) == 2 and {n for n in at.base if "norm" not in n} == set()
    norms = [n for n, _ in model.named_parameters() if "layer_norm" in n]
    assert set(at.base) == set(norms) and len(norms) == 2 * 2 + 2 * 3 + 2
    assert len(thrifty.attach(tiny("t5"), make("hyperformer", **SMALL, where="after.*"), tasks=TASKS).plan) == 10


def test_what_tasks_share() -> None:
    model, at = attached("t5", "hyperformer++")
    shake(at)
    shared = at.context.shared
    with torch.no_grad():
        shared.tasks[2].copy_(shared.tasks[0])
    first = answer(model, "rte")
    assert torch.equal(first, answer(model, "cola")) and not torch.allclose(first, answer(model, "mrpc"))
    second = answer(model, "mrpc")
    with torch.no_grad():
        shared.tasks[0].add_(0.5)
    assert torch.equal(answer(model, "mrpc"), second) and not torch.allclose(answer(model, "rte"), first)
    network = shared.stacks[0]
    with torch.no_grad():
        network.layers.weight[1] = network.layers.weight[0]
        network.kinds.weight[1] = network.kinds.weight[0]
    made = [shared(1, 0, layer, kind) for layer in (0, 1) for kind in (0, 1)]
    assert all(torch.equal(made[0][name], other[name]) for other in made for name in made[0])


def test_a_batch_trains_its_own_embedding_only() -> None:
    model, at = attached(double=False)
    tell(model, "mrpc")
    moved = frozen_stay(model, at)
    norms = {n for n, _ in model.named_parameters() if "LayerNorm" in n}
    assert norms <= moved and not any("pooler" in n or "classifier" in n for n in moved)
    assert {n for n in moved if ".tasks." in n} == {"edits.default_shared.tasks.1"}
    assert [p.grad is None for p in at.context.shared.tasks] == [True, False, True]


def test_rows_of_different_tasks_and_padding() -> None:
    model, at = attached()
    shake(at)
    mixed = answer(model, ["cola", "rte"])
    torch.testing.assert_close(mixed[:1], answer(model, "cola")[:1])
    torch.testing.assert_close(mixed[1:], answer(model, "rte")[1:])
    with thrifty.task(model, "cola"):
        padded = model(input_ids=F.pad(IDS, (0, 3)), attention_mask=F.pad(MASK, (0, 3))).logits
    torch.testing.assert_close(padded, answer(model, "cola"))
    with pytest.raises(ThriftyError, match="of 3 rows were told, but 2"):
        answer(model, ["rte", "rte", "cola"])


@pytest.mark.parametrize("name", ["hyperformer", "hyperformer++"])
def test_kept_adapters_are_the_made_ones(name: str, tmp_path: Any) -> None:
    model, at = attached("t5", name, double=False)
    shake(at)
    wanted = answer(model, "mrpc")
    at.save(tmp_path / "all")
    specialise(at, "mrpc")
    assert torch.equal(run(model), wanted) and torch.equal(answer(model, "mrpc"), wanted)
    assert at.tasks == ["mrpc"] and at.context.shared is None
    assert at.summary().tuner == 8 * (2 * 16 * 4 + 4 + 16 + 2 * 16)
    with pytest.raises(NoSuchSetting, match="no task 'rte'"):
        answer(model, "rte")
    with pytest.raises(Unfit, match="nothing to specialise"):
        specialise(at, "mrpc")
    with pytest.raises(Unfit, match="specialised to 'mrpc'"):
        thrifty.add_tasks(at, ["sst2"])
    run(model).square().sum().backward()
    assert all(p.grad is not None for p in at.parameters())
    at.save(tmp_path / "one", unchanged=True)
    fresh = tiny("t5")
    loaded = thrifty.load(fresh, tmp_path / "one")
    assert torch.equal(run(fresh), wanted) and loaded.tasks == ["mrpc"]
    every = tiny("t5")
    assert thrifty.load(every, tmp_path / "all").tasks == TASKS
    assert torch.equal(answer(every, 1), wanted) and not torch.equal(answer(every, 0), wanted)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_composed_with_another_adapter(kind: str, tmp_path: Any) -> None:
    model, at = attached(kind, double=False, norms=False)
    shake(at)
    wanted = answer(model, ["cola", "rte"])
    at.save(tmp_path / "many")
    alone = tiny(kind)
    composed = thrifty.compose(alone, thrifty.Stack(tmp_path / "many"))
    assert composed.tasks == TASKS and torch.equal(answer(alone, ["cola", "rte"]), wanted)
    wide = tiny(kind)
    thrifty.compose(wide, thrifty.Stack(tmp_path / "many", thrifty.LoRA(rank=2)))
    assert torch.equal(answer(wide, ["cola", "rte"]), wanted)  # what is new starts as nothing
    with pytest.raises(CannotCombine, match="hyperformer tells tasks apart"):
        thrifty.compose(tiny(kind), thrifty.Stack(make("hyperformer"), thrifty.LoRA()))


def test_generating_with_and_without_a_cache() -> None:
    model, at = attached("t5", double=False)
    shake(at)
    written = []
    with thrifty.task(model, ["cola", "rte"]):
        for cache in (True, False):
            written.append(model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6, min_new_tokens=6, use_cache=cache))
        with pytest.raises(ThriftyError, match="beam search"):
            model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=2, num_beams=2)
    assert torch.equal(*written)


def test_a_task_that_joins_later(tmp_path: Any) -> None:
    model, at = attached(double=False)
    shake(at)
    before = answer(model, "rte")
    thrifty.add_tasks(at, ["sst2", "qqp"])
    shared = at.context.shared
    torch.testing.assert_close(shared.tasks[3], torch.stack([shared.tasks[i] for i in range(3)]).mean(0))
    assert shared.tasks[3] is not shared.tasks[4] and len(shared.tasks) == 5
    assert torch.equal(answer(model, "rte"), before)
    answer(model, "sst2").square().sum().backward()
    assert shared.tasks[3].grad.any() and shared.tasks[4].grad is None
    at.save(tmp_path / "adapter", unchanged=True)
    fresh = tiny("bert")
    assert thrifty.load(fresh, tmp_path / "adapter").tasks == [*TASKS, "sst2", "qqp"]
    assert torch.equal(answer(fresh, "sst2"), answer(model, "sst2"))


def test_refusals() -> None:
    with pytest.raises(NoSuchSetting, match="hyperformer serves several tasks"):
        thrifty.attach(tiny("t5"), make("hyperformer"))
    for setting in ("embedding", "hidden"):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("t5"), make("hyperformer", **{setting: 0}), tasks=TASKS)
    with pytest.raises(NoSuchSetting, match="rank"):
        thrifty.attach(tiny("t5"), make("hyperformer", rank=-1), tasks=TASKS)
    with pytest.raises(Unfit, match=r"\[8, 16\] wide"):
        thrifty.attach(tiny("swin"), make("hyperformer", **SMALL), tasks=TASKS)
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), make("hyperformer"), tasks=TASKS)
    model, at = attached()
    with pytest.raises(ThriftyError, match="say which"):
        run(model)
    with pytest.raises(CannotMerge):
        at.merge()
    with pytest.raises(NoSuchSetting, match="no task number 3"):
        answer(model, 3)
    plain = thrifty.attach(tiny("bert"), thrifty.LoRA())
    with pytest.raises(Unfit, match="nothing to specialise"):
        specialise(plain, "rte")
