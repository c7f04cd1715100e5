"""What the scores are given: arrays of numbers, checked once, as float64; classes numbered from 0 without gaps."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.core.errors import BadData

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

_LARGEST = 1e60   # fourth powers of more, summed, leave float64
_OFF = 1e-3       # how far the probabilities of a row may be from summing to 1: what half precision leaves
_NOISE = 1e-13    # a column that varies by less than this share of its mean does not vary: it is rounding


@dataclass(frozen=True)
class Classes:
    """Classes of N rows: their numbers ``codes`` [N] in 0..C-1, how many rows each has ``sizes`` [C], their ``names`` in order."""

    codes: Codes
    sizes: Codes
    names: tuple[Any, ...]

    @property
    def count(self) -> int:
        """C."""
        return len(self.sizes)

    @property
    def shares(self) -> Array:
        """The share of rows of each class [C]."""
        return self.sizes / len(self.codes)

    def sums(self, rows: Array) -> Array:
        """Sums of ``rows`` [N, D] over the rows of each class -> [C, D]."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        summed: Array = np.add.reduceat(rows[np.argsort(self.codes, kind="stable")], starts, axis=0)
        return summed

    def means(self, rows: Array) -> Array:
        """Means of ``rows`` [N, D] over the rows of each class -> [C, D]."""
        return self.sums(rows) / self.sizes[:, None]


def read_features(features: ArrayLike, name: str = "features") -> Array:
    """[N, D] as float64; a tensor is detached. What the caller holds is never written to.

    Raises:
        BadData: not a filled table of finite numbers; the message names ``name`` and the first bad place.
    """
    values = _numbers(features, name)
    if values.ndim != 2 or 0 in values.shape:
        raise BadData(f"{name} must be [rows, dimensions] with at least one of each, not of shape {list(values.shape)}.")
    return _finite(values, name)


def read_classes(labels: ArrayLike, rows: int | None = None, name: str = "labels", least: int = 2) -> Classes:
    """Class of every row, from whole numbers or strings in any numbering -> consecutive numbers in sorted order.

    Raises:
        BadData: not one label per row; a label that is missing or no class; fewer than ``least`` classes.
    """
    given = np.asarray(_plain(labels))
    if given.ndim != 1 or not len(given):
        raise BadData(f"{name} must be one class per row, [rows], not of shape {list(given.shape)}.")
    if rows is not None and len(given) != rows:
        raise BadData(f"there are {len(given)} {name} for {rows} rows.")
    if given.dtype == object and all(isinstance(label, str) for label in given):
        given = given.astype(str)
    if given.dtype.kind == "f" and (bad := np.flatnonzero((given != np.floor(given)) | np.isinf(given))).size:
        raise BadData(f"{name} must be classes, but row {bad[0]} says {given[bad[0]]}.")
    if given.dtype.kind not in "biufUS":
        raise BadData(f"{name} must be whole numbers or strings, not {given.dtype}.")
    names, codes, sizes = np.unique(given, return_inverse=True, return_counts=True)
    if len(names) < least:
        raise BadData(f"all {len(given)} {name} are {names[0].item()!r}: with one class there is nothing to tell apart.")
    return Classes(codes.astype(np.int64), sizes.astype(np.int64), tuple(names.tolist()))


def read_probabilities(probabilities: ArrayLike, name: str = "source_probs") -> Array:
    """[N, S] as float64: no number negative, every row summing to 1.

    Raises:
        BadData: as for features; or a row that is no distribution.
    """
    values = read_features(probabilities, name)
    if (bad := np.argwhere(values < 0)).size:
        raise BadData(f"row {bad[0, 0]} of {name} holds {values[tuple(bad[0])]:.4g}: logits? Give probabilities (softmax).")
    sums = values.sum(axis=1)
    if (off := np.flatnonzero(np.abs(sums - 1) > _OFF)).size:
        raise BadData(f"row {off[0]} of {name} sums to {sums[off[0]]:.6g}, not 1: give probabilities (softmax).")
    return values


def read_targets(targets: ArrayLike, rows: int, name: str = "labels") -> Array:
    """Numbers to regress on, [N] or [N, K], as float64 [N, K].

    Raises:
        BadData: not one row of finite numbers per row of features.
    """
    values = _numbers(targets, name)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] == 0 or len(values) != rows:
        raise BadData(f"{name} of a regression must be [{rows}] or [{rows}, targets], not of shape {list(np.shape(targets))}.")
    return _finite(values, name)


def same_rows(features: Array, others: int, name: str) -> None:
    """Raises: BadData if there are not as many ``others`` as rows of features."""
    if len(features) != others:
        raise BadData(f"there are {others} rows of {name} for {len(features)} rows of features.")


def centre(rows: Array) -> Array:
    """``rows`` [N, D] without their mean; a column that is constant up to rounding becomes exactly 0."""
    mean = rows.mean(axis=0)
    left = rows - mean
    left[:, np.abs(left).max(axis=0) <= _NOISE * np.abs(mean)] = 0.0
    return left


def _plain(values: Any) -> Any:
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16


def _numbers(values: Any, name: str) -> Array:
    try:
        given = np.asarray(_plain(values))
        if given.dtype.kind not in "biuf":
            raise TypeError(f"it holds {given.dtype}")
        return given.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise BadData(f"{name} must be an array of numbers: {error}.") from error


def _finite(values: Array, name: str) -> Array:
    if (bad := np.argwhere(~np.isfinite(values))).size:
        row, column = bad[0]
        raise BadData(f"{name} hold {values[row, column]} in row {row}, column {column} ({len(bad)} such values).")
    if (bad := np.argwhere(np.abs(values) > _LARGEST)).size:
        row, column = bad[0]
        raise BadData(f"{name} hold {values[row, column]:.3g} in row {row}, column {column}, whose powers would overflow.")
    return values
