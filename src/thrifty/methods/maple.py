"""MaPLe: Multi-modal Prompt Learning (Khattak, Rasheed, Maaz, Khan, Khan; CVPR 2023, arXiv:2210.03117)."""
from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Method, Shared, Site, need, register
from .coop import words_of
from .prompts.context import SPREAD, Context, embed, sentences
from .prompts.deep_prompts import ImageTokens, TextTokens, image_places, text_places

if TYPE_CHECKING:
    from ..core import Attachment


@register("coupled-prompts")
class CoupledPrompts(Shared):
    """P_j [n, text] for each depth, and F_j: text -> image, which makes the picture's tokens Q_j = F_j(P_j) of them.

    P_j ~ N(0, 0.02²). F_0 starts as linear layers do; F_1 and deeper ones are copies of one more such layer.
    """

    def __init__(self, length: int, depth: int, text: int, image: int):
        super().__init__()
        self.P = nn.ParameterList([nn.Parameter(SPREAD * torch.randn(length, text)) for _ in range(depth)])
        deeper = nn.Linear(text, image)
        self.F = nn.ModuleList([nn.Linear(text, image), *(copy.deepcopy(deeper) for _ in range(depth - 1))])


@register("coupled-context")
class CoupledContext(Context):
    """The sentences' vectors are P_0."""

    def make(self, each: list[int], width: int) -> None:
        """Nothing: the vectors are shared."""

    def vectors(self) -> Tensor:
        """P_0 [n, width]."""
        return self.context.shared.P[0]


@register("coupled-text-tokens")
class CoupledTextTokens(TextTokens):
    """P_level over the states of the prompt's places."""

    def __init__(self, site: Site, length: int, begin: int, width: int, level: int):
        super().__init__(site, length, begin, width)
        self.level = level

    def make(self, width: int) -> None:
        """Nothing: the tokens are shared."""

    def tokens(self) -> Tensor:
        """P_level [n, width]."""
        return self.context.shared.P[self.level]


@register("coupled-image-tokens")
class CoupledImageTokens(ImageTokens):
    """F_level(P_level) behind the picture's tokens."""

    def __init__(self, site: Site, length: int, first: bool, width: int, level: int):
        super().__init__(site, length, first, width)
        self.level = level

    def make(self, width: int) -> None:
        """Nothing: the tokens are made of those of the text."""

    def tokens(self) -> Tensor:
        """F_level(P_level) [n, width]."""
        shared = self.context.shared
        return shared.F[self.level](shared.P[self.level])


@dataclass
class MaPLe(Method):
    """Tokens in both towers to one ``depth``, those of the picture made of those of the text:

        text   places 1 .. n of the sentence are P_0 at the input, P_j over their states before block j
        image  F_0(P_0) behind the picture's tokens, F_j(P_j) over them before block j        j = 1 .. depth - 1

    P_j [n, text], F_j: [text] -> [image] with bias. P_0 starts from the first n tokens of ``words``, whose others stay in the
    sentence. From the last prompted block on the tokens flow. After training the F_j have done their work: what is kept are the
    n depth (text + image) numbers of all tokens.

    The authors train with batch 4 and SGD at 3.5e-3 for 5 epochs (depth 9), or 2 epochs at 2.6e-3 with depth 3 for transfer to
    other data sets.
    """

    name = "maple"
    route = "input and output"
    modalities = ("image", "text")
    paper = "Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023, arXiv:2210.03117"
    trains = "tokens in the text tower, and maps that make those of the picture"
    inference = "`length` tokens of the picture more; class features are computed once"
    needs = "an image-text model"
    identity_at_start = False
    rate = 2e-3

    length: int = 2
    depth: int = 9
    words: str = "a photo of a"

    def check(self) -> None:
        """Length and depth are positive."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.depth >= 1, self, "depth", "at least 1")

    @torch.no_grad()
    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """What is shared, and where each tower reads it.

        Raises:
            Unfit: the model does not know classes by their names. NoSuchSetting: it has fewer blocks.
        """
        text, images, blocks = sentences(at), image_places(at, self.depth), text_places(at, self.depth)
        module: Any = text.module
        towers, n = module.towers, self.length
        shared = at.share(CoupledPrompts, length=n, depth=self.depth, text=towers.text_width, image=towers.image_width)
        if self.words:
            start = embed(at, words_of(self, at)[:n])
            shared.P[0][: len(start)] = start.to(shared.P[0])
        at.put(text, CoupledContext, length=n, words=self.words, taken=n)
        begin = len(module.texts.reader.begin)
        for level, site in enumerate(blocks, 1):
            at.put(site, CoupledTextTokens, length=n, begin=begin, width=towers.text_width, level=level)
        for level, site in enumerate(images):
            at.put(site, CoupledImageTokens, length=n, first=level == 0, width=towers.image_width, level=level)

    @torch.no_grad()
    def finish(self, at: Attachment) -> None:
        """Keep the tokens, and throw away what made them."""
        plain: dict[type[Any], tuple[type[Any], str]] = {
            CoupledContext: (Context, "ctx"), CoupledTextTokens: (TextTokens, "P"), CoupledImageTokens: (ImageTokens, "Q")}
        for row in list(at.plan):
            edit: Any = at.edits[row.key]
            kind, tensor = plain[type(edit)]
            tokens = edit.vectors() if kind is Context else edit.tokens()
            made = at.replace(row.key, kind, **{k: v for k, v in row.numbers.items() if k != "level"})
            getattr(made, tensor).copy_(tokens)
        at.unshare()
