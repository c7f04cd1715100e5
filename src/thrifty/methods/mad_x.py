"""MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer (Pfeiffer, Vulić, Gurevych, Ruder; EMNLP 2020,
arXiv:2005.00052), with the additive coupling of NICE: Non-linear Independent Components Estimation (Dinh, Krueger, Bengio;
ICLR workshop 2015, arXiv:1410.8516)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Shared, Site, need, register
from ..core.errors import NoSuchSite, Unfit
from ..core.site import at_path
from .pfeiffer import Pfeiffer

if TYPE_CHECKING:
    from ..core import Attachment


@register("nice-coupling")
class Coupling(Shared):
    """With e = [e1; e2], each half as wide: o1 = e1 + F(e2), o2 = e2 + G(o1); the inverse is exact for any F and G.

    F and G are Linear(d/2, d/2/reduction), ReLU, Linear back, from N(0, 0.02) with biases at zero.
    """

    def __init__(self, width: int, reduction: int):
        super().__init__()
        half = width // 2
        self.F, self.G = (nn.Sequential(nn.Linear(half, half // reduction), nn.ReLU(), nn.Linear(half // reduction, half))
                          for _ in range(2))
        for layer in (*self.F, *self.G):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, e: Tensor) -> Tensor:
        """e [..., d] -> o [..., d]."""
        first, second = e.to(next(self.parameters()).dtype).chunk(2, -1)
        first = first + self.F(second)
        return _join(first, second + self.G(first), e)

    def inverse(self, o: Tensor) -> Tensor:
        """o [..., d] -> e [..., d]."""
        first, second = o.to(next(self.parameters()).dtype).chunk(2, -1)
        second = second - self.G(first)
        return _join(first - self.F(second), second, o)


def _join(first: Tensor, second: Tensor, like: Tensor) -> Tensor:
    return torch.cat([first, second], -1).to(like.dtype)


@register("invertible")
class Through(Edit):
    """Behind the embeddings: y <- the shared coupling of y."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., d] -> [..., d]."""
        out: Tensor = self.context.shared(y)
        return out


@register("invertible-back")
class Back(Edit):
    """In front of the output embeddings, which are tied to those of the input: x <- the coupling's inverse of x."""

    port = "input"

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        out: Tensor = self.context.shared.inverse(x)
        return out


@dataclass
class MADXLanguage(Pfeiffer):
    """The language half of MAD-X, to be trained as a language model on text of one language: an adapter per layer at half
    the width, and an invertible adapter behind the embeddings, whose inverse stands before the output embeddings.

        LA(h, r) = relu(h D) U + r        h the normalised sum, r what the feed-forward network gave

    Where a model has no language-model head the inverse is left out. Rank 0 stands for d / 2.
    """

    name = "mad-x-language"
    aliases = ("language-adapter",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    modalities = ("text",)
    paper = "Pfeiffer et al., MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer, EMNLP 2020, arXiv:2005.00052"
    trains = "one bottleneck per layer at half the width, and an invertible adapter at the embeddings"
    inference = "one small network more per layer, and one at the embeddings"

    invertible: bool = True
    reduction: int = 2

    def check(self) -> None:
        """As Pfeiffer's; the reduction divides."""
        super().check()
        need(self.reduction >= 1, self, "reduction", "at least 1")

    def numbers(self, site: Site) -> dict[str, Any]:
        """Half as wide as the site, unless told otherwise."""
        return {**super().numbers(site), "rank": self.rank or max(1, site.dout // 2)}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The adapters, then the coupling at the embeddings.

        Raises:
            Unfit: the embeddings have an odd width, which cannot be halved.
        """
        super().attach(at, batches)
        if not self.invertible:
            return
        place, width = _embeddings(at)
        if width % 2:
            raise Unfit(f"an invertible adapter halves the embeddings, and those at {place.path!r} have an odd width, {width}")
        at.share(Coupling, width=width, reduction=self.reduction)
        at.put(place, Through)
        if (head := _head(at)) is not None:
            at.put(head, Back)


@dataclass
class MADX(Method):
    """The task half of MAD-X: a task adapter stacked on a saved language adapter, which is frozen.

        TA(h, r) = relu(LA(h, r) D) U + r        r the residual of LA, not its output

    ``language`` is the folder of a trained `mad-x-language` of the language that the task's data is in. For another language,
    ``thrifty.swap(at, "language", folder)`` puts that language's adapter in its place; task adapter and head stay.
    """

    name = "mad-x"
    aliases = ("madx",)
    route = "add modules"
    modalities = ("text",)
    paper = MADXLanguage.paper
    trains = "one bottleneck per layer, stacked on a frozen language adapter"
    inference = "two small networks more per layer, and one at the embeddings"
    identity_at_start = False
    needs: ClassVar[str] = "saved adapters"
    rate = 1e-4

    language: str = ""
    rank: int = 0
    where: str = "block"

    def check(self) -> None:
        """A language is named; the adapter's numbers are fit."""
        need(bool(self.language.strip()), self, "language", "the folder of a saved language adapter")
        Pfeiffer(rank=self.rank, where=self.where).check()

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Stack a new adapter on the language's.

        Raises:
            BrokenArtifact, WrongBase: the language adapter is not whole, or was trained on another base.
        """
        from ..composition import Named, Stack
        from ..composition.building import put

        put(at, Stack(Named("language", self.language.strip()), Named("task", Pfeiffer(rank=self.rank, where=self.where))))


def _embeddings(at: Attachment) -> tuple[Site, int]:
    """The place that gives out the finished embeddings, and their width."""
    tokens = at.sites("embed")[0]
    blocks = [site.path for site in at.sites("block")]
    path = tokens.path
    while "." in path:  # a module around the table that holds no block is the embedding module: it adds and normalises
        above = path.rpartition(".")[0]
        if any(block.startswith(above + ".") for block in blocks):
            break
        path = above
    return (tokens if path == tokens.path else at_path(at.model, path, "embeddings", None, -1, "", at.seen)), tokens.dout


def _head(at: Attachment) -> Site | None:
    """Where the last states enter the language-model head; None if the model has none."""
    find = getattr(at.model, "get_output_embeddings", None)
    out = find() if callable(find) else None
    if out is None:
        return None
    path = next((p for p, m in at.model.named_modules() if m is out), None)
    if path is None:
        raise NoSuchSite(f"the output embeddings of {type(at.model).__name__} are no module of it")
    top = path.partition(".")[0]
    return at_path(at.model, top, "head", None, -1, "", at.seen)
