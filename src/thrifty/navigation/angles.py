"""Angles as the Matterport simulator has them: heading 0 looks along +y and grows clockwise, elevation grows upwards, in radians.

A panorama is 36 views: twelve headings, 30 degrees apart, at each of the elevations -30, 0 and 30 degrees, in that order.
"""
from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

VIEWS, AROUND, STEP = 36, 12, math.pi / 6
SIZE = 4  # numbers of one angle feature


def heading_of(view: int) -> float:
    """Where a view looks, from 0 to 2 pi."""
    return view % AROUND * STEP


def elevation_of(view: int) -> float:
    """How far up a view looks: -30, 0 or 30 degrees."""
    return (view // AROUND - 1) * STEP


def view_along(heading: float) -> int:
    """The view at the horizon that looks nearest to ``heading``."""
    return AROUND + math.floor(heading / STEP + 0.5) % AROUND


def bearing(start: NDArray[np.float64], end: NDArray[np.float64]) -> tuple[float, float]:
    """Heading and elevation of one point (x, y, z, in metres) seen from another."""
    x, y, z = (end - start).tolist()
    return math.atan2(x, y) % (2 * math.pi), math.atan2(z, math.hypot(x, y))


def nearest_view(heading: float, elevation: float) -> int:
    """The view whose centre is nearest: the least root of the squared differences of heading and elevation."""
    def away(view: int) -> float:
        turn = (heading - heading_of(view) + math.pi) % (2 * math.pi) - math.pi
        return math.hypot(turn, elevation - elevation_of(view))
    return min(range(VIEWS), key=away)


def feature(heading: float, elevation: float) -> list[float]:
    """[sin heading, cos heading, sin elevation, cos elevation]."""
    return [math.sin(heading), math.cos(heading), math.sin(elevation), math.cos(elevation)]


def panorama(view: int) -> NDArray[np.float32]:
    """The features [36, 4] of all views, with headings relative to that of the ``view`` which is looked along."""
    return np.array([feature(heading_of(v) - heading_of(view), elevation_of(v)) for v in range(VIEWS)], np.float32)
