"""BERT and PALs: Projected Attention Layers for Efficient Adaptation in Multi-Task Learning (Stickland, Murray; ICML 2019,
arXiv:1902.02671)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Branch, Method, Shared, Site, by_task, need, register
from ..core.errors import DeadEdit, NoSuchSite, Unfit
from .branches.bottleneck import Tap
from .branches.masks import MaskTap
from .full import FullFineTuning

if TYPE_CHECKING:
    from ..core import Attachment

VARIANTS = {"code": (204, 6), "paper": (204, 12), "low-rank": (100, 1)}  # width and heads


@register("pals-projections")
class Projections(Shared):
    """V_E [d -> width] and V_D [width -> d] of every task, with biases, the same in all layers. N(0, 0.02), biases zero."""

    per_task = ("encode", "decode")

    def __init__(self, tasks: int, d: int, width: int):
        super().__init__()
        self.encode = nn.ModuleList(_linear(d, width) for _ in range(tasks))
        self.decode = nn.ModuleList(_linear(width, d) for _ in range(tasks))


class Attention(nn.Module):
    """Self-attention [rows, tokens, width] -> the same, without an output projection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.query, self.key, self.value = (_linear(width, width) for _ in range(3))
        self.heads, self.dropout = heads, dropout

    def forward(self, z: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """``mask`` and ``causal`` are those of the layer's own attention; probabilities are dropped out while training."""
        q, k, v = (f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mask = mask.to(z.dtype) if mask is not None and mask.is_floating_point() else mask
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).transpose(1, 2).flatten(2)


@register("pal")
class PAL(Branch):
    """y + g(V_D Attention(V_E h)), with h [rows, tokens, d] what the block takes in, V_E and V_D the task's, shared by layers.

    The attention is the task's in this layer. g is gelu, or nothing if not ``gelu``. ``h`` and ``mask`` are keys of taps.
    """

    per_task = ("attention",)

    def __init__(self, site: Site, tasks: int, width: int, heads: int, h: str, mask: str, gelu: bool, dropout: float):
        super().__init__(site)
        self.attention = nn.ModuleList(Attention(width, heads, dropout) for _ in range(tasks))
        self.h, self.mask, self.gelu = h, mask, gelu

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the block took in."""
        return _left(self, self.h)

    def branch(self, h: Tensor) -> Tensor:
        """The addition [rows, tokens, d].

        Raises:
            Unfit: the layer's attention is not over the tokens of the batch, but over windows of it, say.
        """
        mask, causal, tokens = _left(self, self.mask)
        if h.dim() != 3 or h.shape[1] != tokens:
            raise Unfit(f"{self.site.path!r}: the layer takes in {list(h.shape)} and attends over {tokens}: PALs need "
                        "[batch, tokens, width] and attention over all tokens")
        shared = self.context.shared

        def act(task: int, h: Tensor, mask: Tensor | None) -> Tensor:
            z = self.attention[task](shared.encode[task](h.to(shared.encode[task].weight.dtype)), mask, causal)
            z = shared.decode[task](z)
            return F.gelu(z) if self.gelu else z

        return by_task(self.context.which(), act, h, mask)


@register("pals-low-rank")
class LowRank(Branch):
    """y + V_D gelu(V_E h), both V the task's in this layer; h is the key of a tap."""

    per_task = ("encode", "decode")

    def __init__(self, site: Site, tasks: int, width: int, h: str):
        super().__init__(site)
        self.encode = nn.ModuleList(_linear(site.dout, width) for _ in range(tasks))
        self.decode = nn.ModuleList(_linear(width, site.dout) for _ in range(tasks))
        self.h = h

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the block took in."""
        return _left(self, self.h)

    def branch(self, h: Tensor) -> Tensor:
        """The addition [rows, tokens, d]."""
        def act(task: int, h: Tensor) -> Tensor:
            encode: Any = self.encode[task]
            return self.decode[task](F.gelu(encode(h.to(encode.weight.dtype))))

        return by_task(self.context.which(), act, h)


@dataclass
class PALs(Method):
    """A small attention per task beside every layer, while the whole model trains for all tasks together:

        y = LN(a + drop(FFN(a)) + gelu(V_D Attention(V_E h))),  a = LN(h + SA(h))

    in a post-norm layer with the input h [tokens, d]; in others it is added to the feed-forward network's result. V_E
    [d, width] and V_D [width, d] of a task are the same in all layers, queries, keys and values [width, width] are each layer's.

    ``variant="code"`` is what the authors released: 6 heads, and gelu after V_D. ``"paper"`` is the formula: 12 heads, no gelu.
    ``"low-rank"`` is the paper's V_D gelu(V_E h) of width 100, with a V_E and a V_D in each layer. A ``width`` or ``heads`` of 0
    stands for the variant's. ``freeze`` trains, beside the tasks' own modules, nothing but the normalisations.

    A batch trains the modules of its own task and all that is shared. ``thrifty.data.mixing.annealed`` says how often the paper
    draws each task.
    """

    name = "pals"
    aliases = ("bert-and-pals",)
    presets = {"pals-low-rank": {"variant": "low-rank"}}
    route = "add modules"
    paper = "Stickland, Murray, BERT and PALs: Projected Attention Layers for Multi-Task Learning, ICML 2019, arXiv:1902.02671"
    trains = "every weight of the model, and a small attention per layer and task"
    inference = "a small attention beside each layer"
    identity_at_start = False
    multitask = True
    rate = 2e-5

    variant: str = "code"
    width: int = 0
    heads: int = 0
    dropout: float = 0.1
    freeze: bool = False
    where: str = "block"

    def check(self) -> None:
        """The variant is known, and its heads divide its width."""
        need(self.variant in VARIANTS, self, "variant", f"one of {sorted(VARIANTS)}")
        need(self.width >= 0, self, "width", "positive, or 0 for the variant's")
        need(self.heads >= 0, self, "heads", "positive, or 0 for the variant's")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        width, heads = self.sizes()
        need(width % heads == 0, self, "width", f"a multiple of the {heads} heads")

    def sizes(self) -> tuple[int, int]:
        """Width and heads."""
        width, heads = VARIANTS[self.variant]
        return self.width or width, self.heads or heads

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per block the taps and the module of each task, and the claim on the base.

        Raises:
            NoSuchSite: a block has no feed-forward network or no self-attention of its own.
            Unfit: blocks have different widths, so that they cannot share projections.
        """
        width, heads = self.sizes()
        blocks, attentive = at.sites(self.where), self.variant != "low-rank"
        after = _inside(at, blocks, "after.mlp")
        attention = _inside(at, blocks, "attn") if attentive else []
        if self.freeze:
            at.train_matching("norm*", wildcard=True)
        else:
            FullFineTuning.make().attach(at)
        tasks = len(at.tasks)
        if not attentive:
            for block, ends in zip(blocks, after, strict=True):
                at.put(block, Tap, key=block.path)
                at.put(ends, LowRank, tasks=tasks, width=width, h=block.path)
            return
        widths = {site.dout for site in after}
        if len(widths) > 1:
            raise Unfit(f"{self.name}: blocks {sorted(widths)} wide cannot share projections: choose blocks of one width")
        at.share(Projections, tasks=tasks, d=widths.pop(), width=width)
        for block, attends, ends in zip(blocks, attention, after, strict=True):
            at.put(block, Tap, key=block.path)
            at.put(attends, MaskTap, key=attends.path)
            at.put(ends, PAL, tasks=tasks, width=width, heads=heads, h=block.path, mask=attends.path,
                   gelu=self.variant == "code", dropout=self.dropout)


def _linear(din: int, dout: int) -> nn.Linear:
    """As BERT starts: N(0, 0.02), bias zero."""
    made = nn.Linear(din, dout)
    nn.init.normal_(made.weight, std=0.02)
    nn.init.zeros_(made.bias)
    return made


def _left(edit: Branch, key: str) -> Any:
    """What a tap left, kept no longer than needed: it holds the graph.

    Raises:
        DeadEdit: nothing was left in this forward pass.
    """
    if key not in edit.context.taps:
        raise DeadEdit(f"the PAL at {edit.site.path!r} waits for what a tap at {key!r} leaves, which is off or is never reached: "
                       "switch both on or off together")
    return edit.context.taps.pop(key)


def _inside(at: Attachment, blocks: list[Site], role: str) -> list[Site]:
    """The site of that role in each block.

    Raises:
        NoSuchSite: a block has none.
    """
    try:
        every = at.sites(role)
    except NoSuchSite:
        every = []
    found = []
    for block in blocks:
        own = [site for site in every if site.path.startswith(block.path + ".")]
        if not own:
            raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no {role!r} that a PAL could stand beside")
        found.append(own[0])
    return found
