"""Residual blocks that are left out, picture by picture: x + u F(x) with u in {0, 1}, where F does not run if u = 0.

BlockDrop: Dynamic Inference Paths in Residual Networks (Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris; CVPR 2018,
arXiv:1711.08393).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Site, register
from ..core.errors import Unfit
from ..core.probe import Example, run_once

if TYPE_CHECKING:
    from ..core import Attachment

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
        runs: Tensor | None = None if path is None else path[:, self.number].to(x.device)
        block, choosing = self.site.module, torch.is_grad_enabled() or self.training or torch.compiler.is_compiling()
        y: Tensor
        if runs is not None and not choosing and not bool(runs.any()):
            return bypass(block, x)
        if runs is None or not choosing and bool(runs.all()):  # None: the model was entered past its beginning
            y = run(x, *args, **kwargs)
            return y
        if choosing:
            y = run(x, *args, **kwargs)
            return torch.where(runs.view(-1, *[1] * (y.dim() - 1)), y, bypass(block, x))
        y, past = run(x[runs], *args, **kwargs), bypass(block, x[~runs])
        out = y.new_empty(len(x), *y.shape[1:])
        out[runs], out[~runs] = y, past.to(y.dtype)
        return out


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
