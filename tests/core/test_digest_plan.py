"""Checksums see every change, and a plan read from a file holds what it must and nothing else."""
from __future__ import annotations

import json

import pytest
import torch

import thrifty
from thrifty.core import Edit, register
from thrifty.core.digest import PIECE, SAMPLES, WHOLE, digest
from thrifty.core.errors import BrokenArtifact
from thrifty.core.plan import Row
from thrifty.testing import tiny
from thrifty.testing.measuring import put


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_a_changed_swapped_or_moved_entry_shows(dtype: torch.dtype) -> None:
    t = (torch.arange(60) % 7 > 2).to(dtype) if dtype == torch.bool else torch.arange(60).to(dtype)
    others = [t.clone() for _ in range(3)]
    others[0][5] = not bool(t[5]) if dtype == torch.bool else t[5] + 1
    others[1][[2, 3]] = t[[3, 2]]
    others[2] = t.roll(1)
    found = {digest(t), *(digest(o) for o in others), digest(t.reshape(6, 10))}
    assert len(found) == 5
    assert digest(t.clone()) == digest(t)


def test_layout_does_not_matter_and_precision_does() -> None:
    t = torch.randn(4, 6)
    assert digest(t.T.contiguous().T) == digest(t)
    assert digest(t.double()) != digest(t)


def test_large_tensors_are_sampled_unless_whole() -> None:
    t = torch.zeros(2 * WHOLE, dtype=torch.uint8)
    assert t.numel() > SAMPLES * PIECE
    before, whole = digest(t), digest(t, whole=True)
    t[t.numel() // 2 :: 2] = 1
    assert digest(t) != before, "a change of many entries shows in the samples"
    t.zero_()
    t[-1] = 1
    assert digest(t, whole=True) != whole, "a change of one entry shows in the whole"


def test_a_plan_survives_json() -> None:
    _, at = put(thrifty.LoRA(rank=2, where="attn.q"), tiny.make("gpt2"))
    rows = [Row.read(json.loads(json.dumps(row.plain()))) for row in at.plan]
    assert rows == at.plan
    assert rows[0].part is not None and rows[0].part.width == 16


@pytest.mark.parametrize(("change", "said"), [
    ({"nubmers": {}}, "unknown key 'nubmers' in a plan row. Did you mean 'numbers'"), ({"path": 3}, "path is of the wrong type"),
    ({"path": None}, "path is of the wrong type"), ({"part": {"name": "attn.q"}}, "plan row"), ({"key": ...}, "lacks 'key'")])
def test_a_row_that_is_not_one(change: dict[str, object], said: str) -> None:
    _, at = put(thrifty.LoRA(rank=2), tiny.make("bert"))
    row = {**at.plan[0].plain(), **change}
    row = {k: v for k, v in row.items() if v is not ...}
    with pytest.raises(BrokenArtifact) as caught:
        Row.read(row)
    assert said in str(caught.value)


def test_an_edits_name_belongs_to_one_class_whatever_others_are_called() -> None:
    @register("test-of-one-name")
    class Same(Edit):
        pass

    class Other(Edit):
        __qualname__ = Same.__qualname__
        __module__ = "elsewhere"

    with pytest.raises(ValueError, match="'test-of-one-name' is taken by .*Same of .*test_digest_plan"):
        register("test-of-one-name")(Other)
