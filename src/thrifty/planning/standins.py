"""Stand-ins for tokenizers and image processors, where there is no data to read: rows have the size that is asked for."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WORD = 4  # the number of every word; those below are marks


class Encoded(dict[str, Any]):
    """Token numbers by row, as tokenizers of `transformers` give them."""

    def word_ids(self, row: int) -> list[int]:
        """For each token of a row the number of its word."""
        return list(range(len(self["input_ids"][row])))


class Words:
    """A tokenizer whose tokens are words, all of them the same."""

    pad_token_id, eos_token_id, mask_token_id, unk_token_id = range(4)
    bos_token_id = None
    pad_token, unk_token = "[PAD]", "[UNK]"
    all_special_ids = (0, 1, 2, 3)
    is_fast = True
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __len__(self) -> int:
        return WORD + 1

    def __call__(self, texts: Any, pairs: Sequence[str] | None = None, *, max_length: int | None = None, truncation: Any = False,
                 is_split_into_words: bool = False, **options: Any) -> Encoded:
        """``input_ids`` and ``token_type_ids`` of one text or of a list of texts (or lists of words), cut if that is asked for."""
        alone = isinstance(texts, str)
        rows = [len(text) if is_split_into_words else len(text.split()) for text in ([texts] if alone else texts)]
        rows = [first + len(other.split()) for first, other in zip(rows, pairs or [""] * len(rows), strict=True)]
        sizes = [min(size, max_length) if truncation and max_length else size for size in rows]
        ids = [[WORD] * size for size in sizes]
        kinds = [[0] * size for size in sizes]
        return Encoded(input_ids=ids[0] if alone else ids, token_type_ids=kinds[0] if alone else kinds)


class Pictures:
    """An image processor that makes every picture one of the same size, without looking at it."""

    def __init__(self, channels: int, side: int) -> None:
        self.channels, self.side = channels, side

    def __call__(self, picture: Any) -> Tensor:
        """[channels, side, side]."""
        return torch.zeros(self.channels, self.side, self.side)
