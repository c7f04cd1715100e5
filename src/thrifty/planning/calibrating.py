"""Calibrating: a few seconds of products, copies and the like, to know how fast this machine is at them."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thrifty.planning.machine import Machine, describe
from thrifty.planning.observed import Observed
from thrifty.train.precision import has_bfloat16

Probe = tuple[str, float, Callable[[], Any]]  # key of the rate, size, what to run
NARROW = (8, 32, 128, 512, 2048)                        # sides of products
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
        q = draw(2, 8, 256, 64, dtype=dtype)
        yield f"attention {kind}", 1, partial(F.scaled_dot_product_attention, q, q, q)
        picture, kernel = draw(4, 64, 28, 28, dtype=dtype), draw(64, 64, 3, 3, dtype=dtype)
        yield f"convolution {kind}", 1, partial(F.conv2d, picture, kernel, padding=1)
    for count in MOVED:
        yield "move", 0, partial(torch.add, draw(count), draw(count))
    for count in MOVED[1:4]:
        yield "curve", 0, partial(F.gelu, draw(count))
    for count in MOVED[1:4]:
        yield "draw", 0, partial(draw(count).bernoulli_, 0.9)


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
