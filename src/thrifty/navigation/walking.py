"""Walks through a world: begun, continued, put into batches; along a reference, or where an agent goes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from thrifty.core.errors import NoSuchSetting
from thrifty.navigation.angles import SIZE
from thrifty.navigation.episodes import Episode
from thrifty.navigation.world import Observation, World

IGNORED = -100  # the answer to a decision that counts in no loss
PADDING = -1    # the kind of an option that is none
Batch = dict[str, Tensor]
Choose = Callable[[Tensor], Tensor]  # logits [B, C] of the options -> their numbers [B]


@dataclass
class Walk:
    """What was seen in an episode so far, and the options that were taken: as many as observations, or one fewer."""

    world: World
    episode: Episode
    seen: list[Observation]
    taken: list[int] = field(default_factory=list)

    @property
    def path(self) -> list[str]:
        """The viewpoints that were visited, in order."""
        return [observation.place.viewpoint for observation in self.seen]

    @property
    def over(self) -> bool:
        """Whether the walk was ended by stopping."""
        return bool(self.taken) and self.taken[-1] == self.seen[len(self.taken) - 1].stop

    def take(self, option: int) -> None:
        """Take an option: go where it leads, or stop."""
        self.taken.append(option)
        if not self.over:
            self.seen.append(self.world.observe(self.episode.scan, self.seen[-1].targets[option]))


def begin(world: World, episode: Episode) -> Walk:
    """The walk that has seen no more than its start."""
    return Walk(world, episode, [world.begin(episode)])


def follow(world: World, episode: Episode) -> Walk:
    """The walk along the episode's own path, which stops at its end."""
    walk = begin(world, episode)
    for viewpoint in (*episode.path[1:], episode.path[-1]):
        walk.take(walk.seen[-1].leading_to(viewpoint))
    return walk


def teach(walk: Walk) -> list[int]:
    """What would have been right at each decision of a walk: the first step of a shortest path to the goal, or to stop there."""
    graph, goal = walk.world.graph(walk.episode.scan), walk.episode.goal
    return [seen.stop if seen.place.viewpoint == goal else seen.leading_to(graph.towards(seen.place.viewpoint, goal))
            for seen in walk.seen[: len(walk.taken)]]


@torch.no_grad()
def roam(agent: nn.Module, walks: Sequence[Walk], words: Batch, steps: int, choose: Choose) -> None:
    """Let ``agent`` go on with walks that have seen equally much, by at most ``steps`` decisions.

    A walk that does not stop ends where it is.

    ``words`` are their instructions, input_ids and attention_mask [B, L], on the agent's device. They are read once.

    Raises:
        NoSuchSetting: no step is allowed.
    """
    if steps < 1:
        raise NoSuchSetting(f"max_steps must be at least 1, not {steps}")
    device = words["input_ids"].device
    read: tuple[Tensor, ...] = agent.read(**words)  # type: ignore[operator]
    for _ in range(steps):
        rows = [row for row, walk in enumerate(walks) if not walk.over]
        if not rows:
            break
        given = gather([walks[row] for row in rows], decisions=1)
        batch = {**{name: t[rows] for name, t in words.items()}, **{name: t.to(device) for name, t in given.items()}}
        logits: Tensor = agent(**batch, language=[t[rows] for t in read])
        for row, option in zip(rows, choose(logits[:, -1]).tolist(), strict=True):
            walks[row].take(option)


def best(logits: Tensor) -> Tensor:
    """The likeliest option of each row [B, C] -> [B]."""
    return logits.argmax(-1)


def drawn(logits: Tensor) -> Tensor:
    """An option of each row by its probability [B, C] -> [B], from torch's own random numbers."""
    options: Tensor = torch.distributions.Categorical(logits=logits.float()).sample()
    return options


def gather(walks: Sequence[Walk], decisions: int | None = None) -> Batch:
    """Walks as the agent takes them, but for the words: the last ``decisions`` of each, or all, shorter walks padded behind.

    Walks of which only the last decisions are asked for must have seen as much as each other.
    """
    longest = max(len(walk.taken) if decisions is None else len(walk.seen) for walk in walks)
    asked = longest if decisions is None else decisions
    past = [walk.seen[: longest - 1] for walk in walks]
    now = [walk.seen[longest - asked : longest] for walk in walks]
    width, first = max(len(seen.kinds) for own in now for seen in own), walks[0].seen[0]
    return {
        "past_images": _stack([[o.views[o.place.view] for o in own] for own in past], longest - 1, first.views.shape[1:]),
        "past_angles": _stack([_turns(walk, longest - 1) for walk in walks], longest - 1, (SIZE,)),
        "past_views": _stack([[o.views for o in own] for own in past], longest - 1, first.views.shape),
        "past_view_angles": _stack([[o.view_angles for o in own] for own in past], longest - 1, first.view_angles.shape),
        "images": _stack([[_pad(o.images, width) for o in own] for own in now], asked, (width, first.images.shape[1])),
        "angles": _stack([[_pad(o.angles, width) for o in own] for own in now], asked, (width, SIZE)),
        "kinds": _stack([[_pad(o.kinds, width, PADDING) for o in own] for own in now], asked, (width,), PADDING),
    }


def answers(rows: Sequence[Sequence[int]]) -> Tensor:
    """What is right at each decision of each walk [B, S], padded with what counts in no loss."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=IGNORED)


def _turns(walk: Walk, steps: int) -> list[Tensor]:
    """The angles of the options that were taken; of stopping they are zero, as those of what was not done."""
    return [seen.angles[option] for seen, option in zip(walk.seen, walk.taken, strict=False)][:steps]


def _pad(t: Tensor, size: int, value: float = 0) -> Tensor:
    return torch.cat([t, t.new_full((size - len(t), *t.shape[1:]), value)])


def _stack(rows: Sequence[Sequence[Tensor]], size: int, shape: Sequence[int], value: float = 0) -> Tensor:
    """Rows of tensors of one ``shape`` as [B, size, *shape]; rows may be shorter, and ``size`` may be 0."""
    kind = next((t.dtype for row in rows for t in row), torch.float32)
    found = torch.full((len(rows), size, *shape), value, dtype=kind)
    for row, own in zip(found, rows, strict=True):
        if own:
            row[: len(own)] = torch.stack(list(own))
    return found
