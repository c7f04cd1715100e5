"""Rows with adapters of their own, run at once: equal to each adapter by itself, whatever is mixed."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty import Rows, Stack
from thrifty.composition.composed import Composed
from thrifty.composition.together import Together
from thrifty.core.errors import Unfit
from thrifty.testing import tiny
from thrifty.testing.measuring import stir

KINDS: dict[str, list[Any]] = {
    "lora": [thrifty.LoRA(rank=rank, alpha=alpha) for rank, alpha in ((2, 8.0), (2, 8.0), (3, 8.0), (2, 3.0), (3, 8.0))],
    "ia3": [thrifty.IA3() for _ in range(4)],
    "pfeiffer": [thrifty.Pfeiffer(rank=3), thrifty.Pfeiffer(rank=3), thrifty.Pfeiffer(rank=5)],
    "houlsby": [thrifty.Houlsby(rank=3) for _ in range(3)],
    "prefix": [thrifty.PrefixTuning(mlp=False, length=3) for _ in range(3)],
    "prefixes": [thrifty.PrefixTuning(mlp=False, length=length) for length in (3, 3, 1, 5)],
    "with prefixes": [thrifty.LoRA(rank=2), thrifty.PrefixTuning(mlp=False, length=3), thrifty.IA3(), thrifty.Pfeiffer(rank=3),
                      thrifty.PrefixTuning(mlp=False, length=2), thrifty.LoRA(rank=2), thrifty.PrefixTuning(mlp=False, length=3)],
    "mixed": [thrifty.LoRA(rank=2), thrifty.IA3(), thrifty.LoRA(rank=2), thrifty.Pfeiffer(rank=3), thrifty.IA3()],
}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (7, 5), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def save_all(methods: list[Any], folder: Path, also: str | None = None) -> dict[str, Path]:
    found = {}
    for i, method in enumerate(methods):
        at = thrifty.attach(tiny.make("bert").fresh(), method, also_train=also)
        stir(at, i, 0.2)
        found[f"a{i}"] = at.save(folder / f"a{i}")
    return found


def by_themselves(folders: dict[str, Path], rows: list[str], batch: dict[str, Tensor]) -> Tensor:
    wanted = []
    for i, name in enumerate(rows):
        model = tiny.make("bert").fresh()
        thrifty.load(model, folders[name])
        wanted.append(model(**{key: t[i : i + 1] for key, t in batch.items()}).logits)
    return torch.cat(wanted)


def together(at: thrifty.Attachment) -> list[Together]:
    return [how for edit in at.edits.values() if isinstance(edit, Composed) for shares in edit.shares.values()
            for _, how in shares if how is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("also", [None, "head"])
def test_each_row_is_what_its_adapter_makes_of_it(kind: str, also: str | None, tmp_path: Path, batch: Any) -> None:
    folders = save_all(KINDS[kind], tmp_path, also)
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Rows(folders))
    rows = [list(folders)[i] for i in (2, 0, 1, 0, 2, len(folders) - 1, 1)]
    with torch.no_grad(), thrifty.task(model, rows):
        found = model(**batch).logits
    torch.testing.assert_close(found, by_themselves(folders, rows, batch), rtol=1e-5, atol=1e-6)
    assert together(at)


def test_what_is_kept_follows_what_it_was_made_of(tmp_path: Path, batch: Any) -> None:
    folders = save_all(KINDS["lora"], tmp_path)
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Rows({name: folders[name] for name in ("a0", "a1")}))
    rows = ["a0", "a1", "a1", "a0", "a0", "a1", "a0"]
    with torch.no_grad(), thrifty.task(model, rows):
        before = model(**batch).logits
        for p in at.parameters():
            p.mul_(2)
        doubled = model(**batch).logits
        assert not torch.allclose(before, doubled)
        for p in at.parameters():
            p.div_(2)
        torch.testing.assert_close(model(**batch).logits, before)
        thrifty.swap(at, "a1", folders["a0"])
        torch.testing.assert_close(model(**batch).logits, by_themselves(folders, ["a0"] * 7, batch), rtol=1e-5, atol=1e-6)
        model.double()
        torch.testing.assert_close(model(**batch).logits.float(), by_themselves(folders, ["a0"] * 7, batch), rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_adapter_and_are_those_of_a_loop(tmp_path: Path, batch: Any) -> None:
    folders = save_all(KINDS["houlsby"], tmp_path)
    rows = ["a0", "a1", "a2", "a0", "a0", "a2", "a1"]

    def gradients(single: bool) -> dict[str, Tensor]:
        model: nn.Module = tiny.make("bert").fresh()
        at = thrifty.compose(model, Rows(folders))
        for edit in at.edits.values():
            if single and isinstance(edit, Composed):
                edit.shares[tuple(folders)] = [([i], None) for i in range(3)]
        with thrifty.task(model, rows):
            model(**batch).logits.square().sum().backward()
        return {name: p.grad for name, p in at.named_parameters()}

    one, other = gradients(False), gradients(True)
    assert one.keys() == other.keys() and all(float(g.abs().sum()) > 0 for g in one.values())
    for name, g in one.items():
        torch.testing.assert_close(g, other[name], rtol=1e-4, atol=1e-6)


def test_a_copy_runs_on_its_own_tensors(tmp_path: Path, batch: Any) -> None:
    folders = save_all(KINDS["lora"][:2], tmp_path)
    model = tiny.make("bert").fresh()
    thrifty.compose(model, Rows(folders))
    rows = ["a0", "a1"] * 3 + ["a0"]
    with torch.no_grad(), thrifty.task(model, rows):
        before = model(**batch).logits
        other = copy.deepcopy(model)
    for p in thrifty.attachments(model)["composed"].parameters():
        p.data.zero_()
    with torch.no_grad(), thrifty.task(other, rows):
        assert torch.equal(other(**batch).logits, before)


@pytest.mark.parametrize("backbone", ["bert", "llama"])  # with a padding mask, and with a causal one
def test_prefixes_of_any_length_beside_others_where_rows_are_masked(backbone: str, tmp_path: Path, batch: Any) -> None:
    folders = {}
    for i, method in enumerate((thrifty.PrefixTuning(mlp=False, length=4), thrifty.LoRA(rank=2),
                                thrifty.PrefixTuning(mlp=False, length=1))):
        at = thrifty.attach(tiny.make(backbone).fresh(), method)
        stir(at, i, 0.2)
        folders[f"a{i}"] = at.save(tmp_path / f"a{i}")
    batch["attention_mask"][1:4, 3:] = 0
    model, rows = tiny.make(backbone).fresh(), ["a0", "a1", "a2", "a0", "a2", "a1", "a0"]
    thrifty.compose(model, Rows(folders))
    for given in (batch, {"input_ids": batch["input_ids"]}):
        with torch.no_grad(), thrifty.task(model, rows):
            found = model(**given).logits
        for i, name in enumerate(rows):
            alone = tiny.make(backbone).fresh()
            thrifty.load(alone, folders[name])
            one = {key: t[i : i + 1] for key, t in given.items()}
            torch.testing.assert_close(found[i, 0], alone(**one).logits[0, 0], rtol=1e-4, atol=1e-5)  # of words: the first one's


def test_a_stack_around_rows_of_different_lengths_is_refused(tmp_path: Path, batch: Any) -> None:
    folders = save_all([thrifty.PrefixTuning(mlp=False, length=length) for length in (3, 1, 2)], tmp_path)
    model = tiny.make("bert").fresh()
    thrifty.compose(model, Stack(Rows({name: folders[name] for name in ("a0", "a1")}), folders["a2"]))
    with pytest.raises(Unfit, match="put the rows around the stack"), thrifty.task(model, ["a0", "a1"] * 3 + ["a0"]):
        model(**batch)
