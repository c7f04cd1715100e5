"""Text to token numbers, cut where a model has no more positions, and padded into batches."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models.backbone import Backbone
from thrifty.tasks.task import Table, accepts

LONGEST = 256       # tokens, where the caller sets no limit and the model allows them
IGNORED = -100      # a label that counts in no loss
_ENDLESS = 1_000_000


class Encoder:
    """A backbone's tokenizer with a limit on length.

    ``keys`` are the inputs that the model takes, such as ``token_type_ids`` where it has segments.
    """

    def __init__(self, backbone: Backbone, max_length: int | None) -> None:
        if not callable(backbone.preprocess) or not hasattr(backbone.preprocess, "pad_token_id"):
            raise NoSuchSetting("this task reads text, but the backbone has no tokenizer: load the model with "
                                "thrifty.models.load, or give wrap() its tokenizer.")
        self.tokenizer = backbone.preprocess
        self.limit = position_limit(backbone)
        self.max_length = check_length(max_length, self.limit)
        taken = accepts(backbone.model)
        self.keys: list[str] = [key for key in ("input_ids", "attention_mask", "token_type_ids")
                     if key in taken and (key != "token_type_ids" or key in self.tokenizer.model_input_names)]
        self.pad_id: int = self.tokenizer.pad_token_id

    def encode(self, texts: Sequence[Any], pairs: Sequence[Any] | None = None,
               ) -> tuple[list[dict[str, Any]], set[int]]:
        """Texts, or pairs of texts, as {input_ids: [...], ...}; and the rows that were cut to ``max_length``."""
        whole = self._tokenise(texts, pairs)
        long = [row for row, ids in enumerate(whole["input_ids"]) if len(ids) > self.max_length]
        examples = [{key: whole[key][row] for key in self.keys if key != "attention_mask"} for row in range(len(texts))]
        if long:
            cut = self._tokenise([texts[row] for row in long], pairs and [pairs[row] for row in long],
                                 truncation="longest_first", max_length=self.max_length)
            for place, row in enumerate(long):
                examples[row] = {key: cut[key][place] for key in examples[row]}
        return examples, set(long)

    def encode_words(self, rows: Sequence[Sequence[str]]) -> tuple[list[dict[str, Any]], set[int]]:
        """Lists of words as `encode` does, each example with ``words``: for each token the number of its word, or None.

        A word that the tokenizer makes nothing of (a stray control character) is read as its unknown token, so that every
        word has a place where it can be tagged.

        Raises: NoSuchSetting for a tokenizer that does not say which word a token belongs to.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise NoSuchSetting(f"{type(self.tokenizer).__name__} does not say which word a token belongs to, so words cannot "
                                "be tagged; use a model with a fast tokenizer.")
        whole = self._tokenise(rows, None, is_split_into_words=True)
        unknown = self.tokenizer.unk_token or "?"
        kept = [set(whole.word_ids(row)) for row in range(len(rows))]
        rows = [[word if number in kept[row] else unknown for number, word in enumerate(words)]
                for row, words in enumerate(rows)]
        whole = self._tokenise(rows, None, is_split_into_words=True)
        cut = self._tokenise(rows, None, is_split_into_words=True, truncation=True, max_length=self.max_length)
        examples = [{**{key: cut[key][row] for key in self.keys if key != "attention_mask"}, "words": cut.word_ids(row)}
                    for row in range(len(rows))]
        return examples, {row for row, ids in enumerate(whole["input_ids"]) if len(ids) > self.max_length}

    def pad(self, examples: Sequence[dict[str, Any]], **fills: int) -> dict[str, Tensor]:
        """Lists of one length each as tensors [B, T], padded on the right; ``fills`` names other lists and what fills them."""
        width = round_up(max(len(example["input_ids"]) for example in examples), self.limit)
        fill = {"input_ids": self.pad_id, "token_type_ids": 0, **fills}
        batch = {key: pad_right([example[key] for example in examples], value, width)
                 for key, value in fill.items() if key in examples[0]}
        if "attention_mask" in self.keys:
            batch["attention_mask"] = pad_right([[1] * len(example["input_ids"]) for example in examples], 0, width)
        return batch

    def _tokenise(self, texts: Sequence[Any], pairs: Sequence[Any] | None, **options: Any) -> Any:
        given = (list(texts),) if pairs is None else (list(texts), list(pairs))
        return self.tokenizer(*given, verbose=False, return_attention_mask=False, **{"truncation": False, **options})


def position_limit(backbone: Backbone) -> int | None:
    """The most tokens that the model has positions for; None if there is no such limit."""
    config: Any = getattr(backbone.model, "config", None)
    config = getattr(config, "text_config", config)  # of two towers
    limits = [getattr(backbone.preprocess, "model_max_length", None)]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _first_position(backbone.model))
    found = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _ENDLESS]
    return min(found) if found else None


def _first_position(model: nn.Module) -> int:
    """RoBERTa and its kin begin to count positions behind the padding number."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def check_length(wanted: int | None, limit: int | None, name: str = "max_length") -> int:
    """``wanted`` if the model has that many positions; by default 256, or as many as it has.

    Raises: NoSuchSetting.
    """
    if wanted is None:
        return min(LONGEST, limit or LONGEST)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 4:
        raise NoSuchSetting(f"{name}={wanted!r} must be a whole number of at least 4 tokens.")
    if limit is not None and wanted > limit:
        raise NoSuchSetting(f"{name}={wanted} is more than the {limit} positions of the model.")
    return wanted


def round_up(width: int, limit: int | None) -> int:
    """``width`` up to a multiple of 8, which accelerators like, but not beyond ``limit``."""
    rounded = -(-width // 8) * 8
    return rounded if limit is None else max(width, min(rounded, limit))


def pad_right(rows: Sequence[Sequence[int]], fill: int, width: int) -> Tensor:
    """Lists of numbers as one tensor [B, width]."""
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def column(table: Table, role: str, task: str) -> Sequence[Any]:
    """The column of a role.

    Raises: BadData if the table has none, or no rows.
    """
    if role not in table:
        raise BadData(f"{task} needs a column {role!r}; the table has {', '.join(map(repr, table)) or 'none'}.")
    if len(table[role]) == 0:
        raise BadData(f"column {role!r} has no rows.")
    return table[role]
