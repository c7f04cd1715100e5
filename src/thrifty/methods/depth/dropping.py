"""Residual blocks that are left out, picture by picture: x + u F(x) with u in {0, 1}, where F does not run if u = 0.

BlockDrop: Dynamic Inference Paths in Residual Networks (Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris; CVPR 2018,
arXiv:1711.08393).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import Unfit
from ...core.probe import Example, run_once

if TYPE_CHECKING:
    from ...core import Attachment

PATH = "which blocks run"
SHORTCUTS = (("shortcut", "activation"), ("downsample", "act3"), ("downsample", "act2"), ("downsample", "relu"))  # and what follows
TOLD = ("use_residual", "has_skip")  # blocks that say whether they have a residual branch at all


def bypass(block: Any, x: Tensor) -> Tensor:
    """What a block gives out without its residual branch: x, and in a ResNet act(shortcut(x))."""
    for shortcut, act in SHORTCUTS:
        if hasattr(block, shortcut) and hasattr(block, act):
            project = getattr(block, shortcut)
            kept = x.clone() if project is None or isinstance(project, nn.Identity) else project(x)  # act may write in place
            y: Tensor = getattr(block, act)(kept)
            return y
    return x


def sparing(edit: nn.Module) -> bool:
    """Whether only what is needed should be computed: without gradients, not in training and not while a graph is compiled."""
    return not (torch.is_grad_enabled() or edit.training or torch.compiler.is_compiling())


def for_each(choice: Tensor, ways: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """x [B, ...] with every row the way that ``choice`` [B] says; a way that no row takes is not called."""
    parts = [(rows, ways[int(choice[rows[0]])](x if len(rows) == len(x) else x[rows]))
             for rows in (torch.nonzero(choice == way).flatten() for way in range(len(ways))) if len(rows)]
    if len(parts) == 1:
        return parts[0][1]
    out = parts[0][1].new_empty(len(x), *parts[0][1].shape[1:])
    for rows, y in parts:
        out[rows] = y.to(out.dtype)
    return out


@register("drop-block")
class Drop(Edit):
    """Around block ``number``: runs it for the pictures whose path [B, blocks] has it, and gives the others past it.

    With gradients, in training or when compiled the block runs for all, and what it gives is kept for some: the same answer.
    """

    port = "around"

    def __init__(self, site: Site, number: int):
        super().__init__(site)
        self.number = number

    def forward(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [B, ...] -> what the block or its shortcut gives, [B, ...]."""
        path = self.context.taps.get(PATH)
        if path is None:  # nobody chose: the model was entered past its beginning
            y: Tensor = run(x, *args, **kwargs)
            return y
        runs, block = path[:, self.number].to(x.device), self.site.module
        if not sparing(self):
            y = run(x, *args, **kwargs)
            return torch.where(runs.view(-1, *[1] * (y.dim() - 1)), y, bypass(block, x))
        ways = [lambda rows: bypass(block, rows), lambda rows: run(rows, *args, **kwargs)]
        return for_each(runs.long().expand(len(x)), ways, x)


def droppable(at: Attachment, where: str, example: Example) -> list[Site]:
    """The blocks that ``where`` names and that can be left out.

    Raises:
        Unfit: without its residual branch a block would give out something else than a picture or tokens of the same shape;
            or none of the blocks has such a branch.
    """
    chosen = [site for site in at.sites(where) if site.role == "block"
              and all(getattr(site.module, name, True) for name in TOLD)]
    if not chosen:
        raise Unfit(f"{where!r} names no block with a residual branch in {type(at.model).__name__}")
    wrong: list[str] = []

    def look(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if not isinstance(out, Tensor) or not args or bypass(module, args[0]).shape != out.shape:
                wrong.append(site.path)
        return hook

    hooks = [site.module.register_forward_hook(look(site)) for site in chosen]
    try:
        run_once(at.model, example)
    finally:
        for handle in hooks:
            handle.remove()
    if wrong:
        kind = type(at.model.get_submodule(wrong[0])).__name__
        raise Unfit(f"the block {wrong[0]!r} ({kind}) cannot be left out: what goes past its residual branch has another shape")
    return chosen
