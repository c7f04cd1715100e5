"""LogME's evidence against the density of a Gaussian, and against the authors' algorithm written out."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from thrifty import rank
from thrifty.core.errors import BadData, NoSuchSetting

RANDOM = np.random.default_rng(0)
CONVERGED = {"passes": 20000, "tolerance": 1e-14, "epsilon": 1e-14}


def problem(rows: int, width: int, kept: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features of rank ``kept`` and a target of which they tell a part."""
    features = RANDOM.normal(size=(rows, width))
    if kept is not None:
        features = features[:, :kept] @ RANDOM.normal(size=(kept, width))
    return features, features[:, :2].sum(axis=1) + RANDOM.normal(size=rows)


def density(features: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """log p(t | F) per row: w is integrated out, so t is Gaussian with covariance I / beta + F F' / alpha."""
    covariance = np.eye(len(target)) / beta + features @ features.T / alpha
    return float(stats.multivariate_normal(np.zeros(len(target)), covariance).logpdf(target)) / len(target)


@pytest.mark.parametrize(("rows", "width", "kept"), [(40, 5, None), (40, 6, 3), (20, 50, 8), (12, 12, 4)])
def test_the_evidence_is_the_largest_density(rows: int, width: int, kept: int | None) -> None:
    features, target = problem(rows, width, kept)
    found = rank.maximise(features, target, regression=True, **CONVERGED)
    alpha, beta = float(found.alpha[0]), float(found.beta[0])
    assert found.evidence[0] == pytest.approx(density(features, target, alpha, beta), rel=1e-9)
    best = optimize.minimize(lambda logs: -density(features, target, *np.exp(logs)), np.zeros(2), method="Nelder-Mead",
                             options={"xatol": 1e-9, "fatol": 1e-13})
    assert found.evidence[0] == pytest.approx(-best.fun, rel=1e-8)
    assert found.rank == (kept or width)
    precision = alpha * np.eye(width) + beta * features.T @ features
    assert found.means[0] == pytest.approx(beta * np.linalg.solve(precision, features.T @ target), rel=1e-5, abs=1e-9)


def authors(features: np.ndarray, columns: np.ndarray) -> float:
    """The fixed point, one column after the other, with log |A| over the singular values alone."""
    rows, width = features.shape
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    values = []
    for t in columns.T:
        x, alpha, beta = left.T @ t, 1.0, 1.0
        for _ in range(11):
            u = alpha / beta
            gamma = sum(s**2 / (s**2 + u) for s in sizes)
            length = sum((s * a) ** 2 / (u + s**2) ** 2 for s, a in zip(sizes, x, strict=True))
            residual = sum(a**2 / (1 + s**2 / u) ** 2 for s, a in zip(sizes, x, strict=True)) + t @ t - x @ x
            alpha, beta = gamma / (length + 1e-5), (rows - gamma) / (residual + 1e-5)
            if abs(alpha / beta - u) / u <= 1e-3:
                break
        value = width * np.log(alpha) + rows * np.log(beta) - sum(np.log(alpha + beta * s**2) for s in sizes)
        values.append((value - beta * residual - alpha * length - rows * np.log(2 * np.pi)) / 2 / rows)
    return float(np.mean(values))


@pytest.mark.parametrize(("rows", "width"), [(60, 8), (10, 30), (9, 9)])
def test_compat_is_the_authors_algorithm(rows: int, width: int) -> None:
    features, labels = RANDOM.normal(size=(rows, width)), np.arange(rows) % 3
    features[:, 0] += labels
    wanted = authors(features, np.eye(3)[labels])
    assert rank.logme(features, labels, compat="thuml_fixed_point") == pytest.approx(wanted, rel=1e-9)
    if rows >= width:
        assert rank.logme(features, labels) == pytest.approx(wanted, rel=1e-9), "where D is the rank they agree"
    else:
        assert rank.logme(features, labels) < wanted


def test_several_targets_are_the_mean_of_each() -> None:
    features, one = problem(30, 4)
    two = features @ [1, 0, -1, 2] + RANDOM.normal(size=30)
    both = rank.logme(features, np.stack([one, two], axis=1), regression=True)
    assert both == pytest.approx((rank.logme(features, one, True) + rank.logme(features, two, True)) / 2)
    assert both.details["columns"] == pytest.approx([rank.logme(features, t, True) for t in (one, two)])


def test_invariances() -> None:
    features, target = problem(40, 6)
    labels = (target > 0).astype(int)
    turn = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0]
    base = rank.logme(features, labels, **CONVERGED)
    for same in (7.5 * features, features @ turn, np.pad(features, ((0, 0), (0, 3)))):
        assert rank.logme(same, labels, **CONVERGED) == pytest.approx(base, rel=1e-7)
    assert rank.logme(features, 1 - labels) == pytest.approx(rank.logme(features, labels), rel=1e-12)
    repeated = np.concatenate([features, features[:, :2]], axis=1)
    assert np.isfinite(rank.logme(repeated, labels)) and rank.logme(repeated, labels).details["rank"] == 6
    assert abs(rank.logme(features + 1, labels) - rank.logme(features, labels)) > 1e-6
    assert abs(rank.logme(np.tile(features, (2, 1)), np.tile(labels, 2)) - rank.logme(features, labels)) > 1e-6


def test_no_signal_and_all_signal() -> None:
    """Where features say nothing of a column the fixed point runs off to alpha = infinity; the evidence is that of noise alone."""
    target = RANDOM.normal(size=50)
    nothing = rank.logme(np.zeros((50, 3)), target, regression=True)
    beta = 50 / (target @ target)
    assert nothing == pytest.approx((np.log(beta) - np.log(2 * np.pi) - 1) / 2, rel=1e-4)
    features = RANDOM.normal(size=(50, 3))
    across = target - features @ np.linalg.lstsq(features, target, rcond=None)[0]
    far = rank.maximise(features, across, regression=True, passes=5000, epsilon=1e-12)
    beta = 50 / (across @ across)
    assert far.evidence[0] == pytest.approx((np.log(beta) - np.log(2 * np.pi) - 1) / 2, rel=1e-3)
    assert np.isfinite(rank.logme(features, features @ [1, 2, 3], regression=True))
    assert np.isfinite(rank.logme(features, np.zeros(50), regression=True))


@pytest.mark.parametrize("bad", [{"passes": 0}, {"tolerance": -1}, {"epsilon": 0}, {"compat": "icml"}])
def test_settings_out_of_range(bad: dict[str, object]) -> None:
    with pytest.raises(NoSuchSetting):
        rank.logme(np.eye(3), [0, 1, 1], **bad)


def test_targets_that_do_not_fit() -> None:
    for targets in (np.ones(4), np.ones((3, 0)), np.ones((3, 2, 1)), [0.0, np.nan, 1.0]):
        with pytest.raises(BadData, match="labels"):
            rank.logme(np.eye(3), targets, regression=True)


def test_b_tuning() -> None:
    """The one teacher that is the student itself costs nothing; two are blended by their weights."""
    features, labels = problem(30, 5)[0], np.arange(30) % 3
    mean = rank.maximise(features, labels).means
    assert mean.shape == (3, 5)
    batch = features[:8]
    assert rank.penalty(batch, mean, rank.blend([batch], [mean], rank.weigh([0.4]))) == 0.0
    other, theirs = RANDOM.normal(size=(8, 2)), RANDOM.normal(size=(3, 2))
    pi = rank.weigh([0.3, 0.5])
    assert pi == pytest.approx([1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))]) and pi.sum() == pytest.approx(1)
    target = rank.blend([batch, other], [mean, theirs], pi)
    wanted = [[sum(pi[k] * float(np.dot(f[i], m[c])) for k, (f, m) in enumerate(((batch, mean), (other, theirs))))
               for c in range(3)] for i in range(8)]
    assert target == pytest.approx(np.array(wanted))
    assert rank.penalty(batch, mean, target) == pytest.approx(100 * np.mean((batch @ mean.T - wanted) ** 2))
    torch = pytest.importorskip("torch")
    student = torch.from_numpy(batch).requires_grad_()
    loss = rank.penalty(student, torch.from_numpy(mean), torch.from_numpy(target))
    loss.backward()
    assert float(loss) == pytest.approx(rank.penalty(batch, mean, target)) and student.grad.abs().sum() > 0
    with pytest.raises(BadData):
        rank.blend([batch], [mean], [0.5, 0.5])
    with pytest.raises(NoSuchSetting):
        rank.weigh([1.0], temperature=0)
    with pytest.raises(BadData):
        rank.weigh([])
