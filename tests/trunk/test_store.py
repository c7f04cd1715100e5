"""Stores: what is read is what was written; what is damaged, foreign or too large is refused."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from thrifty.core.errors import BrokenArtifact, Unfit
from thrifty.trunk.packing import gap, pack, unpack
from thrifty.trunk.rows import put_together, take_apart
from thrifty.trunk.store import HEADER, Store, Writer, refuse_full

ABOUT = {"place": ["out", "layer.1"], "rows": "abc", "precision": "exact"}


def write(path: Path, precision: str = "exact", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Seven rows of 1 to 7 tokens of width 24, added out of order and in two goes."""
    drawn = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, 24, generator=drawn).to(dtype) for length in (3, 1, 7, 2, 5, 4, 6)]
    writer = Writer(path, ABOUT, len(rows), precision)
    for chosen in ([4, 0, 6], [1, 2, 3, 5]):
        writer.add(chosen, [rows[i] for i in chosen])
    assert not path.exists(), "there is no file before it is whole"
    writer.close()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_bit_for_bit_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = write(tmp_path / "s", dtype=dtype)
    store = Store(tmp_path / "s", ABOUT)
    flat, lengths = store.take([5, 2, 5])
    assert lengths == [4, 7, 4] and flat.dtype == dtype and store.lost == 0
    assert torch.equal(flat, torch.cat([rows[5], rows[2], rows[5]]))


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    rows = write(tmp_path / "s.safetensors")
    held = load_file(tmp_path / "s.safetensors")
    assert set(held) == {"states", "starts", "lengths"} and held["states"].shape == (28, 24)
    for i, row in enumerate(rows):
        start = int(held["starts"][i])
        assert torch.equal(held["states"][start : start + int(held["lengths"][i])], row)


def test_float16_and_int8_lose_what_they_say(tmp_path: Path) -> None:
    for precision in ("float16", "int8"):
        rows = write(tmp_path / precision / "s", precision)
        store = Store(tmp_path / precision / "s", ABOUT)
        flat, _ = store.take(range(7))
        whole = torch.cat(rows)
        if precision == "float16":
            expected = whole.half().float()
        else:  # each token's largest number is 127 steps
            scale = whole.abs().max(-1, keepdim=True).values / 127
            expected = (whole / scale).round() * scale
        torch.testing.assert_close(flat, expected, rtol=1e-6, atol=1e-7)
        lost = ((flat - whole).square().sum() / whole.square().sum()).sqrt().item()
        assert store.lost == pytest.approx(lost, rel=1e-3) and 0 < lost < 0.02
    assert store.bytes < HEADER + 28 * (24 + 4) + 16 * 7 + 1


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(Unfit, match="float16 cannot hold"):
        pack(torch.tensor([[1e6, 1.0]]), "float16")
    with pytest.raises(Unfit, match="not finite"):
        pack(torch.tensor([[float("nan"), 1.0]]), "int8")
    zeros, scales = pack(torch.zeros(2, 4), "int8")
    assert torch.equal(unpack(zeros, scales, torch.float32), torch.zeros(2, 4)) and gap(torch.zeros(3), torch.zeros(3)) == 0


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "header", "empty", "other"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    write(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-5]
    elif damage == "longer":
        data += b"\0"
    elif damage == "flipped":
        data[HEADER + 100] ^= 1
    elif damage == "header":
        data[20:40] = b"x" * 20
    elif damage == "empty":
        data = bytearray()
    else:
        head = json.dumps({"states": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        data = bytearray(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    path.write_bytes(data)
    with pytest.raises(BrokenArtifact, match="delete it"):
        Store(path, ABOUT)


def test_a_foreign_file_is_refused_by_what_differs(tmp_path: Path) -> None:
    write(tmp_path / "s")
    with pytest.raises(BrokenArtifact, match="its rows differ"):
        Store(tmp_path / "s", {**ABOUT, "rows": "xyz"})


def test_an_unfinished_file_leaves_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", ABOUT, 2, "exact")
    writer.add([0], [torch.ones(1, 4)])
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_disk_holds_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"1,000,000,000,000,000,000 bytes.*free"):
        refuse_full(tmp_path / "not" / "there", 10**18)
    refuse_full(tmp_path, 1)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_is_taken_off_and_put_on_anew(side: str) -> None:
    masks: dict[str, Any] = {"left": [[0, 0, 1], [1, 1, 1]], "right": [[1, 0, 0], [1, 1, 1]], "both": [[0, 1, 0], [1, 1, 0]]}
    mask = torch.tensor(masks[side])
    states = torch.randn(2, 3, 4)
    pieces = take_apart(states, mask, "x")
    assert [len(piece) for piece in pieces] == mask.sum(1).tolist()
    wider = torch.nn.functional.pad(mask, (2, 1))
    again = put_together(torch.cat(pieces), [len(p) for p in pieces], wider, "x")
    assert torch.equal(again[:, 2:5][mask.bool()], states[mask.bool()]) and again[wider == 0].abs().sum() == 0
    with pytest.raises(Unfit, match="of other rows"):
        put_together(torch.cat(pieces), [len(p) for p in pieces], 1 - wider, "x")
    with pytest.raises(Unfit, match="padding cannot be told"):
        take_apart(torch.randn(2, 5, 4), mask, "x")
    assert [tuple(p.shape) for p in take_apart(torch.randn(2, 5), None, "x")] == [(1, 5), (1, 5)]
