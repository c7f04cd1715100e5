"""What a network beside a frozen trunk needs: taps that hear the trunk's blocks, and the place where it answers instead.

Zhang, Sax, Zamir, Guibas, Malik, Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks, ECCV 2020,
arXiv:1912.13503. What a tap leaves is cut from the graph, so nothing in the trunk wants a gradient and none is kept for it.
"""
from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core import Edit, Site, register
from ...core.errors import DeadEdit, NoSuchSite, Unfit
from ...core.site import at_path

if TYPE_CHECKING:
    from ...core import Attachment


@register("side-tap")
class SideTap(Edit):
    """Changes nothing: leaves for the side network what a block is asked (port "call") or what it answers (port "output").

    What is asked are all of the block's arguments by name, its states first. With ``cut`` states leave the graph.
    """

    passive = True

    def __init__(self, site: Site, port: str, cut: bool = True):
        super().__init__(site)
        if port not in ("call", "output"):
            raise ValueError(f"a side tap hears 'call' or 'output', not {port!r}")
        self.port, self.cut, self.names = port, cut, parameters(site.module)

    def forward(self, one: Any, other: Any) -> Any:
        """(args, kwargs) of the block, or its output and input -> what came first of these, as it is."""
        if self.port == "output":
            self.context.taps[said(self.site.path)] = one.detach() if self.cut else one
            return one
        given = dict(zip(self.names, one, strict=False)) | other
        states = given.pop(self.names[0])
        self.context.taps[asked(self.site.path)] = {self.names[0]: states.detach() if self.cut else states, **given}
        return one, other


def asked(block: str) -> str:
    """Under which a tap leaves the arguments of the block at that path."""
    return f"asked {block}"


def said(block: str) -> str:
    """Under which a tap leaves the answer of the block at that path."""
    return f"said {block}"


def hear(edit: Edit, key: str) -> Any:
    """What a tap left in this forward pass, which keeps it no longer.

    Raises:
        DeadEdit: nothing was left.
    """
    if key not in edit.context.taps:
        raise DeadEdit(f"the side network at {edit.site.path!r} did not hear what was {key!r}: the tap there is off or was not "
                       "reached, so switch all edits on or off together; or blocks are recomputed in the backward pass, so "
                       "switch gradient checkpointing off (the trunk keeps no graph, there is nothing to save)")
    return edit.context.taps.pop(key)


def parameters(module: Any) -> list[str]:
    """Names of the arguments of a module, in order."""
    return [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind is not p.VAR_KEYWORD]


@dataclass(frozen=True)
class Stack:
    """Equally wide blocks [.., tokens, ``width``] that follow each other; ``path`` is that of the list which holds them."""

    path: str
    blocks: list[Site]
    width: int

    @property
    def holder(self) -> str:
        """Path of the module that runs the blocks; "" is the model itself."""
        return self.path.rpartition(".")[0]

    @property
    def list(self) -> str:
        """Name of the list in the holder."""
        return self.path.rpartition(".")[2]


def stacks(at: Attachment, where: str) -> list[Stack]:
    """The stacks of which ``where`` names all blocks: one, or those of an encoder and of the decoder that reads it.

    What the head reads comes out of the last one.

    Raises:
        NoSuchSite: ``where`` names no block.
        Unfit: blocks differ in width, some of a stack are left out, or there are towers beside each other.
    """
    found: dict[str, list[Site]] = {}
    for site in at.sites(where):
        if site.role == "block":
            found.setdefault(site.path.rpartition(".")[0], []).append(site)
    if not found:
        raise NoSuchSite(f"{where!r} names no block of {type(at.model).__name__} for a side network to hear")
    made = [Stack(path, blocks, _width(at, path, blocks)) for path, blocks in found.items()]
    if len(made) > 2 or len(made) == 2 and not _crosses(at, made[1]):
        raise Unfit(f"{type(at.model).__name__} has blocks in {list(found)}, where none reads the other: a side network follows "
                    f"one of them, so name its blocks, as in where='{made[0].path}.?'")
    return made


def place(at: Attachment, path: str) -> Site:
    """The module at ``path``, whatever its role."""
    return at_path(at.model, path, "model", None, -1, "", at.seen)


def _width(at: Attachment, path: str, blocks: list[Site]) -> int:
    whole = [name for name, _ in at.model.get_submodule(path).named_children()]
    if len(whole) != len(blocks):
        raise Unfit(f"a side network hears all blocks of a stack: {path!r} has {len(whole)}, {len(blocks)} are named")
    widths = sorted({site.dout for site in blocks})
    if len(widths) > 1:
        raise Unfit(f"the blocks of {path!r} in {type(at.model).__name__} are {widths} wide: a side network needs them alike")
    return widths[0]


def _crosses(at: Attachment, stack: Stack) -> bool:
    try:
        return any(site.path.startswith(stack.path + ".") for site in at.sites("cross"))
    except NoSuchSite:
        return False
