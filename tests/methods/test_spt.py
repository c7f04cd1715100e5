"""SPT: a reference ranking and its allocations, the rules of the budget, and what its parts compute."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting, NoSuchSite, ThriftyError, Unfit
from thrifty.methods import make
from thrifty.methods.sparse.allocation import SWEEP, Tunable, allocate, rank
from thrifty.methods.sparse.sparse_delta import SparseDelta
from thrifty.methods.sparse.squared_gradients import squared_gradients
from thrifty.methods.spt import DroppedBottleneck, DroppedLowRank
from thrifty.testing.tiny import make as make_tiny

MATRICES = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


class Attention(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).mT * 0.3).softmax(-1)
        return self.proj(weights @ self.v(x))


class Mlp(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(d), Attention(d), nn.LayerNorm(d), Mlp(d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Reference(nn.Module):
    """The network of the reference arrays: two blocks on a class token and four patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.cls_token = nn.Linear(6, 12), nn.Parameter(torch.zeros(1, 1, 12))
        self.pos_embed, self.blocks = nn.Parameter(torch.zeros(1, 5, 12)), nn.ModuleList(Layer(12) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch_embed(x)
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h], 1) + self.pos_embed
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])


def reference() -> tuple[dict[str, Any], Reference, list[dict[str, Tensor]]]:
    g = golden("vision_spt_sensitivity")
    model = Reference()
    model.load_state_dict({k[2:]: v for k, v in g.items() if k.startswith("w/")})
    return g, model, [{"x": x, "labels": y} for x, y in zip(g["in/samples"], g["in/labels"], strict=True)]


def lessons(images: int = 2, batches: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"pixel_values": torch.randn(images, 3, 16, 16, generator=generator), "labels": torch.arange(images) % 2}
            for _ in range(batches)]


def spt(**more: Any) -> Any:
    return thrifty.SPT(**{"budget": 700, "grid": 20, "rank": 2, "alpha": 0.7, "dropout": 0.0, "drop_path": 0.0, **more})


def sparse(at: thrifty.Attachment) -> dict[str, SparseDelta]:
    return {e.site.path: e for e in at.edits.values() if isinstance(e, SparseDelta)}


def test_reference_sensitivities() -> None:
    g, model, batches = reference()
    sums = squared_gradients(model, dict(model.named_parameters()), batches, 3)
    for name, found in sums.items():
        torch.testing.assert_close(found, g[f"out/squared_gradient/{name}"], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("budget", [1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05])
def test_reference_allocations(budget: float) -> None:
    g, model, batches = reference()
    out = {k.partition(f"budget_{budget}/")[2]: v for k, v in g.items() if f"/budget_{budget}/" in k}
    at = thrifty.attach(model, thrifty.SPT(budget=round(1000 * budget), grid=20, rank=g["hp/low_rank_dim"], alpha=g["hp/alpha"],
                                           beta=g["hp/beta"], batches=3), batches=batches, example=batches[0]["x"])
    assert at.summary().trainable == round(1000 * out["params"])
    whole = {row.path for row in at.plan if row.edit == "low-rank-dropped"}
    wanted = out["tuned_matrices"]
    assert whole == {f"blocks.{i}.{m}" for i in range(2) for j, m in enumerate(MATRICES) if wanted[i, j]}
    vectors = {n for n in at.base if n not in at.masks and n != "cls_token"}
    assert vectors == set(out.get("tuned_vectors", []))
    mask = {n: torch.zeros_like(model.get_parameter(n), dtype=torch.bool) for n in out["unstructured_names"]}
    for name, positions in at.masks.items():
        mask[name] |= positions
    for path, edit in sparse(at).items():
        mask[f"{path}.weight"].view(-1)[edit.positions.long()] = True
    flat = torch.cat([mask[n].flatten() for n in out["unstructured_names"]])
    assert flat.nonzero().flatten().tolist() == out["unstructured_indexes"].tolist()


def test_sensitivity_is_the_sum_of_squared_gradients_of_batch_means() -> None:
    model, batches = tiny("vit"), lessons()
    found = squared_gradients(model, dict(model.named_parameters()), batches, 5)["vit.layers.0.attention.q_proj.weight"]
    wanted = torch.zeros_like(found)
    for batch in batches:
        model.zero_grad()
        F.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]).backward()
        wanted += model.vit.layers[0].attention.q_proj.weight.grad ** 2
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-12)
    assert bool((found >= 0).all())


def test_order_matters_between_batches_and_not_inside_one() -> None:
    model, (one, two) = tiny("vit"), lessons()
    own = {"w": model.vit.layers[0].mlp.fc1.weight}
    first = squared_gradients(model, own, [one, two], 2)["w"]
    turned = {k: v.flip(0) for k, v in one.items()}
    torch.testing.assert_close(squared_gradients(model, own, [turned, two], 2)["w"], first, rtol=1e-4, atol=1e-10)
    crossed = [{k: torch.stack([a[k][i], b[k][i]]) for k in one} for i, (a, b) in enumerate([(one, two), (one, two)])]
    assert not torch.allclose(squared_gradients(model, own, crossed, 2)["w"], first, rtol=1e-2)
    assert torch.equal(squared_gradients(model, own, [one, two], 1)["w"], squared_gradients(model, own, [one], 9)["w"])


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("vit").train()
    model.vit.layernorm.bias.requires_grad_(False)
    squared_gradients(model, dict(model.named_parameters()), lessons(), 2)
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["vit.layernorm.bias"]


def test_ranking_takes_exactly_as_many_and_the_first_of_equals() -> None:
    flat = torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0, 2.0])
    assert rank(flat, 2).tolist() == [1, 2]
    assert rank(flat, 5).tolist() == [1, 2, 4, 5, 0]
    many = torch.randint(0, 5, (1000,), generator=torch.Generator().manual_seed(0)).float()
    assert rank(many, 333).tolist() == sorted(range(1000), key=lambda i: (-many[i], i))[:333]


def test_allocation_by_hand() -> None:
    """A matrix of 8 entries whose module costs 3, and a vector of 4: the sweep by hand."""
    matrix, vector = torch.tensor([9.0, 8, 1, 1, 1, 1, 1, 1]), torch.tensor([7.0, 6, 0.1, 0.1])
    kinds = [Tunable(3, 1.0), Tunable(4, 2.0)]
    # tau:      1: one entry, total 1      2: two, total 2      3: two and the vector's first (1 * 2 < 4), total 3
    #           4: two entries and the whole vector (2 * 2 >= 4), total 6      5: the module (3 >= 3) and the vector, total 7
    totals = {1: (1, [False, False]), 2: (2, [False, False]), 3: (3, [False, False]), 6: (6, [False, True]), 7: (7, [True, True])}
    for budget, (total, whole) in totals.items():
        found = allocate([matrix, vector], kinds, budget, 1)
        assert (found.total, found.whole) == (total, whole)
    found = allocate([matrix, vector], kinds, 3, 1)
    assert [e.tolist() for e in found.entries] == [[0, 1], [0]]
    assert allocate([matrix, vector], kinds, 100, 1).total == 7
    assert allocate([matrix, vector], kinds, 100, 1, always=10).total == 17


def test_of_two_totals_as_close_the_larger_selection_wins() -> None:
    values = torch.tensor([4.0, 3, 2, 1])
    found = allocate([values[:1], values[1:]], [Tunable(5, 5.0), Tunable(9, 0.0)], 6, 1)  # totals 5, 6, 7, 8
    assert found.total == 6
    again = allocate([values[:2], values[2:]], [Tunable(9, 0.0), Tunable(1, 1.0)], 3, 1)  # totals 1, 2, 3, 3
    assert again.total == 3 and again.whole == [False, True]


def test_budgets_that_nothing_comes_near_are_refused() -> None:
    with pytest.raises(Unfit, match=r"budget of 3 parameters, the smallest takes 8"):
        allocate([torch.ones(8)], [Tunable(8, 8.0)], 3, 1)
    with pytest.raises(ThriftyError, match="zero everywhere"):
        allocate([torch.zeros(8)], [Tunable(8, 8.0)], 3, 1)
    with pytest.raises(ThriftyError, match="not finite"):
        allocate([torch.tensor([1.0, math.nan])], [Tunable(8, 8.0)], 3, 1)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "bert"])
def test_the_total_is_what_trains(kind: str) -> None:
    model = tiny(kind)
    batches = lessons(4) if kind != "bert" else [{"input_ids": torch.randint(3, 60, (4, 5)), "labels": torch.tensor([0, 1, 1, 0])}]
    if kind == "swin":
        batches = [{**b, "pixel_values": F.interpolate(b["pixel_values"], size=32)} for b in batches]
    at = thrifty.attach(model, spt(), batches=batches)
    total = at.summary().trainable
    assert abs(total - 700) < 150, "the sweep comes near the budget"
    by_hand = sum(int(at.masks[n].sum()) if n in at.masks else model.get_parameter(n).numel() for n in at.base)
    by_hand += sum(p.numel() for e in at.edits.values() for p in e.parameters())
    assert total == by_hand
    assert {row.edit for row in at.plan} in ({"low-rank-dropped", "sparse-delta"}, {"sparse-delta"})
    tokens = [n for n in at.base if n.endswith("cls_token")]
    assert len(tokens) == (kind in ("vit", "dinov2"))
    assert not [n for n in at.base if "embeddings" in n and not n.endswith("cls_token") or "classifier" in n]


def test_the_shares_at_which_tensors_train_as_a_whole() -> None:
    every = thrifty.attach(tiny("vit"), spt(alpha=1e9, beta=1e9, budget=5000), batches=lessons())
    assert not sparse(every) and not every.masks
    none = thrifty.attach(tiny("vit"), spt(alpha=0.0, beta=0.0), batches=lessons())
    assert none.plan and all(row.edit == "sparse-delta" for row in none.plan)
    assert len(none.masks) > 2


def test_fused_projections_are_ranked_in_their_parts() -> None:
    class Fused(nn.Module):
        def __init__(self, d: int):
            super().__init__()
            self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.proj((q @ k.mT * 0.3).softmax(-1) @ v)

    Fused.__module__ = "timm.made_up"  # whose layout is known
    g, split, batches = reference()
    fused = Reference()
    state = split.state_dict()
    for i, block in enumerate(fused.blocks):
        block.attn = Fused(12)
        for kind in ("weight", "bias"):
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([state.pop(f"blocks.{i}.attn.{n}.{kind}") for n in "qkv"])
    fused.load_state_dict(state)
    settings: dict[str, Any] = {"budget": 400, "grid": 20, "rank": 2, "alpha": 5.0, "batches": 3}
    one = thrifty.attach(split, thrifty.SPT(**settings), batches=batches, example=batches[0]["x"])
    two = thrifty.attach(fused, thrifty.SPT(**settings), batches=batches, example=batches[0]["x"])
    assert one.summary().trainable == two.summary().trainable
    assert [(r.role, r.depth, r.edit) for r in one.plan] == [(r.role, r.depth, r.edit) for r in two.plan]
    train = [e for at in (one, two) for e in at.edits.values() if isinstance(e, SparseDelta)]
    half = len(train) // 2
    for a, b in zip(train[:half], train[half:], strict=True):
        assert torch.equal(a.positions, b.positions)
    bias = "blocks.0.attn.{}.bias"
    joined = torch.cat([one.masks.get(bias.format(n), torch.full((12,), bias.format(n) in one.base)) for n in "qkv"])
    assert torch.equal(two.masks.get(bias.format("qkv"), torch.full((36,), bias.format("qkv") in two.base)), joined)


def test_the_sparse_change_and_its_gradient() -> None:
    model = nn.Sequential(nn.Linear(5, 4))
    at = thrifty.attach(model, thrifty.LoRA(rank=1, where="0"), example=torch.zeros(1, 5))
    edit: Any = at.put(at.sites("0")[0], SparseDelta, count=3)
    rows, columns = torch.tensor([0, 2, 3]), torch.tensor([4, 0, 3])
    with torch.no_grad():
        edit.positions.copy_(5 * rows + columns)
        edit.values.copy_(torch.tensor([1.0, -2.0, 3.0]))
    x, dy = torch.randn(2, 6, 5), torch.randn(2, 6, 4)
    S = torch.zeros(4, 5)
    S[rows, columns] = edit.values.detach()
    y = model(x)
    torch.testing.assert_close(y, F.linear(x, model[0].weight + S, model[0].bias))
    (y * dy).sum().backward()
    torch.testing.assert_close(edit.values.grad, (dy[..., rows] * x[..., columns]).sum((0, 1)), rtol=1e-5, atol=1e-6)
    assert model[0].weight.grad is None


def test_what_is_not_selected_stays_and_the_file_is_small(tmp_path: Path) -> None:
    model, batches = tiny("vit"), lessons()
    at = thrifty.attach(model, spt(alpha=0.0), batches=batches, also_train="head")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimiser = torch.optim.AdamW(at.method.groups(at, 0.05, 0.1))
    for _ in range(3):
        optimiser.zero_grad()
        run(model).square().mean().backward()
        optimiser.step()
    frozen = {n: t for n, t in before.items() if n not in at.base and "edits" not in n}
    assert all(torch.equal(model.state_dict()[n], t) for n, t in frozen.items())
    for name, mask in at.masks.items():
        now = model.get_parameter(name)
        assert torch.equal(now[~mask], before[name][~mask]) and not torch.equal(now[mask], before[name][mask])
    logits = run(model)
    at.save(tmp_path / "adapter")
    from safetensors.torch import load_file

    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    held = load_file(file)
    assert sum(t.numel() for t in held.values() if t.is_floating_point()) == at.summary().trainable
    other = tiny("vit")
    thrifty.load(other, tmp_path / "adapter")
    assert torch.equal(run(other), logits)


def test_merged_is_unmerged() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, spt(), batches=lessons())
    before = run(model)
    torch.testing.assert_close(before, run(tiny("vit")), atol=1e-6, rtol=1e-5)
    shake(at)
    logits = run(model)
    at.merge()
    torch.testing.assert_close(run(model), logits, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == list(tiny("vit").state_dict())


def test_modules_compute_their_equations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4))
    at = thrifty.attach(model, thrifty.LoRA(rank=1, where="0"), example=torch.zeros(1, 5))
    (site,) = at.sites("0")
    low: Any = at.put(site, DroppedLowRank, rank=2, dropout=0.0, drop_path=0.0)
    tight: Any = at.put(site, DroppedBottleneck, rank=3, dropout=0.0, drop_path=0.0)
    assert not low.B.any() and not tight.up.weight.any() and not tight.up.bias.any()
    assert float(low.A.abs().max()) <= 1 / math.sqrt(5) and float(tight.down.weight.abs().max()) <= 1 / math.sqrt(4)
    shake(at)
    x = torch.randn(7, 5)
    y = F.linear(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(low(y, x), y + x @ low.A.T @ low.B.T)
    hidden = F.gelu(y @ tight.down.weight.T + tight.down.bias)
    torch.testing.assert_close(tight(y, x), y + hidden @ tight.up.weight.T + tight.up.bias)


def test_stochastic_depth_drops_rows_and_keeps_the_mean() -> None:
    from thrifty.methods.branches.drop_path import DropPath

    path, z = DropPath(0.25), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    kept = path(z)
    assert set(np.unique(kept.numpy().round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert bool((kept.flatten(1).std(1) == 0).all()), "a row is dropped as a whole"
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)
    assert path.eval()(z) is z


def test_dropout_by_place() -> None:
    at = thrifty.attach(tiny("vit"), spt(alpha=1e9, dropout=0.1, drop_path=0.2, budget=5000), batches=lessons())
    drops = {e.site.role: (e.dropout.p, e.path.rate) for e in at.edits.values()}
    assert drops["attn.o"] == (0.0, 0.2)
    assert {p for role, p in drops.items() if role != "attn.o"} == {(0.1, 0.2)}


def test_published_counts() -> None:
    model = published("vit-b16")
    at = thrifty.attach(model, thrifty.LoRA())
    sites = at.sites("attn.?|mlp.*")
    assert sum(thrifty.SPT().cost(s) for s in sites) == 12 * 8 * (4 * 1536 + 2 * 3840) == 1_327_104
    edits = [at.put(s, DroppedLowRank, **thrifty.SPT().numbers(s)) for s in sites]
    assert sum(p.numel() for e in edits for p in e.parameters()) == 1_327_104
    adapter = thrifty.SPTAdapter()
    for site in sites[:6]:
        edit = at.put(site, DroppedBottleneck, **adapter.numbers(site))
        assert sum(p.numel() for p in edit.parameters()) == adapter.cost(site) == 2 * 8 * site.dout + 8 + site.dout
    assert SWEEP * thrifty.SPT().grid == 1_580_000 and len(range(2, 160, 2)) == SWEEP


def test_adapters_instead() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, make("spt-adapter", budget=900, grid=20, rank=2, alpha=0.7), batches=lessons())
    assert {"bottleneck-dropped", "sparse-delta"} == {row.edit for row in at.plan}
    torch.testing.assert_close(run(model), run(tiny("vit")))
    assert make("spt-lora") == thrifty.SPT()


def test_refusals() -> None:
    for settings, named in (({"budget": 0}, "budget"), ({"rank": 0}, "rank"), ({"alpha": -1.0}, "alpha"), ({"beta": -0.1}, "beta"),
                            ({"batches": 0}, "batches"), ({"grid": 0}, "grid"), ({"dropout": 1.0}, "dropout"),
                            ({"drop_path": 1.0}, "drop_path")):
        with pytest.raises(NoSuchSetting, match=named):
            thrifty.attach(tiny("vit"), make("spt", **settings), batches=lessons())
    with pytest.raises(ThriftyError, match="attach with batches="):
        thrifty.attach(tiny("vit"), spt())
    with pytest.raises(ThriftyError, match=r"gives no loss for a batch of \['pixel_values'\]"):
        thrifty.attach(tiny("vit"), spt(), batches=[{"pixel_values": torch.zeros(1, 3, 16, 16)}])
    with pytest.raises(ThriftyError, match="no row of data"):
        thrifty.attach(tiny("vit"), spt(), batches=[])
    with pytest.raises(NoSuchSite, match="attn"):
        thrifty.attach(tiny("resnet"), spt(), batches=lessons())
    with pytest.raises(Unfit, match="is none: leave it out"):
        large = [{**batch, "pixel_values": torch.randn(2, 3, 32, 32)} for batch in lessons()]
        thrifty.attach(tiny("resnet"), spt(where="conv"), batches=large)
    zero = tiny("vit")
    nn.init.zeros_(zero.classifier.weight)
    with pytest.raises(ThriftyError, match="a head of zeros"):
        thrifty.attach(zero, spt(), batches=lessons())


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["timm_vit", "timm_swin"])
def test_timm(kind: str) -> None:
    backbone = make_tiny(kind)
    model, batch = backbone.fresh(), {"x": backbone.example, "labels": torch.tensor([0, 1])}
    at = thrifty.attach(model, spt(), batches=[batch], example=backbone.example)
    assert {row.role for row in at.plan} & {"attn.q", "attn.k", "attn.v"}
    assert abs(at.summary().trainable - 700) < 150
    shake(at)
    before = backbone.output(model)
    at.merge()
    torch.testing.assert_close(backbone.output(model), before, rtol=1e-4, atol=1e-4)
