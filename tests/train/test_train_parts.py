"""The parts of the loop that need no model: settings, schedule, order of rows, choices by default."""
from __future__ import annotations

import math

import pytest
import torch

import thrifty
from thrifty.core.errors import NoSuchSetting
from thrifty.train import Settings
from thrifty.train.choosing import choose_method, resolve
from thrifty.train.log import Log
from thrifty.train.order import Order, deal
from thrifty.train.precision import choose
from thrifty.train.processes import find_device
from thrifty.train.schedule import share
from thrifty.train.training import evaluation_steps


@pytest.mark.parametrize(("values", "said"), [
    ({"epoch": 3}, "epoch.*Did you mean 'epochs'"), ({"batch": "8"}, "batch must be a whole number, not '8'"),
    ({"batch": 0}, "batch must be at least 1"), ({"batch": True}, "batch must be a whole number"),
    ({"rate": -1.0}, "rate must be positive"), ({"rate": math.inf}, "rate must be positive"), ({"rate": math.nan}, "positive"),
    ({"schedule": "linaer"}, "Did you mean 'linear'"), ({"precision": "fp16"}, "precision is 'fp16'"), ({"warmup": 1.0}, "warmup"),
    ({"allow_leak": 1}, "true or false"), ({"patience": -1}, "patience must be at least 0"), ({"columns": ["a"]}, "pairs or none"),
])
def test_settings_refuse_what_has_no_meaning(values: dict[str, object], said: str) -> None:
    with pytest.raises(NoSuchSetting, match=said):
        Settings.make(values)


def test_whole_numbers_stand_for_others_and_settings_survive_json() -> None:
    made = Settings.make({"epochs": 3, "columns": {"text": "a"}})
    assert made.epochs == 3.0 and isinstance(made.epochs, float)
    assert Settings.make(made.plain()) == made


def test_the_schedule_rises_and_falls() -> None:
    linear = [share(step, 100, 0.1, "linear") for step in range(100)]
    assert linear[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert linear[10:] == pytest.approx([1 - i / 90 for i in range(90)])
    cosine = [share(step, 100, 0.0, "cosine") for step in range(100)]
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and cosine[-1] < 1e-3
    assert {share(step, 10, 0.0, "constant") for step in range(10)} == {1.0}
    assert 0 < share(0, 1, 0.06, "linear") < 1  # even a single step moves


def test_each_epoch_sees_every_row_once_in_its_own_order() -> None:
    order = Order(10, 4, seed=0)
    epochs = [[row for step in range(3 * e, 3 * e + 3) for row in order.step(step)] for e in range(3)]
    assert [sorted(e) for e in epochs] == [list(range(10))] * 3 and len({tuple(e) for e in epochs}) == 3
    assert Order(10, 4, seed=0).step(5) == order.step(5)  # no memory of the steps before
    assert Order(10, 4, seed=1).step(0) != order.step(0)


def test_rows_of_like_length_go_together_and_every_row_once() -> None:
    lengths = torch.randint(1, 100, (320,), generator=torch.Generator().manual_seed(0)).tolist()
    order, plain = Order(320, 16, 0, lengths), Order(320, 16, 0)
    epochs = [[order.step(20 * e + i) for i in range(20)] for e in range(2)]
    assert all(sorted(row for rows in epoch for row in rows) == list(range(320)) for epoch in epochs)
    padded = [sum(len(rows) * max(lengths[row] for row in rows) for rows in part)
              for part in (epochs[0], [plain.step(i) for i in range(20)])]
    assert padded[0] < 0.75 * padded[1]
    tops = [max(lengths[row] for row in rows) for rows in epochs[0]]
    assert tops != sorted(tops)  # short and long steps alternate by chance
    assert {tuple(sorted(rows)) for rows in epochs[0]}.isdisjoint({tuple(sorted(rows)) for rows in epochs[1]})


def test_the_order_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    Order(10, 4, 0).step(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("rows", "batch", "world"), [(32, 8, 2), (32, 8, 4), (30, 8, 2), (1, 8, 2), (17, 4, 3), (5, 5, 1)])
def test_rows_are_dealt_evenly_and_each_once(rows: int, batch: int, world: int) -> None:
    hands = [deal(list(range(rows)), batch, world, rank) for rank in range(world)]
    assert len({len(hand) for hand in hands}) == 1  # all take part in the same number of exchanges
    assert sorted(row for hand in hands for part in hand for row in part) == list(range(rows))
    sizes = [len(part) for hand in hands for part in hand]
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1


def test_evaluations_are_even_and_include_the_end() -> None:
    assert evaluation_steps(30, 10, 1) == {10, 20, 30}
    assert evaluation_steps(25, 10, 1) == {10, 20, 25}
    assert evaluation_steps(30, 10, 2) == {5, 10, 15, 20, 25, 30}
    assert evaluation_steps(30, 10, 0.5) == {20, 30}
    assert evaluation_steps(3, 10, 1) == {3}
    assert evaluation_steps(4, 2, 100) == {1, 2, 3, 4}


def test_the_log_keeps_the_first_of_equals_and_thins_a_long_curve() -> None:
    log = Log(0)
    for i, value in enumerate([0.5, 0.7, 0.7, 0.6]):
        log.step = i + 1
        log.judged(0.0, {"accuracy": value}, "accuracy")
    assert (log.best_step, log.best_value, log.worse) == (2, 0.7, 2)
    log.step = 5
    assert not log.judged(0.0, {"accuracy": 0.9}, "accuracy", eligible=False)
    assert (log.best_step, log.worse, log.evaluated, len(log.evaluations)) == (2, 2, 5, 5)
    long = Log(0)
    for _ in range(10_000):
        long.stepped(10_000, 0.0, 1.0, 1.0)
    assert len(long.history) <= 2002 and long.history[-1]["step"] == 10_000 and long.step == 10_000


def test_a_method_by_name_by_mapping_and_ready_made() -> None:
    assert choose_method("lora") == thrifty.LoRA() == choose_method({"name": "lora"})
    assert choose_method({"name": "lora", "rank": 3}) == thrifty.LoRA(rank=3)
    assert choose_method(thrifty.LoRA(rank=3)) == thrifty.LoRA(rank=3)
    with pytest.raises(NoSuchSetting, match="Did you mean 'lora'"):
        choose_method("lroa")
    with pytest.raises(NoSuchSetting, match="Did you mean 'rank'"):
        choose_method({"name": "lora", "rnak": 3})
    with pytest.raises(NoSuchSetting, match="rank must be at least 1"):
        choose_method(thrifty.LoRA(rank=0))
    with pytest.raises(NoSuchSetting, match="lacks its name"):
        choose_method({"rank": 3})


def test_what_is_not_said_depends_on_the_method_and_the_rows() -> None:
    small = resolve(Settings(), thrifty.LoRA(), "text-classification", 320, 1, "float32")
    large = resolve(Settings(), thrifty.LoRA(), "text-classification", 100_000, 1, "float32")
    assert small.epochs == 12 and large.epochs == 3
    rates = {name: resolve(Settings(), choose_method(name), "regression", 320, 1, "float32").rate for name in ("lora", "full")}
    assert rates["full"] is not None and rates["lora"] is not None and rates["full"] < rates["lora"] / 10
    assert resolve(Settings(rate=0.5, epochs=1), thrifty.LoRA(), "regression", 320, 1, "float32").rate == 0.5


def test_precision_follows_the_processor_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    without = choose("auto", cpu)
    assert without.name == "float32" and "no bfloat16" in without.why and without.warning is None
    asked = choose("bfloat16", cpu)
    assert asked.name == "bfloat16" and asked.warning is not None and "emulated" in asked.warning
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose("auto", cpu).name == "bfloat16" and choose("float32", cpu).name == "float32"
    assert choose("bfloat16", cpu).warning is None


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    for name in ("cuda:99", "gpu"):
        with pytest.raises(NoSuchSetting, match=name):
            find_device(name)
