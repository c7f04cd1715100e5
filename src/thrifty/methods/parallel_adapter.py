"""Scaled parallel adapter: Towards a Unified View of Parameter-Efficient Transfer Learning (He, Zhou, Ma, Berg-Kirkpatrick,
Neubig; ICLR 2022, arXiv:2110.04366)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, Site, need
from ..core.errors import NoSuchSite
from .branches.bottleneck import ACTS, Beside, Tap
from .branches.operations import by_block, feed_forwards

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class ParallelAdapter(Method):
    """h + s (act(x W_d + b_d) W_u + b_u): the adapter reads what a sub-layer reads, and adds to what it makes of that.

    ``beside="mlp"``: x is the input of the feed-forward network, h its output, before its dropout, the residual and the
    normalisation. In a mixture of experts the adapter stands beside the whole mixture.

    ``beside="attn"``: x is what an attention reads for its queries (in a post-norm model the layer's input), h the
    concatenated outputs of its heads, before the output projection; cross-attention gets an adapter too. ``norm`` "in" puts
    a LayerNorm of its own before the adapter, "none" does not; empty stands for the authors' choice, "in" beside attention.

    ``init="lora"`` starts W_u at zero and W_d as LoRA does, so that the model starts as the base; "bert" draws both from
    N(0, 0.02). ``learned`` lets s train, from ``scale`` (the authors start it at 1). The paper's numbers: rank 16 and s = 2
    for classification, 512 and 4 for generation. ``where`` names blocks.
    """

    name = "parallel-adapter"
    aliases = ("scaled-parallel", "par_bn")
    presets = {"parallel-attention": {"beside": "attn"}}
    route = "add modules"
    paper = "He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, ICLR 2022, arXiv:2110.04366"
    trains = "one bottleneck beside each feed-forward network"
    inference = "one small network more per layer, beside the large one"
    rate = 1e-4

    rank: int = 16
    scale: float = 2.0
    act: str = "relu"
    dropout: float = 0.0
    beside: str = "mlp"
    norm: str = ""
    init: str = "lora"
    learned: bool = False
    where: str = "block"

    def check(self) -> None:
        """Every choice is known, ranks are positive, dropout is a probability."""
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.beside in ("mlp", "attn"), self, "beside", "'mlp' or 'attn'")
        need(self.norm in ("", "in", "none"), self, "norm", "'in', 'none' or empty")
        need(self.init in ("lora", "bert"), self, "init", "'lora' or 'bert'")

    def numbers(self, site: Site) -> dict[str, Any]:
        """As the settings say."""
        start = {"init": "zero", "std": 0.0} if self.init == "lora" else {"init": "normal", "std": 0.02}
        norm = (self.norm or ("in" if self.beside == "attn" else "none")) == "in"
        return {"rank": self.rank, "act": self.act, **start, "scale": self.scale, "dropout": self.dropout, "norm": norm,
                "learned": self.learned}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per sub-layer a tap where it reads, and the adapter where it ends.

        Raises:
            NoSuchSite: a block has no such sub-layer.
        """
        blocks = at.sites(self.where)
        (self._attend if self.beside == "attn" else self._feed)(at, blocks)

    def _feed(self, at: Attachment, blocks: list[Site]) -> None:
        found = feed_forwards(at, blocks)
        for block in blocks:
            if block.path not in found:
                raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no feed-forward network to stand beside")
            reads, ends = found[block.path]
            key = "" if reads is ends else reads.path
            if key:
                at.put(reads, Tap, key=key)
            at.put(ends, Beside, key=key, width=reads.din, **self.numbers(ends))

    def _attend(self, at: Attachment, blocks: list[Site]) -> None:
        queries, outputs = (by_block(at, blocks, role) for role in ("attn.q", "attn.o"))
        for block in blocks:
            reads, ends = queries[block.path], outputs[block.path]
            if not reads or len(reads) != len(ends):
                raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no attention to stand beside: "
                                 f"{len(reads)} query and {len(ends)} output projections were found")
            for q, o in zip(reads, ends, strict=True):
                at.put(q, Tap, key=q.path)
                at.put(o, Beside, key=q.path, width=q.din, port="input", **self.numbers(o))
