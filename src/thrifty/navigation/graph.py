"""Where one can go: the viewpoints of a scan and which of them are joined, in the Matterport simulator's JSON layout.

Anderson et al., "Vision-and-Language Navigation: Interpreting visually-grounded navigation instructions in real environments",
CVPR 2018, arXiv:1711.07280.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import BadData, nearest

SUFFIX = "_connectivity.json"


class Graph:
    """The ``viewpoints`` of one scan, their ``positions`` [n, 3] in metres, and which are ``joined`` [n, n]."""

    def __init__(self, scan: str, viewpoints: Sequence[str], positions: Any, joined: Any) -> None:
        self.scan, self.viewpoints = scan, list(viewpoints)
        self.positions: NDArray[np.float64] = np.asarray(positions, np.float64).reshape(-1, 3)
        self.joined: NDArray[np.bool_] = np.asarray(joined, bool)
        self.numbers = {name: number for number, name in enumerate(self.viewpoints)}

    def number(self, viewpoint: str) -> int:
        """The place of a viewpoint among all.

        Raises:
            BadData: the scan has no such viewpoint.
        """
        if viewpoint not in self.numbers:
            raise BadData(f"scan {self.scan!r} has no viewpoint {viewpoint!r}." + nearest(viewpoint, self.viewpoints))
        return self.numbers[viewpoint]

    def neighbours(self, viewpoint: str) -> list[str]:
        """Where one step leads, in the order of the file."""
        return [self.viewpoints[i] for i in np.flatnonzero(self.joined[self.number(viewpoint)])]

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """Lengths of shortest paths [n, n] in metres, infinite where there is none (Floyd and Warshall)."""
        apart = np.linalg.norm(self.positions[:, None] - self.positions[None], axis=-1)
        found = np.where(self.joined, apart, np.inf)
        np.fill_diagonal(found, 0.0)
        for middle in range(len(found)):
            np.minimum(found, found[:, middle, None] + found[middle], out=found)
        return found

    def distance(self, start: str, end: str) -> float:
        """The length of the shortest path in metres.

        Raises:
            BadData: no path leads there.
        """
        metres = float(self.distances[self.number(start), self.number(end)])
        if metres == np.inf:
            raise BadData(f"in scan {self.scan!r} no path leads from {start!r} to {end!r}")
        return metres

    def towards(self, start: str, goal: str) -> str:
        """The first viewpoint after ``start`` on a shortest path to ``goal``; where several are as short, the first of the file.

        Raises:
            BadData: no path leads there, or it is there already.
        """
        if start == goal:
            raise BadData(f"in scan {self.scan!r} no step leads from {start!r} to itself")
        self.distance(start, goal)
        here, there = self.number(start), self.number(goal)
        lengths = [self.distances[here, self.number(n)] + self.distances[self.number(n), there] for n in self.neighbours(start)]
        least = min(lengths)
        return self.neighbours(start)[next(i for i, length in enumerate(lengths) if length <= least + 1e-9)]

    def length(self, path: Sequence[str]) -> float:
        """Metres that a path is long.

        Raises:
            BadData: it is empty, or leaves the graph.
        """
        self.check(path)
        return float(sum(self.distances[self.numbers[a], self.numbers[b]] for a, b in zip(path, path[1:], strict=False)))

    def check(self, path: Sequence[str]) -> None:
        """Refuse what is no path.

        Raises:
            BadData: it is empty, names an unknown viewpoint, cannot reach its end, or steps where no edge leads.
        """
        if not path:
            raise BadData(f"a path in scan {self.scan!r} is empty")
        for viewpoint in path:
            self.number(viewpoint)
        self.distance(path[0], path[-1])
        for a, b in zip(path, path[1:], strict=False):
            if a != b and not self.joined[self.numbers[a], self.numbers[b]]:
                raise BadData(f"a path leaves the graph of scan {self.scan!r}: no edge leads from {a!r} to {b!r}")


def read_graphs(folder: Path) -> dict[str, Graph]:
    """Every scan of a folder of ``SCAN_connectivity.json`` files, by name.

    Raises:
        BadData: there are none, or one is damaged.
    """
    files = sorted(folder.glob("*" + SUFFIX))
    if not files:
        raise BadData(f"{folder} holds no file called SCAN{SUFFIX}")
    return {(scan := file.name.removesuffix(SUFFIX)): read_graph(file, scan) for file in files}


def read_graph(file: Path, scan: str) -> Graph:
    """One scan. Viewpoints that are not ``included`` are left out, and an edge is where both ends say ``unobstructed``.

    Raises:
        BadData: the file is no such list, repeats a viewpoint, or has an edge that leads one way only.
    """
    try:
        rows = json.loads(file.read_bytes())
        names = [row["image_id"] for row in rows]
        kept = [i for i, row in enumerate(rows) if row["included"]]
        positions = np.array([[row["pose"][3], row["pose"][7], row["pose"][11]] for row in rows], np.float64)
        joined = np.array([row["unobstructed"] for row in rows], bool).reshape(len(rows), len(rows))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadData(f"{file} is no list of viewpoints with image_id, pose, included and unobstructed: {error!r}") from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadData(f"{file} lists the viewpoint {twice[0]!r} more than once")
    if not np.isfinite(positions).all():
        raise BadData(f"{file} has a pose that is not finite, of {names[int(np.argmin(np.isfinite(positions).all(1)))]!r}")
    joined = joined[np.ix_(kept, kept)]
    np.fill_diagonal(joined, False)
    if (joined != joined.T).any():
        a, b = (names[kept[i]] for i in np.argwhere(joined != joined.T)[0])
        raise BadData(f"{file} joins {a!r} and {b!r} in one direction only")
    return Graph(scan, [names[i] for i in kept], positions[kept], joined)


def write_graph(folder: Path, graph: Graph) -> Path:
    """The file that ``read_graph`` reads."""
    from thrifty.train.files import write_json

    file = folder / f"{graph.scan}{SUFFIX}"
    write_json(file, [{
        "image_id": name, "pose": [1, 0, 0, x, 0, 1, 0, y, 0, 0, 1, z, 0, 0, 0, 1], "included": True,
        "visible": graph.joined[i].tolist(), "unobstructed": graph.joined[i].tolist(), "height": z,
    } for i, (name, (x, y, z)) in enumerate(zip(graph.viewpoints, graph.positions.tolist(), strict=True))])
    return file
