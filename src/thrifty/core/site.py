"""Sites: the named places of a frozen model where something can be changed or read."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import base, roles, weight
from .errors import NoSuchSite, Unfit, nearest
from .opening import OpenAttention
from .part import Part
from .probe import Seen

_WIDTHS = {"in": ("in_features", "in_channels", "num_embeddings", "nx"),
           "out": ("out_features", "out_channels", "embedding_dim", "nf")}


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a model: a module, what it is for, and the widths seen there.

    ``part`` restricts the output to the columns of q, k or v in a fused projection. ``within`` holds the roles of the
    modules around it, outermost first. ``depth`` counts blocks from 0 in the site's own ``stack``.
    """

    path: str
    module: nn.Module
    role: str
    depth: int = -1
    stack: str = ""
    part: Part | None = None
    within: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    like: nn.Module | None = None
    seen: Seen = field(default_factory=Seen)

    @property
    def key(self) -> str:
        """Under which the site's tensors are saved; the parts of one module have one key each."""
        return self.path if self.part is None else f"{self.path}@{self.part.name}"

    @property
    def din(self) -> int:
        """Width of the input."""
        return self._width("in")

    @property
    def dout(self) -> int:
        """Width of the output, or of the part of it that is meant."""
        return self.part.width if self.part else self._width("out")

    @property
    def heads(self) -> tuple[int, int]:
        """(key-value heads, width of one) of the attention computed here.

        Raises:
            Unfit: no scaled_dot_product_attention call was seen in this module.
        """
        if isinstance(self.module, OpenAttention):  # says so itself: without an edit it takes a path of its own
            return self.module.num_heads, self.module.head_dim
        heads = self.seen.heads(self.path)
        if heads is None:
            raise Unfit(f"{self.path!r} ({type(self.module).__name__}) computes attention without "
                        "scaled_dot_product_attention, so it cannot be edited: load the model with attn_implementation='sdpa' "
                        "if it supports that, or choose a method that does not act inside attention")
        dim = heads[1]
        for name, child in self.module.named_modules():  # a masked call repeats grouped heads; k's own width does not
            if name and (roles._general(name) == "attn.k"):
                return Site(name, child, "attn.k").dout // dim, dim
        return heads

    @property
    def weight(self) -> Tensor:
        """The dense weight [dout, din, ...]. The only reader of base weights there is."""
        dense = weight.read(self.module, self.path)
        return self.part.take(dense, 0) if self.part else dense

    @property
    def bias(self) -> Tensor | None:
        """The bias [dout], or None."""
        bias = getattr(self.module, "bias", None)
        bias = bias() if callable(bias) else bias
        return self.part.take(bias) if self.part and bias is not None else bias

    @property
    def device(self) -> torch.device:
        """Where the site's numbers live, else where the model's do."""
        owner = next((p for _, p in base.parameters(self.module)), None)
        return owner.device if owner is not None else self.seen.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that an edit here trains in: that of the weights, but at least float32."""
        kinds = {p.dtype for _, p in base.parameters(self.module)} or {self.seen.dtype}
        return torch.float64 if kinds == {torch.float64} else torch.float32

    def _width(self, side: str) -> int:
        module = self.like if self.like is not None else self.module
        side = "out" if self.like is not None else side
        width = next((getattr(module, a) for a in _WIDTHS[side] if isinstance(getattr(module, a, None), int)), None)
        if width is None and self.role.startswith("norm") and getattr(module, "weight", None) is not None:
            width = int(module.weight.shape[-1])  # type: ignore[index]
        if width is None:
            width = self.seen.width(self.path, side)
        if width is None:
            raise Unfit(f"the {side}put width of {self.path or 'the model'!r} ({type(self.module).__name__}) is only known by "
                        "running the model: pass example= (a batch: a tensor, or a dict of keyword arguments)")
        return width


def at_path(model: nn.Module, path: str, role: str, part: Part | None, depth: int, stack: str, seen: Seen) -> Site:
    """The site a saved plan speaks of.

    Raises:
        NoSuchSite: the model has no module at ``path``.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        known = dict(model.named_modules())
        raise NoSuchSite(f"no module {path!r} in {type(model).__name__}." + nearest(path, known)) from None
    return Site(path, module, role, depth, stack, part, seen=seen)
