"""Walking where an instruction says, in a world of viewpoints."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting, Unfit, nearest
from thrifty.evaluate.weighing import Counts, Statistic, mean
from thrifty.models.backbone import Backbone
from thrifty.navigation.agent import Agent
from thrifty.navigation.metrics import HIGHER, score
from thrifty.navigation.walking import IGNORED, Choose, Walk, answers, begin, best, drawn, follow, gather, roam, teach
from thrifty.tasks.classes import rows_of
from thrifty.tasks.task import Batch, Prediction, Table, Task, predicting

FEEDBACK = ("teacher", "student", "both")


class Navigation(Task):
    """Columns, as `thrifty.navigation.read` gives them: ``text``, ``label`` (the path), ``episode`` and ``world``.

    Limits: ``max_length`` (tokens of an instruction; a longer one is an error), ``max_steps`` (decisions of a walk), ``metric``,
    and ``feedback``: whether training walks along the given path ("teacher"), goes where the agent itself would, by chance, and
    learns the step that a shortest path would take ("student"), or does both.
    """

    name = "navigation"
    scores = HIGHER
    defaults = {"max_length": 60, "max_steps": 15, "feedback": "teacher"}
    wanders = True
    answers_untrained = True

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        if not isinstance(backbone.model, Agent):
            raise Unfit(f"navigation needs an agent (thrifty.navigation.Agent), not {type(backbone.model).__name__}")
        if not callable(backbone.preprocess):
            raise NoSuchSetting("navigation reads instructions, but the agent has no tokenizer: give wrap() one, such as "
                                "thrifty.navigation.Vocabulary")
        feedback = self.limits["feedback"]
        if feedback not in FEEDBACK:
            raise NoSuchSetting(f"feedback={feedback!r} is unknown." + nearest(str(feedback), FEEDBACK))
        for name in ("max_length", "max_steps"):
            if self.limits[name] < 1:
                raise NoSuchSetting(f"{name} must be at least 1, not {self.limits[name]}")

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Rows with the numbers of their words.

        Raises:
            BadData: an instruction is longer than ``max_length``. Unfit: the world has features of another width than the agent's.
        """
        found, agent = [], cast(Agent, self.backbone.model)
        for episode, world in zip(table["episode"], table["world"], strict=True):
            ids = list(self.backbone.preprocess(episode.instruction)["input_ids"])
            if len(ids) > self.limits["max_length"]:
                raise BadData(f"episode {episode.name!r}: its instruction has {len(ids)} tokens, more than max_length="
                              f"{self.limits['max_length']}: {episode.instruction[:80]!r}")
            if world.features.width != agent.config.features:
                raise Unfit(f"{world.features.place} has features of width {world.features.width}, and the agent was made for "
                            f"{agent.config.features}")
            found.append({"input_ids": ids, "episode": episode, "world": world})
        return found

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids and attention_mask [B, L], and beside these the ``episodes`` and their ``worlds``, which are no tensors."""
        longest = max(len(example["input_ids"]) for example in examples)
        pad = getattr(self.backbone.preprocess, "pad_token_id", 0) or 0
        ids = torch.full((len(examples), longest), pad)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            ids[row, :length], mask[row, :length] = torch.tensor(example["input_ids"]), 1
        beside: Any = {"episodes": [e["episode"] for e in examples], "worlds": [e["world"] for e in examples]}
        return {"input_ids": ids, "attention_mask": mask, **beside}

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """All decisions of the walks along the given paths."""
        return {**words(batch), **move(gather(self._follow(batch)), batch["input_ids"].device)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy of what is right at each decision, in the mean over decisions, and how many they are."""
        said = words(batch)
        walks: list[Walk] = []
        right: list[list[int]] = []
        if self.limits["feedback"] != "student":
            walks += (along := self._follow(batch))
            right += [walk.taken for walk in along]
        if self.limits["feedback"] != "teacher":
            walks += (own := self._roam(model, batch, drawn))
            right += [teach(walk) for walk in own]
        if self.limits["feedback"] == "both":
            said = {name: torch.cat([t, t]) for name, t in said.items()}
        device = batch["input_ids"].device
        wanted = answers(right).to(device)
        logits = model(**said, **move(gather(walks), device))
        counted = wanted != IGNORED
        return nn.functional.cross_entropy(logits[counted].float(), wanted[counted]), int(counted.sum())

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction``: the viewpoints of the walk that takes the likeliest option each time, with spaces between them."""
        with predicting(model):
            return [{"prediction": " ".join(walk.path), "scores": None} for walk in self._roam(model, batch, best)]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """The mean over episodes of every score of `thrifty.navigation.metrics`."""
        rows = [score(world.graph(episode.scan), said["prediction"].split(), episode.path)
                for said, episode, world in zip(predictions, table["episode"], table["world"], strict=True)]

        def of(values: list[float]) -> Statistic:
            def statistic(counts: Counts) -> Any:
                return mean(values, counts)
            return statistic

        return {name: of([row[name] for row in rows]) for name in rows[0]}

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """Staying at the start."""
        return [{"prediction": table["episode"][row].path[0], "scores": None} for row in range(rows_of(table))]

    def groups(self, table: Table) -> Any:
        """Instructions for one path belong together."""
        paths = [(episode.scan, episode.path) for episode in table["episode"]]
        numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        return np.array([numbers[path] for path in paths], dtype=np.int64)

    def _follow(self, batch: Any) -> list[Walk]:
        return [follow(world, episode) for world, episode in zip(batch["worlds"], batch["episodes"], strict=True)]

    def _roam(self, model: nn.Module, batch: Any, choose: Choose) -> list[Walk]:
        walks = [begin(world, episode) for world, episode in zip(batch["worlds"], batch["episodes"], strict=True)]
        roam(model, walks, words(batch), self.limits["max_steps"], choose)
        return walks


def words(batch: Batch) -> Batch:
    """The instructions of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def move(batch: Batch, device: torch.device) -> Batch:
    """A batch of tensors, on ``device``."""
    return {name: t.to(device) for name, t in batch.items()}
