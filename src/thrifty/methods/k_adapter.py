"""K-Adapter: Infusing Knowledge into Pre-Trained Models with Adapters (Wang, Tang, Duan, Wei, Huang, Ji, Cao, Jiang, Zhou;
Findings of ACL-IJCNLP 2021, arXiv:2002.01808)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, base, need, register
from ..core.errors import CannotCombine, Unfit
from ..core.roles import HEADS
from .branches.side import SideTap, asked, hear, parameters, place, stacks

if TYPE_CHECKING:
    from ..core import Attachment


class Layer(nn.Module):
    """A layer of BERT: a = LN(t + drop(SA(t))), LN(a + drop(FFN(a))), t [batch, tokens, width]; FFN is 4 width wide."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_attention, self.norm_feed = (nn.LayerNorm(width, eps=1e-5) for _ in range(2))
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, t: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """``mask`` [batch, 1, 1 or tokens, tokens] is true, or zero, where a token may be seen; None is everywhere."""
        q, k, v = (layer(t).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v, mask, self.dropout.p if self.training else 0.0, causal and mask is None)
        a = self.norm_attention(t + self.dropout(self.o(seen.transpose(1, 2).flatten(2))))
        out: Tensor = self.norm_feed(a + self.dropout(self.back(F.gelu(self.wide(a)))))
        return out


class Plug(nn.Module):
    """o = u + Up(Layers(Down(u))), Down [D -> width], Up [width -> D]; both start from N(0, 2e-4) with zero biases."""

    def __init__(self, trunk: int, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.down, self.up = nn.Linear(trunk, width), nn.Linear(width, trunk)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=2e-4)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))

    def forward(self, u: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """u [batch, tokens, D] -> the same shape."""
        t = self.down(u)
        for layer in self.layers:
            t = layer(t, mask, causal)
        out: Tensor = u + self.up(t)
        return out


@register("k-adapter")
class Knowledge(Edit):
    """Gives W [H; o_K] for the trunk's last state H, W [2 D -> D]. With H_k the state that enters the plugged block k,

        o_k = Plug_k(H_k + o_(k-1)),   o_(-1) = 0,   H, H_k, o_k [batch, tokens, D]

    Of ``networks`` > 1 trained before, each has a W of its own, and what they give, side by side, goes through one more
    linear layer. With ``frozen`` only the linear layers train. ``blind`` lets every token see the padding, as the authors'
    code does.
    """

    def __init__(self, site: Site, blocks: list[str], trunk: int, width: int, layers: int, heads: int, dropout: float,
                 causal: bool = False, blind: bool = False, networks: int = 1, frozen: bool = False):
        super().__init__(site)
        self.blocks, self.causal, self.blind, self.frozen = blocks, causal, blind, frozen
        self.plugs = nn.ModuleList(nn.ModuleList(Plug(trunk, width, layers, heads, dropout) for _ in blocks)
                                   for _ in range(networks))
        self.plugs.requires_grad_(not frozen)
        self.fuse = nn.ModuleList(nn.Linear(2 * trunk, trunk) for _ in range(networks))
        self.join_all = nn.Linear(networks * trunk, trunk) if networks > 1 else nn.Identity()

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, D] -> the same shape.

        Raises:
            Unfit: a cache holds earlier tokens, which the plugs do not remember; or a mask of a kind that they cannot read.
        """
        kind = next(self.parameters()).dtype
        heard = [hear(self, asked(block)) for block in self.blocks]
        states = [next(iter(given.values())).to(kind) for given in heard]
        masks = [self._mask(given, state) for given, state in zip(heard, states, strict=True)]
        last = (y if self.frozen else y.detach()).to(kind)
        fused = []
        for network, plugs in enumerate(cast("list[nn.ModuleList]", list(self.plugs))):
            o = torch.zeros_like(states[0])
            for plug, state, mask in zip(plugs, states, masks, strict=True):
                o = plug(state + o, mask, self.causal)
            fused.append(self.fuse[network](torch.cat([last, o], -1)))
        out: Tensor = self.join_all(torch.cat(fused, -1)).to(y.dtype)
        return out

    def _mask(self, given: dict[str, Any], state: Tensor) -> Tensor | None:
        mask = given.get("attention_mask")
        if mask is not None and (mask.dim() != 4 or mask.shape[-1] != state.shape[1]) or _remembers(given, state):
            raise Unfit(f"K-Adapter at {self.site.path!r} keeps no earlier tokens and reads masks [batch, 1, tokens, tokens] only: "
                        "generate with use_cache=False, and load the model with attn_implementation='sdpa'")
        if mask is None or self.blind:
            return None
        return mask if mask.dtype == torch.bool else mask.to(state.dtype)


def _remembers(given: dict[str, Any], state: Tensor) -> bool:
    """Whether a key-value cache among the arguments of a block holds more than the tokens of ``state``."""
    return any(v.get_seq_length() > state.shape[1] for v in given.values() if hasattr(v, "get_seq_length"))


@dataclass
class KAdapter(Method):
    """A network outside the trunk: a few layers of BERT's kind at each of some plugs, which read the states there in a chain.

    What it knows is fused with the trunk's last state by one linear layer, which the head then reads. ``plugs`` are indices
    into the hidden states (0: the embeddings, k: what the k-th block gives out); by default the first, one in the middle and
    the last but one: 0, 11, 22 of 24. Padding is not seen; the authors' code sees it (``blind``).

    In the second phase the roles change: ``adapters`` are the folders of K-Adapters trained apart, with commas between them.
    They freeze and keep nothing of their old fusion, and the whole trunk trains with a new one (but not if ``tune_trunk`` is
    false).
    Generation recomputes earlier tokens: it needs use_cache=False.
    """

    name = "k-adapter"
    route = "add modules"
    modalities = ("text",)
    paper = "Wang et al., K-Adapter: Infusing Knowledge into Pre-Trained Models, Findings of ACL 2021, arXiv:2002.01808"
    trains = "a network of Transformer layers beside the trunk, and a fusion with its last state"
    inference = "the network's own layers, beside the trunk"
    identity_at_start = False
    rate = 5e-5

    width: int = 768
    layers: int = 2
    heads: int = 12
    dropout: float = 0.1
    plugs: list[int] = field(default_factory=list)
    blind: bool = False
    adapters: str = ""
    tune_trunk: bool = True
    where: str = "block"

    def check(self) -> None:
        """Sizes are positive and fit each other; plugs are listed once and in order."""
        need(self.width >= 1 and self.layers >= 1, self, "width", "at least 1, as layers")
        need(self.heads >= 1 and self.width % self.heads == 0, self, "heads", f"a divisor of the width {self.width}")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.plugs == sorted({p for p in self.plugs if p >= 0}), self, "plugs", "rising indices of hidden states")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Taps at the plugs, and the network where the trunk's last state comes out.

        Raises:
            NoSuchSite, Unfit: see ``stacks``; there is no hidden state of such an index; or blocks take no attention mask.
            CannotCombine: an adapter has another shape, or is none.
        """
        stack = stacks(at, self.where)[-1]
        depth = len(stack.blocks)
        plugs = self.plugs or sorted({0, max(0, depth // 2 - 1), max(0, depth - 2)})
        if plugs[-1] >= depth:
            raise Unfit(f"K-Adapter cannot plug in at {plugs[-1]}: the states that enter the {depth} blocks are 0 to {depth - 1}")
        first = stack.blocks[0].module
        if "attention_mask" not in parameters(first):
            raise Unfit(f"K-Adapter reads the mask that a block is given, and {type(first).__name__} takes no attention_mask")
        numbers = {"blocks": [stack.blocks[p].path for p in plugs], "trunk": stack.width, "width": self.width,
                   "layers": self.layers, "heads": self.heads, "dropout": self.dropout, "blind": self.blind,
                   "causal": any(getattr(m, "is_causal", False) for m in first.modules())}
        for p in plugs:
            at.put(stack.blocks[p], SideTap, port="call", cut=not self.adapters)
        if not self.adapters:
            at.put(place(at, stack.holder), Knowledge, **numbers)
            return
        known = [_read(at, folder, numbers) for folder in map(str.strip, self.adapters.split(",")) if folder]
        edit: Any = at.put(place(at, stack.holder), Knowledge, **numbers, networks=len(known), frozen=True)
        for plugged, tensors in zip(edit.plugs, known, strict=True):
            plugged.load_state_dict(tensors)
        if self.tune_trunk:
            for name in [n for n, _ in base.parameters(at.model) if not HEADS.search(n)]:
                at.train(name, wildcard=True)


def _read(at: Attachment, folder: str, numbers: dict[str, Any]) -> dict[str, Tensor]:
    """The plugs of a saved K-Adapter, by name.

    Raises:
        BrokenArtifact, WrongBase: it is not whole, or was trained on another base.
        CannotCombine: it is no K-Adapter, one of several networks, or one of another shape.
    """
    from ..artifact.fingerprint import refuse_other
    from ..artifact.load import read

    data, rows, state = read(Path(folder))
    row = next((r for r in rows if r.edit == Knowledge.registered and r.numbers.get("networks", 1) == 1), None)
    if row is None:
        raise CannotCombine(f"{folder} holds no K-Adapter of one network, but {(data['method'] or {}).get('name')!r}")
    refuse_other(at.model, data["base"], [n for n, about in data["trained"].items() if not about["masked"]])
    for name in ("blocks", "trunk", "width", "layers", "heads"):
        if row.numbers[name] != numbers[name]:
            raise CannotCombine(f"the K-Adapter in {folder} has {name} {row.numbers[name]}, this one {numbers[name]}")
    own = f"edit:{row.key}:plugs.0."
    return {name.removeprefix(own): t for name, t in state.items() if name.startswith(own)}
