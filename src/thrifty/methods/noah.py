"""NOAH: Neural Prompt Search (Zhang, Zhou, Liu; 2022, arXiv:2206.04673)."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import NoSuchSetting, Unfit
from .noah_space import Net, Sizes, Space
from .prompts.still import keep_still
from .prompts.tokens import tower

if TYPE_CHECKING:
    from ..core import Attachment


class Nested(Edit):
    """An edit of ``largest`` rows, of which sub-networks use the first few: they are views of one set of weights.

    ``drawn`` is how many the next training step uses, ``chosen`` how many are used otherwise; at 0 it does nothing.
    """

    kind: ClassVar[str] = ""

    def __init__(self, site: Site, largest: int):
        super().__init__(site)
        self.drawn = self.chosen = self.largest = largest

    @property
    def used(self) -> int:
        """How many rows are used now."""
        return self.drawn if self.training else self.chosen


@register("noah-tokens")
class NestedTokens(Nested):
    """[x, P] at the input of a block, P [p, d] behind all else in the place of the tokens there; Xavier-uniform."""

    port = "input"
    kind = "prompt"

    def __init__(self, site: Site, largest: int, block: int, dropout: float):
        super().__init__(site, largest)
        self.block, self.dropout = block, nn.Dropout(dropout)
        self.prompt = nn.Parameter(nn.init.xavier_uniform_(torch.empty(largest, site.din)))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d] -> [batch, tokens - those of the block before + p, d]."""
        if not self.used:
            return x
        prompt = self.dropout(self.prompt[: self.used].expand(len(x), -1, -1)).to(x.dtype)
        return torch.cat([x[:, : x.shape[1] - standing(self, self.block)], prompt], 1)


@register("noah-tokens-off")
class NestedTokensOff(Edit):
    """Takes the tokens away after the last block."""

    def __init__(self, site: Site, blocks: int):
        super().__init__(site)
        self.blocks = blocks

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, d] -> without those at the end."""
        return y[:, : y.shape[1] - standing(self, self.blocks)]


def standing(edit: Edit, block: int) -> int:
    """How many tokens stand behind the patches where the ``block``-th block begins: those of the last block that put some."""
    every = {e.block: e.used for e in edit.context.home.edits.values() if isinstance(e, NestedTokens) and e.on and e.block < block}
    return next((every[i] for i in sorted(every, reverse=True) if every[i]), 0)


@register("noah-lora")
class NestedLoRA(Nested):
    """y + B A drop(x) at q, k or v; A [r, d] Kaiming-uniform is one for the three, at q (``first``), B [dout, r] starts at zero."""

    kind = "lora"

    def __init__(self, site: Site, largest: int, block: str, first: bool, dropout: float):
        super().__init__(site, largest)
        self.block, self.dropout = block, nn.Dropout(dropout)
        if first:
            self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(largest, site.din), a=math.sqrt(5)))
        self.first, self.B = first, nn.Parameter(torch.zeros(site.dout, largest))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [.., dout], x [.., d] -> [.., dout]."""
        if not self.used:
            return y
        if self.first:
            self.context.taps[f"noah {self.block}"] = F.linear(self.dropout(x.to(self.A.dtype)), self.A[: self.used])
        low = self.context.taps[f"noah {self.block}"]
        return y + F.linear(low, self.B[:, : self.used]).to(y.dtype)


@register("noah-adapter")
class NestedAdapter(Nested):
    """u + W_2 drop(QuickGELU(W_1 u + b_1)) + b_2, u what the MLP gives out; weights Xavier-uniform, biases from N(0, 1e-6)."""

    kind = "adapter"

    def __init__(self, site: Site, largest: int, dropout: float):
        super().__init__(site, largest)
        self.down, self.up, self.dropout = nn.Linear(site.dout, largest), nn.Linear(largest, site.dout), nn.Dropout(dropout)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [.., d] -> [.., d]."""
        a = self.used
        if not a:
            return y
        h = F.linear(y.to(self.down.weight.dtype), self.down.weight[:a], self.down.bias[:a])
        h = self.dropout(h * torch.sigmoid(1.702 * h))
        return y + F.linear(h, self.up.weight[:, :a], self.up.bias).to(y.dtype)


@dataclass
class NOAH(Method):
    """Tokens, LoRA and adapters in every block, as one supernet in which each training step trains a random sub-network.

    A sub-network has one of ``depths`` for each kind (in the first so many blocks; by default a quarter, a half, three quarters
    and all of them) and one of ``dims`` in each of those. Three phases: train the supernet; search it, with

        space = noah.space_of(at)
        net, _ = noah_space.search(space, lambda net: accuracy(noah.use(at, net)), limit=640_000)

    on rows that were held out; then train what was found from the start, NOAH(prompt=net.prompt, lora=net.lora,
    adapter=net.adapter). The authors: 500 epochs at 5e-4, decay 1e-4; 15 rounds of search; 100 epochs at 1e-3.
    """

    name = "noah"
    route = "add modules"
    modalities = ("image",)
    paper = "Zhang et al., Neural Prompt Search, 2022, arXiv:2206.04673"
    trains = "tokens, low-rank changes of q, k, v, and adapters, of sizes to be searched"
    inference = "the tokens and adapters that were found"
    identity_at_start = False
    intermittent = True
    rate = 5e-4

    dims: list[int] = field(default_factory=lambda: [5, 10, 50, 100])
    depths: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    lora: list[int] = field(default_factory=list)
    adapter: list[int] = field(default_factory=list)
    dropout: float = 0.1

    def check(self) -> None:
        """Sizes are positive; a sub-network is given as a whole."""
        need(bool(self.dims) and all(n >= 1 for n in self.dims), self, "dims", "sizes of at least 1")
        need(all(n >= 1 for n in self.depths), self, "depths", "numbers of blocks, or empty")
        given = [len(sizes) for sizes in (self.prompt, self.lora, self.adapter)]
        for name in ("prompt", "lora", "adapter"):
            sizes = getattr(self, name)
            need(len(sizes) == max(given) and all(n >= 0 for n in sizes), self, name, f"{max(given)} sizes, one for each block")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The modules of the largest sub-network, or of the one that was given.

        Raises:
            Unfit: the model is no plain vision transformer.
            NoSuchSetting: there are more or fewer sizes than blocks, or a depth that is none.
        """
        _, blocks = tower(at)
        need(len(self.prompt) in (0, len(blocks)), self, "prompt", f"{len(blocks)} sizes, one for each block")
        need(all(n <= len(blocks) for n in self.depths), self, "depths", f"numbers of blocks, of which there are {len(blocks)}")
        net = Net(*[(max(self.dims),) * len(blocks)] * 3)
        if self.prompt:
            net = Net(tuple(self.prompt), tuple(self.lora), tuple(self.adapter))
        inside = {role: at.sites(role) for role in ("attn.q", "attn.k", "attn.v", "mlp")}
        for i, (block, p, r, a) in enumerate(zip(blocks, *net.kinds, strict=True)):
            if p:
                at.put(block, NestedTokens, largest=p, block=i, dropout=self.dropout)
            for role in ("attn.q", "attn.k", "attn.v") if r else ():
                at.put(_one(inside, role, block), NestedLoRA, largest=r, block=block.path, first=role == "attn.q",
                       dropout=self.dropout)
            if a:
                at.put(_one(inside, "mlp", block), NestedAdapter, largest=a, dropout=self.dropout)
        if any(net.prompt):
            at.put(blocks[-1], NestedTokensOff, blocks=len(blocks))
        keep_still(at)
        self.draw(at)

    def draw(self, at: Attachment) -> None:
        """Draw the sub-network that the next step trains, from the seed and the number of steps taken alone."""
        if not self.prompt:
            taken = int(at.memory["step"]) if "step" in at.memory else 0
            _tell(at, "drawn", space_of(at).draw(Random(f"{at.seed} {taken}")))

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's, of the sub-network that is drawn; again where a training goes on that was interrupted."""
        self.draw(at)
        return super().loss(at, task, model, batch)

    def step(self, at: Attachment, step: int, total: int) -> None:
        """The next sub-network's turn."""
        at.memory["step"] = torch.tensor(step)
        self.draw(at)


def space_of(at: Attachment) -> Space:
    """The sub-networks of a supernet.

    Raises:
        NoSuchSetting: the attachment is none.
    """
    if not isinstance(at.method, NOAH) or at.method.prompt:
        raise NoSuchSetting(f"{at.name!r} is no supernet of NOAH, so it has no sub-networks")
    held = [edit for edit in at.edits.values() if isinstance(edit, NestedTokens)]
    depths = at.method.depths or [math.ceil(len(held) * k / 4) for k in (1, 2, 3, 4)]
    return Space(tuple(sorted(set(at.method.dims))), tuple(sorted(set(depths))), len(held), held[0].site.din)


def use(at: Attachment, net: Net) -> Attachment:
    """Let ``net`` be the sub-network that answers outside training.

    Raises:
        NoSuchSetting: it is larger than the supernet, or has another number of blocks.
    """
    _tell(at, "chosen", net)
    return at


def _tell(at: Attachment, name: str, net: Net) -> None:
    places: dict[str, Sizes] = {"prompt": net.prompt, "lora": net.lora, "adapter": net.adapter}
    edits: list[Nested] = [edit for edit in at.edits.values() if isinstance(edit, Nested)]
    depths = {edit: _depth(at, edit) for edit in edits}
    for edit in edits:
        sizes = places[edit.kind]
        if len(sizes) != 1 + max(depths.values()) or sizes[depths[edit]] > edit.largest:
            raise NoSuchSetting(f"{net} is no sub-network of {at.name!r}, whose {1 + max(depths.values())} blocks have up to "
                                f"{edit.largest}")
    for edit in edits:
        setattr(edit, name, places[edit.kind][depths[edit]])


def _depth(at: Attachment, edit: Nested) -> int:
    return next(row.depth for row in at.plan if at.edits[row.key] is edit)


def _one(sites: dict[str, list[Site]], role: str, block: Site) -> Site:
    """The block's site of that role.

    Raises:
        Unfit: there is none.
    """
    found = next((s for s in sites[role] if s.path.startswith(block.path + ".")), None)
    if found is None:
        raise Unfit(f"{block.path!r} ({type(block.module).__name__}) has no {role!r} for NOAH")
    return found
