"""Head2Toe: reference arrays of pooling and scoring, the choice of features, and where they come from."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from backbones import golden, run, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, DeadEdit, NoSuchSetting, ThriftyError, Unfit
from thrifty.core.probe import guess_example, run_once
from thrifty.methods import make
from thrifty.methods.branches.side import place
from thrifty.methods.features.group_lasso import Recipe, choose_fraction, divide, fit, group_lasso, join, score, select, unit
from thrifty.methods.features.pooled_taps import BatchRows, PooledTap, find_places, pool
from thrifty.methods.head2toe import SelectedHead
from thrifty.methods.heads import last_linear
from thrifty.testing.tiny import make as make_tiny

QUICK: dict[str, Any] = {"fractions": [0.3], "steps": 20}


def lessons(side: int = 16, count: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"pixel_values": torch.randn(count, 3, side, side, generator=generator), "labels": torch.arange(count) % 2}]


def attach(kind: str = "vit", **more: Any) -> tuple[Any, thrifty.Attachment]:
    model = tiny(kind)
    side = 16 if kind in ("vit", "dinov2") else 32
    return model, thrifty.attach(model, thrifty.Head2Toe(**{**QUICK, **more}), batches=lessons(side))


def head(at: thrifty.Attachment) -> SelectedHead:
    return next(e for e in at.edits.values() if isinstance(e, SelectedHead))


@pytest.mark.parametrize(("size", "kernel", "tokens"), [(0, 0, "normal"), (0, 2, "normal"), (24, 0, "normal"), (24, 0, "only_cls"),
                                                        (24, 0, "nopool_cls")])
def test_reference_pooling(size: int, kernel: int, tokens: str) -> None:
    g = golden("vision_head2toe")
    for name in "abcd":
        wanted = g[f"out/target{size}_pool{kernel}_{tokens}/{name}"]
        torch.testing.assert_close(pool(g[f"in/{name}"], size, kernel, tokens), wanted, atol=1e-6, rtol=1e-6)


def test_reference_scores() -> None:
    g = golden("vision_head2toe")
    W, coefficient = g["in/head_kernel"], g["hp/coef"]
    for r, p in ((2, 1), (2, 2), (float("inf"), 1)):
        wanted = torch.tensor(g[f"out/group_lrp_r{r}_p{p}"])
        torch.testing.assert_close(coefficient * group_lasso(W, r, p), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(score(W), g["out/scores_connectivity_l2"], atol=1e-6, rtol=1e-6)
    assert select(score(W), 0.4).tolist() == g["out/selected_keep0.4"].tolist()
    torch.testing.assert_close(unit(g["in/rows"]), g["out/zero_aware_normalised"], atol=1e-6, rtol=1e-6)


def test_pooled_sizes() -> None:
    assert pool(torch.zeros(1, 15, 15, 256), 8192).shape == (1, 5 * 5 * 256)
    assert pool(torch.zeros(1, 60, 60, 64), 8192).shape == (1, 12 * 12 * 64), "above what was asked for"
    assert pool(torch.zeros(1, 2, 2, 4), 8192).shape == (1, 16), "never below one place"
    assert pool(torch.zeros(1, 3, 4), 8192).shape == (1, 12)


def test_the_worked_example() -> None:
    W = torch.tensor([[3.0, 4], [0, 1], [1, 1], [0, 0]])
    assert float(group_lasso(W)) == pytest.approx(7.41421356)
    assert score(W).tolist() == [25, 1, 2, 0]
    chosen = select(score(W), 0.5)
    assert chosen.tolist() == [0, 2]
    pieces = [torch.tensor([[3.0, 4]]), torch.tensor([[1.0, 1]])]
    torch.testing.assert_close(join(pieces, divide(chosen, [2, 2])), torch.ones(1, 2))
    torch.testing.assert_close(unit(pieces[0])[0, 0], torch.tensor(0.6))
    assert select(score(W), 0.01).tolist() == [0], "one feature at least"


def test_blocks_have_unit_length_and_scaling_a_tap_changes_nothing() -> None:
    pieces = [torch.randn(4, 5), torch.zeros(4, 2), torch.randn(4, 3)]
    every = [torch.arange(5), torch.arange(2), torch.arange(3)]
    h = join(pieces, every)
    lengths = torch.stack([block.norm(dim=1) for block in h.split([5, 2, 3], 1)], 1)
    torch.testing.assert_close(lengths, torch.tensor([[1.0, 0, 1]]).expand(4, 3))
    torch.testing.assert_close(join([7 * pieces[0], pieces[1], pieces[2]], every), h)
    turned = join([pieces[2], pieces[1], pieces[0]], [every[2], every[1], every[0]])
    torch.testing.assert_close(turned[:, 5:], h[:, :5])


def test_all_of_one_tap_is_a_probe_on_unit_features() -> None:
    x = torch.randn(6, 9)
    torch.testing.assert_close(join([x], divide(select(torch.rand(9), 1.0), [9])), x / x.norm(dim=1, keepdim=True))


def informative(rows: int = 200, features: int = 1000, good: int = 10) -> tuple[Tensor, Tensor, list[int]]:
    """Ten features that tell the class among a thousand of noise."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, features, generator=generator), torch.arange(rows) % 2
    places = torch.randperm(features, generator=generator)[:good]
    x[:, places] += 3.0 * (2 * y[:, None] - 1)
    return x, y, places.tolist()


def test_scores_rank_informative_features_first() -> None:
    x, y, places = informative()
    W, _ = fit(unit(x), y, 2, Recipe(300, 0.01, 128), lasso=1e-2)
    assert sorted(select(score(W), 0.01).tolist()) == sorted(places)


def test_a_large_penalty_empties_the_head() -> None:
    x, y, _ = informative(60, 50, 5)
    small, _ = fit(unit(x), y, 2, Recipe(300, 0.01, 64), lasso=1e-4)
    large, _ = fit(unit(x), y, 2, Recipe(300, 0.01, 64), lasso=10.0)
    assert float(large.norm(dim=1).max()) < 0.02 < float(small.norm(dim=1).max())


def test_the_first_step_of_the_head_by_hand() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 1])
    W = nn.init.xavier_uniform_(torch.empty(4, 2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ W, y) + 0.1 * (W.square().sum(1).sqrt()).sum()
    (grad,) = torch.autograd.grad(loss, W)
    moved, _ = fit(x, y, 2, Recipe(1, 0.05, 128), lasso=0.1)
    torch.testing.assert_close(moved, W.detach() - 0.05 * grad.sign(), rtol=1e-3, atol=1e-4)  # Adam's first step


def test_the_fraction_is_chosen_by_cross_validation() -> None:
    x, y, _ = informative(60, 400, 4)
    fraction, accuracy = choose_fraction([x[:, :100], x[:, 100:]], y, 2, Recipe(100, 0.05, 128), 1e-2, [1.0, 0.01], 5)
    assert set(accuracy) == {0.01, 1.0} and fraction == 0.01 and accuracy[0.01] >= accuracy[1.0]
    assert accuracy[0.01] > 0.9
    easy = (2.0 * y[:, None] - 1) * torch.ones(8)
    assert choose_fraction([easy], y, 2, Recipe(20, 0.05, 128), 0.0, [1.0, 0.5], 3) == (0.5, {0.5: 1.0, 1.0: 1.0})


def test_what_the_head_computes() -> None:
    model, at = attach()
    logits = run(model)
    seen: dict[str, Tensor] = {}
    handles = []
    for row in at.plan:
        if row.edit == "pooled-tap":
            module, key = model.get_submodule(row.path), row.numbers["key"]
            if row.numbers["port"] == "input":
                def note(_: Any, args: Any, kwargs: Any, key: str = key) -> None:
                    seen[key] = args[0] if args else kwargs["hidden_states"]

                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(lambda m, a, y, key=key: seen.update({key: y})))
    with at.disabled():
        run(model)
    edit, start, pieces = head(at), 0, []
    for key, count in zip(edit.pieces, edit.kept, strict=True):
        h = seen[key]
        h = h.permute(0, 2, 3, 1).flatten(1, 2) if h.dim() == 4 else h  # the patches
        pooled = h if h.dim() == 2 else pool_by_hand(h, 512)
        own = pooled[:, edit.columns[start : start + count]]
        pieces.append(own / own.norm(dim=1, keepdim=True))
        start += count
    wanted = torch.cat(pieces, 1) @ edit.linear.weight.T + edit.linear.bias
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def pool_by_hand(h: Tensor, size: int) -> Tensor:
    """Tokens [B, n, C] in runs of int(n / (size / C)), each averaged; the rest is left out."""
    run = max(1, int(h.shape[1] / (size / h.shape[2])))
    whole = h[:, : h.shape[1] // run * run]
    return whole.unflatten(1, (-1, run)).mean(2).flatten(1)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "resnet"])
def test_networks_that_read_pictures(kind: str) -> None:
    model, at = attach(kind)
    chosen = at.about["chosen"]
    assert chosen["features"] == int(0.3 * chosen["of"]) == sum(head(at).kept) and chosen["fraction"] == 0.3
    assert sum(p.numel() for p in at.parameters()) == (chosen["features"] + 1) * 2
    assert len([r for r in at.plan if r.edit == "pooled-tap"]) == len(head(at).kept), "places without a chosen feature have no tap"
    assert not [n for n in at.base if "classifier" in n]
    pixels = torch.randn(3, 3, *([16, 16] if kind in ("vit", "dinov2") else [32, 32]))
    together = model(pixel_values=pixels).logits
    alone = torch.cat([model(pixel_values=one[None]).logits for one in pixels])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "selected" not in n and "edits" not in n)


def test_cross_validation_through_the_method() -> None:
    _, at = attach(fractions=[0.5, 0.1], folds=3)
    accuracy = at.about["chosen"]["validation accuracy"]
    assert set(accuracy) == {"0.1", "0.5"} and at.about["chosen"]["fraction"] in (0.1, 0.5)
    assert accuracy[str(at.about["chosen"]["fraction"])] == max(accuracy.values())


def places_of(model: Any, size: int) -> tuple[list[str], list[int]]:
    """Where taps go in a network without numbers, and the features that each gives."""
    at = thrifty.attach(model, thrifty.LinearProbe(where=last_linear(model, guess_example(model))))
    example = guess_example(model)
    found = find_places(at, place(at, last_linear(model, example)), example)
    at.put(at.sites("model")[0], BatchRows)
    for each in found:
        at.put(each.site, PooledTap, key=each.key, port=each.port, first=each.first, size=size, tokens="normal")
    run_once(model, example)
    return [each.key for each in found], [at.context.taps[each.key].shape[1] for each in found]


def test_taps_of_vit_base() -> None:
    with torch.device("meta"):
        model = hf.ViTForImageClassification(hf.ViTConfig())
    keys, widths = places_of(model, 512)
    assert len(keys) == 52 and len([k for k in keys if ".layers." in k]) == 49
    assert sum(widths) == 3 * 768 + 12 * (3 * 768 + 3072) + 768
    assert keys[0].startswith("output of vit.embeddings.patch") and keys[-1] == "input of classifier"


def test_taps_of_resnet_50() -> None:
    with torch.device("meta"):
        model = hf.ResNetForImageClassification(hf.ResNetConfig())
    keys, widths = places_of(model, 512)
    assert len(keys) == 50 and keys[-1].startswith("input of classifier")
    maps: list[tuple[int, int]] = []
    for stage, (width, side, depth) in enumerate(((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3))):
        for block in range(depth):
            big = side * 2 if stage and not block else side
            enters = 64 if not stage and not block else width * 2 if not block else width * 4
            maps += [(enters, big), (width, big), (width, side)]
    wanted = [w if w >= 512 else int((512 // w) ** 0.5) ** 2 * w for w, _ in [*maps, (2048, 7), (2048, 1)]]
    assert widths == wanted


def test_it_is_a_head_and_no_change_of_a_weight() -> None:
    model, at = attach()
    with pytest.raises(CannotMerge):
        at.merge()
    at.disable(lambda row: row.edit == "pooled-tap" and row.numbers["key"] == head(at).pieces[0])
    with pytest.raises(DeadEdit, match="whose tap is off"):
        run(model)


def test_refusals() -> None:
    for settings, named in (({"size": -1}, "size"), ({"tokens": "cls"}, "tokens"), ({"fractions": []}, "fractions"),
                            ({"fractions": [0.0]}, "fractions"), ({"folds": 1}, "folds"), ({"lasso": -1.0}, "lasso"),
                            ({"steps": 0}, "steps"), ({"score_rate": 0.0}, "score_rate"), ({"batch": 0}, "batch"),
                            ({"examples": 0}, "examples")):
        with pytest.raises(NoSuchSetting, match=f"{named} must be"):
            thrifty.attach(tiny("vit"), make("head2toe", **settings), batches=lessons())
    with pytest.raises(ThriftyError, match="attach with batches="):
        thrifty.attach(tiny("vit"), thrifty.Head2Toe())
    with pytest.raises(ThriftyError, match="has none under 'labels'"):
        thrifty.attach(tiny("vit"), thrifty.Head2Toe(), batches=[{"pixel_values": torch.zeros(1, 3, 16, 16)}])
    with pytest.raises(ThriftyError, match="no row of data"):
        thrifty.attach(tiny("vit"), thrifty.Head2Toe(), batches=[])
    with pytest.raises(Unfit, match="does not read pictures alone"):
        thrifty.attach(tiny("bert"), thrifty.Head2Toe(), batches=lessons())
    with pytest.raises(Unfit, match="has no class token"):
        attach("swin", tokens="only_cls")


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["timm_vit", "timm_swin", "timm_resnet", "timm_convnext"])
def test_timm(kind: str) -> None:
    backbone = make_tiny(kind)
    model, batch = backbone.fresh(), {"x": backbone.example, "labels": torch.tensor([0, 1])}
    at = thrifty.attach(model, thrifty.Head2Toe(**QUICK), batches=[batch], example=backbone.example)
    assert len(head(at).kept) > 4
    together = backbone.output(model)
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in backbone.example])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
