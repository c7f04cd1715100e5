"""VeRA: its equation, published counts, and random matrices that all layers share, kept in the file or drawn again."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import IDS, count, frozen_stay, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.artifact.files import canonical, sha256
from thrifty.core.errors import BrokenArtifact, NoSuchSetting, Unfit
from thrifty.methods.vera import RandomMatrices, Vectors

LINEARS = "attn.?|mlp.in|mlp.gate|mlp.out"


@pytest.mark.parametrize(("backbone", "rank", "where", "published_count"), [
    ("bert-base", 1024, "attn.q|attn.v", 43_008), ("llama-7b", 1024, LINEARS, 1_589_248),
    ("llama-7b", 256, "attn.q|attn.v", 278_528)])
def test_counts(backbone: str, rank: int, where: str, published_count: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.VeRA(rank=rank, where=where))) == published_count


def two_layers(**settings: Any) -> tuple[nn.Sequential, thrifty.Attachment, list[Vectors]]:
    """Layers of different shapes, [12, 10] and [5, 12]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 5)).double()
    at = thrifty.attach(model, thrifty.VeRA(**{"rank": 4, "where": "linear", **settings}))
    return model, at, list(at.edits.values())  # type: ignore[arg-type]


def test_the_equation() -> None:
    model, at, edits = two_layers()
    x = torch.randn(3, 10, dtype=torch.float64)
    base = model(x)
    A, B = at.context.shared.A, at.context.shared.B
    assert A.shape == (4, 12) and B.shape == (12, 4)  # as large as the largest layer wants them
    assert all(e.d.tolist() == pytest.approx([0.1] * 4) and not e.b.any() for e in edits)
    shake(at)
    changes = [torch.diag(e.b) @ B[:dout] @ torch.diag(e.d) @ A[:, :din] for e, (din, dout) in
               zip(edits, ((10, 12), (12, 5)), strict=True)]
    h = x @ (model[0].weight + changes[0]).T + model[0].bias
    y = h @ (model[1].weight + changes[1]).T + model[1].bias
    torch.testing.assert_close(model(x), y)
    for edit, change in zip(edits, changes, strict=True):
        torch.testing.assert_close(edit.delta(edit.site.weight), change)
        assert torch.linalg.matrix_rank(edit.delta(edit.site.weight)) <= 4
    at.merge()
    torch.testing.assert_close(model(x), y)
    at.detach()
    assert torch.equal(model(x), base)


def test_ones_leave_the_random_product() -> None:
    model, at, (edit, _) = two_layers()
    with torch.no_grad():
        edit.b.fill_(1.0), edit.d.fill_(1.0)
    torch.testing.assert_close(edit.delta(edit.site.weight), at.context.shared.B @ at.context.shared.A[:, :10])


def test_the_matrices_are_kaiming_uniform_frozen_and_shared() -> None:
    model = tiny("bert")
    base = run(model)
    at = thrifty.attach(model, thrifty.VeRA(rank=256, where=LINEARS.replace("|mlp.gate", "")))
    assert torch.equal(run(model), base)
    shared = at.context.shared
    for t in (shared.A, shared.B):
        assert t.abs().max() <= (6 / t.shape[1]) ** 0.5
        assert float(t.std()) == pytest.approx((2 / t.shape[1]) ** 0.5, rel=0.05)
    places = {tuple(t.data_ptr() for t in edit.projections()) for edit in at.edits.values()}
    assert places == {(shared.A.data_ptr(), shared.B.data_ptr())}
    assert sum(".A" in name or ".B" in name for name in model.state_dict()) == 2 and not list(shared.parameters())
    assert {n.rpartition(".")[2] for n in frozen_stay(model, at)} == {"d", "b"}


def test_only_the_seed_decides_what_is_drawn() -> None:
    before = torch.get_rng_state()
    one, same, other = (RandomMatrices(4, 6, 5, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.A, same.A) and torch.equal(one.B, same.B) and not torch.equal(one.A, other.A)
    assert torch.equal(torch.get_rng_state(), before)
    attached = [thrifty.attach(tiny("bert"), thrifty.VeRA(rank=4), seed=seed).context.shared.A for seed in (0, 1)]
    assert torch.equal(*attached)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_saved_with_the_matrices_or_with_their_seed(kind: str, keep: bool, tmp_path: Path) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.VeRA(rank=64, seed=123_456_789, keep=keep))
    shake(at)
    at.save(tmp_path / "a")
    fresh = tiny(kind)
    again = thrifty.load(fresh, tmp_path / "a")
    assert torch.equal(run(fresh), run(model)) and again.about == at.about
    assert any(name.startswith("shared:") for name in at.state()) == keep
    size = (tmp_path / "a" / "adapter.safetensors").stat().st_size
    assert (size > 2 * 64 * 16 * 4) == keep
    assert len([n for n in at.state() if n.startswith("shared:")]) == (2 if keep else 0)


def test_other_random_numbers_than_those_of_the_training_are_refused() -> None:
    drawn = RandomMatrices(4, 6, 5, seed=7, keep=False).checksum()
    RandomMatrices(4, 6, 5, seed=7, keep=False, drawn=drawn)
    with pytest.raises(BrokenArtifact, match="draws other random projections from seed 8"):
        RandomMatrices(4, 6, 5, seed=8, keep=False, drawn=drawn)


def alter(folder: Path, **numbers: Any) -> None:
    """Write other numbers of the shared matrices into a file, and its hash anew."""
    path = folder / "adapter.json"
    data = json.loads(path.read_text())
    del data["hash"]
    data["shared"][1] |= numbers
    path.write_text(json.dumps({**data, "hash": sha256(canonical(data))}))


@pytest.mark.parametrize(("keep", "numbers", "said"), [
    (False, {"din": 10**9}, "out of all proportion"),
    (False, {"rank": 5000, "din": 5000, "dout": 5000}, "50,000,000 numbers to draw"),
    (False, {"seed": 3}, "other random projections"), (True, {"din": 17}, r"ask for 'A' of shape \(8, 17\)")])
def test_files_that_claim_too_much_are_refused(keep: bool, numbers: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5000, 3), nn.Linear(3, 2))
    at = thrifty.attach(model, thrifty.VeRA(rank=8, where="linear", keep=keep))
    shake(at)
    at.save(tmp_path / "a")
    at.detach()
    thrifty.load(model, tmp_path / "a").detach()  # a layer wider than numbers that are simply believed
    alter(tmp_path / "a", **numbers)
    with pytest.raises(BrokenArtifact, match=said):
        thrifty.load(model, tmp_path / "a")


def test_dropout_is_on_the_input_and_in_training_only() -> None:
    model, at, edits = two_layers(dropout=0.5)
    shake(at)
    x = torch.randn(3, 10, dtype=torch.float64)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    torch.manual_seed(4)
    y = model[0](x)
    torch.manual_seed(4)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(y, x @ model[0].weight.T + model[0].bias + dropped @ edits[0].delta(model[0].weight).T)


def test_vectors_are_not_decayed() -> None:
    _, at, _ = two_layers()
    assert {g["weight_decay"] for g in thrifty.VeRA().groups(at, 1e-3, 0.1)} == {0.0}


def test_two_adapters_have_matrices_of_their_own() -> None:
    model = tiny("bert")
    one = thrifty.attach(model, thrifty.VeRA(rank=4, seed=1), "one")
    two = thrifty.attach(model, thrifty.VeRA(rank=8, seed=2), "two")
    shake(one), shake(two)
    both = run(model)
    one.disable()
    two.disable()
    assert torch.equal(run(model), run(tiny("bert")))
    one.enable(), two.enable()
    assert torch.equal(run(model), both)


@pytest.mark.parametrize("keep", [True, False])
def test_saved_adapters_stack_each_with_its_matrices(keep: bool, tmp_path: Path) -> None:
    deltas, folders, x = [], [], torch.randn(3, 10, dtype=torch.float64)
    for i in range(2):
        model, at, edits = two_layers(seed=10_000 + i, where="0", keep=keep)
        shake(at)
        deltas.append(edits[0].delta(edits[0].site.weight).detach())
        folders.append(at.save(tmp_path / f"{i}"))
        at.detach()
    base = model[0](x)
    at = thrifty.compose(model, thrifty.Stack(*folders))
    torch.testing.assert_close(model[0](x), base + x @ (deltas[0] + deltas[1]).T)
    at.save(tmp_path / "both", unchanged=True)
    at.detach()
    thrifty.load(model, tmp_path / "both")
    torch.testing.assert_close(model[0](x), base + x @ (deltas[0] + deltas[1]).T)


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"dropout": 1.0}, {"seed": -1}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("bert"), thrifty.VeRA(**settings))
    for layer, example in ((nn.Conv2d(4, 4, 3), torch.zeros(1, 4, 8, 8)), (nn.Embedding(64, 4), IDS)):
        model = nn.Sequential(layer)
        with pytest.raises(Unfit, match="linear layers"):
            thrifty.attach(model, thrifty.VeRA(where="0"), example=example)
        assert not thrifty.attachments(model)
