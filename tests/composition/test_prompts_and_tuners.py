"""Composed edits of the call port, and those that add to what an attention gives out, against the same attached one by one."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_algebra import alone, run, saved

import thrifty
from thrifty import Rows, Stack
from thrifty.core.errors import CannotCombine
from thrifty.testing import tiny

IDS = torch.tensor([[5, 9, 11, 3, 7, 20], [6, 2, 8, 4, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
MIXTURE = {"mha": "prefix+adapter", "ffn": "adapter+prompt", "block": "adapter", "rank": 4, "length": 3}


def both(first: Path, second: Path) -> torch.Tensor:
    """What the base answers with two adapters attached one after the other."""
    model = tiny.make("bert").fresh()
    thrifty.load(model, first, "first"), thrifty.load(model, second, "second")
    return run(model, BATCH)


@pytest.mark.parametrize("methods", [
    (thrifty.PTuning(template=[[1, 2]], encoder="none"), thrifty.PTuning(template=[[2, 1], [-1, 1]], encoder="none")),
    (thrifty.PTuning(template=[[1, 2]]), thrifty.PromptTuning(length=3)),
    (thrifty.UTuning(**MIXTURE), thrifty.ResTuning(**MIXTURE))], ids=["templates", "prompts", "tuners"])
def test_a_stack_is_both_attached_in_turn(methods: Any, tmp_path: Path) -> None:
    first, second = (saved(tmp_path / str(i), method, i) for i, method in enumerate(methods))
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Stack(first, second))
    wanted = both(first, second)
    torch.testing.assert_close(run(model, BATCH), wanted)
    assert not torch.allclose(wanted, alone(first, BATCH), atol=1e-5)
    at.save(tmp_path / "whole")
    again = tiny.make("bert").fresh()
    thrifty.load(again, tmp_path / "whole")
    torch.testing.assert_close(run(again, BATCH), wanted)


@pytest.mark.parametrize("method", [thrifty.UTuning(**MIXTURE), thrifty.ResTuning(**MIXTURE),
                                    thrifty.UniPELT(length=3, hidden=8, reduction=2, pool="official")], ids=lambda m: m.name)
def test_each_row_through_its_own(method: Any, tmp_path: Path) -> None:
    folders = {name: saved(tmp_path / name, method, seed) for seed, name in enumerate(("one", "two"), 1)}
    wanted = {name: alone(folder, BATCH) for name, folder in folders.items()}
    model = tiny.make("bert").fresh()
    thrifty.compose(model, Rows(folders))
    for rows in (["one", "two"], ["two", "one"], ["two", "two"]):
        with thrifty.task(model, rows):
            torch.testing.assert_close(run(model, BATCH), torch.stack([wanted[name][i] for i, name in enumerate(rows)]))


def test_rows_apart_from_a_masks_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", thrifty.UniPELT(length=3, hidden=8, reduction=2), 1)
    model = tiny.make("bert").fresh()
    with pytest.raises(CannotCombine, match="can only be stacked"):
        thrifty.compose(model, Rows({"a": folder, "b": folder}))
    thrifty.compose(model, Stack(folder))
    torch.testing.assert_close(run(model, BATCH), alone(folder, BATCH))
