"""What every score does with every kind of input: kinds of labels, degenerate features, and what it refuses by name."""
from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from thrifty import rank
from thrifty.core.errors import BadData, Missing

RANDOM = np.random.default_rng(1)
ALL = list(rank.SCORES)
ON_FEATURES = [name for name in ALL if rank.SCORES[name].needs == ("features", "labels")]
Y = np.arange(60) % 3
SIGNAL = RANDOM.normal(size=(60, 8)) + 4 * np.eye(3, 8)[Y]
NOISE = RANDOM.normal(size=(60, 8))


def call(name: str, features: Any, labels: Any, **settings: Any) -> rank.Score:
    """The score with everything it needs made from features and labels: a head that looks at the first three of them."""
    rows = np.asarray(features, dtype=np.float64)
    tops = rows[:, :3] - rows[:, :3].max(axis=1, keepdims=True)
    heads = np.exp(tops) / np.exp(tops).sum(axis=1, keepdims=True)
    made = {"features": features, "labels": labels, "source_labels": heads.argmax(axis=1), "source_probs": heads,
            "source_features": 4 * np.eye(3, rows.shape[1])[np.arange(60) % 3] + 0.01 * NOISE[:, :1], "source_labels_of_otce": Y,
            "target_features": features, "target_labels": labels}
    needs = ["source_labels_of_otce" if name == "otce" and need == "source_labels" else need for need in rank.SCORES[name].needs]
    return rank.SCORES[name].function(*(made[need] for need in needs), **settings)


@pytest.mark.parametrize("name", ALL)
def test_higher_is_better(name: str) -> None:
    good, bad = call(name, SIGNAL, Y), call(name, NOISE, Y)
    if rank.SCORES[name].hub:
        good, bad = rank.over_hub([good, bad])
    assert good > bad


@pytest.mark.parametrize("name", ALL)
def test_labels_may_be_numbered_and_written_in_any_way(name: str) -> None:
    score = call(name, SIGNAL, Y)
    gaps, words = np.array([-7, 3, 100], dtype=np.int8)[Y], np.array(["cat", "dog", "emu"])[Y]
    for same in (gaps, words, words.tolist(), words.astype(object), Y.astype(float), torch.from_numpy(Y)):
        assert call(name, SIGNAL, same) == pytest.approx(score, rel=1e-9)
    assert call(name, SIGNAL, np.array([2, 0, 1])[Y]) == pytest.approx(score, rel=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    order = RANDOM.permutation(60)
    tolerance = 0.3 if name == "nleep" else 1e-7  # the mixture starts at drawn rows
    assert call(name, SIGNAL[order], Y[order]) == pytest.approx(call(name, SIGNAL, Y), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_nothing_of_the_caller_is_written_to(name: str) -> None:
    features, labels = SIGNAL.copy(), Y.copy()
    features.setflags(write=False)
    labels.setflags(write=False)
    score = call(name, features, labels)
    assert np.array_equal(features, SIGNAL) and np.array_equal(labels, Y)
    assert isinstance(score, rank.Score) and json.loads(json.dumps(score.details)) == score.details
    for twin in (pickle.loads(pickle.dumps(score)), copy.deepcopy(score)):
        assert twin == score and twin.details == score.details and twin.parts == score.parts


@pytest.mark.parametrize("name", ON_FEATURES)
def test_kinds_of_numbers(name: str) -> None:
    coarse = np.round(SIGNAL * 8) / 8
    score = call(name, coarse, Y)
    tensor = torch.from_numpy(coarse).to(torch.bfloat16).requires_grad_()
    held = tensor.detach().double().numpy()
    assert rank.SCORES[name].function(tensor, Y) == pytest.approx(float(call(name, held, Y)), rel=1e-9)
    for kind in (np.float32, np.float16):
        assert call(name, coarse.astype(kind), Y) == pytest.approx(score, rel=1e-9)
    bytes_ = (np.clip(coarse, 0, 5) * 50).astype(np.uint8)
    assert call(name, bytes_, Y) == pytest.approx(call(name, bytes_.astype(float), Y), rel=1e-9), "squares must not overflow"


@pytest.mark.parametrize("name", ALL)
def test_a_single_class_is_an_error(name: str) -> None:
    with pytest.raises(BadData, match="labels are 4: with one class"):
        call(name, SIGNAL, np.full(60, 4))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("labels", "says"), [
    (Y[:50], "50 (target_)?labels for 60 rows|60 source_labels for 50 rows"),
    (np.where(Y == 2, np.nan, Y), "row 2 says nan"), (Y + 0.5, "row 0 says 0.5"),
    (np.where(Y == 2, np.inf, Y), "row 2 says inf"), (np.eye(3)[Y], r"not of shape \[60, 3\]"), ([None] * 60, "not object"),
    (np.zeros(0), r"not of shape \[0\]"),
])
def test_labels_that_are_none(name: str, labels: Any, says: str) -> None:
    with pytest.raises(BadData, match=says):
        call(name, SIGNAL, labels)


@pytest.mark.parametrize("name", [*ON_FEATURES, "otce"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(name: str, bad: float) -> None:
    broken = SIGNAL.copy()
    broken[7, 3] = bad
    with pytest.raises(BadData, match=f"features hold {bad} in row 7, column 3"):
        call(name, broken, Y)


@pytest.mark.parametrize("name", ON_FEATURES)
@pytest.mark.parametrize("features", [SIGNAL[0], SIGNAL[:, :0], SIGNAL[None], [["a"]], np.ones((2, 2), dtype=complex)])
def test_features_that_are_no_table(name: str, features: Any) -> None:
    with pytest.raises(BadData, match="features must be"):
        rank.SCORES[name].function(features, Y)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_numbers_too_large_and_too_small_to_square(name: str) -> None:
    with pytest.raises(BadData, match=r"features hold .*e\+200 in row 0, column 0, whose powers"):
        call(name, 1e200 * np.abs(SIGNAL), Y)
    with np.errstate(all="ignore"):
        try:
            assert np.isfinite(call(name, 1e-200 * SIGNAL, Y))
        except BadData as error:
            assert re.search("too small|equal", str(error))


CONSTANT: dict[str, Any] = {"gbc": -6.0, "nleep": -np.log(3), "hscore": 0.0, "sfda": 1 / 3, "transrate": 0.0, "ped": 1 / 3,
                            "nce": -np.log(3), "leep": -np.log(3), "parc": "row 0 are all equal"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_constant_features(name: str, value: float) -> None:
    flat, wanted = np.full((60, 8), value), CONSTANT.get(name)
    if isinstance(wanted, str):
        with pytest.raises(BadData, match=wanted):
            call(name, flat, Y)
        return
    score = call(name, flat, Y)
    assert np.isfinite(score)
    if wanted is not None:
        assert score == pytest.approx(wanted, abs=1e-9)
    if name in ("ncti", "etran"):
        assert score.parts["S_ncc" if name == "ncti" else "S_cls"] == pytest.approx(1 / 3)


LONELY: dict[str, Any] = {"nce": 0.0, "hscore": 5.0, "sfda": 1.0, "ped": 1.0, "nleep": "need as many rows", "parc": "one row",
                          "ncti": "within any class"}


@pytest.mark.parametrize("name", ALL)
def test_one_row_per_class(name: str) -> None:
    rows, labels, wanted = NOISE[:6], np.arange(6), LONELY.get(name)
    if name == "nce":
        assert rank.nce(labels[::-1], labels) == 0.0
    elif isinstance(wanted, str):
        with pytest.raises(BadData, match=wanted):
            call(name, rows, labels)
    else:
        score = call(name, rows, labels)
        assert np.isfinite(score) and (wanted is None or score == pytest.approx(wanted))


@pytest.mark.parametrize("name", ALL)
def test_more_dimensions_than_rows_and_features_of_low_rank(name: str) -> None:
    wide = SIGNAL @ RANDOM.normal(size=(8, 200))
    for rows in (wide, wide + RANDOM.normal(size=wide.shape), np.concatenate([SIGNAL, SIGNAL, np.zeros((60, 2))], axis=1)):
        assert np.isfinite(call(name, rows, Y))


TURN = np.linalg.qr(RANDOM.normal(size=(8, 8)))[0]
CHANGES: dict[str, Any] = {
    "translate": lambda x, y: (x + np.arange(8), y), "scale": lambda x, y: (3 * x, y), "rotate": lambda x, y: (x @ TURN, y),
    "affine": lambda x, y: (x @ (TURN * np.arange(1, 9)) + 2, y), "zero column": lambda x, y: (np.pad(x, ((0, 0), (0, 1))), y),
    "duplicate": lambda x, y: (np.tile(x, (2, 1)), np.tile(y, 2)), "repeat columns": lambda x, y: (np.tile(x, 2), y),
    "columns": lambda x, y: (x * np.arange(1, 9) - 4, y),
}
SAME = {
    "hscore": ("translate", "scale", "rotate", "affine", "zero column", "duplicate", "repeat columns"),
    "transrate": ("translate", "rotate", "zero column", "duplicate"),
    "gbc": ("translate", "scale", "zero column", "duplicate", "columns"),
    "gbc spherical": ("translate", "scale", "rotate", "duplicate"),
    "parc": ("translate", "scale", "columns"),
    "sfda": ("translate", "rotate", "duplicate"),
    "ncti": ("translate", "rotate"),
    "etran": ("duplicate",),
}
OTHER = {"hscore": (), "transrate": ("scale",), "gbc": ("rotate",), "gbc spherical": ("zero column",), "sfda": ("scale",),
         "parc": ("rotate",), "ncti": (), "etran": ("translate",)}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in SAME for change in SAME[name] + OTHER[name]])
def test_invariances(name: str, change: str) -> None:
    function, settings = (rank.gbc, {"covariance": "spherical"}) if name == "gbc spherical" else (rank.SCORES[name].function, {})
    blurred = SIGNAL / 4 + NOISE[::-1] / 4  # not so well apart that a score is at its end
    base, other = function(blurred, Y, **settings), function(*CHANGES[change](blurred, Y), **settings)
    near = 1e-3 if (name, change) == ("sfda", "rotate") else 1e-6  # its power iteration starts from the sums of rows
    assert (abs(other - base) <= near * abs(base)) == (change in SAME[name]), (float(base), float(other))


def test_counts_do_not_overflow_narrow_labels() -> None:
    source, labels = np.arange(20000) % 120, (np.arange(20000) // 120) % 110
    narrow = rank.nce(source.astype(np.int8), labels.astype(np.uint8))
    assert narrow == rank.nce(source, labels) and narrow < -1


def test_probabilities_that_are_none() -> None:
    good = np.full((60, 4), 0.25)
    for bad, says in ((np.full((60, 4), 0.3), "row 0 of source_probs sums to 1.2"), (np.log(good), "logits"),
                      (np.where(np.eye(60, 4) > 0, np.nan, good), "source_probs hold nan")):
        with pytest.raises(BadData, match=says):
            rank.leep(bad, Y)
    assert rank.leep(good.astype(np.float16), Y) == pytest.approx(-np.log(3))
    with pytest.raises(BadData, match="60 .*source_labels for 59"):
        rank.nce(Y, Y[:59])
    with pytest.raises(BadData, match="59 rows of logits for 60"):
        rank.etran(SIGNAL, Y, logits=SIGNAL[:59])


def test_otce_refuses_features_of_two_models() -> None:
    with pytest.raises(BadData, match="8 dimensions and target features 4"):
        rank.otce(SIGNAL, Y, SIGNAL[:, :4], Y)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(Missing, match=re.escape("thrifty[rank]")):
        rank.otce(SIGNAL, Y, SIGNAL, Y)


def test_the_table_says_what_there_is() -> None:
    import inspect

    for name, entry in rank.SCORES.items():
        parameters = list(inspect.signature(entry.function).parameters)
        assert entry.name == name == entry.function.__name__ and entry.function is getattr(rank, name)
        assert tuple(parameters[:len(entry.needs)]) == entry.needs
        assert ("regression" in parameters) == entry.regression and re.search(r"\b20\d\d\b", entry.paper)
        assert bool(call(name, SIGNAL, Y).parts) == entry.hub
        source = sys.modules[entry.function.__module__].__doc__ or ""
        assert entry.paper.split(",")[0].removesuffix(" et al.") in source and entry.paper.split(", ")[1][-4:] in source
    assert rank.find("logme").regression


def test_the_room_is_reached_by_name_and_imports_little() -> None:
    code = ("import sys, thrifty; assert 'thrifty.rank' not in sys.modules; thrifty.rank.logme([[1.0], [2.0]], [0, 1]);"
            "print([m for m in ('scipy', 'sklearn', 'transformers', 'timm') if m in sys.modules], 'rank' in dir(thrifty))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[] True"
