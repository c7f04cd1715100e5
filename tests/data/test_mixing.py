"""Mixing rates against their formulas, computed here with fractions."""
from __future__ import annotations

import math
from fractions import Fraction

import pytest

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data.mixing import annealed, equal, normalised, proportional, tempered

SIZES = {"cola": 8551, "rte": 2490, "mnli": 392_702}


def test_proportional_rates_are_the_capped_shares() -> None:
    for cap in (None, 1, 3000, 2**18, 2**21):
        counts = {name: min(size, cap or size) for name, size in SIZES.items()}
        found = proportional(SIZES, cap)
        for name, count in counts.items():
            assert found[name] == pytest.approx(float(Fraction(count, sum(counts.values()))), rel=1e-12)


def test_rates_sum_to_one_and_grow_with_size() -> None:
    for rates in (proportional(SIZES), proportional(SIZES, 5000), tempered(SIZES, 2.0), tempered(SIZES, 8.0, 2**18), equal(SIZES)):
        assert math.fsum(rates.values()) == pytest.approx(1.0, abs=1e-15)
        assert rates["rte"] <= rates["cola"] <= rates["mnli"]


def test_temperature_one_is_proportional_and_a_cap_of_one_or_endless_heat_is_equal() -> None:
    assert tempered(SIZES, 1.0, 2**18) == proportional(SIZES, 2**18)
    assert proportional(SIZES, 1) == pytest.approx(equal(SIZES)) and tempered(SIZES, math.inf) == pytest.approx(equal(SIZES))
    square = {name: math.sqrt(min(size, 10_000)) for name, size in SIZES.items()}
    assert tempered(SIZES, 2.0, 10_000) == pytest.approx({name: w / sum(square.values()) for name, w in square.items()})


def test_annealed_rates_go_from_proportional_towards_equal() -> None:
    sizes = dict(enumerate([6680, 2865, 306_798, 1945, 4491, 52_616, 284_257, 84_715]))  # those of the authors' code
    named = {str(i): size for i, size in sizes.items()}
    assert annealed(named, 1, 25) == proportional(named) == annealed(named, 1, 1)
    for epoch, alpha in ((13, 0.6), (25, 0.2)):
        powers = {name: size**alpha for name, size in named.items()}
        assert annealed(named, epoch, 25) == pytest.approx({name: w / sum(powers.values()) for name, w in powers.items()})
    for epoch in range(1, 26):
        found = annealed(named, epoch, 25)
        assert math.fsum(found.values()) == pytest.approx(1.0) and sorted(found, key=found.get) == sorted(named, key=named.get)
    assert annealed(named, 5, 25, cap=3000)["2"] == annealed(named, 5, 25, cap=3000)["6"]


def test_a_set_that_counts_half() -> None:
    found = proportional(SIZES, scale={"rte": 0.5})
    assert found["rte"] / found["cola"] == pytest.approx(1245 / 8551)


def test_weights_of_zero_leave_a_set_out() -> None:
    assert normalised({"a": 3.0, "b": 0.0, "c": 1.0}) == {"a": 0.75, "b": 0.0, "c": 0.25}


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: proportional({}), BadData, "at least one row each; given: none"),
    (lambda: proportional({"a": 1, "b": 0}), BadData, "'b': 0"), (lambda: proportional({"a": math.nan}), BadData, "nan"),
    (lambda: proportional({"a": 1}, 0), NoSuchSetting, "cap must be positive"),
    (lambda: proportional({"a": 1}, scale={"aa": 2}), NoSuchSetting, "Did you mean 'a'"),
    (lambda: proportional({"a": 1}, scale={"a": 0}), NoSuchSetting, "scale of 'a'"),
    (lambda: tempered({"a": 1}, 0.5), NoSuchSetting, "temperature must be at least 1"),
    (lambda: tempered({"a": 1}, math.nan), NoSuchSetting, "temperature"),
    (lambda: normalised({"a": 0.0}), BadData, "one of them positive"), (lambda: normalised({"a": -1.0, "b": 2.0}), BadData, "-1.0"),
    (lambda: equal([]), BadData, "one of them positive"), (lambda: annealed({}, 1, 2), BadData, "at least one row each"),
    (lambda: annealed({"a": 1}, 0, 25), NoSuchSetting, "one of 1 to 25, not 0"),
    (lambda: annealed({"a": 1}, 26, 25), NoSuchSetting, "not 26"), (lambda: annealed({"a": 1}, 1, 0), NoSuchSetting, "1 to 0"),
])
def test_mixtures_without_meaning(call: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()  # type: ignore[operator]
