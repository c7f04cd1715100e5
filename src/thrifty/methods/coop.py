"""CoOp: Learning to Prompt for Vision-Language Models (Zhou, Yang, Loy, Liu; IJCV 2022, arXiv:2109.01134)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, need
from .prompts.context import POSITIONS, Context, embed, place, sentences

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class CoOp(Method):
    """M learned vectors in the place of the words around a class name; everything else is frozen.

        logits = s cos(f, g(v_1 .. v_M name_k .))        v [M, width], or [K, M, width] with ``per_class``

    ``position`` of the name: "end", "middle" or "front". Vectors start at N(0, 0.02²), or from ``words``: then there are as many
    as those have tokens, and classes that have their own all start from them (the authors then ignore ``per_class``). The authors
    count what stands between spaces instead, so that the last tokens stay frozen in the sentence where a word has several or a
    comma behind it: ``by_spaces`` does that too.

    What all classes share serves new ones (``model.classify(names)``); what each has for itself is refused there. The authors
    train by SGD (momentum 0.9, rate 2e-3 falling as a cosine, decay 5e-4, batch 32; 50 epochs with 1 shot, 100 with 2 or 4, 200
    with 8 or 16) on random crops, and keep the last state.
    """

    name = "coop"
    presets = {"coop-csc": {"per_class": True}}
    route = "input and output"
    modalities = ("image", "text")
    paper = "Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, arXiv:2109.01134"
    trains = "vectors in the place of the words around class names"
    inference = "nothing: class features are computed once"
    needs = "an image-text model"
    identity_at_start = False
    rate = 2e-3

    length: int = 16
    words: str = ""
    position: str = "end"
    per_class: bool = False
    by_spaces: bool = False

    def check(self) -> None:
        """The position is one of three."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.position in POSITIONS, self, "position", "'end', 'middle' or 'front'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Sentences with vectors, where the text tower takes them in.

        Raises:
            Unfit: the model does not know classes by their names.
        """
        self.put_context(at)

    def put_context(self, at: Attachment, edit: type[Context] = Context, **numbers: Any) -> None:
        """An ``edit`` with the vectors, at their start."""
        site, start = sentences(at), self.start(at)
        texts: Any = site.module.texts
        if self.per_class:
            numbers["names"] = texts.labels
        if start is not None and self.by_spaces:
            numbers |= {"words": self.words, "taken": len(self.words.split())}
        length = self.length if start is None else len(start)
        made: Any = at.put(site, edit, length=length, position=self.position, drawn=start is None, **numbers)
        if start is not None:
            with torch.no_grad():
                made.ctx.copy_(start)

    def start(self, at: Attachment) -> Tensor | None:
        """What the vectors start from [M, width]; None for chance."""
        return self.embedded(at) if self.words else None

    def embedded(self, at: Attachment) -> Tensor:
        """The model's own vectors of the words, or of their first tokens, that vectors start from."""
        return embed(at, words_of(self, at))[: len(self.words.split()) if self.by_spaces else None]


def words_of(method: Any, at: Attachment) -> list[int]:
    """The tokens of the method's ``words``.

    Raises:
        NoSuchSetting: the tokenizer makes nothing of them.
    """
    model: Any = place(at, "text").module
    tokens: list[int] = model.texts.reader.tokens(method.words)
    need(bool(tokens), method, "words", "words that the model's tokenizer can read")
    return tokens
