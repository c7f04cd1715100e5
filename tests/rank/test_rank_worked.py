"""Every score on small arrays whose values were worked out apart from this code."""
from __future__ import annotations

import math

import numpy as np
import pytest

from thrifty import rank

P4 = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]]
F6 = np.array([[0, 0], [1, 0], [0, 1], [4, 4], [5, 4], [4, 6]], dtype=float)
Y6, LONELY = [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]
A, B = [[1, 0], [1, 1], [0, 1], [0, 2]], [[1, 0, 1, 0], [1, 1, 0, 2], [0, 1, 2, 1]]
PARC = [[1, 0, 2, 0], [0, 1, 1, 3], [2, 1, 0, 1], [0, 3, 1, 0], [1, 2, 4, 1]]
ZERO, THREE = np.pad(F6, ((0, 0), (0, 1))), np.pad(F6, ((0, 0), (0, 1)), constant_values=3)

CASES = {
    "nce": (rank.nce([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]), -0.3182570841),
    "nce of a constant": (rank.nce([7] * 4, [0, 0, 1, 1]), -0.6931471806),
    "nce of the labels": (rank.nce([0, 1, 0], [5, 9, 5]), 0.0),
    "nce of P4": (rank.nce(np.argmax(P4, axis=1), [0, 0, 1, 1]), 0.0),
    "leep": (rank.leep(P4, [0, 0, 1, 1]), -0.4462756587),
    "leep of a uniform head": (rank.leep(np.full((4, 5), 0.2), [0, 0, 1, 1]), -math.log(2)),
    "logme": (rank.logme(A, [0, 0, 1, 1]), 0.4362372520),
    "logme of numbers": (rank.logme(A, [0.5, 1, 2, 3.5], regression=True), -1.5939805426),
    "logme, D > N": (rank.logme(B, [0, 1, 1]), -0.8742244953),
    "logme, D > N, as the authors": (rank.logme(B, [0, 1, 1], compat="thuml_fixed_point"), -0.0705196075),
    "logme of F6": (rank.logme(F6, Y6), -0.3856854743),
    "logme and a column of 0": (rank.logme(ZERO, Y6), -0.3856854743),
    "logme and a column of 0, as the authors": (rank.logme(ZERO, Y6, compat="thuml_fixed_point"), 0.1503786265),
    "hscore": (rank.hscore(F6, Y6), 0.9800899165),
    "hscore, a class of one": (rank.hscore(F6, LONELY), 0.73641618),
    "transrate": (rank.transrate(F6, Y6), 0.0414292422),
    "transrate, weighted": (rank.transrate(F6, Y6, weights="size"), 0.0414292422),
    "transrate, epsilon 1": (rank.transrate(F6, Y6, epsilon=1), 0.0053595095),
    "transrate, a class of one": (rank.transrate(F6, LONELY), 2.16418351),
    "gbc, spherical": (rank.gbc(F6, Y6, covariance="spherical"), -2.655853e-5),
    "gbc, spherical, ddof 1": (rank.gbc(F6, Y6, covariance="spherical", ddof=1), -1.1027270e-3),
    "gbc": (rank.gbc(F6, Y6), -3.228721e-6),
    "gbc, ddof 1": (rank.gbc(F6, Y6, ddof=1), -2.651828e-4),
    "gbc, full": (rank.gbc(F6, Y6, covariance="full", ddof=1), -1.316102e-7),
    "gbc, spherical, a class of one": (rank.gbc(F6, LONELY, covariance="spherical"), -0.04998012),
    "gbc, a class of one": (rank.gbc(F6, LONELY), -0.00437426),
    "gbc of equal classes": (rank.gbc([[0.0], [1], [0], [1]], [0, 0, 1, 1]), -2.0),
    "otce": (rank.otce([[0], [1], [4]], [0, 0, 1], [[0.5], [3], [5]], [0, 1, 1]), -0.4620981204),
    "parc": (rank.parc(PARC, [0, 0, 1, 1, 2]), -35.4649519007),
    "parc, with equal ranks for equal distances": (rank.parc(PARC, [0, 0, 1, 1, 2], ties="equal"), -34.8155311911),
    "sfda": (rank.sfda(F6, Y6), 0.9999999999943),
    "sfda, a class of one": (rank.sfda(F6, LONELY), 0.95599934),
}


@pytest.mark.parametrize("case", CASES)
def test_worked_examples(case: str) -> None:
    found, wanted = CASES[case]
    assert isinstance(found, rank.Score) and float(found) == pytest.approx(wanted, rel=2e-6, abs=1e-9)


def test_what_the_worked_examples_say_besides() -> None:
    logme = rank.logme(A, [0, 0, 1, 1], tolerance=0, passes=200, epsilon=1e-12).details
    assert (logme["alpha"][1], logme["beta"][1], logme["columns"][1]) == pytest.approx((6.868942, 5.795398, -0.883655), rel=1e-5)
    numbers = rank.logme(A, [0.5, 1, 2, 3.5], True, tolerance=0, passes=200, epsilon=1e-12).details
    assert (numbers["alpha"][0], numbers["beta"][0]) == pytest.approx((0.711031, 2.547607), rel=1e-5)
    assert rank.logme(F6 - 2.5, Y6) == pytest.approx(-0.9714, abs=1e-4), "LogME has no intercept"
    assert rank.logme(THREE, Y6) == pytest.approx(-0.0980, abs=1e-4), "a constant column acts as one"
    assert rank.otce([[0], [1], [4]], [0, 0, 1], [[0.5], [3], [5]], [0, 1, 1]).details["W_D"] == pytest.approx(1.75)
    assert rank.sfda(F6, Y6).details["shrinkage"] == pytest.approx(0.0440268616, abs=1e-10)
    assert rank.energy([[2, 0, -1], [0, 0, 0], [5, 1, 0]]) == pytest.approx([2.169846, 1.098612, 5.024745], abs=1e-6)
    assert rank.weigh([0.95, 0.948, 0.9478]) == pytest.approx([0.338016, 0.331323, 0.330661], abs=1e-6)


def test_saturation() -> None:
    random = np.random.default_rng(0)
    wide, labels = random.normal(size=(30, 50)), np.arange(30) % 3
    assert rank.hscore(wide, labels) == pytest.approx(2.0)
    assert rank.hscore(np.concatenate([F6, random.normal(size=(6, 8))], axis=1), Y6) == pytest.approx(1.0)
    assert rank.hscore(wide, labels, regularised=True) < 1.0, "the regularised score does not saturate"
    assert rank.transrate(wide, labels) > 70
    assert rank.sfda(1e3 * wide, labels) == pytest.approx(1.0)


def test_the_soft_bound_of_leep() -> None:
    """LEEP >= mean log P(y | argmax) + mean log max P holds for LEEP's own conditional; with hard counts it is false on P4."""
    p, y = np.array(P4), np.array([0, 0, 1, 1])
    joint = np.stack([p[y == k].sum(axis=0) for k in (0, 1)])
    conditional = joint / joint.sum(axis=0)
    soft = np.log(conditional[y, p.argmax(axis=1)]).mean()
    assert soft == pytest.approx(-0.24766, abs=1e-5)
    best = np.log(p.max(axis=1)).mean()
    assert soft + best <= rank.leep(p, y) < rank.nce(p.argmax(axis=1), y) + best
