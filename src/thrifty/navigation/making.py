"""A small made-up world to learn and to test with: rooms on a grid, each with a landmark, and walks told by landmarks.

All of it, its language too, is drawn from a seed; it says nothing about real buildings. Codes of landmarks are the same in all
scans, so that what is learnt in some can be used in others.
"""
from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from thrifty.core.errors import NoSuchSetting
from thrifty.navigation import angles
from thrifty.navigation.episodes import Episode, write_episodes
from thrifty.navigation.features import NAMES
from thrifty.navigation.graph import Graph, write_graph
from thrifty.navigation.reading import CONNECTIVITY
from thrifty.navigation.vocabulary import Vocabulary

LANDMARKS = ("lamp", "sofa", "piano", "mirror", "plant", "clock", "stove", "carpet")
OPENINGS = ("go to", "walk to", "head for")
SPACING = 4.0  # metres between rooms: more than the margin, so that one must be exactly there
WIDTH = 16     # of the features


def vocabulary() -> Vocabulary:
    """Every word of the language."""
    return Vocabulary([*LANDMARKS, *" ".join(OPENINGS).split(), "the", "then", "and", "stop"])


def make_world(folder: Path, seed: int = 0, scans: int = 12, unseen: int = 4, walks: int = 24, side: int = 4) -> None:
    """Write a world of ``scans`` for training and ``unseen`` others, as `thrifty.navigation.read` reads it.

    Each scan is a grid of ``side`` × ``side`` rooms with some passages closed, and has ``walks`` of two to four steps. Of those in
    training scans each fourth belongs to ``val_seen``; all of those in unseen scans make ``val_unseen``.

    Raises:
        NoSuchSetting: a scan has fewer walks.
    """
    from safetensors.torch import save

    from thrifty.train.files import write_bytes

    drawn = random.Random(seed)
    source = torch.Generator().manual_seed(seed)
    codes = torch.randn(len(LANDMARKS), WIDTH, generator=source)
    (folder / CONNECTIVITY).mkdir(parents=True, exist_ok=True)
    features: dict[str, Tensor] = {}
    splits: dict[str, list[Episode]] = {"train": [], "val_seen": [], "val_unseen": []}
    for number in range(scans + unseen):
        graph = build(f"scan{number:02}", side, drawn)
        marks = furnish(graph, drawn)
        write_graph(folder / CONNECTIVITY, graph)
        features |= paint(graph, marks, codes, source)
        for place, episode in enumerate(tell(graph, marks, walks, drawn)):
            split = "val_unseen" if number >= scans else "val_seen" if place % 4 == 3 else "train"
            splits[split].append(episode)
    for name, episodes in splits.items():
        write_episodes(folder / f"R2R_{name}.json", episodes)
    write_bytes(folder / NAMES[0], save(features))


def build(scan: str, side: int, drawn: random.Random) -> Graph:
    """Rooms on a grid, shifted a little; passages are closed by chance as long as every room can be reached."""
    cells = [(x, y) for y in range(side) for x in range(side)]
    positions = [(SPACING * x + drawn.uniform(-0.4, 0.4), SPACING * y + drawn.uniform(-0.4, 0.4), drawn.uniform(-0.2, 0.2))
                 for x, y in cells]
    joined = [[abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for b in cells] for a in cells]
    passages = [(i, j) for i in range(len(cells)) for j in range(i) if joined[i][j]]
    drawn.shuffle(passages)
    for i, j in passages[: len(passages) // 4]:
        joined[i][j] = joined[j][i] = False
        if float(Graph(scan, [], positions, joined).distances.max()) == float("inf"):
            joined[i][j] = joined[j][i] = True
    return Graph(scan, [f"{scan}-room{i:02}" for i in range(len(cells))], positions, joined)


def furnish(graph: Graph, drawn: random.Random) -> dict[str, int]:
    """A landmark for each room, such that no two rooms that are joined, or joined to one room, have the same where that can be."""
    marks: dict[str, int] = {}
    for room in graph.viewpoints:
        near = {other for one in graph.neighbours(room) for other in (one, *graph.neighbours(one))}
        free = [mark for mark in range(len(LANDMARKS)) if mark not in {marks.get(other) for other in near}]
        marks[room] = drawn.choice(free or range(len(LANDMARKS)))
    return marks


def paint(graph: Graph, marks: dict[str, int], codes: Tensor, source: torch.Generator) -> dict[str, Tensor]:
    """Features [36, width]: a view that leads to a room shows its landmark, others show that of the room itself, fainter."""
    found = {}
    for room in graph.viewpoints:
        views = 0.3 * codes[marks[room]] + 0.3 * torch.randn(angles.VIEWS, WIDTH, generator=source)
        here = graph.positions[graph.number(room)]
        for other in graph.neighbours(room):
            view = angles.nearest_view(*angles.bearing(here, graph.positions[graph.number(other)]))
            views[view] = codes[marks[other]] + 0.1 * torch.randn(WIDTH, generator=source)
        found[f"{graph.scan}_{room}"] = views
    return found


def tell(graph: Graph, marks: dict[str, int], walks: int, drawn: random.Random) -> list[Episode]:
    """Different walks along shortest paths of two to four steps, with an instruction each that names the landmarks on the way.

    Raises:
        NoSuchSetting: the scan has fewer.
    """
    ends = [(start, goal) for start in graph.viewpoints for goal in graph.viewpoints]
    drawn.shuffle(ends)
    found: list[Episode] = []
    for start, goal in ends:
        path = [start]
        while path[-1] != goal:
            path.append(graph.towards(path[-1], goal))
        if 3 <= len(path) <= 5 and len(found) < walks:
            stages = ", then the ".join(LANDMARKS[marks[room]] for room in path[1:])
            text = f"{drawn.choice(OPENINGS).capitalize()} the {stages}, and stop."
            found.append(Episode(f"{graph.scan}w{len(found)}_0", graph.scan, tuple(path), drawn.uniform(0, 6.28), text))
    if len(found) < walks:
        raise NoSuchSetting(f"walks={walks}: {graph.scan} has only {len(found)} of two to four steps; make its side longer")
    return found
