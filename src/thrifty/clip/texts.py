"""Class names as sentences of tokens."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.clip.templates import resolve
from thrifty.core.errors import BadData


class Reader:
    """A tokenizer of transformers or of open_clip: text to token numbers, and what it puts before and behind a sentence."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if hasattr(tokenizer, "sot_token_id"):  # open_clip's
            self.begin, self.end, self.pad = (int(tokenizer.sot_token_id),), (int(tokenizer.eot_token_id),), 0
            return
        whole, bare = list(tokenizer("a")["input_ids"]), self.tokens("a")
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self.begin, self.end = tuple(whole[:start]), tuple(whole[start + len(bare) :])
        self.pad = int(getattr(tokenizer, "pad_token_id", None) or 0)

    def tokens(self, text: str) -> list[int]:
        """The token numbers of ``text`` alone."""
        if hasattr(self.tokenizer, "sot_token_id"):
            return list(self.tokenizer.encode(text))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __deepcopy__(self, memo: Any) -> Reader:
        return self  # it never changes


class Texts:
    """What an image-text model knows of its classes: their names, and the sentences about them, as token numbers.

    Attributes:
        labels: the classes [K]. names: the tokens of each one's name. stops: those of the full stop behind each.
        templates: the sentences [P] that names were put into.
        ids: [P, K, T] the sentences, padded; ends: [P, K] the place whose state stands for the sentence.
    """

    def __init__(self, reader: Reader, labels: Sequence[str], templates: Any, context: int, trims: bool) -> None:
        self.reader, self.context, self.trims = reader, context, trims
        self.labels, self.templates = list(labels), resolve(templates)
        self.spoken = [label.replace("_", " ").strip() for label in self.labels]
        self.names, self.stops = [], []
        for name in self.spoken:
            alone, stopped = reader.tokens(name), reader.tokens(name + ".")
            joined = stopped[: len(alone)] == alone  # some tokenizers drop the full stop, none should read it into the name
            self.names.append(alone if joined else stopped)
            self.stops.append(stopped[len(alone) :] if joined else [])
        self._refuse_alike()
        ids, ends = self.lay([reader.tokens(template.replace("{}", name)) for template in self.templates for name in self.spoken])
        shape = (len(self.templates), len(self.labels))
        self.ids, self.ends = ids.view(*shape, -1), ends.view(*shape)

    def lay(self, rows: Sequence[Sequence[int]], labelled: bool = True) -> tuple[Tensor, Tensor]:
        """Rows of tokens as sentences: with begin and end, padded [n, T], and the place [n] that stands for each.

        A tower that ``trims`` never looks at what comes behind the end, so there the padding stops at the longest. Row i is about
        class i modulo K if rows are ``labelled``, which only errors need to know.

        Raises:
            BadData: a sentence is longer than the tower reads.
        """
        whole = [[*self.reader.begin, *row, *self.reader.end] for row in rows]
        for i, row in enumerate(whole):
            if len(row) > self.context:
                what = f"class {self.labels[i % len(self.labels)]!r}: its sentence" if labelled else "a sentence"
                raise BadData(f"{what} takes {len(row)} tokens, and the text tower reads at most {self.context}: use a shorter "
                              "name, template or prompt")
        width = max(map(len, whole)) if self.trims else self.context
        ids = torch.tensor([row + [self.reader.pad] * (width - len(row)) for row in whole], dtype=torch.long)
        return ids, torch.tensor([len(row) - 1 if self.trims else width - 1 for row in whole], dtype=torch.long)

    def _refuse_alike(self) -> None:
        first: dict[tuple[int, ...], str] = {}
        for label, tokens in zip(self.labels, self.names, strict=True):
            if not tokens:
                raise BadData(f"class {label!r} has no name that the tokenizer can read")
            if tuple(tokens) in first:
                raise BadData(f"the classes {first[tuple(tokens)]!r} and {label!r} read alike, so no sentence tells them apart: "
                              "give one another name")
            first[tuple(tokens)] = label
