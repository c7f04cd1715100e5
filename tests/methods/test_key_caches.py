"""Tip-Adapter, Tip-Adapter-F, SuS-X, APE and APE-T: their equations, counts and invariants; the authors' numbers."""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import two_towers as two
from backbones import golden, shake
from test_clip_adapters import BATCHES, LABELS, PIXELS, close, edit_of, put
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.core.probe import Seen as Probe
from thrifty.core.site import at_path
from thrifty.methods.ape import RefinedCache, ResidualCache
from thrifty.methods.few_shot.channels import choose, criterion, similarity
from thrifty.methods.few_shot.grid_search import best, grid
from thrifty.methods.few_shot.key_cache import KeyCache
from thrifty.methods.few_shot.support import VIEW, Seen
from thrifty.methods.sus_x import InterModalCache
from thrifty.methods.tip_adapter import RECIPES

NAMES = ["face", "leopard", "yin yang", "cat", "dog"]


def scores() -> Any:
    """The place of the scores of a model with five classes."""
    model = two.clip(labels=NAMES)
    return at_path(model, "scores", "scores", None, -1, "", Probe(model))


def support(g: dict[str, Any]) -> Seen:
    return Seen(g["in/cache_keys"].T, g["in/cache_values"].argmax(1), g["in/text_classifier"].T)


# -- Tip-Adapter ----------------------------------------------------------------------------------------------------------------
def test_the_authors_numbers_of_tip_adapter() -> None:
    g = golden("vlm_tip_adapter")
    f, w = g["in/test_features"], g["in/text_classifier"].T
    for alpha, beta in ((1.0, 5.5), (3.0, 1.0), (1.17, 10.0), (0.0, 5.5)):
        edit = KeyCache(scores(), NAMES, 20, 16, alpha, beta)
        edit.fill(support(g))
        close(edit(None, f, w), g[f"out/logits_alpha{alpha}_beta{beta}"])
        assert torch.equal(edit.values(), g["in/cache_values"])
    close(edit(None, f, w), g["out/zero_shot_logits"])
    grids = {"beta": grid(0.1, g["hp/search_scale_beta"], g["hp/search_steps_beta"]),
             "alpha": grid(0.1, g["hp/search_scale_alpha"], g["hp/search_steps_alpha"])}
    found = best(edit.tried(g["in/val_features"], g["in/val_features"] @ w.T, grids), g["in/val_labels"])
    assert found.setting == {"beta": pytest.approx(g["out/best_beta"]), "alpha": pytest.approx(g["out/best_alpha"])}
    assert found.tried == 160
    built = Seen(g["in/raw_augmented_features"].mean(0), g["in/raw_labels"], w)
    close(built.unit, g["out/built_keys"].T)
    edit.fill(built)
    assert torch.equal(edit.values().long(), g["out/built_values"])
    edit = KeyCache(scores(), NAMES, 20, 16, 1.0, 5.5, trained=True)
    edit.fill(support(g))
    loss = F.cross_entropy(edit(None, f, w), g["in/test_labels"])
    loss.backward()
    close(loss.detach(), g["out/f_loss"])
    close(edit.keys.grad, g["grad/f_keys"], 5e-5)


class Views:
    """Batches that can be shown in another way each turn."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from BATCHES

    def view(self, recipe: str, turn: int) -> Iterator[dict[str, Tensor]]:
        assert recipe == VIEW == "crop-flip:0.5"
        for batch in BATCHES:
            yield {**batch, "pixel_values": (1 + turn) * batch["pixel_values"].flip(-1)}


@torch.no_grad()
def test_keys_are_means_over_views_of_raw_features() -> None:
    model = two.clip()
    raw = torch.stack([model.image_features((1 + turn) * PIXELS.flip(-1)) for turn in range(3)]).mean(0)
    at = thrifty.attach(model, thrifty.TipAdapter(views=3), batches=Views())
    torch.testing.assert_close(edit_of(at).keys, F.normalize(raw, dim=-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(edit_of(at).labels, LABELS) and at.about["support"] == {"pictures": 8, "views of each": 3}
    assert not at.parameters()
    for plain in (thrifty.attach(two.clip(), thrifty.TipAdapter(views=0), batches=Views()), put(two.clip(), thrifty.TipAdapter())):
        torch.testing.assert_close(edit_of(plain).keys, F.normalize(model.image_features(PIXELS), dim=-1), rtol=1e-5, atol=1e-6)
        assert plain.about["support"]["views of each"] == 0


@torch.no_grad()
def test_tip_adapter() -> None:
    model = two.clip()
    zero_shot = two.logits(model, PIXELS)
    s = float(model.towers.scale())
    at = put(model, thrifty.TipAdapter(alpha=2.0, beta=3.0))
    edit = edit_of(at)
    with at.disabled():
        out = model(PIXELS)
    f, told = out["image_embeds"], F.one_hot(LABELS).float()
    affinity = f @ f.T
    torch.testing.assert_close(affinity.diagonal(), torch.ones(8))  # of a picture with its own key
    wanted = 100 / s * zero_shot + 2 * (-3 * (1 - affinity)).exp() @ told
    torch.testing.assert_close(two.logits(model, PIXELS), wanted, rtol=1e-4, atol=1e-4)
    edit.settle({"beta": 0.0})
    torch.testing.assert_close(two.logits(model, PIXELS), 100 / s * zero_shot + 2 * 2, rtol=1e-4, atol=1e-4)  # two a class
    edit.settle({"alpha": 0.0})
    torch.testing.assert_close(two.logits(model, PIXELS), 100 / s * zero_shot, rtol=1e-4, atol=1e-4)
    edit.scale = 0.0
    torch.testing.assert_close(two.logits(model, PIXELS), zero_shot, rtol=1e-5, atol=1e-5)
    edit.settle({"alpha": 1e4, "beta": 500.0})
    assert torch.equal(two.logits(model, PIXELS).argmax(-1), LABELS)  # the nearest key answers


@torch.no_grad()
def test_rows_of_the_support_set() -> None:
    def ask(method: Any, order: Tensor) -> Tensor:
        model = two.clip()
        thrifty.attach(model, method, batches=[{"pixel_values": PIXELS[order], "labels": LABELS[order]}])
        return two.logits(model)

    rows = torch.arange(8)
    plain = ask(thrifty.TipAdapter(alpha=2.0), rows)
    torch.testing.assert_close(ask(thrifty.TipAdapter(alpha=2.0), rows.flip(0)), plain, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ask(thrifty.TipAdapter(alpha=1.0), torch.cat([rows, rows])), plain, rtol=1e-5, atol=1e-4)
    for method in (thrifty.TipAdapterF(alpha=2.0), thrifty.APET(alpha=2.0), thrifty.APE(alpha=2.0, share=1.0, gamma=0.0),
                   thrifty.SuSX(alpha=2.0, gamma=0.0)):
        torch.testing.assert_close(ask(method, rows), plain, rtol=1e-5, atol=1e-4)  # all begin as Tip-Adapter


def test_the_search_sees_the_validation_split_alone(tmp_path: Any) -> None:
    model = two.clip()
    at = put(model, thrifty.TipAdapter(views=0, steps_beta=7, steps_alpha=5))
    held = [{"pixel_values": two.pictures(12)[8:], "labels": torch.tensor([1, 0, 3, 2])}]
    right: dict[tuple[float, float], int] = {}
    edit = edit_of(at)
    for beta, alpha in itertools.product([0.1 + i * 6.9 / 7 for i in range(7)], [0.1 + i * 2.9 / 5 for i in range(5)]):
        edit.settle({"alpha": alpha, "beta": beta})
        right[beta, alpha] = int((two.logits(model, held[0]["pixel_values"]).argmax(-1) == held[0]["labels"]).sum())
    edit.settle({"alpha": 1.17, "beta": 1.0})
    at.method.calibrate(at, None, iter(held))
    beta, alpha = max(right, key=lambda key: right[key])
    assert (float(edit.beta), float(edit.alpha)) == (pytest.approx(beta), pytest.approx(alpha))
    measured = at.about["measured"]
    assert measured["settings tried"] == 35 and measured["validation accuracy"] == right[beta, alpha] / 4
    assert measured["searched on"] == "the validation split" and "The test split had no part" in at.about["notes"][0]
    at.save(tmp_path / "tip")
    fresh = two.clip()
    back = thrifty.load(fresh, tmp_path / "tip")
    assert torch.equal(two.logits(fresh), two.logits(model)) and back.about["measured"] == measured
    fresh.classify(["face", "leopard", "yin yang", "cat"])
    with pytest.raises(Unfit, match="has nothing for 'cat'"):
        two.logits(fresh)
    still = put(two.clip(), thrifty.TipAdapter(search=False))
    still.method.calibrate(still, None, iter(held))
    assert float(edit_of(still).beta) == 1.0 and "measured" not in still.about


def test_grids_never_reach_their_end() -> None:
    values = grid(0.1, 7.0, 200)
    assert len(values) == 200 and values[0] == 0.1 and values[-1] == pytest.approx(7 - 6.9 / 200)
    tip = thrifty.TipAdapter().grids()
    assert tip["beta"] == values and tip["alpha"] == grid(0.1, 3.0, 20)
    assert thrifty.SuSX().grids()["beta"][0] == 1.0 and len(thrifty.SuSX().grids()["gamma"]) == 50
    assert thrifty.APE().grids()["gamma"][0] == 0.0
    assert len(RECIPES) == 11
    thrifty.TipAdapter(**RECIPES["eurosat"]).check()
    ties = [({"a": 1.0}, torch.eye(2)), ({"a": 2.0}, torch.eye(2))]
    assert best(ties, torch.tensor([0, 1])).setting == {"a": 1.0}  # the first of equals


# -- SuS-X ----------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("batch", [True, False])
def test_tip_x(batch: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    keys, f, w = (F.normalize(torch.randn(n, 16, generator=generator), dim=-1) for n in (10, 6, 5))
    labels = torch.arange(10) % 5
    edit = InterModalCache(scores(), NAMES, 10, 16, 1.5, 2.0, 0.7, batch=batch)
    edit.fill(Seen(keys, labels, w))
    P, Q = ((x @ w.T / 0.5).softmax(-1) for x in (f, keys))
    M = torch.stack([torch.stack([(p * (p / q).log()).sum() for q in Q]) for p in P])
    assert float(M.min()) >= 0
    torch.testing.assert_close(edit.divergence(f @ w.T), M, rtol=1e-4, atol=1e-6)
    assert float(edit.divergence(keys @ w.T).diagonal().abs().max()) < 1e-6
    A = f @ keys.T
    own = torch.stack([torch.stack([(p * (p / q).log()).sum() for q in Q]) for p in Q])
    low, high, least, most = (M.min(), M.max(), A.min(), A.max()) if batch else (
        own.min(), own.max(), (keys @ keys.T).min(), (keys @ keys.T).max())
    phi = least + (M - low) / (high - low) * (most - least)
    told = F.one_hot(labels, 5).float()
    wanted = 100 * f @ w.T + 1.5 * (-2 * (1 - A)).exp() @ told - 0.7 * phi @ told
    torch.testing.assert_close(edit(None, f, w), wanted, rtol=1e-4, atol=1e-4)
    tried = list(edit.tried(f, f @ w.T, {"beta": [1.0, 2.0], "alpha": [1.5], "gamma": [0.2, 0.7]}))
    assert [list(setting.values()) for setting, _ in tried] == [[1.0, 1.5, 0.2], [1.0, 1.5, 0.7], [2.0, 1.5, 0.2], [2.0, 1.5, 0.7]]
    torch.testing.assert_close(tried[-1][1], wanted, rtol=1e-4, atol=1e-4)
    one = edit(None, f[:1], w)
    assert torch.allclose(one, wanted[:1], atol=1e-3) != batch  # with bounds of the batch a picture's answer has to do with others
    edit.settle({"alpha": 0.0, "gamma": 0.0})
    torch.testing.assert_close(edit(None, f, w), 100 * f @ w.T, rtol=1e-5, atol=1e-4)
    flat = torch.ones(1, 5) / 5
    edit.known.copy_(flat.log().expand(10, 5))
    edit.batch = True
    torch.testing.assert_close(edit.rescaled(torch.full((1, 10), 0.3), A[:1]), A[:1].min().expand(1, 10))


@torch.no_grad()
def test_tip_x_takes_its_bounds_from_what_it_is_searched_on() -> None:
    model = two.clip()
    at = put(model, thrifty.SuSX(steps_alpha=2, steps_beta=2, steps_gamma=2))
    edit = edit_of(at)
    before = edit.span.clone()
    held = two.pictures(12)[8:]
    at.method.calibrate(at, None, iter([{"pixel_values": held, "labels": torch.tensor([0, 1, 2, 3])}]))
    assert not torch.equal(before, edit.span) and at.about["measured"]["settings tried"] == 8
    with at.disabled():
        f = model(held)["image_embeds"]
    torch.testing.assert_close(edit.span[3], (f @ edit.keys.T).max())
    assert set(at.about["measured"]["chosen"]) == {"alpha", "beta", "gamma"}


# -- APE ------------------------------------------------------------------------------------------------------------------------
def test_the_authors_numbers_of_ape() -> None:
    g = golden("vlm_ape")
    f, w, seen = g["in/test_features"], g["in/text_classifier"].T, support(g)
    close(similarity(seen.classes, seen.unit, seen.labels), g["out/similarity_criterion"])
    J = criterion(seen, g["hp/w_similarity"], g["hp/w_variance"])
    close(J, g["out/criterion"])
    columns = choose(J, g["hp/feature_count"])
    assert torch.equal(columns, g["out/indices"])
    edit = RefinedCache(scores(), NAMES, 20, 16, 9, g["hp/alpha"], g["hp/beta"], g["hp/gamma"])
    edit.refine(seen, columns)
    close(edit.divergence[:, None], g["out/cache_divergence"])
    close(edit.affinity(f), g["out/refined_test_affinity"])
    close(edit(None, f, w), g["out/ape_logits"])
    grids = {"beta": [1.0, g["hp/beta"]], "alpha": [g["hp/alpha"]], "gamma": [0.0, g["hp/gamma"]]}
    tried = list(edit.tried(f, f @ w.T, grids))
    assert tried[-1][0] == {"beta": g["hp/beta"], "alpha": g["hp/alpha"], "gamma": g["hp/gamma"]} and len(tried) == 4
    close(tried[-1][1], g["out/ape_logits"])


def test_the_authors_numbers_of_ape_t() -> None:
    g = golden("vlm_ape")
    f, w, seen = g["in/test_features"], g["in/text_classifier"].T, support(g)
    columns = choose(criterion(seen, g["hp/w_similarity_T"], g["hp/w_variance_T"], text_only=True), 9)
    assert torch.equal(columns, g["out/ape_t_indices"])
    edit = ResidualCache(scores(), NAMES, 20, 16, 9, g["hp/alpha"], g["hp/beta"])
    edit.refine(seen, columns)
    tip = KeyCache(scores(), NAMES, 20, 16, g["hp/alpha"], g["hp/beta"])
    tip.fill(seen)
    torch.testing.assert_close(edit(None, f, w), tip(None, f, w), rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        edit.residual.copy_(g["w/ape_t_residual"])
        edit.weights.copy_(g["w/ape_t_value_weights"][:, 0])
    out = edit(None, f, w)
    close(out.detach(), g["out/ape_t_logits"])
    close(edit.affinity(f).detach(), f @ g["out/ape_t_keys"].T)
    close(edit.cosines(f, f @ w.T).detach(), f @ g["out/ape_t_text"])
    close(edit.values().detach(), g["out/ape_t_values"])
    loss = F.cross_entropy(out, g["in/labels"])
    loss.backward()
    close(loss.detach(), g["out/ape_t_loss"])
    close(edit.residual.grad, g["grad/ape_t_residual"], 5e-5)
    close(edit.weights.grad[:, None], g["grad/ape_t_value_weights"], 5e-5)


def test_channels_of_classes_of_any_size() -> None:
    generator = torch.Generator().manual_seed(2)
    classes, keys = torch.randn(3, 7, generator=generator).double(), torch.randn(6, 7, generator=generator).double()
    labels = torch.tensor([0, 2, 2, 1, 2, 0])
    groups = [[classes[k], *keys[labels == k]] for k in range(3)]
    products = [a * b for i, j in itertools.permutations(range(3), 2) for a in groups[i] for b in groups[j]]
    torch.testing.assert_close(similarity(classes, keys, labels), torch.stack(products).mean(0))
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    seen, turned = Seen(keys, labels, classes), Seen(keys[order], labels[order], classes)
    assert torch.equal(choose(criterion(seen, 0.7, 0.3), 3), choose(criterion(turned, 0.7, 0.3), 3))
    torch.testing.assert_close(criterion(seen, 1.4, 0.6), 2 * criterion(seen, 0.7, 0.3))
    assert torch.equal(choose(criterion(seen, 0.0, 1.0), 3), classes.var(0).argsort(descending=True)[:3])


def test_ape_t_trains_what_is_in_its_channels() -> None:
    model = two.clip()
    at = put(model, thrifty.APET(share=0.25))
    edit = edit_of(at)
    assert edit.residual.shape == (4, 8) and edit.weights.shape == (8,) and edit.keys.shape == (8, 32)
    shake(at)
    with torch.no_grad():
        out = model(PIXELS)
        f, w = out["image_embeds"], out["text_embeds"].clone()
        keys = edit.keys.clone()
        w[:, edit.columns] += edit.residual
        keys[:, edit.columns] += edit.residual[LABELS]
        cache = (-edit.beta * (1 - f @ keys.T)).exp() @ (edit.weights[:, None] * F.one_hot(LABELS))
        torch.testing.assert_close(out["logits"], 100 * f @ w.T + edit.alpha * cache, rtol=1e-4, atol=1e-3)
    both = put(two.clip(), thrifty.APET(share=0.25, channels_by="both"))
    assert set(edit_of(both).columns.tolist()) != set(edit.columns.tolist())


def test_published_counts() -> None:
    with torch.device("meta"):
        site = scores()
        tip = KeyCache(site, [str(k) for k in range(1000)], 16_000, 512, 1.17, 1.0, trained=True)
        none = KeyCache(site, [str(k) for k in range(1000)], 16_000, 512, 1.17, 1.0)
        ape = ResidualCache(site, [str(k) for k in range(1000)], 16_000, 1024, 500, 2.0, 1.0)
    assert [sum(p.numel() for p in edit.parameters()) for edit in (tip, none, ape)] == [8_192_000, 0, 516_000]
    assert none.keys.numel() + none.labels.numel() == 16_000 * 513


def test_refusals() -> None:
    for method, setting in ((thrifty.TipAdapter(alpha=-1.0), "alpha"), (thrifty.TipAdapter(steps_beta=0), "steps_beta"),
                            (thrifty.TipAdapter(top_alpha=0.1), "top_alpha"), (thrifty.TipAdapter(views=-1), "views"),
                            (thrifty.SuSX(temperature=0.0), "temperature"), (thrifty.SuSX(rescale="all"), "rescale"),
                            (thrifty.SuSX(top_gamma=0.0), "top_gamma"), (thrifty.APE(share=0.0), "share"),
                            (thrifty.APE(varied=-0.1), "varied"), (thrifty.APET(channels_by="image"), "channels_by")):
        with pytest.raises(NoSuchSetting, match=setting):
            put(two.clip(), method)
