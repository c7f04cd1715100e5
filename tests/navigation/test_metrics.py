"""Metrics of walks, by hand and by what must hold of all."""
from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from thrifty.core.errors import BadData
from thrifty.navigation.graph import Graph
from thrifty.navigation.making import build
from thrifty.navigation.metrics import score, warp

LINE = Graph("line", ["a", "b", "c"], [[0, 0, 0], [2, 0, 0], [6, 0, 0]], [[0, 1, 0], [1, 0, 1], [0, 1, 0]])  # a 2 m b 4 m c


def test_the_path_itself() -> None:
    found = score(LINE, ["a", "b", "c"], ["a", "b", "c"], found=True)
    assert found == {"success": 1, "oracle_success": 1, "spl": 1, "ndtw": 1, "sdtw": 1, "cls": 1, "error": 0, "length": 6,
                     "progress": 6, "rgs": 1, "rgspl": 1}


def test_one_step_short() -> None:
    """At b, 4 m from c: no success. DTW: a-a, b-b, then c is 4 from b."""
    found = score(LINE, ["a", "b"], ["a", "b", "c"], found=True)
    assert found["success"] == found["oracle_success"] == found["spl"] == found["sdtw"] == 0
    assert (found["error"], found["length"], found["progress"]) == (4, 2, 2)
    assert found["ndtw"] == pytest.approx(math.exp(-4 / (3 * 3)))
    covered = (1 + 1 + math.exp(-4 / 3)) / 3
    expected = 6 * covered
    assert found["cls"] == pytest.approx(covered * expected / (expected + abs(expected - 2)))
    assert found["rgs"] == 1 and found["rgspl"] == pytest.approx(6 / max(2, 6))  # the object counts without success


def test_there_and_back() -> None:
    """a b c b a, to a: the end is right, and 12 m were walked for none."""
    found = score(LINE, ["a", "b", "c", "b", "a"], ["a"])
    assert (found["success"], found["error"], found["length"], found["progress"]) == (1, 0, 12, 0)
    assert found["spl"] == 0 / max(12, 0, 0.01)
    assert found["ndtw"] == pytest.approx(math.exp(-(0 + 2 + 6 + 2 + 0) / 3))
    stayed = score(LINE, ["a"], ["a"])
    assert stayed["spl"] == 0.0 and stayed["success"] == 1 and stayed["cls"] == 1  # 0 / 0.01, as the benchmarks' code has it


def test_a_detour_and_success_within_three_metres() -> None:
    """The goal is a; b is 2 m away from it, which is near enough; c was a detour."""
    found = score(LINE, ["c", "b"], ["c", "b", "a"])
    assert found["success"] == 1 and found["error"] == 2 and found["spl"] == 6 / 6
    detour = score(LINE, ["b", "c", "b", "a"], ["b", "a"])
    assert detour["success"] == 1 and detour["spl"] == pytest.approx(2 / 10)
    assert detour["ndtw"] == pytest.approx(math.exp(-4 / (3 * 2)))
    assert detour["sdtw"] == detour["ndtw"]
    assert score(LINE, ["b", "a"], ["b", "c"], margin=6.5)["success"] == 1


def test_objects_are_seen_from_where_they_are_seen() -> None:
    found = score(LINE, ["a", "b"], ["a", "b", "c"], visible=["b"], found=False)
    assert found["success"] == 1 and found["spl"] == 1 and found["rgs"] == found["rgspl"] == 0
    passed = score(LINE, ["a", "b", "c"], ["a", "b", "c"], visible=["b"])
    assert (passed["success"], passed["oracle_success"]) == (0, 1)


def test_warping_is_the_least_over_all_alignments() -> None:
    drawn = np.random.default_rng(0)
    for n, m in itertools.product((1, 2, 4), (1, 3, 4)):
        apart = drawn.random((n, m))

        def least(i: int, j: int, apart: np.ndarray = apart) -> float:
            before = [least(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
            return float(apart[i, j]) + (min(before) if before else 0.0)

        assert warp(apart) == pytest.approx(least(n - 1, m - 1))


def test_what_holds_of_every_walk() -> None:
    graph, drawn = build("s", 4, random.Random(5)), random.Random(6)
    for _ in range(60):
        path = [drawn.choice(graph.viewpoints)]
        goal = drawn.choice(graph.viewpoints)
        while path[-1] != goal:
            path.append(graph.towards(path[-1], goal))
        walked = [path[0]]
        for _ in range(drawn.randrange(6)):
            walked.append(drawn.choice(graph.neighbours(walked[-1])))
        found = score(graph, walked, path)
        assert 0 <= found["spl"] <= found["success"] <= found["oracle_success"] <= 1
        if len(path) > 1:
            shortest = graph.length(walked) <= graph.length(path) + 1e-9
            assert (found["spl"] == pytest.approx(found["success"])) == (shortest or not found["success"])
        assert (found["ndtw"] == 1) == (walked == path)
        assert found["progress"] == pytest.approx(graph.distance(path[0], goal) - found["error"])


@pytest.mark.parametrize(("walked", "said"), [
    (["b", "c"], "begins at 'b'"), (["a", "c"], "leaves the graph.*'a' to 'c'"), ([], "is empty"),
    (["a", "x"], "no viewpoint 'x'")])
def test_no_walks(walked: list[str], said: str) -> None:
    with pytest.raises(BadData, match=said):
        score(LINE, walked, ["a", "b"])
