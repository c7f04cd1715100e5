"""The linear baselines against scikit-learn."""
from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from thrifty.evaluate import linear_head, ridge_head

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(8, 3))
X = RANDOM.normal(size=(240, 8)) * np.arange(1, 9) + 5
Y = ((X - 5) @ WEIGHT / 3 + RANDOM.gumbel(size=(240, 3))).argmax(axis=1)
Z = (X - 5) @ WEIGHT[:, 0] + RANDOM.normal(size=240)
TRAIN, HELD, TEST = slice(0, 120), slice(120, 180), slice(180, 240)
SCALED = (X - X[TRAIN].mean(axis=0)) / X[TRAIN].std(axis=0)


def test_logistic_regression_is_that_of_sklearn() -> None:
    found = linear_head(X[TRAIN], Y[TRAIN], X[HELD], Y[HELD], X[TEST], classes=3, penalties=[0.01])
    theirs = LogisticRegression(C=1 / (0.01 * 120), tol=1e-10, max_iter=5000).fit(SCALED[TRAIN], Y[TRAIN])
    assert found.probabilities == pytest.approx(theirs.predict_proba(SCALED[TEST]), abs=1e-4)
    assert found.validation == pytest.approx(theirs.score(SCALED[HELD], Y[HELD]))


def test_the_penalty_is_chosen_on_validation() -> None:
    penalties = [10.0, 0.1, 0.001]
    alone = {p: linear_head(X[TRAIN], Y[TRAIN], X[HELD], Y[HELD], X[TEST], classes=3, penalties=[p]).validation
             for p in penalties}
    chosen = linear_head(X[TRAIN], Y[TRAIN], X[HELD], Y[HELD], X[TEST], classes=3, penalties=penalties)
    assert alone[chosen.penalty] == max(alone.values())


def test_a_class_without_training_rows_and_a_constant_feature() -> None:
    flat = np.concatenate([X, np.full((240, 1), 7.0)], axis=1)
    found = linear_head(flat[TRAIN], Y[TRAIN], flat[HELD], Y[HELD], flat[TEST], classes=4)
    assert np.isfinite(found.probabilities).all() and found.probabilities[:, 3].max() < 0.5
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(60))


def test_ridge_is_that_of_sklearn() -> None:
    found = ridge_head(X[TRAIN], Z[TRAIN], X[HELD], Z[HELD], X[TEST], penalties=[0.05])
    theirs = Ridge(alpha=0.05 * 120).fit(SCALED[TRAIN], Z[TRAIN])
    assert found.predicted == pytest.approx(theirs.predict(SCALED[TEST]))
    errors = {p: ridge_head(X[TRAIN], Z[TRAIN], X[HELD], Z[HELD], X[TEST], penalties=[p]).validation for p in (1.0, 0.01)}
    assert ridge_head(X[TRAIN], Z[TRAIN], X[HELD], Z[HELD], X[TEST], penalties=[1.0, 0.01]).validation == min(errors.values())


def test_no_penalty_to_choose_from() -> None:
    with pytest.raises(ValueError):
        linear_head(X[TRAIN], Y[TRAIN], X[HELD], Y[HELD], X[TEST], classes=3, penalties=[])
    with pytest.raises(ValueError):
        ridge_head(X[TRAIN], Z[TRAIN], X[HELD], Z[HELD], X[TEST], penalties=[])
