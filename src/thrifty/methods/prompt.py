"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou, Constant; EMNLP 2021,
arXiv:2104.08691)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Method, Site, need, register
from ..core.errors import Unfit
from .prompts.widening import Widening, put_among

if TYPE_CHECKING:
    from ..core import Attachment

COMMON = 5000  # rows of the vocabulary that a prompt may start from: the most frequent come first


@register("prompt")
class Prompt(Widening):
    """Embeddings [P; E(ids)], P [length, d], and everything that runs along the tokens made as long."""

    def __init__(self, site: Site, length: int, init: str, labels: list[list[int]] | None = None, limit: int = 0):
        super().__init__(site, length, limit)
        module: Any = site.module
        self.prompt = nn.Parameter(_start(module.get_input_embeddings().weight, length, init, labels or []))

    def vectors(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        """P, whatever the text."""
        return self.prompt


@dataclass
class PromptTuning(Method):
    """Learned vectors in front of the embedded text; in an encoder-decoder in front of the encoder's.

    Outside, nothing is longer: the prompt's own states are taken off again before a head, a pooler or a loss sees them, so
    labels, logits and pooling by position mean what they meant. (The decoder of an encoder-decoder attends to them.) The
    text's positions move by ``length`` in models with absolute or rotary positions.

    ``init``: "vocab" (rows of the 5,000 most common tokens, none twice), "uniform" (on [0, 0.5)), or "labels": the
    embeddings of the class labels, given as token ids in ``labels`` (those of one label are averaged), then "vocab".
    The paper's length is 100; it reports little gain above 20.
    """

    name = "prompt"
    aliases = ("prompt-tuning",)
    route = "input and output"
    modalities = ("text",)
    paper = "Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, EMNLP 2021, arXiv:2104.08691"
    trains = "vectors in front of the embedded text"
    inference = "`length` tokens more"
    Edit = Prompt
    identity_at_start = False
    rate = 0.3

    length: int = 20
    init: str = "vocab"
    labels: list[list[int]] = field(default_factory=list)

    def check(self) -> None:
        """Labels are given if, and only if, the prompt starts from them."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.init in ("vocab", "uniform", "labels"), self, "init", "'vocab', 'uniform' or 'labels'")
        need(bool(self.labels) == (self.init == "labels"), self, "labels",
             "the token ids of each label with init='labels', and empty otherwise")
        need(all(self.labels) and len(self.labels) <= self.length, self, "labels", "at most `length` lists, none empty")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The prompt where ids become states, and what keeps it from showing outside.

        Raises:
            Unfit: the model has no token embeddings that it would take vectors for, or too few positions.
        """
        put_among(at, Prompt, self.length, length=self.length, init=self.init, **({"labels": self.labels} if self.labels else {}))


def _start(table: Tensor, length: int, init: str, labels: list[list[int]]) -> Tensor:
    """The prompt's first values [length, d]."""
    table = table.detach()
    if init == "uniform":
        return 0.5 * torch.rand(length, table.shape[1])
    rows = [table[torch.tensor(ids, device=table.device)].mean(0) for ids in labels]
    most = min(COMMON, len(table))
    if length - len(rows) > most:
        raise Unfit(f"a vocabulary of {len(table)} has no {length} different rows to start a prompt from: use init='uniform'")
    drawn = table[torch.randperm(most)[: length - len(rows)].to(table.device)]
    return torch.cat([torch.stack(rows), drawn]) if rows else drawn.clone()
