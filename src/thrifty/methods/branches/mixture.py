"""Which tuners stand beside which operations of a block: any mixture of kinds beside attention, feed-forward network and block.

Rethinking Efficient Tuning Methods from a Unified Perspective (Jiang, Mao, Huang, Lv, Zhao, Zhou; 2023, arXiv:2303.00690).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ...core import Method, Site, need
from ...core.errors import NoSuchSite
from .bottleneck import ACTS, Tap
from .operations import Attention, attentions, feed_forwards
from .tuners import AdapterTuner, AttentionTuner, FollowingTuner, LookupTuner, refer

if TYPE_CHECKING:
    from ...core import Attachment

KINDS = ("adapter", "prefix", "prompt")
OPERATIONS = ("mha", "ffn", "block")


@dataclass
class Mixture(Method):
    """What methods have in common that put tuners beside operations: which kinds where, and how large."""

    route = "add modules"
    trains = "adapters, prefixes or prompts beside attention, feed-forward network or block"
    inference = "a small branch beside each chosen operation"
    rate = 1e-3

    mha: str = "adapter"
    ffn: str = "adapter"
    block: str = ""
    length: int = 10
    rank: int = 32
    act: str = "gelu"
    bias: bool = False
    through: bool = True
    where: str = "block"

    def check(self) -> None:
        """The mixture and the activation are known, sizes are positive."""
        refuse_mix(self)
        need(self.length >= 1, self, "length", "at least 1")
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")


def refuse_mix(method: Method) -> None:
    """Refuse a mixture that names an operation's tuners wrongly, or none at all.

    Raises:
        NoSuchSetting: naming the operation.
    """
    for operation in OPERATIONS:
        kinds = mix(method, operation)
        need(all(k in KINDS for k in kinds) and len(set(kinds)) == len(kinds), method, operation,
             f"empty, or some of {list(KINDS)} joined by '+'")
    need(any(mix(method, o) for o in OPERATIONS), method, "mha", "a tuner where ffn and block have none")


def mix(method: Method, operation: str) -> list[str]:
    """The kinds of tuners that ``method`` puts beside an operation."""
    said: str = getattr(method, operation)
    return [kind.strip() for kind in said.split("+")] if said else []


def put_tuners(at: Attachment, method: Any, adapter: Callable[[bool], dict[str, Any]],
               kind_of: type[AdapterTuner] = AdapterTuner) -> None:
    """Put the tuners of ``method`` (its mixture, length, bias, through) beside the operations of every block it names.

    ``adapter`` gives the numbers of a ``kind_of`` adapter, told whether the block is the last.

    Raises:
        NoSuchSite: a block lacks an operation, or an attention whose projections a prefix or prompt could use.
    """
    blocks = at.sites(method.where)
    found, networks = attentions(at, blocks), feed_forwards(at, blocks)
    for block in blocks:
        attention, network = found.get(block.path), networks.get(block.path)
        named = {"mha": None if attention is None else _around(attention), "ffn": network, "block": (block, block)}
        for operation, ends in named.items():
            for kind in mix(method, operation):
                if ends is None or attention is None and kind != "adapter":
                    lacks = "feed-forward network" if ends is None and operation == "ffn" else "attention with q, k, v and o"
                    raise NoSuchSite(f"{operation}={kind!r} needs what {block.path!r} ({type(block.module).__name__}) has not: a "
                                     f"{lacks}")
                if kind == "adapter":
                    _put_adapter(at, operation, *ends, kind_of, adapter(block is blocks[-1]))
                elif attention is not None:
                    _put_lookup(at, operation, *ends, attention, kind, method)


def _around(attention: Attention) -> tuple[Site, Site]:
    """What reads the attention's input, and what gives its output. The stock module may have turned its axes before q reads."""
    return (attention.q if isinstance(attention.whole.module, nn.MultiheadAttention) else attention.whole), attention.o


def _put_adapter(at: Attachment, operation: str, reads: Site, ends: Site, kind: type[AdapterTuner],
                 numbers: dict[str, Any]) -> None:
    follows = kind is FollowingTuner
    key = "" if reads is ends or follows else f"{reads.path}>{operation}-adapter"
    if key:
        at.put(reads, Tap, key=key)
    image = operation == "block" and any(isinstance(m, nn.Conv2d) for m in ends.module.modules())
    at.put(ends, kind, key=key, width=ends.dout if follows else reads.din, image=image, **numbers)


def _put_lookup(at: Attachment, operation: str, reads: Site, ends: Site, attention: Attention, kind: str, method: Any) -> None:
    numbers = {"kind": kind, "length": method.length, "k": refer(attention.k), "v": refer(attention.v), "bias": method.bias}
    if operation == "mha":
        at.put(attention.whole, AttentionTuner, **numbers)
        return
    key = "" if reads is ends else f"{reads.path}>{operation}-{kind}"
    if key:
        at.put(reads, Tap, key=key)
    at.put(ends, LookupTuner, key=key, heads=attention.whole.heads[0], q=refer(attention.q), o=refer(attention.o),
           through=method.through, **numbers)
