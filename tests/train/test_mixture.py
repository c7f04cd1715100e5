"""Which task, and which of its rows, a step is made of: rates recomputed here, and nothing remembered from step to step."""
from __future__ import annotations

import math
from collections import Counter

import pytest

from thrifty.core.errors import NoSuchSetting
from thrifty.train.mixture import Mixture, arrange
from thrifty.train.order import Order

TASKS = ["a"] * 90 + ["b"] * 30 + ["c"] * 10


def mixture(size: int = 4, seed: int = 0, temperature: float | str | None = None, cap: int | None = None) -> Mixture:
    return Mixture(TASKS, size, seed, [1] * len(TASKS), temperature, cap)


@pytest.mark.parametrize(("temperature", "cap", "weights"), [
    (None, None, (90, 30, 10)), (1.0, None, (90, 30, 10)), (1.0, 40, (40, 30, 10)), (2.0, None, (90**0.5, 30**0.5, 10**0.5)),
    (5.0, 20, (20**0.2, 20**0.2, 10**0.2)), ("equal", None, (1, 1, 1)), ("equal", 3, (1, 1, 1)),
])
def test_every_epoch_gives_each_task_its_share_of_the_steps(temperature: float | str | None, cap: int | None,
                                                            weights: tuple[float, ...]) -> None:
    made = mixture(temperature=temperature, cap=cap)
    steps = math.ceil(sum(min(rows, cap or rows) for rows in (90, 30, 10)) / 4)
    assert made.per_epoch == steps and made.epochs(3 * steps) == 3
    total: Counter[str] = Counter()
    for epoch in range(40):
        drawn = Counter(made.task(epoch * steps + place) for place in range(steps))
        total += drawn
        for name, weight in zip("abc", weights, strict=True):
            assert abs(drawn[name] - steps * weight / sum(weights)) < 1
    for name, weight in zip("abc", weights, strict=True):
        assert total[name] / (40 * steps) == pytest.approx(weight / sum(weights), abs=0.01)


def test_annealing_goes_from_proportional_towards_equal() -> None:
    made = Mixture(TASKS, 1, 0, [1] * len(TASKS), "annealed", None, 5.0)
    for epoch in range(5):
        alpha = 1 - 0.8 * epoch / 4
        weights = {name: rows**alpha for name, rows in (("a", 90), ("b", 30), ("c", 10))}
        drawn = Counter(made.task(130 * epoch + place) for place in range(130))
        assert all(abs(drawn[name] - 130 * weights[name] / sum(weights.values())) < 1 for name in "abc")


def test_a_step_is_of_one_task_and_its_rows_come_once_before_any_comes_again() -> None:
    made, seen = mixture(), Counter[int]()
    passes: dict[str, list[int]] = {name: [] for name in "abc"}
    for step in range(200):
        rows = made.step(step)
        assert {TASKS[row] for row in rows} == {made.task(step)}
        passes[made.task(step)] += rows
        seen.update(rows)
    for name, size in (("a", 90), ("b", 30), ("c", 10)):
        drawn = passes[name]
        for start in range(0, len(drawn) - size, size):
            assert sorted(drawn[start : start + size]) == [row for row, task in enumerate(TASKS) if task == name]
        assert drawn[:size] != drawn[size : 2 * size]


def test_a_step_depends_on_seed_and_step_alone() -> None:
    one = [mixture().step(step) for step in range(100)]
    assert [mixture().step(step) for step in (77, 3, 99)] == [one[77], one[3], one[99]]
    assert [mixture(seed=1).step(step) for step in range(100)] != one
    tasks = [mixture().task(step) for step in range(99)]
    assert tasks[:33] != tasks[33:66], "every epoch has an order of its own"


def test_a_larger_step_holds_more_rows_of_the_same_task() -> None:
    """So batches, processes and accumulation cut a step into parts of one task."""
    made = mixture(size=16)
    assert all(len({TASKS[row] for row in made.step(step)}) == 1 for step in range(30))
    assert {len(made.step(step)) for step in range(30) if made.task(step) == "c"} == {10}


def test_rows_of_like_length_go_together_within_a_task() -> None:
    lengths = [row % 17 + 1 for row in range(len(TASKS))]
    made, plain = Mixture(TASKS, 4, 0, lengths), mixture()
    padded = [sum(max(lengths[row] for row in order.step(step)) * len(order.step(step)) for step in range(33))
              for order in (made, plain)]
    assert padded[0] < 0.8 * padded[1]


def test_a_task_that_never_comes_is_refused() -> None:
    made = Mixture(["a"] * 5000 + ["rare"], 8, 0, [1] * 5001)
    with pytest.raises(NoSuchSetting, match="task 'rare' would come in none of the 3 steps.*raise temperature"):
        made.refuse_never(3)
    Mixture(["a"] * 5000 + ["rare"], 8, 0, [1] * 5001, "equal").refuse_never(3)


def test_examples_without_a_task_keep_the_order_they_had() -> None:
    examples = [{"input_ids": [1] * (i % 5)} for i in range(20)]
    found = arrange(examples, 4, 3, None, None, 1.0)
    plain = Order(20, 4, 3, [i % 5 for i in range(20)])
    assert isinstance(found, Order) and [found.step(i) for i in range(10)] == [plain.step(i) for i in range(10)]
