"""DDP and FSDP2 on two gloo processes train what one process trains, and give back a whole state."""
from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import ThriftyError
from thrifty.testing import tiny
from thrifty.testing.measuring import stir

WORLD, STEPS = 2, 3
KINDS = ("ddp", "fsdp", "fsdp_compiled")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (4, 6), generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "labels": ids}


def _attached(also_train: str | None = None) -> tuple[nn.Module, thrifty.Attachment]:
    backbone = tiny.make("llama")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"), also_train=also_train, example=backbone.example)
    stir(at, size=0.02)
    return model, at


def _train(model: Any, at: thrifty.Attachment, batch: dict[str, Tensor]) -> list[float]:
    optimiser = torch.optim.AdamW(at.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def _work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        for kind in KINDS:
            found = _train_one_of_two(rank, kind)
            if rank == 0:
                torch.save(found, f"{folder}/{kind}.pt")
    finally:
        torch.distributed.destroy_process_group()


def _train_one_of_two(rank: int, kind: str) -> dict[str, Any]:
    model, at = _attached("head" if kind == "ddp" else None)
    before = at.state()
    run = nn.parallel.DistributedDataParallel(model) if kind == "ddp" else _shard(model, compile_it=kind == "fsdp_compiled")
    whole = at.state()
    assert all(torch.equal(whole[n], before[n]) for n in before), "sharding changed what state() gives"
    batch = {k: v[2 * rank : 2 * rank + 2] for k, v in _batch().items()}
    losses = torch.tensor(_train(run, at, batch))
    torch.distributed.all_reduce(losses)
    state = at.state()
    if kind != "ddp":
        _check_sharded(model, at, state)
    return {"losses": losses / WORLD, "state": state}


def _shard(model: nn.Module, compile_it: bool) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if compile_it:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    return model


def _check_sharded(model: nn.Module, at: thrifty.Attachment, state: dict[str, Tensor]) -> None:
    assert all(hasattr(p, "full_tensor") for p in at.parameters()), "an edit is not sharded"
    assert not any(hasattr(t, "full_tensor") for t in state.values())
    with pytest.raises(ThriftyError, match="attach first, then shard"):
        thrifty.attach(model, thrifty.LoRA(rank=2), name="late")
    at.load_state({n: t + 1 for n, t in state.items()})
    again = at.state()
    assert all(torch.equal(again[n], state[n] + 1) for n in state)


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(_work, (_free_port(), str(folder)), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(kind: str, trained_by_two: Path) -> None:
    found = torch.load(trained_by_two / f"{kind}.pt", weights_only=True)
    model, at = _attached("head" if kind == "ddp" else None)
    losses = _train(model, at, _batch())
    torch.testing.assert_close(found["losses"], torch.tensor(losses), rtol=1e-5, atol=1e-6)
    state = at.state()
    assert found["state"].keys() == state.keys()
    for name, wanted in state.items():
        torch.testing.assert_close(found["state"][name], wanted, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
