"""What has a meaning for the edits that meet at one place, and what they have in common."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import Branch
from ..core.errors import CannotCombine
from .tree import Tree, leaves

if TYPE_CHECKING:
    from .composed import Composed


def find_lead(composed: Composed) -> Any:
    """The edit whose way of reading and writing all others share; None where they have none in common."""
    every = [edit for part in composed.leaves for edit in composed.held(part)]
    kinds = {(type(e).read, type(e).write) if type(e).forward is Branch.forward else None for e in every}
    single = all(len(composed.held(part)) <= 1 for part in composed.leaves)
    return every[0] if len(kinds) == 1 and None not in kinds and single else None


def refuse_meaningless(composed: Composed, node: Tree) -> None:
    """Raise CannotCombine where the node has no meaning for the edits that it would compose."""
    kinds = sorted({type(e).__name__ for leaf in leaves(node) for e in composed.held(leaf["part"])})
    what = f"{node['op']} at {composed.site.path!r}: {' and '.join(kinds) or 'nothing'} at the {composed.port} port"
    if composed.port == "call" and node["op"] != "stack":
        raise CannotCombine(f"{what} change all arguments of a call, which can only be stacked")
    if composed.port == "attention" and node["op"] in ("average", "split"):
        raise CannotCombine(f"{what} act inside attention, whose keys have no {node['op']}")
    if node["op"] == "fuse" and (composed.lead is None or type(composed.lead).read is not Branch.read):
        raise CannotCombine(f"{what} do not all read what the site gives out and add to it alike, so they cannot be fused")
