"""The scores recomputed from their definitions, in other ways than the code's."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import linalg, optimize, special, stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture

from thrifty import rank
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.rank import mixture, transport
from thrifty.rank.spectrum import decompose, principal

RANDOM = np.random.default_rng(5)
Y = np.array([0] * 30 + [1] * 20 + [2] * 25)
RANDOM.shuffle(Y)
X = RANDOM.normal(size=(75, 6)) @ RANDOM.normal(size=(6, 6)) + 1.5 * RANDOM.normal(size=(3, 6))[Y] + 4
WIDE = RANDOM.normal(size=(75, 120)) + RANDOM.normal(size=(3, 120))[Y]


def test_spectrum_and_principal_components() -> None:
    low = X[:, :3] @ RANDOM.normal(size=(3, 9))
    sizes, directions = decompose(low)
    assert len(sizes) == 3 and directions @ directions.T == pytest.approx(np.eye(3), abs=1e-12)
    assert (directions.T * sizes**2) @ directions == pytest.approx(low.T @ low, abs=1e-8)
    for rows, count in ((X, 4), (WIDE, 40)):
        theirs = PCA(n_components=count, svd_solver="full").fit(rows)
        components, variances = principal(rows, count)
        assert variances == pytest.approx(theirs.explained_variance_)
        assert np.abs(components) == pytest.approx(np.abs(theirs.transform(rows)), abs=1e-9)
    for share in (0.5, 0.8, 0.95):
        assert principal(WIDE, share=share)[0].shape[1] == PCA(n_components=share, svd_solver="full").fit(WIDE).n_components_
    flat, none = principal(np.full((5, 3), 0.1))
    assert not flat.any() and not none.any()


def test_nce_by_counting() -> None:
    z = RANDOM.integers(0, 4, 75)
    joint = stats.contingency.crosstab(z, Y).count / 75
    entropy = stats.entropy(joint.ravel()) - stats.entropy(joint.sum(axis=1))
    assert rank.nce(z, Y) == pytest.approx(-entropy)


def test_leep_row_by_row() -> None:
    p = RANDOM.dirichlet(np.ones(4), 75)
    p = np.insert(p, 2, 0.0, axis=1)  # a class that the head never names
    total = 0.0
    for i in range(75):
        told = 0.0
        for z in (0, 1, 3, 4):
            told += p[i, z] * p[Y[i] == Y, z].sum() / p[:, z].sum()
        total += math.log(told)
    assert rank.leep(p, Y) == pytest.approx(total / 75)


def between(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows[Y[i] == Y].mean(axis=0) for i in range(len(rows))])


def test_hscore_by_its_covariances() -> None:
    covariance, means = np.cov(X, rowvar=False), np.cov(between(X), rowvar=False)
    assert rank.hscore(X, Y) == pytest.approx(np.trace(np.linalg.pinv(covariance) @ means))
    for rows in (X, WIDE):
        shrunk = LedoitWolf().fit(rows)
        wanted = (1 - shrunk.shrinkage_) * np.trace(np.linalg.solve(shrunk.covariance_, np.cov(between(rows), rowvar=False)))
        found = rank.hscore(rows, Y, regularised=True)
        assert found == pytest.approx(wanted) and found.details["shrinkage"] == pytest.approx(shrunk.shrinkage_)


@pytest.mark.parametrize("weights", ["uniform", "size"])
def test_transrate_by_its_determinants(weights: str) -> None:
    for rows in (X, WIDE):
        centred = rows - rows.mean(axis=0)
        parts = [centred] + [centred[k == Y] for k in range(3)]
        rates = [np.linalg.slogdet(np.eye(rows.shape[1]) + z.T @ z / (len(z) * 1e-4))[1] / 2 for z in parts]
        shares = np.bincount(Y) / 75 if weights == "size" else np.ones(3) / 3
        assert rank.transrate(rows, Y, weights=weights) == pytest.approx(rates[0] - shares @ rates[1:])


@pytest.mark.parametrize("covariance", ["diagonal", "spherical", "full"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_gbc_pair_by_pair(covariance: str, ddof: int) -> None:
    rows = X / 3
    total = 0.0
    for i, j in itertools.permutations(range(3), 2):
        a, b = (np.cov(rows[k == Y], rowvar=False, ddof=ddof) for k in (i, j))
        shift = rows[i == Y].mean(axis=0) - rows[j == Y].mean(axis=0)
        if covariance == "spherical":
            s, t = np.diag(a).mean(), np.diag(b).mean()
            distance = shift @ shift / (s + t) / 4 + 0.5 * math.log((s + t) / 2 / math.sqrt(s * t))
        else:
            a, b = (np.diag(np.diag(m)) if covariance == "diagonal" else m for m in (a, b))
            middle = (a + b) / 2
            logs = [np.linalg.slogdet(m)[1] for m in (middle, a, b)]
            distance = shift @ np.linalg.solve(middle, shift) / 8 + 0.5 * (logs[0] - (logs[1] + logs[2]) / 2)
        total -= math.exp(-distance)
    found = rank.gbc(rows, Y, covariance=covariance, ddof=ddof)
    assert found == pytest.approx(total) and found.details["log_overlap"] == pytest.approx(math.log(-total))


def test_gbc_reduces_wide_features() -> None:
    reduced = PCA(n_components=64, svd_solver="full").fit_transform(WIDE)
    assert rank.gbc(WIDE, Y) == pytest.approx(rank.gbc(reduced, Y, dimensions=None))
    assert rank.gbc(WIDE, Y, dimensions=None) != pytest.approx(rank.gbc(WIDE, Y))
    far = rank.gbc(X + 1e4 * np.eye(6)[Y], Y)
    assert far == 0.0 and far.details["log_overlap"] < -1e4, "what rounds to 0 can still be told apart"
    with pytest.raises(BadData, match="class 0 has 30 rows in 120"):
        rank.gbc(WIDE, Y, covariance="full", dimensions=None)


def test_parc_by_scipy() -> None:
    for rows, dimensions in ((X, None), (WIDE, 32)):
        reduced = rows if dimensions is None else PCA(n_components=dimensions, svd_solver="full").fit_transform(rows)
        scaled = (reduced - reduced.mean(axis=0)) / reduced.std(axis=0)
        pairs = np.triu_indices(75, 1)
        near = 1 - np.corrcoef(scaled)[pairs]
        wanted = 100 * stats.spearmanr(near, Y[pairs[0]] != Y[pairs[1]])[0]
        assert rank.parc(rows, Y, dimensions=dimensions, ties="equal") == pytest.approx(wanted)
    rounded = 100 * stats.spearmanr(1 - np.corrcoef((X - X.mean(axis=0)) / X.std(axis=0))[pairs],
                                    1 - np.corrcoef(np.eye(3)[[list(dict.fromkeys(Y)).index(y) for y in Y]])[pairs])[0]
    assert rank.parc(X, Y) == pytest.approx(rounded)
    constant = np.insert(X, 3, 7.0, axis=1)
    assert np.isfinite(rank.parc(constant, Y))


def fisher(rows: np.ndarray, a: float | None) -> tuple[np.ndarray, float]:
    """Posteriors by the generalised eigenproblem between and within classes, with all eigenvectors; and the shrinkage."""
    priors, means = np.bincount(Y) / 75, np.stack([rows[k == Y].mean(axis=0) for k in range(3)])
    within = sum(p * np.cov(rows[k == Y], rowvar=False, bias=True) for k, p in enumerate(priors))
    if a is None:
        x = within.sum(axis=1)
        for _ in range(3):
            y = within @ x / np.linalg.norm(within @ x)
            x = within @ y / np.linalg.norm(within @ y)
        a = max(math.exp(-5 * x @ within @ y), 1e-10)
    total = np.cov(rows, rowvar=False, bias=True)
    within, total = ((1 - a) * s + a * np.trace(s) / len(s) * np.eye(len(s)) for s in (within, total))
    _, vectors = linalg.eigh(total - within, within)
    weight = means @ vectors @ vectors.T
    return special.softmax(rows @ weight.T - np.diag(means @ weight.T) / 2 + np.log(priors), axis=1), a


@pytest.mark.parametrize("scale", [0.05, 0.15, 1.0])
def test_sfda_by_its_eigenproblem(scale: float) -> None:
    rows = scale * X
    first, a = fisher(rows, None)
    means = np.stack([rows[k == Y].mean(axis=0) for k in range(3)])
    harder = np.empty_like(rows)
    for i, k in enumerate(Y):
        sure = special.softmax(first[i])[k]
        harder[i] = sure * rows[i] + (1 - sure) * np.delete(means, k, axis=0).mean(axis=0)
    second, _ = fisher(harder, a)
    found = rank.sfda(rows, Y)
    assert found == pytest.approx(second[np.arange(75), Y].mean(), rel=1e-6) and found.details["shrinkage"] == pytest.approx(a)


@pytest.mark.parametrize(("rows", "scale"), [(X, 0.1), (X, 3.0), (WIDE, 0.1), (WIDE, 5.0), (WIDE[:40], 3.0)])
def test_ncti_by_sklearn(rows: np.ndarray, scale: float) -> None:
    rows, labels = scale * rows, Y[:len(rows)]
    pca = PCA(n_components=min(64, len(rows) - 1, rows.shape[1]), svd_solver="full")
    reduced = pca.fit_transform(rows)
    a = max(math.exp(-pca.explained_variance_[:32].sum()), 1e-10)
    lda = LinearDiscriminantAnalysis(solver="svd") if a == 1e-10 else LinearDiscriminantAnalysis(solver="eigen", shrinkage=a)
    z = lda.fit_transform(reduced, labels)
    posterior = lda.predict_proba(reduced)
    nuclear = [np.linalg.norm(z - z.mean(axis=0), "nuc"), *(np.linalg.norm(posterior[labels == k], "nuc") for k in range(3))]
    found = rank.ncti(rows, labels)
    wanted = {"S_all": nuclear[0], "S_ncc": posterior[np.arange(len(rows)), labels].mean(), "S_vc": math.log(sum(nuclear[1:]))}
    assert found.parts == pytest.approx(wanted, rel=1e-6)
    assert found == pytest.approx(wanted["S_all"] + wanted["S_ncc"] - wanted["S_vc"], rel=1e-6)


def test_scores_over_a_hub() -> None:
    hub = [rank.ncti(rows, Y) for rows in (X, 0.2 * X, X + RANDOM.normal(size=X.shape), WIDE)]
    table = np.array([[s.parts[name] for name in ("S_all", "S_ncc", "S_vc")] for s in hub])
    scaled = (table - table.min(axis=0)) / np.ptp(table, axis=0)
    assert rank.over_hub(hub) == pytest.approx(scaled @ [1, 1, -1])
    assert [float(s) for s in rank.over_hub(hub[:1])] == [0.0], "parts on which all agree count as 0"
    energies = rank.over_hub([rank.etran(X, Y), rank.etran(2 * X, Y)])
    assert [e.parts["S_en"] for e in energies] in ([0, 1], [1, 0])
    for bad in ([], [rank.sfda(X, Y)], [hub[0], rank.etran(X, Y)]):
        with pytest.raises(BadData, match="over_hub"):
            rank.over_hub(bad)


@pytest.mark.parametrize(("percent", "kept"), [(50, 37), (100, 75), (0.1, 1), (33.3, 24)])
def test_etran(percent: float, kept: int) -> None:
    logits = RANDOM.normal(size=(75, 9))
    levels = np.sort(special.logsumexp(logits, axis=1))
    small = 0.1 * X
    found = rank.etran(small, Y, logits=logits, percent=percent)
    posterior, _ = fisher(small, None)
    assert found.parts == pytest.approx({"S_en": levels[:kept].mean(), "S_cls": posterior[np.arange(75), Y].mean()})
    assert found == pytest.approx(0.15 * found.parts["S_en"] + 0.85 * found.parts["S_cls"])
    highest = rank.etran(small, Y, logits=logits, percent=percent, tail="highest")
    assert highest.parts["S_en"] == pytest.approx(levels[-kept:].mean())
    means = np.stack([small[k == Y].mean(axis=0) for k in range(3)])
    near = -((small[:, None] - means) ** 2).sum(axis=2) / 2 + np.log(np.bincount(Y) / 75)
    nearest = rank.etran(small, Y, compat="nearest_mean").parts["S_cls"]
    assert nearest == pytest.approx(special.softmax(near, axis=1)[np.arange(75), Y].mean())


def test_etran_of_numbers() -> None:
    target = X @ RANDOM.normal(size=(6, 2)) + RANDOM.normal(size=(75, 2))
    for rows in (X, WIDE, np.concatenate([X, X], axis=1)):
        fitted = rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
        wanted = {"S_en": rank.etran(rows, Y).parts["S_en"], "S_reg": -((target - fitted) ** 2).mean()}
        assert rank.etran(rows, target, regression=True).parts == pytest.approx(wanted, abs=1e-12)


def test_nleep_by_sklearns_mixture() -> None:
    reduced = PCA(n_components=0.8, svd_solver="full").fit_transform(X)
    start = mixture.group(principal(X, share=0.8)[0], 15, np.random.default_rng(3))
    sizes = start.sum(axis=0)
    assert (sizes > 0).all() and (start.sum(axis=1) == 1).all()
    means = start.T @ reduced / sizes[:, None]
    precisions = [np.linalg.inv((start[:, k, None] * (reduced - m)).T @ (reduced - m) / sizes[k] + 1e-6 * np.eye(len(m)))
                  for k, m in enumerate(means)]
    theirs = GaussianMixture(15, weights_init=sizes / 75, means_init=means, precisions_init=np.array(precisions)).fit(reduced)
    assert rank.nleep(X, Y, seed=3) == pytest.approx(rank.leep(theirs.predict_proba(reduced), Y), abs=1e-6)
    assert rank.nleep(X, Y, seed=3) == rank.nleep(X, Y, seed=3)
    assert rank.nleep(X, Y, components=1) == pytest.approx(-stats.entropy(np.bincount(Y) / 75))


def test_groups_of_far_blobs() -> None:
    member = mixture.group(np.array([[0.0], [0.1], [9], [9.1], [20]]), 3, np.random.default_rng(0))
    assert sorted(map(tuple, member.T.astype(int))) == [(0, 0, 0, 0, 1), (0, 0, 1, 1, 0), (1, 1, 0, 0, 0)]


def push_apart(rows: np.ndarray, general: np.ndarray, k: float, step: float) -> tuple[np.ndarray, float]:
    """One step of PED, class by class, on standardised features; and the sum of the moves there."""
    middle, spread = general.mean(axis=0), np.maximum(general.std(axis=0), 1e-3)
    z = (rows - middle) / spread
    means = [z[c == Y].mean(axis=0) for c in range(3)]
    radii = [math.sqrt(z[c == Y].var(axis=0).sum()) for c in range(3)]
    total, moved = 0.0, z.copy()
    for i in range(3):
        move = np.zeros(z.shape[1])
        for j in range(3):
            if i != j:
                d = float(np.linalg.norm(means[i] - means[j]))
                o = max(k * (radii[i] + radii[j]) - d, 0)
                move += min(0.5 * step**2 * o, o) * (means[i] - means[j]) / d
        moved[i == Y] += move
        total += float(np.abs(move).sum())
    return moved * spread + middle, total


@pytest.mark.parametrize(("k", "step"), [(0.6, 0.1), (0.9, 0.5), (1.2, 0.8)])
def test_ped_step_by_step(k: float, step: float) -> None:
    general = RANDOM.normal(size=(50, 6)) * [1, 2, 3, 0, 1, 2] + 5
    rows, first, taken = X, None, 0
    while taken < 6:
        moved, total = push_apart(rows, general, k, step)
        first = first or total
        if not first or total / first <= 0.5:
            break
        rows, taken = moved, taken + 1
    found, steps = rank.descend(X, Y, general=general, reach=k, step=step)
    assert steps == taken and found == pytest.approx(rows, abs=1e-9)
    assert taken > 0, "nothing was tried"
    for base, score in (("sfda", rank.sfda), ("logme", rank.logme), ("nleep", rank.nleep)):
        assert rank.ped(X, Y, base, general=general, reach=k, step=step) == pytest.approx(score(rows, Y), rel=1e-6)


def test_ped_where_nothing_can_move() -> None:
    apart = X + 1e3 * np.eye(6)[Y]
    same, steps = rank.descend(apart, Y)
    assert steps == 0 and np.array_equal(same, apart), "no overlap"
    centred = X - between(X)
    assert rank.descend(centred, Y)[1] in range(7) and np.isfinite(rank.ped(centred, Y)), "coincident classes"
    with pytest.raises(BadData, match="dimensions"):
        rank.descend(X, Y, general=WIDE)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 6), (5, 7)])
@pytest.mark.parametrize("solve", [transport.transport, transport.solve_program])
def test_transport_is_optimal(n: int, m: int, solve: Callable[..., tuple[np.ndarray, ...]]) -> None:
    cost = RANDOM.random((n, m))
    rows, columns, mass = solve(cost)
    plan = np.zeros((n, m))
    np.add.at(plan, (rows, columns), mass)
    assert plan.sum(axis=1) == pytest.approx(np.full(n, 1 / n)) and plan.sum(axis=0) == pytest.approx(np.full(m, 1 / m))
    sums = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    wanted = optimize.linprog(cost.ravel(), A_eq=sums, b_eq=np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]).fun
    assert (plan * cost).sum() == pytest.approx(wanted)
    if n == m:
        assert wanted == pytest.approx(min(cost[range(n), list(order)].mean() for order in itertools.permutations(range(n))))


def test_otce_of_sets_of_two_sizes() -> None:
    source, target, labels = X[:30], X[30:75] + 0.1, Y[30:75]
    found = rank.otce(source, Y[:30], target, labels)
    cost = ((source[:, None] - target) ** 2).sum(axis=2)
    rows, columns, mass = transport.transport(cost)
    joint = np.zeros((3, 3))
    for i, j, p in zip(rows, columns, mass, strict=True):
        joint[Y[i], labels[j]] += p
    assert found.details["W_D"] == pytest.approx((cost[rows, columns] * mass).sum())
    assert found == pytest.approx(stats.entropy(joint.sum(axis=1)) - stats.entropy(joint.ravel()))
    assert rank.otce(X, Y, X, Y) == pytest.approx(0.0) and rank.otce(X, Y, X, Y).details["W_D"] == pytest.approx(0.0, abs=1e-9)
    drawn = rank.otce(X, Y, X, Y, largest=20)
    assert drawn.details["source_rows"] == 20 and drawn == rank.otce(X, Y, X, Y, largest=20)


def test_otce_with_coefficients() -> None:
    differences = RANDOM.random((5, 2)) * [100, 1]
    accuracies = 0.9 - 0.002 * differences[:, 0] - 0.3 * differences[:, 1]
    fitted = rank.fit_coefficients(differences.tolist(), accuracies.tolist())
    assert fitted.domain < 0 and fitted.task < 0 and fitted.bias == pytest.approx(accuracies.mean())
    score = rank.otce(X, Y, X[::-1] + 1, Y, coefficients=fitted)
    assert score == pytest.approx(0.9 - 0.002 * score.details["W_D"] - 0.3 * score.details["W_T"])
    for bad in ((differences[:2], accuracies[:2]), (differences, accuracies[:3]), (differences * [1, 0], accuracies)):
        with pytest.raises(BadData):
            rank.fit_coefficients(*bad)


@pytest.mark.parametrize("call", [
    lambda: rank.transrate(X, Y, epsilon=0), lambda: rank.transrate(X, Y, weights="sizes"), lambda: rank.gbc(X, Y, ddof=2),
    lambda: rank.gbc(X, Y, covariance="diag"), lambda: rank.gbc(X, Y, floor=0), lambda: rank.gbc(X, Y, dimensions=0),
    lambda: rank.parc(X, Y, dimensions=2), lambda: rank.parc(X, Y, ties="none"), lambda: rank.nleep(X, Y, components=0),
    lambda: rank.nleep(X, Y, share=1.0), lambda: rank.ncti(X, Y, dimensions=0), lambda: rank.etran(X, Y, percent=0),
    lambda: rank.etran(X, Y, tail="low"), lambda: rank.etran(X, Y, compat="lda"), lambda: rank.ped(X, Y, "lda"),
    lambda: rank.ped(X, Y, step=0), lambda: rank.otce(X, Y, X, Y, largest=1), lambda: rank.find("log-me"),
])
def test_settings_out_of_range(call: object) -> None:
    with pytest.raises(NoSuchSetting):
        call()  # type: ignore[operator]
