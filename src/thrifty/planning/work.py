"""Work: the operations of a block of code, by what they cost: multiplications, or memory that is read and written."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
ATTENTION = "scaled_dot_product"
CURVES = {"gelu", "silu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "exp", "log", "erf", "sin", "cos", "pow", "rsqrt", "sqrt",
          "softmax", "log_softmax", "native_layer_norm", "native_group_norm", "native_batch_norm", "logsigmoid", "mish"}
UNTOUCHED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh"}
DRAWS = {"bernoulli", "uniform", "normal", "rand", "randn", "randint", "rand_like", "randn_like", "native_dropout"}


@dataclass(frozen=True)
class Operation:
    """What one operation costs.

    ``kind`` is product, batched (many products of small matrices at once), attention, convolution, curve (functions that take
    longer to compute than to read), draw (random numbers), move (all that only reads and writes) or call (what touches no numbers).
    ``narrow`` is the smallest side of a product.
    """

    kind: str
    dtype: str
    flops: int
    bytes: int
    narrow: int = 0


class Work:
    """Operations, and how often each came."""

    def __init__(self, operations: Counter[Operation] | None = None) -> None:
        self.operations: Counter[Operation] = operations or Counter()

    def __sub__(self, other: Work) -> Work:
        return Work(self.operations - other.operations)

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count one operation as torch dispatches it, with what it was given and what it gave."""
        if func.namespace != "aten" or func.overloadpacket.__name__.startswith("sym_"):
            return
        self.operations[describe(func, args, kwargs, out)] += 1

    @property
    def flops(self) -> int:
        """Multiplications and additions of products, convolutions and attention, as torch counts them."""
        return sum(operation.flops * times for operation, times in self.operations.items())

    @property
    def bytes(self) -> int:
        """Read and written by all operations."""
        return sum(operation.bytes * times for operation, times in self.operations.items())


def describe(func: Any, args: Any, kwargs: Any, out: Any) -> Operation:
    """What one operation costs, by the shapes of what went in and came out."""
    made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    dtype = str(made[0].dtype).removeprefix("torch.") if made else ""
    name = func.overloadpacket.__name__
    if func.is_view or not made or name in UNTOUCHED:
        return Operation("call", dtype, 0, 0)
    read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    moved = sum(t.numel() * t.itemsize for t in (*read, *made))
    flops = count_flops(func.overloadpacket, name, args, kwargs, out)
    if not flops:
        return Operation(_plain_kind(name), dtype, 0, moved)
    if ATTENTION in name:
        return Operation("attention", dtype, flops, moved)
    if "convolution" in name:
        return Operation("convolution", dtype, flops, moved)
    return Operation("batched" if made[0].dim() > 2 else "product", dtype, flops, moved, min(_sides(read)))


def count_flops(packet: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Two for each multiplication and addition. Attention on a CPU has no formula in torch and is counted as on a GPU."""
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0


def _plain_kind(name: str) -> str:
    root = name.strip("_").removesuffix("_data").removesuffix("_backward")
    return "curve" if root in CURVES else "draw" if root in DRAWS else "move"


def _sides(read: list[Tensor]) -> Iterator[int]:
    """The sides of the matrices that are multiplied, without the number of matrices."""
    matrices = [t for t in read if t.dim() >= 2][-2:]
    return (side for t in matrices for side in t.shape[-2:])
