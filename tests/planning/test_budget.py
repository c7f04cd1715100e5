"""Budgets as people write them."""
from __future__ import annotations

from typing import Any

import pytest

from thrifty.core.errors import NoSuchSetting
from thrifty.train.budget import Budget


@pytest.mark.parametrize(("memory", "bytes_"), [("8GiB", 8 * 1024**3), ("500MB", 500_000_000), ("1.5 gib", 3 * 2**29),
                                                ("2048B", 2048), (12345, 12345)])
def test_amounts_of_memory(memory: Any, bytes_: int) -> None:
    assert Budget.make({"memory": memory}) == Budget(bytes_, None)


@pytest.mark.parametrize(("time", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2min", 120), ("1d", 86400),
                                               (7.5, 7.5)])
def test_amounts_of_time(time: Any, seconds: float) -> None:
    assert Budget.make({"time": time}) == Budget(None, seconds)


@pytest.mark.parametrize(("given", "says"), [
    ({"memory": "2GIP"}, "GIP.*GiB"), ({"memory": "2"}, "no unit"), ({"memory": "-2GiB"}, "more than nothing"),
    ({"memory": "0GiB"}, "more than nothing"), ({"memory": "much"}, "8GiB or"), ({"memory": True}, "amount"),
    ({"time": "3 weeks"}, "weeks"), ({"time": "1h-30m"}, "30m"), ({"time": float("inf")}, "more than nothing"),
    ({"memroy": "2GiB"}, "'memory'"),
])
def test_what_is_no_budget_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(NoSuchSetting, match=says):
        Budget.make(given)


def test_nothing_given_is_no_budget() -> None:
    assert not Budget.make(None) and not Budget.make({}) and Budget.make({"time": "1s"})
