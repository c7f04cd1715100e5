"""A tokenizer of whole words, for languages as small as that of a made-up world."""
from __future__ import annotations

from collections.abc import Iterable

from thrifty.core.errors import BadData, nearest

MARKS = ("[PAD]", "[CLS]", "[SEP]")


class Vocabulary:
    """Numbers for ``words``, called as tokenizers of `transformers` are: 0 is padding, 1 stands in front of a text and 2 behind."""

    pad_token_id = 0

    def __init__(self, words: Iterable[str]) -> None:
        self.words = [*MARKS, *sorted(set(words) - set(MARKS))]
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """The numbers of a text's words, in lower case and without its commas and stops.

        Raises:
            BadData: a word that is not known.
        """
        words = text.lower().replace(",", " ").replace(".", " ").split()
        for word in words:
            if word not in self.numbers:
                raise BadData(f"the word {word!r} of {text!r} is not in the vocabulary." + nearest(word, self.numbers))
        return {"input_ids": [1, *(self.numbers[word] for word in words), 2]}
