"""PED, potential energy descent: classes that overlap push each other apart before another score is taken.

X. Li, Z. Hu, Y. Ge, Y. Shan and L.-Y. Duan, "Exploring model transferability through the lens of potential energy", ICCV 2023,
arXiv 2308.15074.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.rank.logme import logme
from thrifty.rank.nleep import nleep
from thrifty.rank.reading import Array, read_classes, read_features
from thrifty.rank.score import Score
from thrifty.rank.sfda import sfda

BASES: dict[str, Callable[[ArrayLike, ArrayLike], Score]] = {"sfda": sfda, "logme": logme, "nleep": nleep}
_LEAST_SPREAD = 1e-3


def ped(features: ArrayLike, labels: ArrayLike, base: str = "sfda", *, general: ArrayLike | None = None, reach: float = 0.6,
        step: float = 0.1, steps: int = 6, stop: float = 0.5) -> Score:
    """The score ``base`` ("sfda", "logme" or "nleep") of features whose classes were moved apart by `descend`.

    ``features`` [N, D], ``labels`` [N] classes. Range, cost and failures are those of the base, plus O(steps C^2 D).

    Raises:
        BadData: as the base, and as `descend`.
        NoSuchSetting: an unknown base, or a setting out of its range.
    """
    if base not in BASES:
        raise NoSuchSetting(f"no base={base!r}.{nearest(base, BASES)}")
    moved, taken = descend(features, labels, general=general, reach=reach, step=step, steps=steps, stop=stop)
    score = BASES[base](moved, labels)
    return Score(float(score), base=base, steps=taken, **score.details)


def descend(features: ArrayLike, labels: ArrayLike, *, general: ArrayLike | None = None, reach: float = 0.6, step: float = 0.1,
            steps: int = 6, stop: float = 0.5) -> tuple[Array, int]:
    """The features [N, D] after the descent, and how many steps it took.

    Features are standardised by the mean and deviation (at least 1e-3) of the model's features of ``general`` data [M, D], as
    ImageNet's validation pictures; without it, by their own, which is not the paper's. A class is a ball around its mean mu_c of
    radius ``reach`` R_c (the paper has 0.3 and 0.6), R_c^2 the sum of its variances. In a step, every class moves away from
    every other that it overlaps by o = max(r_i + r_j - |mu_i - mu_j|, 0), by min(step^2 o / 2, o) along mu_i - mu_j, its rows
    with it. The descent ends before the step whose moves sum to no more than ``stop`` times those of the first, or after
    ``steps``. Classes with the same mean do not push each other, and none move where nothing overlaps.

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class, general features of another width.
        NoSuchSetting: a setting out of its range.
    """
    if not (reach >= 0 and step > 0 and steps >= 0 and 0 <= stop < 1):
        raise NoSuchSetting(f"reach={reach}, step={step}, steps={steps}, stop={stop}: at least 0, above 0, at least 0, in [0, 1).")
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    whole = rows if general is None else read_features(general, "general")
    if whole.shape[1] != rows.shape[1]:
        raise BadData(f"general features have {whole.shape[1]} dimensions, the features {rows.shape[1]}: take the same model's.")
    spread = np.maximum(whole.std(axis=0), _LEAST_SPREAD)
    means = classes.means(rows)
    radii = np.sqrt(classes.means((rows - means[classes.codes]) ** 2) @ (1 / spread**2))
    places, first, taken = means / spread, 0.0, 0  # the mean of the general features drops out of all differences
    moved = np.zeros_like(places)
    while taken < steps:
        moves = _push(places + moved, reach * radii, step)
        size = float(np.abs(moves).sum())
        first = first or size
        if size <= stop * first:  # also where nothing moves at all
            break
        moved, taken = moved + moves, taken + 1
    return rows + (moved * spread)[classes.codes], taken


def _push(places: Array, radii: Array, step: float) -> Array:
    """How far each class moves [C, D]."""
    moves = np.zeros_like(places)
    for k in range(len(places)):
        apart = places[k] - places
        distances = np.linalg.norm(apart, axis=1)
        overlap = np.maximum(radii[k] + radii - distances, 0.0)
        force = np.minimum(step**2 * overlap / 2, overlap)
        moves[k] = np.divide(force, distances, out=np.zeros_like(force), where=distances > 0) @ apart
    return moves
