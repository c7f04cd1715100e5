"""The bypass of Res-Tuning: its recursion, its published count, and what it leaves alone."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, count, frozen_stay, published, run, shake, tiny
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thrifty
from thrifty.core.errors import DeadEdit, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.res_tuning_bypass import ResAdapter

KINDS = ["bert", "gpt2", "llama", "t5", "vit"]


def heard(model: nn.Module, **more: object) -> list[Tensor]:
    """What every block of the last stack takes in, and what the last one gives out, of the untouched model."""
    blocks = [site.module for site in thrifty.sites(model, "block")]
    blocks = blocks[len(blocks) // 2 :] if getattr(model.config, "is_encoder_decoder", False) else blocks
    states: list[Tensor] = []
    handles = [b.register_forward_pre_hook(lambda m, a, k: states.append(a[0] if a else k["hidden_states"]), with_kwargs=True)
               for b in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda m, a, y: states.append(y if isinstance(y, Tensor) else y[0])))
    run(model, **more)
    for handle in handles:
        handle.remove()
    return [s.detach() for s in states]


def given(model: nn.Module) -> list[Tensor]:
    """What the last block hands on, with whatever is attached."""
    block = thrifty.sites(model, "block")[-1].module
    found: list[Tensor] = []
    handle = block.register_forward_hook(lambda m, a, y: found.append(y if isinstance(y, Tensor) else y[0]))
    run(model)
    handle.remove()
    return found


@pytest.mark.parametrize(("mix", "wanted"), [("sum", 1_198_848), ("half", 1_198_848), ("learned", 1_198_860)])
def test_counts(mix: str, wanted: int) -> None:
    for backbone in ("vit-b16", "bert-base"):
        assert count(thrifty.attach(published(backbone), thrifty.ResTuningBypass(mix=mix))) == wanted == 12 * 2 * (
            2 * 768 * 32 + 32 + 768) + (12 if mix == "learned" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", ["learned", "half", "sum"])
def test_the_recursion_by_hand(kind: str, mix: str) -> None:
    model = tiny(kind)
    states = heard(model)
    at = thrifty.attach(model, thrifty.ResTuningBypass(rank=3, mix=mix))
    shake(at)
    (edit,) = [e for e in at.edits.values() if list(e.parameters())]

    def tuned(rt: ResAdapter, x: Tensor) -> Tensor:
        hidden = F.gelu(x @ rt.down.weight.T + rt.down.bias)
        return x + hidden @ rt.up.weight.T + rt.up.bias

    bypass = states[0]
    for i, state in enumerate(states[1:]):
        share = {"learned": torch.sigmoid(edit.g[i]) if mix == "learned" else None, "half": 0.5, "sum": None}[mix]
        across, along = tuned(edit.horizontal[i], state), tuned(edit.vertical[i], bypass)
        bypass = across + along if mix == "sum" else share * across + (1 - share) * along
    torch.testing.assert_close(given(model)[0], bypass, rtol=1e-4, atol=1e-4)


def test_identity_adapters_average_what_the_blocks_say() -> None:
    model = tiny("bert").double()
    states = heard(model)
    thrifty.attach(model, thrifty.ResTuningBypass(rank=3, zero=True))
    depth = len(states) - 1
    closed = states[0] / 2**depth + sum(states[i] / 2 ** (depth - i + 1) for i in range(1, depth + 1))
    torch.testing.assert_close(given(model)[0], closed)
    other = tiny("bert").double()
    thrifty.attach(other, thrifty.ResTuningBypass(rank=3, zero=True, mix="sum"))
    torch.testing.assert_close(given(other)[0], sum(states))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_trunk_is_in_the_graph(kind: str) -> None:
    model = tiny(kind).requires_grad_(False)  # torch multiplies otherwise, in the last bit, where a weight wants a gradient
    before = heard(model)
    at = thrifty.attach(model, thrifty.ResTuningBypass(rank=3), also_train=None if kind in ("gpt2", "t5") else "head")
    shake(at)
    wants: list[bool] = []
    for block in [s.module for s in thrifty.sites(model, "block")]:
        block.register_forward_pre_hook(lambda m, a, k: wants.append((a[0] if a else k["hidden_states"]).requires_grad),
                                        with_kwargs=True)
    logits = run(model)
    assert not any(wants) and len(wants) >= 2 and logits.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(heard(model)[:-1], before[:-1], strict=True))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in at.parameters())


def test_freezes_the_base_and_gives_it_back() -> None:
    model = tiny("bert")
    base = run(model)
    at = thrifty.attach(model, thrifty.ResTuningBypass(rank=3))
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    assert not torch.allclose(run(model), base, atol=1e-3)
    with at.disabled():
        assert torch.equal(run(model), base)
    at.detach()
    assert torch.equal(run(model), base)


def test_start_values() -> None:
    torch.manual_seed(0)
    adapter = ResAdapter(300, 100, zero=False)
    bound = (6 / 400) ** 0.5
    for layer in (adapter.down, adapter.up):
        assert layer.weight.abs().max() <= bound and float(layer.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert 0 < layer.bias.abs().max() < 1e-5
    x = torch.randn(4, 300)
    assert torch.equal(ResAdapter(300, 100, zero=True)(x), x)


def test_generation_with_and_without_a_cache() -> None:
    for kind in ("llama", "gpt2", "t5"):
        model = tiny(kind)
        shake(thrifty.attach(model, thrifty.ResTuningBypass(rank=3)), 0.1)
        ask = {"input_ids": IDS[:1], "attention_mask": torch.ones_like(IDS[:1]), "max_new_tokens": 6, "min_new_tokens": 6,
               "do_sample": False}
        assert torch.equal(model.generate(**ask, use_cache=True), model.generate(**ask, use_cache=False))


def test_saves_and_loads(tmp_path: object) -> None:
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.ResTuningBypass(rank=3, mix="sum"))
    shake(at)
    at.save(f"{tmp_path}/a")
    again = tiny("vit")
    thrifty.load(again, f"{tmp_path}/a")
    assert torch.equal(run(again), run(model))


class Recomputed(nn.Module):
    """Blocks that are run again, hooks and all, in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def test_recomputed_blocks_are_refused_by_name() -> None:
    model, x = Recomputed(), torch.randn(2, 3, 8)
    at = thrifty.attach(model, thrifty.ResTuningBypass(rank=3), example=x)
    shake(at)
    with pytest.raises(DeadEdit, match="switch gradient checkpointing off"):
        model(x).sum().backward()


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"mix": "third"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("bert"), make("res-tuning-bypass", **settings))
    with pytest.raises(Unfit, match="none reads the other"):
        thrifty.attach(tiny("swin"), thrifty.ResTuningBypass())
    with pytest.raises(Unfit, match="has 2, 1 are named"):
        thrifty.attach(tiny("bert"), thrifty.ResTuningBypass(where="block[0]"))
