"""What a machine can do at most, measured: floating-point operations per second in matrix products, and bytes per second in copies.

    python benchmarks/machine.py [--threads 2] [--device cpu]

The peak is the best of several sizes and repetitions, as it is a limit that other scripts compare with, and not what is usual.
"""
from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch

SIZES = (512, 1024, 2048)


def seconds(run: Callable[[], object], device: torch.device, busy: bool = False) -> float:
    """How long ``run`` takes, until the device is done; ``busy``: how long the processor works for it, over all threads."""
    clock = time.process_time if busy else time.perf_counter
    began = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def matmul_peak(dtype: torch.dtype, device: torch.device, repeats: int = 5, busy: bool = False) -> float:
    """Floating-point operations per second of the fastest square product; sizes above those of a CPU are tried on a GPU."""
    best = 0.0
    for size in SIZES if device.type == "cpu" else (4096, 8192):
        a, b, c = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        times = [seconds(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), device, busy) for _ in range(repeats + 1)]
        best = max(best, 2 * size**3 / min(times[1:]))
    return best


def copy_bandwidth(device: torch.device, size: int = 1 << 28, repeats: int = 5) -> float:
    """Bytes read and written per second when ``size`` bytes are copied."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min([seconds(lambda: target.copy_(source), device) for _ in range(repeats + 1)][1:])


def describe(device: torch.device) -> str:
    """The machine in a line: processor or card, threads, torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or platform.machine()}, " \
        f"{torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}"


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    print(describe(device))
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix products in {str(dtype).removeprefix('torch.')}: {matmul_peak(dtype, device) / 1e9:,.0f} GFLOP/s")
    print(f"copies: {copy_bandwidth(device) / 1e9:,.1f} GB/s")


if __name__ == "__main__":
    main()
