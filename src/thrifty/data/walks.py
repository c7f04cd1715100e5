"""Texts from a graph of relations, to inject what it knows into a language model: random walks, one sentence per step.

    triples = read_triples("conceptnet.tsv")                      # columns head, relation, tail
    table = corpus(triples, CONCEPTNET)                           # {"text": ["a cat is a pet. a pet is an animal. ...", ...]}
    thrifty.tune("./bert", {"train": table}, "knowledge-adapter", task="masked-language")

Lauscher, Majewska, Ribeiro, Gurevych, Rozanov, Glavaš: Common Sense or World Knowledge? Investigating Adapter-Based Knowledge
Injection into Pretrained Transformers; DeeLIO at EMNLP 2020, arXiv:2005.11787. The walks are those of Grover, Leskovec:
node2vec: Scalable Feature Learning for Networks; KDD 2016, arXiv:1607.00653.
"""
from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.data.read import open_source
from thrifty.data.rows import SHOWN, Faults
from thrifty.data.values import Unusable, read_text

CONCEPTNET = {  # of these the paper walks along four: Antonym, IsA, MannerOf, Synonym
    "Antonym": "is an antonym of", "AtLocation": "is found at", "CapableOf": "can", "Causes": "causes",
    "CausesDesire": "makes one want", "CreatedBy": "is created by", "DefinedAs": "is defined as", "DerivedFrom": "is derived from",
    "Desires": "wants", "DistinctFrom": "is distinct from", "Entails": "entails",
    "EtymologicallyRelatedTo": "has a common origin with", "FormOf": "is a form of", "HasA": "has", "HasContext": "is used in",
    "HasFirstSubevent": "begins with", "HasLastSubevent": "ends with", "HasPrerequisite": "requires", "HasProperty": "is",
    "HasSubevent": "includes", "InstanceOf": "is an instance of", "IsA": "is a", "LocatedNear": "is near", "MadeOf": "is made of",
    "MannerOf": "is a manner of", "MotivatedByGoal": "is done in order to", "NotCapableOf": "cannot", "NotDesires": "does not want",
    "NotHasProperty": "is not", "ObstructedBy": "is prevented by", "PartOf": "is part of", "ReceivesAction": "can be",
    "RelatedTo": "is related to", "SimilarTo": "is similar to", "SymbolOf": "is a symbol of", "Synonym": "is a synonym of",
    "UsedFor": "is used for",
}
BOTH_WAYS = ("Antonym", "Synonym")  # what holds of a and b holds of b and a


class Triple(NamedTuple):
    """One edge of the graph: a cat (head) IsA (relation) pet (tail)."""

    head: str
    relation: str
    tail: str


def read_triples(source: Any, columns: Mapping[str, str] | None = None) -> list[Triple]:
    """The triples of a table: a file (CSV, TSV, JSON lines, Parquet), a folder of them, a hub id, or a table in memory.

    ``columns`` says which column is the ``head``, the ``relation`` and the ``tail`` where they are called otherwise.

    Raises: BadData for a column that is missing, or a cell that is no text, with its file and row.
    """
    names = {role: role for role in Triple._fields} | dict(columns or {})
    if strange := sorted(set(names) - set(Triple._fields)):
        raise NoSuchSetting(f"a triple has no part {strange[0]!r}.{nearest(strange[0], Triple._fields)}")
    faults, found = Faults(), []
    for rows in open_source(source).splits.values():
        for place, reason in rows.unreadable:
            faults.add(place, reason)
        for role, name in names.items():
            if name not in rows.table:
                raise BadData(f"there is no column {name!r} to be the {role} of triples.{nearest(name, rows.table)}")
        for i, place in enumerate(rows.places):
            try:
                found.append(Triple(*(read_text(rows.table[names[role]][i], role).strip() for role in Triple._fields)))
            except Unusable as why:
                faults.add(place, str(why))
    faults.settle(False)
    return found


def walk(triples: Iterable[Triple], *, count: int = 2, length: int = 15, p: float = 1.0, q: float = 1.0, seed: int = 0,
         both_ways: Sequence[str] = BOTH_WAYS) -> list[list[str]]:
    """``count`` walks from every node, each node, relation, node, ... of at most ``length`` items; shorter at a dead end.

    A step goes back to where it came from with weight 1/p, on to a neighbour that leads there with weight 1, and to any other with
    weight 1/q; with p = q = 1 all neighbours are alike. Where several relations lead to the chosen node, one is drawn. Relations
    in ``both_ways`` are walked in both directions, all others from head to tail.

    Raises: NoSuchSetting for numbers without a meaning; BadData if there are no triples.
    """
    _check(count, length, p, q)
    graph = connect(triples, both_ways)
    drawn, nodes, found = random.Random(seed), list(graph), []
    for _ in range(count):
        drawn.shuffle(nodes)
        found += [_wander(graph, start, length, p, q, drawn) for start in nodes]
    return found


def connect(triples: Iterable[Triple], both_ways: Sequence[str] = BOTH_WAYS) -> dict[str, dict[str, list[str]]]:
    """The graph: node -> neighbour -> the relations that lead there, all in the order of the triples and none twice.

    Raises: BadData if there are no triples.
    """
    graph: dict[str, dict[str, list[str]]] = {}
    for head, relation, tail in triples:
        for one, other in ((head, tail), (tail, head))[: 2 if relation in both_ways else 1]:
            relations = graph.setdefault(one, {}).setdefault(other, [])
            if relation not in relations:
                relations.append(relation)
            graph.setdefault(other, {})
    if not graph:
        raise BadData("there are no triples, so there is no graph to walk through.")
    return graph


def render(steps: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """One sentence for every triple that a walk passes: head, the words for the relation, tail.

    Raises: BadData for a relation without words.
    """
    sentences = []
    for head, relation, tail in zip(steps[::2], steps[1::2], steps[2::2], strict=False):
        if relation not in words:
            raise BadData(f"there are no words for the relation {relation!r}.{nearest(relation, words)}")
        sentences.append(f"{head} {words[relation]} {tail}.")
    return sentences


def corpus(triples: Sequence[Triple], words: Mapping[str, str] = CONCEPTNET, **walking: Any) -> dict[str, list[str]]:
    """A table with the column ``text``: the sentences of one walk in each row. Walks that say the same appear once.

    ``words`` puts every relation into words; ``walking`` are settings of `walk`.

    Raises: BadData for relations without words, before anything is drawn; and as `walk`.
    """
    lacking = [(i, t) for i, t in enumerate(triples, 1) if t.relation not in words]
    if lacking:
        shown = "\n".join(f"  triple {i}: {triple.relation!r}" for i, triple in lacking[:SHOWN])
        more = f"\n  and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise BadData(f"{len(lacking)} triples have a relation without words:\n{shown}{more}\n"
                      f"Give words={{{lacking[0][1].relation!r}: ...}}.{nearest(lacking[0][1].relation, words)}")
    texts = (" ".join(render(steps, words)) for steps in walk(triples, **walking))
    return {"text": list(dict.fromkeys(text for text in texts if text))}


def _wander(graph: Mapping[str, Mapping[str, list[str]]], start: str, length: int, p: float, q: float,
            drawn: random.Random) -> list[str]:
    steps = [start]
    while len(steps) + 2 <= length and (neighbours := list(graph[steps[-1]])):
        here, before = steps[-1], steps[-3] if len(steps) > 2 else None
        weights = [1.0 if before is None else 1 / p if other == before else 1.0 if before in graph[other] else 1 / q
                   for other in neighbours]
        (chosen,) = drawn.choices(neighbours, weights)
        steps += [drawn.choice(graph[here][chosen]), chosen]
    return steps


def _check(count: int, length: int, p: float, q: float) -> None:
    for name, value, least in (("count", count, 1), ("length", length, 3)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise NoSuchSetting(f"{name}={value!r} must be a whole number of at least {least}.")
    for name, weight in (("p", p), ("q", q)):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise NoSuchSetting(f"{name}={weight!r} must be a positive number.")
