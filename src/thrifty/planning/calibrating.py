"""Calibrating: a few seconds of products, copies and the like, to know how fast this machine is at them."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thrifty.planning.machine import Machine, describe
from thrifty.planning.observed import Observed
from thrifty.train.precision import has_bfloat16

Probe = tuple[str, float, Callable[[], Any]]  # key of the rate, size, what to run
NARROW = (8, 32, 128, 512, 2048)                        # sides of products
POOL = 1 << 25                                          # numbers among which these lie, more than caches hold
MOVED = (1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)   # numbers in tensors that are moved


def calibrate(device: torch.device, seconds: float = 8.0) -> Machine:
    """Measure this machine for about so many seconds. Nothing else should run on it meanwhile."""
    probes = list(make_probes(device))
    share = seconds / (len(probes) + 1)
    one = torch.ones(1, device=device)
    call = _median(device, lambda: torch.add(one, one), share)
    rates: dict[str, list[tuple[float, float]]] = {}
    for name, size, run in probes:
        with Observed(device) as seen:
            run()
        work = seen.take()
        amount = work.flops or work.bytes
        taken = max(_median(device, run, share) - call * len(work.operations), 1e-9)
        rates.setdefault(name, []).append((size or float(work.bytes), amount / taken))
    return Machine(describe(device), call, rates)


def make_probes(device: torch.device) -> Iterator[Probe]:
    """What is measured, sizes in rising order for each key. A size of 0 stands for the bytes that are read and written."""
    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    for dtype in (torch.float32, torch.bfloat16) if has_bfloat16(device)[0] else (torch.float32,):
        kind = str(dtype).removeprefix("torch.")
        for side in NARROW:
            x, w = draw(512, max(side, 768), dtype=dtype), draw(max(side, 768), side, dtype=dtype)
            yield f"product {kind}", side, partial(torch.matmul, x, w)
        for side in NARROW[:3]:
            many, thin = draw(64, 128, side, dtype=dtype), draw(64, side, 128, dtype=dtype)
            yield f"batched {kind}", side, partial(torch.bmm, many, thin)
        q = draw(2, 8, 256, 64, dtype=dtype)
        yield f"attention {kind}", 1, partial(F.scaled_dot_product_attention, q, q, q)
        picture, kernel = draw(4, 64, 28, 28, dtype=dtype), draw(64, 64, 3, 3, dtype=dtype)
        yield f"convolution {kind}", 1, partial(F.conv2d, picture, kernel, padding=1)
    pool = draw(POOL)
    for count in MOVED:
        yield "move", 0, Elsewhere(torch.add, pool, count, 2)
    for count in MOVED[1:4]:
        yield "curve", 0, Elsewhere(F.gelu, pool, count, 1)
    for count in MOVED[1:4]:
        yield "draw", 0, Elsewhere(partial(Tensor.bernoulli_, p=0.9), pool, count, 1)


class Elsewhere:
    """Runs ``func`` on ``inputs`` tensors of ``count`` numbers that lie elsewhere in ``pool`` each time: what a step reads is
    seldom in the processor's cache any more."""

    def __init__(self, func: Callable[..., Tensor], pool: Tensor, count: int, inputs: int) -> None:
        self.func, self.inputs = func, inputs
        self.pieces = cycle(pool.split(count))

    def __call__(self) -> Tensor:
        return self.func(*islice(self.pieces, self.inputs))


def _median(device: torch.device, run: Callable[[], Any], seconds: float) -> float:
    """The median time of a run, over as many as fit, at least one; another before them does not count."""
    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    until = time.perf_counter() + seconds
    once()
    times = [once()]
    while time.perf_counter() < until and len(times) < 10_000:
        times.append(once())
    return statistics.median(times)
