"""SPT: Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning (He, Cai, Zhang, Tao, Zhuang; ICCV 2023, arXiv:2303.08566)."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Method, Site, base, need, register
from ..core.errors import ThriftyError, Unfit
from ..core.part import Part
from ..core.roles import HEADS
from .bitfit import LEAVES
from .branches.bottleneck import Projections
from .branches.drop_path import DropPath
from .lora import LowRank
from .sparse.allocation import Allocation, Tunable, allocate
from .sparse.sparse_delta import SparseDelta
from .sparse.squared_gradients import of_weight, squared_gradients

if TYPE_CHECKING:
    from ..core import Attachment

EMBEDDINGS = re.compile(r"(^|\.)(embeddings?|patch_embed|pos_embed|word_embeddings|embed_tokens|wte|wpe|shared)(\.|$)")
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
Vector = tuple[str, Part | None]  # a parameter of one dimension, or the part of it that belongs to q, k or v


@register("low-rank-dropped")
class DroppedLowRank(LowRank):
    """y + path(B A drop(x)), A [rank, din], B [dout, rank], without a scale; ``path`` leaves whole rows of the batch out."""

    def __init__(self, site: Site, rank: int, dropout: float, drop_path: float):
        super().__init__(site, rank, float(rank), dropout)
        self.path = DropPath(drop_path)

    def branch(self, h: Tensor) -> Tensor:
        """path(B A drop(h))."""
        return self.path(super().branch(h))


@register("bottleneck-dropped")
class DroppedBottleneck(Projections):
    """y + path(W_u gelu(W_d drop(y) + b_d) + b_u) on a layer's own output, W_d [rank, dout], W_u [dout, rank] from zero."""

    def __init__(self, site: Site, rank: int, dropout: float, drop_path: float):
        super().__init__(site, rank, site.dout, "gelu", "zero", 0.0)
        self.first, self.path = nn.Dropout(dropout), DropPath(drop_path)

    def branch(self, h: Tensor) -> Tensor:
        """path(W_u gelu(W_d drop(h)))."""
        return self.path(super().branch(self.first(h)))


@dataclass
class SPT(Method):
    """Trains what the task's own gradients ask for, up to ``budget`` parameters: matrices get LoRA, vectors train, or entries do.

        s_n = sum over the first ``batches`` batches of (d loss / d w_n)²        the sensitivity of every weight and bias

    The tau most sensitive entries of all matrices (``where``) and vectors (biases, normalisations) are selected. With m of
    them in a tensor,

        vector of n entries      trains as a whole if m >= n / beta, else its m entries
        matrix [dout, din]       gets the low-rank module of c = rank (din + dout) parameters if m >= c / alpha, and then no
                                 entry of its own trains; else its m entries do, as a sparse delta

    tau goes up in 79 steps of ``grid``; that counts whose total, with the class token, is closest to ``budget``. Class token
    and head train always (the head with ``also_train="head"``), patch and position embeddings never. ``dropout`` acts on what
    a module reads (but not at the projection behind the heads), ``drop_path`` on what it adds.

    The sensitivity is computed without dropout and in the precision of the model, where the authors leave stochastic depth on
    and compute in half precision; and entries of normalisations that the authors count, but never train, do train here. A
    head of zeros passes no gradient on and is refused. Made for vision transformers (ViT, Swin), it serves others as well.
    """

    name = "spt"
    aliases: ClassVar[tuple[str, ...]] = ("spt-lora",)
    route = "few weights"
    modalities = ("image",)
    paper = "He et al., Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, ICCV 2023, arXiv:2303.08566"
    trains = "what is most sensitive: low-rank updates, whole vectors, and single entries, up to a budget"
    mergeable = True
    inference = "none once merged"
    Edit: ClassVar[Any] = DroppedLowRank
    rate = 1e-3

    budget: int = 400_000
    rank: int = 8
    alpha: float = 10.0
    beta: float = 5.0
    batches: int = 16
    grid: int = 20_000
    dropout: float = 0.1
    drop_path: float = 0.1
    where: str = "attn.?|mlp.*"

    def check(self) -> None:
        """Numbers are positive, and shares are shares."""
        need(self.budget >= 1, self, "budget", "at least 1: a number of parameters")
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.alpha >= 0, self, "alpha", "at least 0: with 0 no matrix gets a module")
        need(self.beta >= 0, self, "beta", "at least 0: with 0 no vector trains as a whole")
        need(self.batches >= 1, self, "batches", "at least 1")
        need(self.grid >= 1, self, "grid", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(0 <= self.drop_path < 1, self, "drop_path", "in [0, 1)")

    def numbers(self, site: Site) -> dict[str, Any]:
        """The projection behind the heads reads without dropout."""
        dropout = 0.0 if site.role == "attn.o" else self.dropout
        return {"rank": self.rank, "dropout": dropout, "drop_path": self.drop_path}

    def cost(self, site: Site) -> int:
        """Parameters of the module at a matrix."""
        return self.rank * (site.din + site.dout)

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Rank the weights by the gradients of the first batches, and put what the budget allows where they are largest.

        Raises:
            ThriftyError: there are no batches, or they have no loss. Unfit, NoSuchSite: see ``allocate`` and the sites.
        """
        if batches is None:
            raise ThriftyError(f"{self.name} looks at the task's gradients before it decides what trains: attach with batches= "
                               "(dicts of tensors, with labels)")
        matrices = at.sites(self.where)
        vectors = list(find_vectors(at, matrices))
        every = dict(base.parameters(at.model))
        sums = squared_gradients(at.model, {n: p for n, p in every.items() if not EMBEDDINGS.search(n)}, batches, self.batches)
        matrix = [of_weight(sums, at.model, site) for site in matrices]
        if odd := [site.path for site, m in zip(matrices, matrix, strict=True) if m.dim() != 2]:
            raise Unfit(f"{self.name} tunes matrices, and the weight of {odd[0]!r} is none: leave it out of where=")
        vector = [sums[name] if part is None else part.take(sums[name]) for name, part in vectors]
        tunables = [Tunable(self.cost(site), self.alpha) for site in matrices] + [Tunable(len(v), self.beta) for v in vector]
        tokens = [n for n in every if n.rpartition(".")[2] in CLASS_TOKENS]
        found = allocate(matrix + vector, tunables, self.budget, self.grid, sum(every[n].numel() for n in tokens))
        self._change(at, matrices, found)
        for name, mask in masks(every, vectors, found).items():
            at.train(name, mask)
        for name in tokens:
            at.train(name)

    def _change(self, at: Attachment, matrices: list[Site], found: Allocation) -> None:
        for site, whole, entries in zip(matrices, found.whole, found.entries, strict=False):
            if whole:
                at.put(site, self.Edit, **self.numbers(site))
            elif len(entries):
                edit: Any = at.put(site, SparseDelta, count=len(entries))
                edit.positions.copy_(entries)


@dataclass
class SPTAdapter(SPT):
    """SPT whose sensitive matrices get a bottleneck on their output instead of a low-rank update.

        z = W x + b,   y = z + path(W_u gelu(W_d drop(z) + b_d) + b_u),   c = 2 rank dout + rank + dout
    """

    name = "spt-adapter"
    aliases = ()
    trains = "what is most sensitive: bottlenecks, whole vectors, and single entries, up to a budget"
    mergeable = False
    inference = "a small network behind each of the chosen layers"
    Edit = DroppedBottleneck

    def numbers(self, site: Site) -> dict[str, Any]:
        """As the settings say."""
        return {"rank": self.rank, "dropout": self.dropout, "drop_path": self.drop_path}

    def cost(self, site: Site) -> int:
        """Parameters of the module at a matrix."""
        return 2 * self.rank * site.dout + self.rank + site.dout


def find_vectors(at: Attachment, matrices: list[Site]) -> Iterator[Vector]:
    """Biases and the parameters of normalisations, outside head and embeddings; a fused bias in the parts that its sites have."""
    found = [site for site in at.sites("*") if site.role.startswith("norm")]
    norms = {f"{site.path}.{name}" for site in found for name, _ in site.module.named_parameters(recurse=False)}
    parts: dict[str, list[Part | None]] = {}
    for site in matrices:
        if site.part is not None:
            parts.setdefault(f"{site.path}.bias", []).append(site.part)
    for name, p in base.parameters(at.model):
        outside = name in at.base or HEADS.search(name) or EMBEDDINGS.search(name)
        if p.dim() == 1 and not outside and (name in norms or name.rpartition(".")[2] in LEAVES):
            yield from ((name, part) for part in parts.get(name, [None]))


def masks(own: dict[str, nn.Parameter], vectors: list[Vector], found: Allocation) -> dict[str, Tensor | None]:
    """Which entries of each vector train; None where all do. ``found`` lists the vectors last."""
    made: dict[str, Tensor] = {}
    kept = zip(vectors, found.whole[-len(vectors) :], found.entries[-len(vectors) :], strict=True) if vectors else ()
    for (name, part), whole, entries in kept:
        mask = made.setdefault(name, torch.zeros_like(own[name], dtype=torch.bool))
        piece = mask if part is None else part.take(mask)
        piece = torch.ones_like(piece) if whole else piece.scatter(0, entries.to(piece.device), True)
        made[name] = piece if part is None else part.put(mask, piece)
    return {name: None if bool(mask.all()) else mask for name, mask in made.items() if bool(mask.any())}
