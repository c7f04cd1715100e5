"""IVLP: independent prompts in the vision and the language tower, the baseline that MaPLe couples (Khattak, Rasheed, Maaz, Khan,
Khan; CVPR 2023, arXiv:2210.03117) and that PromptSRC trains."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..core import Method, need
from .coop import words_of
from .prompts.context import Context, embed, sentences
from .prompts.deep_prompts import put_image, put_text

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class IVLP(Method):
    """Tokens in both towers, each to a depth of its own; nothing ties them.

        text   places 1 .. n of the sentence are v at the input, and P_j [n, width] over their states before block j
        image  Q_0 [n, width] behind the picture's tokens, Q_j over them before block j        j = 1 .. depth - 1

    v starts from the first tokens of ``words``, whose others stay in the sentence; all else from N(0, 0.02²). A depth of 0 leaves a
    tower alone: with ``text_depth=0`` class features are those of the model's own sentences (VPT on CLIP), computed once.
    """

    name = "ivlp"
    route = "input and output"
    modalities = ("image", "text")
    paper = "Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023, arXiv:2210.03117"
    trains = "tokens in both towers, at several depths"
    inference = "the picture's tokens more; class features are computed once"
    needs = "an image-text model"
    identity_at_start = False
    rate = 2e-3

    text_length: int = 4
    image_length: int = 4
    text_depth: int = 9
    image_depth: int = 9
    words: str = "a photo of a"

    def check(self) -> None:
        """Lengths are positive, and one tower at least has tokens."""
        for name in ("text_length", "image_length"):
            need(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("text_depth", "image_depth"):
            need(getattr(self, name) >= 0, self, name, "at least 0")
        need(self.text_depth + self.image_depth > 0, self, "image_depth", "at least 1 where text_depth is 0")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Tokens into either tower.

        Raises:
            Unfit: the model does not know classes by their names. NoSuchSetting: it has fewer blocks.
        """
        if self.text_depth:
            put_words(self, at, self.text_length)
            put_text(at, self.text_depth, self.text_length)
        if self.image_depth:
            put_image(at, self.image_depth, self.image_length)


@torch.no_grad()
def put_words(method: Any, at: Attachment, length: int) -> None:
    """``length`` vectors in front of the name, the first of them started from the method's ``words``, the others at random."""
    made: Any = at.put(sentences(at), Context, length=length, words=method.words, taken=length)
    start = embed(at, words_of(method, at)[:length]) if method.words else made.ctx[:0]
    made.ctx[: len(start)] = start.to(made.ctx)
