"""How alike layers are, and how models are cut: worked examples, invariances, limits, sums that never fall."""
from __future__ import annotations

import itertools
import math
from random import Random

import pytest
import torch

from thrifty.core.errors import Unfit
from thrifty.zoo.partition import Likeness, Piece, begin, cut, improve, largest, partition
from thrifty.zoo.similarity import KINDS, cka, rbf_cka, regression

X = torch.tensor([[1.0, 0], [0, 1], [2, 1], [1, 3]])
Y = torch.tensor([[0.0, 1, 1], [1, 0, 2], [3, 1, 0], [2, 2, 2]])


def test_cka_of_a_worked_example() -> None:
    assert cka([X, Y])[0][1] == pytest.approx(0.6597268204, abs=1e-9)
    a, b = (m.double() - m.double().mean(0) for m in (X, Y))
    assert cka([X, Y])[1][0] == pytest.approx(float((b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())))


@pytest.mark.parametrize("kind", KINDS)
def test_alike_is_one_and_turning_and_scaling_change_nothing(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randn(12, 6, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    table = KINDS[kind]([x, y, 3.0 * x @ turn + 1.0])
    assert table[0][0] == pytest.approx(1) and table[0][2] == pytest.approx(1, abs=1e-5)
    assert table[0][1] == pytest.approx(table[2][1], abs=1e-5) and 0 < table[0][1] < 1
    assert table[0][1] == pytest.approx(table[1][0], abs=1e-9)


def test_constant_features_are_like_nothing() -> None:
    assert cka([X, torch.ones(4, 2)])[0][1] == 0 and regression([X, torch.ones(4, 2)])[0][1] == 0
    assert math.isfinite(rbf_cka([X, torch.ones(4, 2)])[0][1])


def random_likeness(lengths: tuple[int, ...], seed: int, across: bool = False) -> Likeness:
    generator = torch.Generator().manual_seed(seed)
    tables = [cka([torch.randn(6, 3, generator=generator) for _ in range(sum(lengths))]) for _ in range(2)]
    return Likeness(*tables, lengths, across)  # type: ignore[arg-type]


def test_likeness_of_blocks() -> None:
    alike = random_likeness((5, 4), 0)
    a, b = Piece(0, 0, 0, 3), Piece(1, 0, 0, 2)
    assert alike(a, a) == 2 and alike(a, Piece(0, 1, 3, 5)) == 0 and alike(a, Piece(1, 1, 2, 4)) == 0
    assert alike(a, b) == pytest.approx(alike.starts[0][5] + alike.ends[2][6]) == pytest.approx(alike(b, a))
    assert random_likeness((5, 4), 0, across=True)(a, Piece(1, 1, 2, 4)) > 0


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_partition_covers_each_model_once_within_limits(seed: int, across: bool) -> None:
    lengths = (16, 9, 12)
    alike = random_likeness(lengths, seed, across)
    found = partition(alike, 4, list("abc"), Random(seed), trials=10)
    for model, (own, length) in enumerate(zip(found.pieces, lengths, strict=True)):
        assert [node for piece in own for node in range(piece.lo, piece.hi)] == list(range(length))
        assert [(piece.model, piece.stage) for piece in own] == [(model, stage) for stage in range(4)]
        assert all(1 <= piece.hi - piece.lo <= math.floor(1.2 * math.ceil(length / 4)) for piece in own)
    assert {g for groups in found.groups for g in groups} == set(range(4))
    total = 0.0
    for one, two in itertools.combinations([(p, g) for own, of in zip(found.pieces, found.groups, strict=True)
                                            for p, g in zip(own, of, strict=True)], 2):
        total += alike(one[0], two[0]) if one[1] == two[1] else 0.0
    assert found.cost(alike) == pytest.approx(total)
    worst = min(partition(alike, 4, list("abc"), Random(seed + i), trials=1).cost(alike) for i in range(3))
    assert found.cost(alike) >= worst - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_no_round_makes_the_sum_smaller(seed: int) -> None:
    alike = random_likeness((16, 11, 9), seed, across=bool(seed % 2))
    found = improve(begin(alike, 3, 0.2, Random(seed)), alike, 0.2, 200)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(found.sums)) and len(found.sums) < 200
    nearest = sum(max(alike(piece, c) for c in found.centres) for own in found.pieces for piece in own)
    assert found.sums[-1] <= nearest + 1e-9


def test_random_cuts_keep_the_limits() -> None:
    rng = Random(0)
    for length, parts in itertools.product(range(4, 20), (2, 3, 4)):
        most = largest(length, parts, 0.0)
        pieces = cut(0, length, parts, most, rng)
        assert [n for p in pieces for n in range(p.lo, p.hi)] == list(range(length))
        assert all(1 <= p.hi - p.lo <= most for p in pieces)


def test_a_model_of_too_few_blocks_is_named() -> None:
    with pytest.raises(Unfit, match="'b' has 3 blocks, too few to be cut into 4"):
        partition(random_likeness((5, 3), 0), 4, ["a", "b"], Random(0))
