"""The world of a navigator: graphs of viewpoints, and what is seen from them. It renders nothing."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.core.errors import BadData, nearest
from thrifty.navigation import angles
from thrifty.navigation.episodes import Episode
from thrifty.navigation.features import Features
from thrifty.navigation.graph import Graph

CONTEXT, NAVIGABLE, STOP = 0, 1, 2  # kinds of what is observed
KEPT = 512  # observations that are held in memory: one is a few hundred kilobytes


@dataclass(frozen=True)
class Place:
    """Where a navigator stands, and the view it looks along."""

    viewpoint: str
    view: int


@dataclass(frozen=True)
class Observation:
    """What there is at a place. The first options lead somewhere (``targets``), the next is to stop, the others are context.

    ``images`` [n, width] and ``angles`` [n, 4] are of the options, zero for stopping, and ``kinds`` [n] is 1, 2 or 0.
    ``views`` [36, width] and ``view_angles`` [36, 4] are the whole panorama. Headings are relative to the view looked along.
    """

    place: Place
    targets: tuple[Place, ...]
    images: Tensor
    angles: Tensor
    kinds: Tensor
    views: Tensor
    view_angles: Tensor

    @property
    def stop(self) -> int:
        """The number of the option to stop."""
        return len(self.targets)

    def leading_to(self, viewpoint: str) -> int:
        """The number of the option that leads to ``viewpoint``, or to stop where it is the place itself.

        Raises:
            BadData: none leads there.
        """
        if viewpoint == self.place.viewpoint:
            return self.stop
        found = next((i for i, target in enumerate(self.targets) if target.viewpoint == viewpoint), None)
        if found is None:
            raise BadData(f"no step leads from {self.place.viewpoint!r} to {viewpoint!r}")
        return found


class World:
    """``graphs`` by scan, and the ``features`` of their viewpoints. With ``context`` views that lead nowhere are observed too.

    An option is the view whose centre is nearest to the neighbour that it leads to; whoever takes it looks along that view
    afterwards, as in the simulator with views 30 degrees apart.
    """

    def __init__(self, graphs: Mapping[str, Graph], features: Features, context: bool = True) -> None:
        self.graphs, self.features, self.context = dict(graphs), features, context
        self.bearings: dict[tuple[str, str], list[tuple[Place, float, float]]] = {}
        self.kept: dict[tuple[str, Place], Observation] = {}
        self.fit: set[tuple[str, str]] = set()  # viewpoints whose features were read
        self.panoramas = [torch.from_numpy(angles.panorama(view)) for view in range(angles.VIEWS)]

    def graph(self, scan: str) -> Graph:
        """The graph of a scan.

        Raises:
            BadData: the world has no such scan.
        """
        if scan not in self.graphs:
            raise BadData(f"there is no scan {scan!r}." + nearest(scan, self.graphs))
        return self.graphs[scan]

    def check(self, episode: Episode) -> None:
        """Refuse what cannot be walked here. Features are read along the path, and must be there for the whole scan.

        Raises:
            BadData: an unknown scan or viewpoint, a goal that cannot be reached, a path that leaves the graph or stands still,
                features that are missing or do not fit; the message names the episode.
        """
        try:
            graph = self.graph(episode.scan)
            graph.check(episode.path)
            for a, b in zip(episode.path, episode.path[1:], strict=False):
                if a == b:
                    raise BadData(f"a path stands still at {a!r}")
            for viewpoint in graph.viewpoints:
                self.features.name(episode.scan, viewpoint)
            for viewpoint in episode.path:
                if (episode.scan, viewpoint) not in self.fit:
                    self.features.at(episode.scan, viewpoint)
                    self.fit.add((episode.scan, viewpoint))
        except BadData as error:
            raise BadData(f"episode {episode.name!r}: {error}") from None

    def begin(self, episode: Episode) -> Observation:
        """What is seen at the start of an episode."""
        return self.observe(episode.scan, Place(episode.path[0], angles.view_along(episode.heading)))

    def observe(self, scan: str, place: Place) -> Observation:
        """What is seen at a place.

        Raises:
            BadData: there is no such place, or no features of it.
        """
        if (scan, place) not in self.kept:
            if len(self.kept) >= KEPT:
                self.kept.clear()
            self.kept[scan, place] = self._look(scan, place)
        return self.kept[scan, place]

    def _look(self, scan: str, place: Place) -> Observation:
        found = self._bearings(scan, place.viewpoint)
        base, seen = angles.heading_of(place.view), self.features.at(scan, place.viewpoint)
        turned = torch.tensor([angles.feature(heading - base, elevation) for _, heading, elevation in found])
        around = self.panoramas[place.view]
        used = {target.view for target, *_ in found}
        rest = [v for v in range(angles.VIEWS) if v not in used] if self.context else []
        images = torch.cat([seen[[target.view for target, *_ in found]], torch.zeros(1, seen.shape[1]), seen[rest]])
        directions = torch.cat([turned.view(-1, angles.SIZE), torch.zeros(1, angles.SIZE), around[rest]])
        kinds = torch.tensor([NAVIGABLE] * len(found) + [STOP] + [CONTEXT] * len(rest))
        return Observation(place, tuple(target for target, *_ in found), images, directions, kinds, seen, around)

    def _bearings(self, scan: str, viewpoint: str) -> list[tuple[Place, float, float]]:
        """Each neighbour with the view that shows it, its heading and its elevation."""
        key = scan, viewpoint
        if key not in self.bearings:
            graph = self.graph(scan)
            here = graph.positions[graph.number(viewpoint)]
            seen = [(name, *angles.bearing(here, graph.positions[graph.number(name)])) for name in graph.neighbours(viewpoint)]
            self.bearings[key] = [(Place(name, angles.nearest_view(heading, elevation)), heading, elevation)
                                  for name, heading, elevation in seen]
        return self.bearings[key]
