"""What composed adapters compute, against the same computed by hand from the parts alone."""
from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty import Average, Fuse, Parallel, Rows, Split, Stack
from thrifty.core.errors import CannotCombine, NoSuchSetting, ThriftyError, Unfit
from thrifty.testing import tiny
from thrifty.testing.measuring import stir

ADDERS = {"lora": thrifty.LoRA(rank=2), "houlsby-like": thrifty.Pfeiffer(reads="sublayer"), "pfeiffer": thrifty.Pfeiffer(),
          "parallel": thrifty.ParallelAdapter(rank=3), "ia3": thrifty.IA3(), "dora": thrifty.DoRA(rank=2),
          "compacter": thrifty.Compacter(rank=4, n=2)}


def saved(folder: Path, method: Any, seed: int, name: str = "bert", also: str | None = None) -> Path:
    at = thrifty.attach(tiny.make(name).fresh(), method, also_train=also)
    stir(at, seed, 0.2)
    return at.save(folder)


@torch.no_grad()
def alone(folder: Path, batch: Any, name: str = "bert") -> Tensor:
    """What the base answers with one adapter on it."""
    model = tiny.make(name).fresh()
    thrifty.load(model, folder)
    return tiny.make(name).logits(model(**batch))


@torch.no_grad()
def run(model: nn.Module, batch: Any, name: str = "bert") -> Tensor:
    return tiny.make(name).logits(model(**batch))


def pick(batch: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in batch.items()}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (4, 7), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("kind", ADDERS)
def test_one_part_is_itself(kind: str, name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", ADDERS[kind], 1, name)
    backbone = tiny.make(name)
    wanted = alone(folder, backbone.example, name)
    for tree in (Stack(folder), Average(folder), Average(folder, folder, weights=(1, 0)), Average(folder, folder), str(folder)):
        model = backbone.fresh()
        at = thrifty.compose(model, tree)
        torch.testing.assert_close(backbone.output(model), wanted, rtol=1e-5, atol=1e-6)
        at.detach()
        assert torch.equal(backbone.output(model), backbone.output(backbone.fresh()))


def test_a_stack_reads_what_came_before_and_keeps_one_residual(tmp_path: Path, batch: Any) -> None:
    """By hand, at one layer of a small network: y + B(y + A(y)), and not y + A(y) + B(...)."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), torch.randn(3, 5, 4)
    folders, parts = [], []
    for i in range(2):
        at = thrifty.attach(model, BottleneckAt(where="linear"), example=x)
        stir(at, i, 0.5)
        parts.append(copy.deepcopy(next(iter(at.edits.values()))))
        folders.append(at.save(tmp_path / str(i)))
        at.detach()
    base = model[0](x)

    def added(edit: Any, h: Tensor) -> Tensor:
        return torch.relu(h @ edit.down.weight.T + edit.down.bias) @ edit.up.weight.T + edit.up.bias

    at = thrifty.compose(model, Stack(*folders), example=x)
    torch.testing.assert_close(model(x), torch.tanh(base + added(parts[1], base + added(parts[0], base))))
    at.detach()
    at = thrifty.compose(model, Average(*folders, weights=(3, 1)), example=x)
    torch.testing.assert_close(model(x), torch.tanh(base + 0.75 * added(parts[0], base) + 0.25 * added(parts[1], base)))
    at.detach()
    at = thrifty.compose(model, Split(*folders, at=2), example=x)
    wanted = torch.cat([base[:, :2] + added(parts[0], base[:, :2]), base[:, 2:] + added(parts[1], base[:, 2:])], 1)
    torch.testing.assert_close(model(x), torch.tanh(wanted))


class BottleneckAt(thrifty.Pfeiffer):
    """A bottleneck at whatever is named."""

    def attach(self, at: thrifty.Attachment, batches: Any = None) -> None:
        from thrifty.methods.branches.bottleneck import Bottleneck

        for site in at.sites(self.where):
            at.put(site, Bottleneck, rank=3, act="relu", init="normal", std=0.02)


def test_a_stack_in_a_post_norm_model_keeps_what_the_feed_forward_network_gave(tmp_path: Path, batch: Any) -> None:
    """MAD-X: LA(h, r) = A(LN(r + a)) + r, TA reads it and keeps the same r; checked in the last layer, from the taps."""
    one, two = thrifty.Pfeiffer(where="block[-1]"), thrifty.Pfeiffer(where="block[-1]")
    folders = [saved(tmp_path / "la", one, 1), saved(tmp_path / "ta", two, 2)]
    model = tiny.make("bert").fresh()
    norm = max((p for p, m in model.named_modules() if p.endswith("output.LayerNorm") and "attention" not in p))
    feed = norm.replace("LayerNorm", "dense")
    seen: dict[str, Tensor] = {}
    handles = [model.get_submodule(norm).register_forward_hook(lambda m, i, o: seen.update(sum=i[0].clone())),
               model.get_submodule(feed).register_forward_hook(lambda m, i, o: seen.update(r=o.clone()))]
    run(model, batch)
    for handle in handles:
        handle.remove()
    layer: Any = model.get_submodule(norm)
    edits = []
    for folder in folders:
        other = tiny.make("bert").fresh()
        edits.append(next(iter(thrifty.load(other, folder).edits.values())))
    with torch.no_grad():
        h, a = layer(seen["sum"]), seen["sum"] - seen["r"]
        la = edits[0].branch(h) + seen["r"]
        wanted = layer(edits[1].branch(la) + seen["r"] + a)
    thrifty.compose(model, Stack(*folders))
    model.get_submodule(norm).register_forward_hook(lambda m, i, o: seen.update(y=o.clone()))
    run(model, batch)
    torch.testing.assert_close(seen["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ADDERS)
def test_rows_go_their_own_way(kind: str, tmp_path: Path, batch: Any) -> None:
    folders = {"en": saved(tmp_path / "en", ADDERS[kind], 1), "de": saved(tmp_path / "de", ADDERS[kind], 2)}
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Rows(folders))
    with pytest.raises(ThriftyError, match="say which"):
        run(model, batch)
    each = {name: alone(folder, batch) for name, folder in folders.items()}
    for name in folders:
        with thrifty.task(model, name):
            torch.testing.assert_close(run(model, batch), each[name], rtol=1e-5, atol=1e-6)
    rows = ["de", "en", "en", "de"]
    with thrifty.task(model, rows):
        wanted = torch.stack([each[name][i] for i, name in enumerate(rows)])
        torch.testing.assert_close(run(model, batch), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(Unfit, match="3 rows were told their task, but at .* has 4"), thrifty.task(model, rows[:3]):
        run(model, batch)
    with pytest.raises(NoSuchSetting, match="no task 'fr'"), thrifty.task(model, ["fr", "en", "en", "en"]):
        pass
    assert at.tasks == ["en", "de"]


@pytest.mark.parametrize("kind", ["lora", "pfeiffer", "prefix"])
def test_parallel_parts_answer_side_by_side(kind: str, tmp_path: Path, batch: Any) -> None:
    method = thrifty.PrefixTuning(mlp=False, length=3) if kind == "prefix" else \
        thrifty.Pfeiffer(where="block[1:]") if kind == "pfeiffer" else ADDERS[kind]
    folders = {"a": saved(tmp_path / "a", method, 1), "b": saved(tmp_path / "b", method, 2)}
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Parallel(folders))
    wanted = torch.cat([alone(folder, batch) for folder in folders.values()])
    torch.testing.assert_close(run(model, batch), wanted, rtol=1e-5, atol=1e-6)
    shared = [row.path for row in at.plan if row.edit == "once"]
    assert len(shared) == (1 if kind == "pfeiffer" else 0)
    if shared:  # the trunk sees each row once
        rows: list[int] = []
        model.get_submodule(shared[0]).register_forward_pre_hook(lambda m, a: rows.append(len(a[0])))
        run(model, batch)
        assert rows == [4]


def test_each_row_has_the_head_of_its_part(tmp_path: Path, batch: Any) -> None:
    folders = {name: saved(tmp_path / name, thrifty.LoRA(rank=2), seed, also="head") for seed, name in enumerate("ab")}
    model = tiny.make("bert").fresh()
    thrifty.compose(model, Parallel(folders))
    wanted = [alone(folder, batch) for folder in folders.values()]
    torch.testing.assert_close(run(model, batch), torch.cat(wanted), rtol=1e-5, atol=1e-6)
    for tree, heads in ((Average(*folders.values()), None), (Stack(*folders.values()), None)):
        with pytest.raises(CannotCombine, match="each trained 'classifier.weight' in place"):
            thrifty.compose(tiny.make("bert").fresh(), tree, heads=heads)
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Average(*folders.values(), weights=(1, 0)), heads="a")
    torch.testing.assert_close(run(model, batch), wanted[0], rtol=1e-5, atol=1e-6)
    assert at.about["dropped"]["classifier.weight"] == ["b"]
    with pytest.raises(NoSuchSetting, match="heads='c' is no part"):
        thrifty.compose(tiny.make("bert").fresh(), Average(*folders.values()), heads="c")


def test_heads_with_different_numbers_of_outputs(tmp_path: Path, batch: Any) -> None:
    folders, wanted = {}, {}
    for labels, name in ((2, "two"), (5, "five")):
        model = tiny.make("bert").fresh()
        torch.manual_seed(labels)
        model.classifier = nn.Linear(16, labels)  # type: ignore[assignment]
        at = thrifty.attach(model, thrifty.LoRA(rank=2), also_train="head")
        stir(at, labels)
        wanted[name] = run(model, batch)
        folders[name] = at.save(tmp_path / name)
    model = tiny.make("bert").fresh()
    thrifty.compose(model, Rows(folders))
    for name, logits in wanted.items():
        with thrifty.task(model, name):
            torch.testing.assert_close(run(model, batch), logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(Unfit, match="rows of different shapes"), thrifty.task(model, ["two", "five", "two", "two"]):
        run(model, batch)


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    prompt = saved(tmp_path / "prompt", thrifty.PromptTuning(length=3), 1)
    prefix = saved(tmp_path / "prefix", thrifty.PrefixTuning(mlp=False, length=3), 1)
    lora = saved(tmp_path / "lora", thrifty.LoRA(rank=2), 1)
    model = tiny.make("bert").fresh()
    for tree, said in ((Average(prompt, prompt), "can only be stacked"), (Split(prefix, prefix, at=2), "no split"),
                       (Fuse(lora, lora), "cannot be fused"), (Fuse(saved(tmp_path / "ia3", thrifty.IA3(), 1)), "cannot be fused"),
                       (Stack(lora, 3), "is no folder of an adapter")):
        with pytest.raises(CannotCombine, match=said):
            thrifty.compose(model, tree)
        assert not thrifty.attachments(model)
    for make in (lambda: Stack(), lambda: Average(lora, weights=(-1,)), lambda: Average(lora, lora, weights=(1,)),
                 lambda: Split(lora, lora, at=0), lambda: Split(lora, lora, at=(1, 2))):
        with pytest.raises(CannotCombine):
            make()


def test_a_split_text_is_not_continued_from_a_cache(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(i), thrifty.LoRA(rank=2), i, "llama") for i in range(2)]
    backbone = tiny.make("llama")
    model: Any = backbone.fresh()
    thrifty.compose(model, Split(*folders, at=3))
    ids = backbone.example["input_ids"][:1]  # type: ignore[index]
    with pytest.raises(Unfit, match="use_cache=False"):
        model.generate(ids, max_new_tokens=3, do_sample=False)
    found = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    with torch.no_grad():
        assert all(int(model(found[:, :i]).logits[0, -1].argmax()) == int(found[0, i]) for i in range(ids.shape[1], found.shape[1]))


def test_a_composition_is_one_artefact(tmp_path: Path, batch: Any) -> None:
    folders = {"en": saved(tmp_path / "en", ADDERS["pfeiffer"], 1), "de": saved(tmp_path / "de", ADDERS["pfeiffer"], 2)}
    task = saved(tmp_path / "ner", ADDERS["pfeiffer"], 3)
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Stack(Rows(folders), Average(task, saved(tmp_path / "lora", ADDERS["lora"], 4))))
    with thrifty.task(model, ["en", "de", "de", "en"]):
        wanted = run(model, batch)
    at.save(tmp_path / "whole")
    other = tiny.make("bert").fresh()
    again = thrifty.load(other, tmp_path / "whole")
    with thrifty.task(other, ["en", "de", "de", "en"]):
        assert torch.equal(run(other, batch), wanted)
    code = ("import thrifty; from thrifty.testing import tiny\n"
            f"print(thrifty.load(tiny.make('bert').fresh(), {str(tmp_path / 'whole')!r}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("<Attachment"), done.stderr  # a new process knows the algebra too
    copied = copy.deepcopy(other)
    with thrifty.task(copied, ["en", "de", "de", "en"]):
        assert torch.equal(run(copied, batch), wanted)
    again.detach()
    assert torch.equal(run(other, batch), run(tiny.make("bert").fresh(), batch))


def test_what_is_new_trains_and_what_was_saved_is_frozen(tmp_path: Path, batch: Any) -> None:
    saved(tmp_path / "lang" / "adapter", ADDERS["pfeiffer"], 1)
    lang = tmp_path / "lang"  # a run's folder stands for its adapter
    model = tiny.make("bert").fresh()
    at = thrifty.compose(model, Stack(lang, thrifty.Pfeiffer(rank=2)))
    names = [name for name, _ in at.named_parameters()]
    assert names and all("leaves.pfeiffer." in name for name in names)
    before = {n: t.clone() for n, t in at.state().items()}
    optimiser = torch.optim.AdamW(at.parameters(), lr=0.1)
    tiny.make("bert").logits(model(**batch)).sum().backward()
    optimiser.step()
    for name, tensor in at.state().items():
        assert torch.equal(tensor, before[name]) == ("leaves.pfeiffer." not in name), name
    at.save(tmp_path / "both")
    other = tiny.make("bert").fresh()
    again = thrifty.load(other, tmp_path / "both")
    assert [name for name, _ in again.named_parameters()] == names


def test_merging_a_composition(tmp_path: Path, batch: Any) -> None:
    a, b = (saved(tmp_path / str(i), ADDERS["lora"], i) for i in range(2))
    for tree in (Stack(a, b), Average(a, b, weights=(1, 3))):
        model = tiny.make("bert").fresh()
        at = thrifty.compose(model, tree)
        wanted = run(model, batch)
        at.merge()
        torch.testing.assert_close(run(model, batch), wanted, rtol=1e-4, atol=1e-5)
    model = tiny.make("bert").fresh()
    with pytest.raises(thrifty.ThriftyError, match="cannot be merged"):
        thrifty.compose(model, Rows({"a": a, "b": b})).merge()
