"""Life cycle, points 5, 9, 10 and 12: what is saved is trained, finite and whole; saving needs no network."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, bert, plain, shake

import thrifty
from thrifty.core.errors import BrokenArtifact, DeadEdit, NothingTrains, ThriftyError
from thrifty.core.ledger import refuse_moved, snapshot


def trained(model: Any, **about: Any) -> Any:
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="linear"), **about)
    shake(at.parameters())
    return at


def test_saved_unchanged(tmp_path: Path) -> None:
    at = thrifty.attach(plain(), thrifty.LoRA(where="linear"))
    with pytest.raises(NothingTrains, match="no tensor of 'default' has changed.*unchanged=True"):
        at.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    at.save(tmp_path / "a", unchanged=True)
    thrifty.load(plain(), tmp_path / "a").save(tmp_path / "b")  # what a file held may be saved again as it is


def test_saved_not_finite(tmp_path: Path) -> None:
    at = trained(plain())
    at.save(tmp_path / "a")
    before = (tmp_path / "a" / "adapter.safetensors").read_bytes()
    with torch.no_grad():
        at.parameters()[0][0, 0] = float("nan")
    with pytest.raises(BrokenArtifact, match="1 tensors hold NaN or infinity: .*low-rank:A"):
        at.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter.safetensors").read_bytes() == before


def test_saved_after_it_was_detached(tmp_path: Path) -> None:
    at = trained(plain())
    at.detach()
    with pytest.raises(ThriftyError, match="'default' was detached"):
        at.save(tmp_path / "a")


def test_nothing_trains() -> None:
    class Idle(thrifty.Method):
        def attach(self, at: Any, batches: Any = None) -> None:
            """Puts nothing."""

    model = plain()
    with pytest.raises(NothingTrains, match="nothing trains"):
        thrifty.attach(model, Idle())
    assert all(p.requires_grad for p in model.parameters())


def test_a_tensor_without_a_gradient_by_the_second_step() -> None:
    class Forked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + 0 * self.unused(x).detach()

    model = Forked()
    at = thrifty.attach(model, thrifty.LoRA(where="linear"))
    shake(at.parameters())
    with pytest.raises(NothingTrains, match="2 trainable tensors of 'default' got no gradient in two steps: .*unused"):
        for _ in range(3):
            model(torch.ones(2, 4)).sum().backward()


def test_an_edit_that_is_never_reached() -> None:
    model = plain()
    model.spare = torch.nn.Linear(4, 4)
    model.forward = lambda x: model[5](model[:5](x))  # type: ignore[method-assign]
    with pytest.raises(DeadEdit, match="1 of 4 edits are never reached .*'spare#low-rank'"):
        thrifty.attach(model, thrifty.LoRA(where="linear"), example=torch.randn(2, 6))
    assert not thrifty.attachments(model)


def test_a_frozen_tensor_that_moved() -> None:
    model = plain()
    trained(model)
    before = snapshot(model)
    refuse_moved(model, before)
    with torch.no_grad():
        model[3].weight[0, 0] += 1e-4
    with pytest.raises(ThriftyError, match="1 frozen tensors .*'3.weight'"):
        refuse_moved(model, before)


def test_the_head_is_saved_with_the_adapter(tmp_path: Path) -> None:
    model = bert()
    at = thrifty.attach(model, thrifty.LoRA(), also_train="head")
    shake(at.parameters())
    wanted = answer(model, "bert")
    at.save(tmp_path / "a", labels=["x", "y", "z"])
    again = bert()
    assert thrifty.load(again, tmp_path / "a").about == {"labels": ["x", "y", "z"]}
    assert torch.equal(answer(again, "bert"), wanted)


def test_moving_statistics_are_saved_and_still_ones_stay(tmp_path: Path) -> None:
    """A frozen batch norm keeps its statistics through model.train(); one that is let go takes them along."""
    x = torch.randn(64, 6) * 3 + 1
    model = plain()
    at = trained(model)
    still = model[1].running_mean.clone()
    model.train()(x)
    assert torch.equal(model[1].running_mean, still)
    at.train_buffers(["1.running_mean", "1.running_var", "1.num_batches_tracked"])
    model.train()(x)
    assert not torch.equal(model[1].running_mean, still)
    wanted = answer(model.eval(), "plain")
    at.save(tmp_path / "a")
    again = plain()
    thrifty.load(again, tmp_path / "a").detach()
    assert torch.equal(again[1].running_mean, still)
    thrifty.load(again, tmp_path / "a")
    assert torch.equal(answer(again, "plain"), wanted)
    at.detach()
    assert torch.equal(model[1].running_mean, still)


def test_same_seed_same_numbers(tmp_path: Path) -> None:
    models = plain(), plain()
    torch.manual_seed(1)
    first = thrifty.attach(models[0], thrifty.LoRA(where="linear"), seed=3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = thrifty.attach(models[1], thrifty.LoRA(where="linear"), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = thrifty.attach(plain(), thrifty.LoRA(where="linear"), seed=4)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not torch.equal(pairs[0][0], pairs[0][2])
    for name, at in (("a", first), ("b", second)):
        at.save(tmp_path / name, unchanged=True)
    for file in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = bert()
    model.config._name_or_path = "somebody/somewhere"
    at = thrifty.attach(model, thrifty.LoRA())
    shake(at.parameters())
    thrifty.load(bert(), at.save(tmp_path / "a"))
    thrifty.artifact.peft.read(thrifty.artifact.peft.write(at, tmp_path / "b"), bert())


@pytest.mark.parametrize("name", ["../x", "a/b", "a.b", "", ".", "x" * 65, "edits\0", "1st"])
def test_names_that_escape(name: str) -> None:
    with pytest.raises(ThriftyError, match="name is letters, digits"):
        thrifty.attach(plain(), thrifty.LoRA(where="linear"), name)


def test_places_where_nothing_may_be_saved(tmp_path: Path) -> None:
    at = trained(plain())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ThriftyError, match=r"holds other files \(thesis.tex\)"):
        at.save(tmp_path / "mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(ThriftyError, match="is a link"):
        at.save(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ThriftyError, match="is a link"):
        at.save(tmp_path / "dangling")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ThriftyError, match="is a file"):
        at.save(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "link", "mine", "target"]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work" and not list((tmp_path / "target").iterdir())


def test_saving_again_replaces_the_whole(tmp_path: Path) -> None:
    model = plain()
    at = trained(model)
    at.save(tmp_path / "a")
    shake(at.parameters(), seed=9)
    at.save(tmp_path / "a")
    wanted = answer(model, "plain")
    again = plain()
    thrifty.load(again, tmp_path / "a")
    assert torch.equal(answer(again, "plain"), wanted)
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = trained(plain())
    at.save(tmp_path / "a")
    before = (tmp_path / "a" / "adapter.json").read_bytes()
    shake(at.parameters(), seed=9)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        at.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter.json").read_bytes() == before and os.listdir(tmp_path) == ["a"]


KILLER = """
import os, signal, sys, time
import torch, thrifty
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512)).requires_grad_(False)
for p, value in zip(model.parameters(), (0.01, 0.0, 0.02, 0.0)):
    p.fill_(value)
at = thrifty.attach(model, thrifty.LoRA(rank=512, where='linear'))
for trial in range(12):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(1, 200):
            for p in at.parameters():
                torch.nn.init.constant_(p, float(step))
            at.save(f'{sys.argv[1]}/{trial}/a', step=step)
            os.write(writing, bytes([step]))
    os.close(writing)
    done = os.read(reading, 1)
    time.sleep(0.002 + 0.005 * trial)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(max(done + os.read(reading, 1000)))
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 at twelve moments: the previous or the new adapter is there whole, or the previous lies beside its name."""
    run = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512))
    with torch.no_grad():
        for p, value in zip(model.parameters(), (0.01, 0.0, 0.02, 0.0), strict=True):
            p.fill_(value)
    for trial, last in enumerate(map(int, run.stdout.split())):
        folder = tmp_path / str(trial) / "a"
        if not folder.exists():  # killed between the two renames
            with pytest.raises(BrokenArtifact, match="the previous adapter is in"):
                thrifty.load(model, folder)
            folder.with_name(".a.old").rename(folder)
        at = thrifty.load(model, folder)
        assert at.about["step"] in (last, last + 1)
        assert all(torch.equal(p, torch.full_like(p, float(at.about["step"]))) for p in at.parameters())
        at.detach()


def test_loaded_adapters_say_what_they_were(tmp_path: Path) -> None:
    model = MODELS["gpt2"]()
    at = thrifty.attach(model, thrifty.LoRA(rank=3, stable=True), seed=11)
    shake(at.parameters())
    at.save(tmp_path / "a")
    again = thrifty.load(MODELS["gpt2"](), tmp_path / "a")
    assert again.method == at.method and again.seed == 11
    assert again.summary().trainable == at.summary().trainable
