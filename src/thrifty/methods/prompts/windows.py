"""Learned tokens in a Swin transformer, beside the patches of every window.

Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022, arXiv:2203.12119) on Swin. Windows of one image
lie next to each other along the batch, and so do the copies of its tokens: the authors' code lays the copies out the other way
round, whereby shallow tokens of one image reach the windows of others.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import AttentionEdit, Edit, Site, register
from ...core.errors import DeadEdit, NoSuchSite, Unfit
from ...core.site import at_path
from ..features.tower import choose
from .tokens import span_of

if TYPE_CHECKING:
    from ...core import Attachment

WINDOWED = ("SwinLayer", "SwinTransformerBlock", "DonutSwinLayer")  # normalised before attention, with a bias per pair of patches
PARTS = {"norm": 2, "attn.q": 1, "attn.k": 1, "attn.v": 1, "attn.o": 1, "mlp": 1}  # of a block: roles, and how many there are


def key(path: str) -> str:
    """Under which the tokens [batch, length, d] lie that the module at ``path`` reads, until the next forward pass begins.

    They stay that long because a block that is recomputed in the backward pass reads them again.
    """
    return f"tokens at {path}"


def tokens_at(edit: Edit, path: str) -> Tensor:
    """The tokens [batch, length, d] that the module at ``path`` reads in this forward pass.

    Raises:
        DeadEdit: nobody left any.
    """
    if key(path) not in edit.context.taps:
        raise DeadEdit(f"no learned tokens reach {path!r}: the edits before it are off, so switch all on or off together")
    found: Tensor = edit.context.taps[key(path)]
    return found


@register("window-clear")
class WindowClear(Edit):
    """Where pictures are cut into patches, and so before everything else: forgets the tokens of the last forward pass."""

    port = "input"

    def forward(self, x: Tensor) -> Tensor:
        """The pictures, as they are."""
        for name in [name for name in self.context.taps if str(name).startswith(key(""))]:
            del self.context.taps[name]
        return x


@register("window-start")
class WindowStart(Edit):
    """Leaves P [length, d] ~ U(-span, span) for the attention of the block that it enters; the patches are as they were.

    Each image has a dropout mask of its own.
    """

    port = "input"

    def __init__(self, site: Site, length: int, span: float, dropout: float = 0.0):
        super().__init__(site)
        self.dropout = nn.Dropout(dropout)
        self.prompt = nn.Parameter(torch.empty(length, site.din).uniform_(-span, span))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, ..., d], as it is."""
        self.context.taps[key(self.site.path)] = self.dropout(self.prompt.expand(len(x), -1, -1)).to(x.dtype)
        return x


@register("window-tokens")
class WindowTokens(AttentionEdit):
    """Tokens Z [batch, length, d] beside the patches X_w of each window w, at the attention of a Swin block:

        [A_w, Y_w] = Attention([LN(Z), LN(X_w)])        a token has no bias and no mask, towards anything
        Z <- Z + mean_w A_w W_o + b_o,   Z <- Z + MLP(LN'(Z))

    ``parts`` are paths in the ``block``: of both normalisations, q, k, v, the output projection and the MLP. Where q, k and v are
    one module, its columns are theirs in this order. Z is left for the module at ``into``; if that is empty, nobody wants it.
    """

    def __init__(self, site: Site, block: str, parts: list[str], into: str):
        super().__init__(site)
        self.block, self.parts, self.into = block, parts, into

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [batch * windows, heads, patches, dim] -> the same with ``length`` tokens in front."""
        tokens = tokens_at(self, self.block)
        seen = self._call(0, tokens)
        q, k, v = (torch.cat([self._split(i, seen, len(t) // len(seen)).to(t.dtype), t], 2) for i, t in enumerate((q, k, v)))
        return q, k, v

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        """y [batch * windows, heads, length + patches, dim] -> what belongs to patches; Z goes on."""
        tokens = tokens_at(self, self.block)
        length = tokens.shape[1]
        if self.into:
            mean = y[:, :, :length].unflatten(0, (len(tokens), -1)).mean(1)
            tokens = tokens + self._call(5, mean.transpose(1, 2).flatten(2))
            self.context.taps[key(self.into)] = tokens + self._call(6, self._call(1, tokens))
        return y[:, :, length:]

    def _call(self, part: int, x: Tensor) -> Tensor:
        made: Tensor = self.context.home.model.get_submodule(f"{self.block}.{self.parts[part]}")(x)
        return made

    def _split(self, i: int, seen: Tensor, windows: int) -> Tensor:
        """q, k or v (i = 0, 1, 2) of the tokens: [batch, length, d] -> [batch * windows, heads, length, dim]."""
        made = self._call(2 + i, seen)
        if len(set(self.parts[2:5])) == 1:
            made = made.chunk(3, -1)[i]
        copies: Tensor = made.unflatten(-1, (-1, self.dim)).transpose(1, 2).repeat_interleave(windows, 0)
        return copies


@register("window-merge")
class WindowMerge(Edit):
    """Where four patches become one [4 d] -> [2 d], a token stands for all four: Z <- W LN([Z, Z, Z, Z])."""

    def __init__(self, site: Site, into: str):
        super().__init__(site)
        self.into = into

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The merged patches, as they are."""
        module: Any = self.site.module
        self.context.taps[key(self.into)] = module.reduction(module.norm(tokens_at(self, self.site.path).repeat(1, 1, 4)))
        return y


@register("window-pool")
class WindowPool(Edit):
    """The mean over tokens and patches, behind a pooling that gives the mean over n patches, y:

        (n y + sum_i LN(Z_i)) / (n + length)             LN is the last normalisation, at the path ``norm``
    """

    def __init__(self, site: Site, norm: str):
        super().__init__(site)
        self.norm = norm

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, d, ...] of one place, x of n places -> y's shape."""
        tokens = self.context.home.model.get_submodule(self.norm)(tokens_at(self, self.site.path))
        n, length = x.numel() // y.numel(), tokens.shape[1]
        mean: Tensor = (n * y + tokens.sum(1).view_as(y)) / (n + length)
        return mean


def windowed(at: Attachment) -> bool:
    """Whether the model's blocks are those of a Swin transformer."""
    try:
        return type(at.sites("block")[0].module).__name__ in WINDOWED
    except NoSuchSite:
        return False


def put_in_windows(at: Attachment, where: str, length: int, deep: bool, dropout: float) -> None:
    """Tokens that start at the first of the blocks that ``where`` names, or anew at each of them, and flow on to the end.

    Raises:
        NoSuchSite: ``where`` names no block.
        Unfit: attention is computed out of reach, or the last pooling is no mean.
    """
    blocks, patch = at.sites("block"), at.sites("patch")[0]
    starts = choose(at, blocks, where)
    starts = starts if deep else starts[:1]
    span, inside = span_of(patch, blocks[0].din), {role: at.sites(role) for role in ("attn", *PARTS)}
    chain, pool = _chain(at, starts[0]), _pool(at)
    into = {site.path: "" for site in chain}
    wanted = pool.path if pool is not None else ""
    for site in reversed(chain):  # what a module gives out is wanted where the next one does not start anew
        into[site.path] = wanted
        anew = any(site.path == start.path for start in starts)
        wanted = "" if anew or site.role != "block" and not wanted else site.path
    at.put(patch, WindowClear)
    for site in chain:
        if site.role != "block":
            if into[site.path]:
                at.put(site, WindowMerge, into=into[site.path])
            continue
        if any(site.path == start.path for start in starts):
            at.put(site, WindowStart, length=length, span=span, dropout=dropout)
        mixing, parts = _parts(site, inside)
        at.put(mixing, WindowTokens, block=site.path, parts=parts, into=into[site.path])
    if pool is not None:
        at.put(pool, WindowPool, norm=[s.path for s in inside["norm"] if s.depth < 0][-1])


def _chain(at: Attachment, first: Site) -> list[Site]:
    """The blocks from ``first`` on, and what merges patches between them, in the order in which they run."""
    blocks = {s.path: s for s in at.sites("block")}
    places = {path: at_path(at.model, path, "merge", None, -1, "", at.seen) for path, module in at.model.named_modules()
              if path.endswith("downsample") and hasattr(module, "reduction")}
    order = [path for path, _ in at.model.named_modules() if path in blocks or path in places]
    return [blocks.get(path) or places[path] for path in order[order.index(first.path) :]]


def _parts(block: Site, sites: dict[str, list[Site]]) -> tuple[Site, list[str]]:
    """The block's attention, and the paths in the block that ``WindowTokens`` takes, out of all ``sites`` by role.

    Raises:
        Unfit: it is no block of a Swin transformer, or computes attention where tokens cannot enter.
    """
    found: list[str] = []
    for role, count in PARTS.items():
        inside = [s.path.removeprefix(block.path + ".") for s in sites[role] if s.path.startswith(block.path + ".")]
        if len(inside) != count:
            raise Unfit(f"{block.path!r} has {len(inside)} modules of the role {role!r}, and a Swin block has {count}")
        found += inside
    mixing = next(s for s in sites["attn"] if s.path.startswith(block.path + "."))
    if getattr(mixing.module, "fused_attn", True) is False:
        raise Unfit(f"timm's {type(mixing.module).__name__} computes attention without scaled_dot_product_attention, where tokens "
                    "could enter, unless timm.layers.set_fused_attn(True, experimental=True) was called before the model was made")
    return mixing, found


def _pool(at: Attachment) -> Site | None:
    """Where the model takes the mean over patches; None if it does not pool."""
    for path, module in at.model.named_modules():
        kind = getattr(module, "pool_type", None)
        if isinstance(module, nn.AdaptiveAvgPool1d) or path.endswith("global_pool") and kind == "avg":
            return at_path(at.model, path, "pool", None, -1, "", at.seen)
        if path.endswith("global_pool") and kind:
            raise Unfit(f"{path!r} pools by {kind!r}: tokens take part in the mean over patches only")
    return None
