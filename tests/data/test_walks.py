"""Texts from a graph of relations: what a walk may be, how it is drawn, and how it is put into words."""
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data.walks import BOTH_WAYS, CONCEPTNET, Triple, connect, corpus, read_triples, render, walk

PETS = [Triple(*t.split("|")) for t in (
    "cat|IsA|pet", "dog|IsA|pet", "pet|IsA|animal", "animal|IsA|being", "dog|Antonym|cat", "bark|MannerOf|call", "cat|IsA|hunter",
    "hunter|IsA|animal", "hound|Synonym|dog", "cat|Desires|pet")]


def test_every_walk_alternates_and_is_no_longer_than_told() -> None:
    edges = {(t.head, t.relation, t.tail) for t in PETS}
    edges |= {(t.tail, t.relation, t.head) for t in PETS if t.relation in BOTH_WAYS}
    nodes = {node for t in PETS for node in (t.head, t.tail)}
    for length in (3, 8, 15):
        found = walk(PETS, length=length, seed=length)
        assert Counter(steps[0] for steps in found) == dict.fromkeys(nodes, 2)  # two from every node
        for steps in found:
            assert len(steps) <= length and len(steps) % 2 == 1
            for head, relation, tail in zip(steps[::2], steps[1::2], steps[2::2], strict=False):
                assert (head, relation, tail) in edges
            if len(steps) + 2 <= length:  # shorter only where nothing leads on
                assert not any(head == steps[-1] for head, _, _ in edges)
    assert {len(steps) for steps in walk(PETS, length=15)} >= {1, 3, 5}
    ring = [Triple(a, "IsA", b) for a, b in zip("abcd", "bcda", strict=True)]
    assert {len(steps) for steps in walk(ring)} == {15} and {len(steps) for steps in walk(ring, length=14)} == {13}


def test_steps_are_uniform_unless_weighted() -> None:
    star = [Triple("hub", "IsA", leaf) for leaf in "abcd"] + [Triple(leaf, "IsA", "hub") for leaf in "abcd"]
    firsts = Counter(steps[2] for steps in walk(star, count=3000, length=3) if steps[0] == "hub")
    assert all(abs(firsts[leaf] / 3000 - 0.25) < 0.03 for leaf in "abcd")
    # after a -> hub: back to a weighs 1/p, to the others, which lead to no leaf, 1/q
    for p, q, back in ((1.0, 1.0, 0.25), (0.5, 1.0, 2 / 5), (1.0, 0.25, 1 / 13)):
        returns = [steps[4] == "a" for steps in walk(star, count=3000, length=5, p=p, q=q) if steps[0] == "a"]
        assert abs(sum(returns) / 3000 - back) < 0.03
    near = [Triple("a", "IsA", "b"), Triple("b", "IsA", "c"), Triple("b", "IsA", "d"), Triple("c", "IsA", "a")]
    thirds = Counter(steps[4] for steps in walk(near, count=3000, length=5, q=4.0) if steps[0] == "a")
    assert abs(thirds["c"] / 3000 - 0.8) < 0.03  # c leads back to a and weighs 1, d weighs 1/4


def test_the_seed_decides() -> None:
    assert walk(PETS, seed=3) == walk(PETS, seed=3) != walk(PETS, seed=4)


def test_relations_of_one_pair_and_both_directions() -> None:
    graph = connect([*PETS, PETS[0]])
    assert graph["cat"]["pet"] == ["IsA", "Desires"] and graph["cat"]["dog"] == graph["dog"]["cat"] == ["Antonym"]
    assert "cat" not in graph["pet"] and graph["being"] == {}
    drawn = Counter(steps[1] for steps in walk(PETS[:1] + PETS[-1:], count=2000, length=3) if steps[0] == "cat")
    assert abs(drawn["IsA"] / 2000 - 0.5) < 0.05
    assert "cat" not in connect(PETS, both_ways=())["dog"] or connect(PETS, both_ways=())["cat"].get("dog") is None


def test_one_sentence_for_every_triple() -> None:
    assert render(["cat"], CONCEPTNET) == []
    assert render(["cat", "IsA", "pet", "IsA", "animal"], CONCEPTNET) == ["cat is a pet.", "pet is a animal."]
    texts = corpus(PETS, length=15, count=30)["text"]
    assert len(texts) == len(set(texts)) and all(texts)
    assert all(1 <= text.count(".") <= 7 for text in texts)
    used = {t.relation for t in PETS}
    assert used <= set(CONCEPTNET) and all(any(CONCEPTNET[r] in text for text in texts) for r in used)


def test_relations_without_words_are_all_named() -> None:
    strange = [*PETS, Triple("a", "IsAn", "b"), Triple("b", "Knows", "c")]
    with pytest.raises(BadData, match="2 triples have a relation without words:\n  triple 11: 'IsAn'\n  triple 12") as error:
        corpus(strange)
    assert "Did you mean 'IsA'" in str(error.value)
    assert corpus(strange, {**CONCEPTNET, "IsAn": "is an", "Knows": "knows"})["text"]
    with pytest.raises(BadData, match="'Knows'"):
        render(["b", "Knows", "c"], CONCEPTNET)


def test_triples_from_files(tmp_path: Path) -> None:
    (tmp_path / "graph.tsv").write_text("head\trelation\ttail\ncat\tIsA\tpet\n dog \tIsA\tpet\n")
    assert read_triples(tmp_path / "graph.tsv") == [Triple("cat", "IsA", "pet"), Triple("dog", "IsA", "pet")]
    (tmp_path / "other.csv").write_text("a,r,b\ncat,IsA,pet\n")
    columns = {"head": "a", "relation": "r", "tail": "b"}
    assert read_triples(tmp_path / "other.csv", columns) == [Triple("cat", "IsA", "pet")]
    assert read_triples([{"head": "cat", "relation": "IsA", "tail": "pet"}]) == [Triple("cat", "IsA", "pet")]
    with pytest.raises(BadData, match="no column 'head'"):
        read_triples(tmp_path / "other.csv")
    with pytest.raises(NoSuchSetting, match="'subject'"):
        read_triples(tmp_path / "other.csv", {"subject": "a"})
    (tmp_path / "holes.csv").write_text("head,relation,tail\ncat,IsA,pet\ncat,,pet\n")
    with pytest.raises(BadData, match=r"holes.csv row 2.*the relation is"):
        read_triples(tmp_path / "holes.csv")


@pytest.mark.parametrize(("settings", "words"), [
    ({"count": 0}, "count"), ({"length": 2}, "length"), ({"length": 15.0}, "length"), ({"p": 0.0}, "p="), ({"q": -1}, "q="),
    ({"p": float("inf")}, "p=")])
def test_numbers_without_a_meaning(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(NoSuchSetting, match=words):
        walk(PETS, **settings)


def test_no_triples() -> None:
    with pytest.raises(BadData, match="no triples"):
        walk([])
