"""Metrics of written answers against scikit-learn, and groups that are drawn together."""
from __future__ import annotations

import numpy as np
import pytest

from thrifty.evaluate import squad
from thrifty.evaluate.answers import binary_f1, group_match, macro_f1, named, number_groups
from thrifty.evaluate.comparing import compare
from thrifty.evaluate.intervals import bootstrap, resample
from thrifty.evaluate.weighing import mean

RANDOM = np.random.default_rng(3)


def test_an_answer_that_names_no_class_counts_as_the_wrong_one() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    target, said = RANDOM.integers(0, 2, 60), RANDOM.integers(-1, 2, 60)
    wrong = np.where(said < 0, 1 - target, said)
    assert binary_f1(target, said) == pytest.approx(sklearn.f1_score(target, wrong))
    assert named(said) == pytest.approx(np.mean(said >= 0))
    drawn = RANDOM.integers(0, 60, 60)
    counts = np.bincount(drawn, minlength=60)[None].astype(float)
    assert binary_f1(target, said, counts) == pytest.approx([sklearn.f1_score(target[drawn], wrong[drawn])])
    assert binary_f1([0, 0], [0, 0]) == 0.0 and binary_f1([1, 1], [1, -1]) == pytest.approx(2 / 3)


def test_macro_f1_over_the_classes_alone() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    target, said = RANDOM.integers(0, 3, 80), RANDOM.integers(-1, 3, 80)
    assert macro_f1(target, said, 3) == pytest.approx(sklearn.f1_score(target, said, labels=range(3), average="macro"))
    drawn = RANDOM.integers(0, 80, 80)
    counts = np.bincount(drawn, minlength=80)[None].astype(float)
    again = sklearn.f1_score(target[drawn], said[drawn], labels=range(3), average="macro")
    assert macro_f1(target, said, 3, counts) == pytest.approx([again])


def test_groups_are_right_only_as_a_whole() -> None:
    groups = number_groups(["b", "b", "a", "c", "c", "c"])
    assert groups.tolist() == [0, 0, 1, 2, 2, 2]
    assert group_match([True, False, True, True, True, True], groups) == pytest.approx(2 / 3)
    counts = np.array([[2, 2, 0, 1, 1, 1]], dtype=float)  # the wrong group twice, the second never, the third once
    assert group_match([True, False, True, True, True, True], groups, counts) == pytest.approx([1 / 3])


def test_groups_are_drawn_together() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2])
    for counts in resample(6, 5, 50, groups):
        assert (counts[:, [0, 0, 4]] == counts[:, [1, 2, 5]]).all()
        assert (counts[:, [0, 3, 4]].sum(axis=1) == 3).all()
    whole = np.repeat(RANDOM.integers(0, 2, 40), 10).astype(float)  # ten equal rows in each of forty groups
    names = np.repeat(np.arange(40), 10)

    def share(counts):  # type: ignore[no-untyped-def]
        return mean(whole, counts)

    narrow, wide = bootstrap(share, 400), bootstrap(share, 400, groups=names)
    assert wide[1] - wide[0] > 2.5 * (narrow[1] - narrow[0]), "rows that say the same are no more evidence than one"
    exact = 1.96 * np.sqrt(whole.mean() * (1 - whole.mean()) / 40)
    assert (wide[1] - wide[0]) / 2 == pytest.approx(exact, rel=0.15)
    found = compare(share, lambda counts: 0 * counts[:, 0], 400, groups=names)
    assert (found.low, found.high) == pytest.approx(wide, abs=1e-12)


@pytest.mark.parametrize(("text", "answers", "exact", "f1"), [
    ("The Dog!", ["dog"], 1, 1), ("a big dog", ["dog", "big cat"], 0, 2 / 3), ("", ["dog"], 0, 0), ("the", ["a"], 1, 0),
    ("dog dog", ["dog"], 0, 2 / 3), ("U.S.A.", ["USA"], 1, 1),
])
def test_answers_are_compared_as_squad_does(text: str, answers: list[str], exact: float, f1: float) -> None:
    assert squad.exact(text, answers) == exact and squad.overlap(text, answers) == pytest.approx(f1)
