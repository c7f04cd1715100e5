"""Diff pruning: reference arrays, gates, gradients, projection, both phases of a training, and the sparse file."""
from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import IDS, count, golden, published, run, shake, tiny
from safetensors.torch import load_file
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, ThriftyError, Unfit
from thrifty.methods.diff_pruning import budget, project
from thrifty.methods.sparse.diff_gates import Gates, gate, gates_of
from thrifty.train import training

sys.path.append(str(Path(__file__).parents[1] / "train"))
import small_jobs  # noqa: E402


def diff(**more: Any) -> Any:
    return thrifty.DiffPruning(**{"start": 1.0, "sparsity": 0.1, **more})


def gates(at: Any) -> Gates:
    found = gates_of(at)
    assert found is not None
    return found


def changes(at: Any) -> dict[str, Tensor]:
    """What differs from the base, parameter by parameter."""
    return {n: at.model.get_parameter(n).detach() - original for n, original in at.base.items()}


# -- gates ----------------------------------------------------------------------------------------------------------------


def test_reference_arrays() -> None:
    g = golden("nlp_diff_pruning")
    numbers = {"low": g["hp/l"], "high": g["hp/r"], "temperature": g["hp/tau"]}
    alpha, one = g["in/alpha"].requires_grad_(), g["in/alpha_group"].requires_grad_()
    z, z_group = gate(alpha, g["in/u"], **numbers), gate(one, g["in/u_group"], **numbers)
    for found, name in ((z, "z"), (z_group, "z_group")):
        torch.testing.assert_close(found, g[f"out/{name}"], atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(z.sum(), alpha)[0], g["out/dz_dalpha"], atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(z_group.sum(), one)[0], g["out/dz_group_dalpha"], atol=1e-10, rtol=0)
    model = nn.Sequential(nn.Linear(40, 1, bias=False)).double()
    edit = gates(thrifty.attach(model, thrifty.DiffPruning(low=g["hp/l"], high=g["hp/r"], temperature=g["hp/tau"])))
    with torch.no_grad():
        edit.w[0].copy_(g["in/delta"].view(1, 40)), edit.alpha[0].copy_(alpha.view(1, 40)), edit.group.copy_(one)
    theta = edit.change(0, g["in/u"].view(1, 40), g["in/u_group"].squeeze())
    torch.testing.assert_close(theta[0], g["out/theta_minus_theta0"], atol=1e-10, rtol=0)
    theta.backward(g["in/grad_theta"].view(1, 40))
    torch.testing.assert_close(edit.w[0].grad[0], g["out/grad_delta"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.alpha[0].grad[0], g["out/grad_alpha"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.group.grad.item(), g["out/grad_alpha_group"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.expected(product=False).item(), g["out/l0_elements"] + g["out/l0_group"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.expected(product=True).item(), g["out/l0_elements"] * g["out/l0_group"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("low", "high", "temperature"), [(-1.5, 1.5, 1.0), (-0.1, 1.1, 2 / 3)])
@pytest.mark.parametrize("alpha", [-2.0, 0.0, 1.5])
def test_how_often_a_gate_is_open(low: float, high: float, temperature: float, alpha: float) -> None:
    u = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = gate(torch.full_like(u, alpha), u, low, high, temperature)
    wanted = 1 / (1 + math.exp(-(alpha - temperature * math.log(-low / high))))
    assert z.min() >= 0 and z.max() <= 1 and float((z > 0).double().mean()) == pytest.approx(wanted, abs=0.006)
    still = gate(torch.tensor([alpha]), None, low, high, temperature)
    assert float(still) == pytest.approx(min(1, max(0, (high - low) / (1 + math.exp(-alpha)) + low)), abs=1e-6)


def test_the_penalty_by_hand() -> None:
    for structured in (True, False):
        for l0 in ("product", "sum"):
            at = thrifty.attach(tiny("bert"), method := diff(structured=structured, l0=l0, weight=0.01, low=-0.1, high=1.1))
            shake(at)
            edit, wanted, shift = gates(at), 0.0, math.log(0.1 / 1.1)
            for i, alpha in enumerate(edit.alpha):
                entries = float(torch.sigmoid(alpha - shift).sum())
                group = float(torch.sigmoid(edit.group[i] - shift)) if structured else 1.0
                wanted += group * entries if l0 == "product" else entries + (group if structured else 0.0)
            assert float(method.penalty(at)) == pytest.approx(0.01 * wanted, rel=1e-4)
            method.penalty(at).backward()
            assert all(p.grad is not None for p in edit.alpha) and (not structured or edit.group.grad is not None)


# -- what changes, and what it costs --------------------------------------------------------------------------------------


def test_counts() -> None:
    model = published("bert-base")
    tensors = len(list(model.parameters()))
    at = thrifty.attach(model, thrifty.DiffPruning())
    assert count(at) == 109_482_240 + 2 * 109_482_240 + tensors and at.summary().tuner == 2 * 109_482_240 + tensors
    at = thrifty.attach(published("bert-base"), thrifty.DiffPruning(structured=False))
    assert at.summary().tuner == 2 * 109_482_240
    assert budget(109_482_240, 0.005) == 547_411
    assert budget(sum(p.numel() for p in published("bert-large").parameters()), 0.005) == 1_667_896


@pytest.mark.parametrize("kind", ["bert", "t5", "llama", "vit"])
@pytest.mark.parametrize("training_mode", [True, False])
def test_no_w_no_change(kind: str, training_mode: bool) -> None:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny(kind, **{"t5": {"dropout_rate": 0.0}, "bert": still, "vit": still}.get(kind, {}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    at = thrifty.attach(model, diff())
    with torch.no_grad():
        for alpha in gates(at).alpha:
            alpha.normal_()
    run(model.train(training_mode))
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items())


def test_a_head_that_trains_in_full_has_no_gates() -> None:
    at = thrifty.attach(tiny("bert"), diff(), also_train="classifier.*|bert.pooler.*")
    assert not any(n.startswith(("classifier", "bert.pooler")) for n in gates(at).names)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= at.base.keys()
    assert "classifier.weight" not in thrifty.attach(tiny("bert"), diff()).base
    assert "lm_head.weight" in gates(thrifty.attach(tiny("llama"), diff())).names  # it came with the other weights


def test_gradients_are_those_of_the_closed_form() -> None:
    model = tiny("bert").double()
    at = thrifty.attach(model, diff())
    shake(at, 0.1)
    edit = gates(at)
    run(model).square().sum().backward()
    assert all(model.get_parameter(n).grad is None for n in at.base)
    plain = tiny("bert").double()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if "edits" not in n.split(".")})
    run(plain).square().sum().backward()
    for i, name in enumerate(edit.names):
        g, w = plain.get_parameter(name).grad, edit.w[i].detach()
        s, s_group = edit.alpha[i].detach().sigmoid(), edit.group[i].detach().sigmoid()
        z, z_group = (3 * s - 1.5).clamp(0, 1), (3 * s_group - 1.5).clamp(0, 1)
        dz, dz_group = ((3 * p * (1 - p)) * ((3 * p > 1.5) & (3 * p < 2.5)) for p in (s, s_group))
        torch.testing.assert_close(edit.w[i].grad, g * z * z_group)
        torch.testing.assert_close(edit.alpha[i].grad, g * w * z_group * dz)
        torch.testing.assert_close(edit.group.grad[i], (g * w * z * dz_group).sum())


def test_gates_are_sampled_in_training_alone() -> None:
    model = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    shake(thrifty.attach(model, diff()), 0.1)
    assert torch.equal(run(model), run(model))
    model.train()
    assert not torch.equal(run(model), run(model))


def test_a_model_that_is_entered_by_its_encoder() -> None:
    model = tiny("t5")
    shake(thrifty.attach(model, diff()), 0.3)
    wanted = model.get_encoder()(input_ids=IDS).last_hidden_state
    run(model.train())  # leaves a sample in the weights
    model.eval()
    assert torch.equal(model.get_encoder()(input_ids=IDS).last_hidden_state, wanted)


# -- projection and the second phase --------------------------------------------------------------------------------------


def moved(seed: int = 0, **more: Any) -> tuple[Any, Any]:
    model = tiny("bert")
    at = thrifty.attach(model, diff(**more), also_train="classifier.*")
    shake(at, 0.1)
    return model, at


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("structured", [True, False])
def test_projection_keeps_the_largest_changes(raw: bool, structured: bool) -> None:
    model, at = moved(structured=structured)
    edit, base = gates(at), {n: t.clone() for n, t in at.base.items()}
    torch.manual_seed(3)
    edit.train()
    sampled = {n: edit.change(i).detach() for i, n in enumerate(edit.names)}
    w = {n: edit.w[i].detach().clone() for i, n in enumerate(edit.names)}
    head = {n: model.get_parameter(n).detach() - base[n] for n in ("classifier.weight", "classifier.bias")}
    torch.manual_seed(3)
    project(at, edit, 0.1, raw)
    total = sum(t.numel() for t in (*sampled.values(), *head.values()))
    kept = {n: at.masks.get(n, torch.zeros(t.shape, dtype=torch.bool)) for n, t in sampled.items()}
    smallest = min(float(t[kept[n]].abs().min()) for n, t in sampled.items() if kept[n].any())
    largest = max(float(t[~kept[n]].abs().max()) for n, t in sampled.items() if not kept[n].all())
    counted = sum(int(mask.sum()) for mask in kept.values())
    assert smallest >= largest and 0 < counted <= budget(total, 0.1)
    assert counted + sum(int((t.abs() > largest).sum()) for t in head.values()) == budget(total, 0.1)
    for name, mask in kept.items():
        change = model.get_parameter(name).detach() - base[name]
        torch.testing.assert_close(change, (w if raw else sampled)[name] * mask, atol=1e-6, rtol=1e-5)
        assert torch.equal(model.get_parameter(name)[~mask], base[name][~mask])
    assert all(torch.equal(model.get_parameter(n).detach() - base[n], t) for n, t in head.items())
    assert not at.plan and not hasattr(model, "edits")


def test_a_fixed_mask_stays_and_the_rest_does_not_move() -> None:
    model, at = moved()
    method = at.method
    optimiser = torch.optim.AdamW(method.groups(at, 0.01, 0.1))
    method.step(at, 1, 4)
    assert gates_of(at) is not None and not method.settled(at)
    method.step(at, 2, 4)
    assert gates_of(at) is None and method.settled(at) and method.penalty(at) == 0.0
    masks, before = {n: m.clone() for n, m in at.masks.items()}, {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        optimiser.zero_grad()
        run(model).square().sum().backward()
        optimiser.step()
    for name, p in model.named_parameters():
        change = p.detach() != before[name]
        assert not change[~masks[name]].any() if name in masks else bool(change.any()) == (name in at.base), name
    assert any((model.get_parameter(n) != before[n]).any() for n in masks) and at.masks.keys() == masks.keys()
    at.detach()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny("bert").parameters(), strict=True))


def test_the_file_is_sparse(tmp_path: Path) -> None:
    model, at = moved(sparsity=0.01, fix=1.0)
    at.method.finish(at)
    at.save(tmp_path / "a")
    held = load_file(tmp_path / "a" / "adapter.safetensors")
    sparse = {n: t for n, t in held.items() if "classifier" not in n}
    whole = sum(p.numel() for p in model.parameters())
    assert sum(t.numel() for n, t in sparse.items() if n.startswith("base:")) <= budget(whole, 0.01)
    assert sum(t.numel() * t.element_size() for t in sparse.values()) <= 8 * budget(whole, 0.01)
    again = tiny("bert")
    loaded = thrifty.load(again, tmp_path / "a")
    assert torch.equal(run(again), run(model)) and loaded.masks.keys() == at.masks.keys()
    loaded.merge(keep_base=False)
    assert list(again.state_dict()) == list(tiny("bert").state_dict()) and torch.equal(run(again), run(model))


def test_optimiser_groups() -> None:
    model, at = moved()
    groups = at.method.groups(at, 1e-5, 0.1)
    names = {id(p): n for n, p in at.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"], g.get("constant", False)) for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    for name, group in found.items():
        if name.startswith("base:classifier"):
            assert group == (1e-5, 0.1 if name.endswith("weight") else 0.0, False)
        elif name.startswith("base:"):
            assert group == (5e-5, 0.0, False)
        else:
            assert group == ((1e-5, 0.1, False) if ":w." in name else (0.1, 0.0, True))


QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "rate": 1e-2, "progress": False, "baselines": False, "patience": 0,
                         "checkpoint_every": 2}
METHOD: dict[str, Any] = {"name": "diff-pruning", "sparsity": 0.02, "mask_rate": 1e-2, "weight": 1e-5}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    thrifty.tune(str(folder / "bert"), str(folder / "table"), METHOD, out=folder / "whole", **QUICK)
    return folder


def test_a_training_ends_sparse(place: Path) -> None:
    held = load_file(place / "whole" / "adapter" / "adapter.safetensors")
    assert {n.split(":")[0] for n in held} == {"entries", "base"}
    whole = sum(t.numel() for t in load_file(place / "bert" / "model.safetensors").values())
    assert sum(len(t) for n, t in held.items() if n.startswith("entries:")) <= 0.02 * (whole + 32 * 3 + 3)
    assert held["base:classifier.weight"].shape == (3, 32)
    (seed,) = thrifty.train.Run.read(place / "whole").metrics["seeds"]  # type: ignore[attr-defined]
    assert seed["best_step"] >= seed["history"][-1]["step"] / 2
    assert seed["history"][-1]["loss"] < seed["history"][0]["loss"]


@pytest.mark.parametrize("step", [5, 17])
def test_a_training_goes_on_in_either_phase(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = training.Training._step

    def stops(self: training.Training) -> None:
        if self.log.step == step:
            raise ThriftyError("stop")
        real(self)

    given = (str(place / "bert"), str(place / "table"), METHOD)
    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "_step", stops)
        with pytest.raises(ThriftyError, match="stop"):
            thrifty.tune(*given, out=tmp_path / "run", **QUICK)
    thrifty.tune(*given, out=tmp_path / "run", resume=True, **QUICK)
    one, other = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (place / "whole", tmp_path / "run"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- refusals -------------------------------------------------------------------------------------------------------------


def test_refused_settings() -> None:
    for settings in ({"sparsity": 0.0}, {"sparsity": 1.0}, {"sparsity": -0.5}, {"fix": 0.0}, {"fix": 1.5}, {"l0": "mean"},
                     {"weight": -1.0}, {"gate_rate": 0.0}, {"mask_rate": 0.0}, {"low": 0.1}, {"high": 1.0}, {"temperature": 0.0}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("bert"), diff(**settings))


def test_refused_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    at = thrifty.attach(tiny("bert"), diff())
    with pytest.raises(Unfit, match="of which 0 have changed"):
        at.method.finish(at)
    model, at = moved()
    with pytest.raises(CannotMerge):
        at.merge()
    other = thrifty.attach(model, thrifty.LoRA(rank=2), "other")
    shake(other)
    other.merge()
    with pytest.raises(CannotMerge, match="writes the weights that 'other' is merged into"):
        run(model)
    other.unmerge()
    run(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(Unfit, match="in one process"):
        run(model)
    with torch.no_grad():
        run(model)
