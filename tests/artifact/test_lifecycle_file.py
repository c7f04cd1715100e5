"""Life cycle, points 3 and 12: whatever is wrong with an adapter's files is an error that names it, and runs nothing."""
from __future__ import annotations

import builtins
import copy
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, shake
from safetensors.torch import load_file, save_file
from torch import Tensor

import thrifty
from thrifty.artifact.files import MOST_HEADER, MOST_JSON, canonical, sha256
from thrifty.core.errors import BrokenArtifact, NoSuchSite, ThriftyError

Data = dict[str, Any]


def saved(folder: Path, name: str = "plain", also: str | None = "1") -> Path:
    """A trained LoRA, and a batch norm that trained with it."""
    model = MODELS[name]()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="linear" if name == "plain" else "attn.q[0:1]"), also_train=also)
    shake(at.parameters())
    at.save(folder, task="test")
    return folder


def rewrite(folder: Path, data: Data, recompute: bool = True) -> None:
    if recompute:
        data = {k: v for k, v in data.items() if k != "hash"}
        data["hash"] = sha256(canonical(data))
    (folder / "adapter.json").write_text(json.dumps(data))


def described(folder: Path) -> Data:
    return json.loads((folder / "adapter.json").read_text())


def retensor(folder: Path, alter: Callable[[dict[str, Tensor]], Any], honest: bool = True) -> None:
    """Change the tensors; ``honest`` also changes what the description says of them."""
    state = load_file(folder / "adapter.safetensors")
    alter(state)
    save_file(state, folder / "adapter.safetensors", {"format": "pt"})
    if honest:
        data = described(folder)
        data["tensors"] = {n: {"shape": list(t.shape), "dtype": "F32", "sha256": sha256(t.numpy().tobytes())}
                           for n, t in state.items()}
        rewrite(folder, data)


def refused(folder: Path, said: str, name: str = "plain", kind: type[Exception] = BrokenArtifact) -> None:
    """Loading raises, and leaves the model as it was."""
    model = MODELS[name]()
    before = answer(model, name)
    with pytest.raises(kind, match=f"(?s){said}"):
        thrifty.load(model, folder)
    assert torch.equal(answer(model, name), before) and not thrifty.attachments(model)


def test_a_whole_adapter_loads(tmp_path: Path) -> None:
    model = MODELS["plain"]()
    before = answer(model, "plain")
    at = thrifty.load(model, saved(tmp_path / "a"))
    assert at.base_match == "exactly" and at.about == {"task": "test"}
    assert not torch.equal(answer(model, "plain"), before)


KEYS: dict[str, tuple[Callable[[Data], Any], str]] = {
    "unknown key": (lambda d: d.update(plann=[]), "unknown key 'plann'.*'plan'"),
    "missing key": (lambda d: d.pop("tensors"), "'tensors' is missing"),
    "key of a wrong type": (lambda d: d.update(plan={}), "'plan' is of the wrong type"),
    "unknown key in a row": (lambda d: d["plan"][0].update(rank=3), "unknown key 'rank'"),
    "missing key in a row": (lambda d: d["plan"][0].pop("edit"), "lacks 'edit'"),
    "unknown number": (lambda d: d["plan"][0]["numbers"].update(rnak=3), "takes no 'rnak'.*'rank'"),
    "missing number": (lambda d: d["plan"][0]["numbers"].pop("rank"), "needs 'rank'"),
    "number of a wrong type": (lambda d: d["plan"][0]["numbers"].update(rank="2"), "rank = '2' should be of type int"),
    "negative rank": (lambda d: d["plan"][0]["numbers"].update(rank=-1), "cannot be built"),
    "other format": (lambda d: d.update(format="peft"), "not an adapter of this library"),
    "newer version": (lambda d: d.update(version=2), "schema version 2"),
    "two rows with one key": (lambda d: d["plan"].append(d["plan"][0]), "already holds|keys are not those"),
    "part that is out of range": (lambda d: d["plan"][0].update(part={"name": "attn.q", "lo": 0, "hi": 99, "groups": 1}),
                                  "columns 0 to 99"),
    "row without tensors": (lambda d: d["plan"][0].update(path="3", key="3#low-rank+"), "missing"),
    "tensor of which nothing is said": (lambda d: d["tensors"].pop("base:1.bias"), "says nothing"),
    "tensor that is not there": (lambda d: d["tensors"].update(extra=d["tensors"]["base:1.bias"]), "lacks the tensor 'extra'"),
    "other shape": (lambda d: d["tensors"]["base:1.bias"].update(shape=[9]), r"'base:1.bias' is F32\[8\].*says F32\[9\]"),
    "other dtype": (lambda d: d["tensors"]["base:1.bias"].update(dtype="F16"), r"says F16"),
    "unknown buffer": (lambda d: d["trained"]["1.bias"].update(buffer=True), "no buffer '1.bias'"),
    "unknown method setting": (lambda d: d["method"]["settings"].update(rang=3), "no setting 'rang'"),
    "impossible method setting": (lambda d: d["method"]["settings"].update(rank=0), "rank must be"),
}


@pytest.mark.parametrize("case", KEYS)
def test_description_is_refused(case: str, tmp_path: Path) -> None:
    alter, said = KEYS[case]
    data = described(saved(tmp_path / "a"))
    alter(data)
    rewrite(tmp_path / "a", data)
    refused(tmp_path / "a", said, kind=ThriftyError)


def test_entries_that_are_not_there(tmp_path: Path) -> None:
    data = described(saved(tmp_path / "a"))
    data["trained"]["1.bias"]["masked"] = True
    rewrite(tmp_path / "a", data)
    with pytest.raises(BrokenArtifact, match="no entries that fit the parameter '1.bias'"):
        thrifty.load(MODELS["plain"](), tmp_path / "a", base="any")


def test_path_that_the_model_lacks(tmp_path: Path) -> None:
    data = described(saved(tmp_path / "a"))
    data["plan"][0].update(path="7")
    rewrite(tmp_path / "a", data)
    refused(tmp_path / "a", "no module '7'", kind=NoSuchSite)


@pytest.mark.parametrize("recompute", [False, True])
def test_changed_setting(recompute: bool, tmp_path: Path) -> None:
    """Without the hash the change is noticed; with it the file is another adapter, and does what it says."""
    data = described(saved(tmp_path / "a", also=None))
    data["plan"][0]["numbers"]["alpha"] *= 2
    rewrite(tmp_path / "a", data, recompute)
    if not recompute:
        refused(tmp_path / "a", "changed after it was saved")
        return
    at = thrifty.load(MODELS["plain"](), tmp_path / "a")
    assert next(iter(at.edits.values())).scale == 16.0  # type: ignore[attr-defined]


def test_every_odd_value_is_refused_or_meant(tmp_path: Path) -> None:
    """Each value of the description in turn is replaced, and the hash with it: nothing but our own errors comes out."""
    model = MODELS["gpt2"]()
    whole = described(saved(tmp_path / "a", "gpt2", None))
    for path in [p for p in _places(whole) if p != ("hash",) and not (p[0] == "base" and len(p) > 2)]:
        for odd in (None, -1, 10**9, 1e308, "x", ["x", {}]):
            data = copy.deepcopy(whole)
            holder = data
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = odd
            rewrite(tmp_path / "a", data)
            try:
                thrifty.load(model, tmp_path / "a", base="any", check=False).detach()
            except ThriftyError:
                assert not thrifty.attachments(model)


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for step in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from _places(data[step], (*path, step))


def test_giant_rank_takes_no_memory(tmp_path: Path) -> None:
    data = described(saved(tmp_path / "a"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rank in (10**9, 10**6, 4000):
        data["plan"][0]["numbers"]["rank"] = rank
        rewrite(tmp_path / "a", data)
        refused(tmp_path / "a", "out of all proportion|ask for 'A'")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop("edit:0#low-rank:B"), "'B'.*missing"),
    "extra": (lambda t: t.update({"edit:0#low-rank:C": torch.ones(2)}), "unexpected tensor 'edit:0#low-rank:C'"),
    "wrong shape": (lambda t: t.update({"edit:0#low-rank:B": torch.ones(9, 2)}),
                    r"\(8, 2\), in the file it is of shape \(9, 2\)"),
    "wrong shape in the base": (lambda t: t.update({"base:1.bias": torch.ones(9)}), r"'base:1.bias' has shape \(9,\)"),
    "not a number": (lambda t: t["base:1.bias"].__setitem__(0, float("nan")), "'base:1.bias' holds NaN"),
    "infinite": (lambda t: t["base:1.bias"].__setitem__(0, float("inf")), "'base:1.bias' holds NaN or infinity"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused_although_all_hashes_fit(case: str, tmp_path: Path) -> None:
    alter, said = TENSORS[case]
    saved(tmp_path / "a")
    retensor(tmp_path / "a", alter)
    refused(tmp_path / "a", said)


def test_tensors_of_another_adapter(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    retensor(tmp_path / "a", lambda t: t["base:1.bias"].add_(1), honest=False)
    refused(tmp_path / "a", "contents of 'base:1.bias' do not match their hash")


def test_truncated_or_longer(tmp_path: Path) -> None:
    file = saved(tmp_path / "a") / "adapter.safetensors"
    whole = file.read_bytes()
    for length in (0, 4, 8, 60, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(tmp_path / "a", "truncated")
    file.write_bytes(whole + b"\0")
    refused(tmp_path / "a", "added to")


def test_any_flipped_bit_in_the_tensors(tmp_path: Path) -> None:
    """Every byte of the header, and some in each tensor."""
    file = saved(tmp_path / "a") / "adapter.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    rows = {n: r["data_offsets"] for n, r in json.loads(whole[8:8 + length]).items() if n != "__metadata__"}
    data = [8 + length + place for lo, hi in rows.values() for place in (lo, (lo + hi) // 2, hi - 1)]
    for place in (*range(8 + length), *data):
        bad = bytearray(whole)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bad)
        with pytest.raises(BrokenArtifact):
            thrifty.load(MODELS["plain"](), tmp_path / "a")


def test_any_flipped_bit_in_the_description(tmp_path: Path) -> None:
    file = saved(tmp_path / "a", also=None) / "adapter.json"
    whole = file.read_bytes()
    model = MODELS["plain"]()
    for place in range(0, len(whole), 3):
        bad = bytearray(whole)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bad)
        try:
            thrifty.load(model, tmp_path / "a").detach()
        except BrokenArtifact:
            continue
        assert json.loads(bad) == json.loads(whole), place  # white space between values carries nothing


def test_key_twice(tmp_path: Path) -> None:
    file = saved(tmp_path / "a") / "adapter.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1,\n "seed": 0'))
    refused(tmp_path / "a", "twice")


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", "[" * 100_000, '{"format": NaN}'])
def test_no_json(text: str, tmp_path: Path) -> None:
    (saved(tmp_path / "a") / "adapter.json").write_text(text)
    refused(tmp_path / "a", "JSON|not an object|not an adapter")


def test_oversized(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    with (folder / "adapter.json").open("ab") as file:
        file.truncate(MOST_JSON + 1)  # sparse: takes no disk
    refused(folder, "64 MiB")
    saved(tmp_path / "b")
    with (tmp_path / "b" / "adapter.safetensors").open("r+b") as file:
        file.write((MOST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MOST_HEADER + 100)
    refused(tmp_path / "b", "no safetensors file")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    (folder / "adapter.safetensors").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    refused(folder, "no safetensors file|truncated")
    (folder / "adapter.safetensors").rename(folder / "adapter.bin")
    refused(folder, "no adapter.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("edit", ["os.system", "torch.nn.Linear", "torch.nn.modules.linear:Linear", "LowRank", "__import__",
                                  ""])
def test_nothing_named_in_the_file_is_imported(edit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = described(saved(tmp_path / "a"))
    data["plan"][0]["edit"] = edit
    rewrite(tmp_path / "a", data)
    asked: list[str] = []
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *a, **k: (asked.append(name), real(name, *a, **k))[1])
    refused(tmp_path / "a", f"unknown edit {edit!r}.*Known: .*low-rank")
    assert not {"os.system", "torch.nn.Linear", "torch.nn.modules.linear", "__import__"} & set(asked)


def test_a_new_process_knows_every_edit(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    code = ("import thrifty; from artifact_models import plain\n"
            f"print(thrifty.load(plain(), {str(tmp_path / 'a')!r}).base_match)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "exactly", done.stderr


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    model = MODELS["plain"]()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    thrifty.load(model, tmp_path / "a")
    assert torch.equal(torch.rand(3), wanted)
