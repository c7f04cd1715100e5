"""How well somebody walked, exactly as the benchmarks count it. Distances are along the graph, in metres.

SPL: Anderson et al., "On Evaluation of Embodied Navigation Agents", 2018, arXiv:1807.06757. nDTW, SDTW: Ilharco, Jain, Ku, Ie,
Baldridge, "General Evaluation for Instruction Conditioned Navigation using Dynamic Time Warping", 2019, arXiv:1907.05446. CLS:
Jain, Magalhaes, Ku, Vaswani, Ie, Baldridge, "Stay on the Path", ACL 2019, arXiv:1905.12255. RGS: Qi et al., "REVERIE", CVPR 2020,
arXiv:1904.10151. Progress: Thomason, Murray, Cakmak, Zettlemoyer, "Vision-and-Dialog Navigation", CoRL 2019, arXiv:1907.04957.
"""
from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import BadData
from thrifty.navigation.graph import Graph

MARGIN = 3.0     # metres from the goal that count as being there
SHORTEST = 0.01  # metres that a path has at least where something is divided by its length
HIGHER = ("spl", "success", "ndtw", "sdtw", "cls", "oracle_success", "progress")  # what is better when it is higher


def score(graph: Graph, walked: Sequence[str], reference: Sequence[str], *, visible: Collection[str] | None = None,
          found: bool | None = None, margin: float = MARGIN) -> dict[str, float]:
    """Every metric of one walk p, for the annotated path R:

        success (SR)         d(p_end, goal) < margin; of an object, p ends where it is ``visible``
        oracle_success (OSR) the same of any viewpoint of p
        error (NE)           d(p_end, goal);  length (TL) of p;  progress (GP) d(p_0, goal) - d(p_end, goal)
        spl                  SR len(R) / max(len(p), len(R), 0.01)
        ndtw                 exp(-DTW(p, R) / (margin |R|));  sdtw = SR ndtw;  cls: see ``coverage``
        rgs                  whether the right object was ``found``;  rgspl = rgs len(R) / max(len(p), len(R), 0.01)

    len(R) is that of the annotated path, which need not be the shortest, and rgspl does not ask for success, as in the
    benchmarks' code. The last two are there where ``found`` is said.

    Raises:
        BadData: a path leaves the graph or is empty, or both begin at different places.
    """
    if walked and reference and walked[0] != reference[0]:
        raise BadData(f"a walk in scan {graph.scan!r} begins at {walked[0]!r}, its reference at {reference[0]!r}")
    length, annotated, goal = graph.length(walked), graph.length(reference), reference[-1]
    away = [graph.distance(viewpoint, goal) for viewpoint in walked]
    there = [viewpoint in visible for viewpoint in walked] if visible is not None else [metres < margin for metres in away]
    success, share = float(there[-1]), annotated / max(length, annotated, SHORTEST)
    ndtw = float(np.exp(-warp(between(graph, walked, reference)) / (margin * len(reference))))
    scores = {"success": success, "oracle_success": float(any(there)), "spl": success * share, "ndtw": ndtw, "sdtw": success * ndtw,
              "cls": coverage(graph, walked, reference, margin), "error": away[-1], "length": length,
              "progress": away[0] - away[-1]}
    return scores if found is None else {**scores, "rgs": float(found), "rgspl": float(found) * share}


def between(graph: Graph, walked: Sequence[str], reference: Sequence[str]) -> NDArray[np.float64]:
    """Distances [walked, reference]."""
    rows, columns = ([graph.number(viewpoint) for viewpoint in path] for path in (walked, reference))
    return graph.distances[np.ix_(rows, columns)]


def warp(apart: NDArray[np.float64]) -> float:
    """Dynamic time warping: the least sum over a monotone alignment of rows and columns of ``apart`` [n, m]."""
    sums = np.full((len(apart) + 1, apart.shape[1] + 1), np.inf)
    sums[0, 0] = 0.0
    for i, row in enumerate(apart):
        for j, metres in enumerate(row):
            sums[i + 1, j + 1] = metres + min(sums[i, j], sums[i, j + 1], sums[i + 1, j])
    return float(sums[-1, -1])


def coverage(graph: Graph, walked: Sequence[str], reference: Sequence[str], margin: float = MARGIN) -> float:
    """CLS = c e / (e + |e - len(p)|): c is the mean over R of exp(-d(r, p) / margin), e = c len(R) the length to expect of p.

    Where a path of no length is answered with one of none it is c, the limit.
    """
    covered = float(np.exp(-between(graph, walked, reference).min(0) / margin).mean())
    expected = covered * graph.length(reference)
    total = expected + abs(expected - graph.length(walked))
    return covered * (expected / total if total else 1.0)
