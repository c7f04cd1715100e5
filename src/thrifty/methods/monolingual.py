"""Monolingual adapters: Monolingual Adapters for Zero-Shot Neural Machine Translation (Philip, Berard, Gallé, Besacier; EMNLP
2020)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Branch, Method, Site, by_task, need, register
from ..core.errors import NoSuchSetting, NoSuchSite, nearest
from .branches.bottleneck import Bottleneck, refuse_maps

if TYPE_CHECKING:
    from ..core import Attachment


@register("per-language")
class PerLanguage(Branch):
    """z + A_l(z), with an adapter A_l for each of ``languages``; ``speaks`` says which of them each task means here."""

    per_task = ("adapters",)

    def __init__(self, site: Site, languages: list[str], speaks: list[int], rank: int):
        super().__init__(site)
        self.languages, self.speaks, self.width = list(languages), list(speaks), site.dout
        self.adapters = nn.ModuleList(Bottleneck(site, rank, "relu", "zero", 0.0, norm=True) for _ in languages)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """y, if it is [batch, tokens, d].

        Raises:
            Unfit: the block gives out something else.
        """
        refuse_maps(self.site, y, self.width)
        return y

    def branch(self, h: Tensor) -> Tensor:
        """A_l(h) for the language of the batch, or of each row."""
        which = self.context.which()
        language = self.speaks[which] if isinstance(which, int) else torch.tensor(self.speaks, device=which.device)[which]
        adapters: Any = self.adapters
        return by_task(language, lambda number, rows: adapters[number].branch(rows), h)


@dataclass
class MonolingualAdapters(Method):
    """One adapter after each layer for each language: the encoder's chosen by the source language, the decoder's by the target.

    The tasks are directions, named like "de-en", or named otherwise and explained in ``languages``, {"wmt14": "de-en"}; another
    ``separator`` serves names of languages with a hyphen. A direction that was never trained works as soon as both its
    languages have their adapters: name it among the tasks, or later with ``thrifty.add_tasks(at, ["de-fr"])``. N languages need
    N adapters a layer where one adapter per direction would need N (N - 1). In a model of one stack the tasks are languages.

    Each adapter is that of Bapna and Firat, z + relu(LN(z) W_d + b_d) W_u + b_u with a new LN, z being what the layer gives
    out; W_u starts at zero, so the model starts as the base. ``where`` names blocks.
    """

    name = "monolingual-adapters"
    aliases = ("monolingual",)
    route = "add modules"
    modalities = ("text",)
    paper = "Philip et al., Monolingual Adapters for Zero-Shot Neural Machine Translation, EMNLP 2020"
    trains = "one normalised bottleneck per layer and language"
    inference = "one small network more per layer"
    multitask = True
    rate = 1e-3

    rank: int = 64
    languages: dict[str, str] = field(default_factory=dict)
    separator: str = "-"
    where: str = "block"

    def check(self) -> None:
        """There is something to separate languages by."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(bool(self.separator), self, "separator", "at least one character")
        for task, said in self.languages.items():
            if not isinstance(said, str):
                raise NoSuchSetting(f"{self.name}: languages[{task!r}] must be like 'de{self.separator}en', not {said!r}")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per block an adapter for every language that one of the tasks means there.

        Raises:
            NoSuchSetting: a task is not named like a direction, or names one in a model of one stack.
        """
        decoders = _decoders(at)
        if unknown := [task for task in self.languages if task not in at.tasks]:
            raise NoSuchSetting(f"{self.name}: languages= speaks of {unknown[0]!r}." + nearest(unknown[0], at.tasks, 40))
        for site in at.sites(self.where):
            spoken = self.spoken(at.tasks, site.stack, decoders)
            languages = list(dict.fromkeys(spoken))
            at.put(site, PerLanguage, languages=languages, speaks=[languages.index(each) for each in spoken], rank=self.rank)

    def spoken(self, tasks: list[str], stack: str, decoders: set[str]) -> list[str]:
        """Which language each task means in a stack.

        Raises:
            NoSuchSetting: naming the task that does not say.
        """
        found = []
        for task in tasks:
            said = self.languages.get(task, task).split(self.separator)
            if not all(said) or len(said) != (2 if decoders else 1):
                meant = f"a source and a target language, like 'de{self.separator}en'" if decoders else \
                    f"one language and no {self.separator!r}, in a model of one stack"
                raise NoSuchSetting(f"{self.name}: {task!r} must name {meant}; or explain it, languages={{{task!r}: ...}}, or "
                                    "choose another separator=")
            found.append(said[-1] if stack in decoders else said[0])
        return found

    def more_tasks(self, at: Attachment, tasks: list[str]) -> None:
        """Directions between languages that have their adapters; nothing is added.

        Raises:
            NoSuchSetting: a side has no adapter for a language.
        """
        decoders = _decoders(at)
        wider: dict[str, list[int]] = {}
        for row in at.plan:
            edit = at.edits[row.key]
            if not isinstance(edit, PerLanguage):
                continue
            for task, language in zip(tasks, self.spoken(tasks, row.stack, decoders), strict=True):
                if language not in edit.languages:
                    raise NoSuchSetting(f"{self.name}: {row.stack!r} has no adapter for {language!r}, which {task!r} asks for."
                                        + nearest(language, edit.languages, 40))
                wider.setdefault(row.key, list(edit.speaks)).append(edit.languages.index(language))
        for row in at.plan:
            if row.key in wider:
                at.edits[row.key].speaks = wider[row.key]  # type: ignore[assignment]
                row.numbers = {**row.numbers, "speaks": wider[row.key]}


def _decoders(at: Attachment) -> set[str]:
    """The stacks that attend to another one's output."""
    try:
        return {site.stack for site in at.sites("cross")}
    except NoSuchSite:
        return set()
