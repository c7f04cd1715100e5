"""Demonstrations: how they are chosen, what each variant shows, and how they are strung together."""
from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.formats.ablations import VARIANTS, Shown, show
from thrifty.formats.clusters import CLUSTERS, TOGETHER, hold_out, refuse_overlap
from thrifty.formats.demonstrations import Demonstration, Item, choose
from thrifty.formats.english import WORDS
from thrifty.formats.layout import Layout, wrap, wrap_shots

POOL = [Item(f"text {i}", ("a", "b", "c"), i % 3 if i % 5 else 0) for i in range(60)]
BINARY = [Item(f"text {i}", ("no", "yes"), i % 2) for i in range(40)]
CHOICES = [Item(f"q {i}", (f"x{i}", f"y{i}", f"z{i}")[: 2 + i % 2], i % 2) for i in range(30)]


def outputs(shown: Shown) -> list[str]:
    return [one.output for one in shown.fixed]


def true(items: list[Item]) -> list[str]:
    return [item.options[item.label] for item in items]


def test_choices_are_seeded_and_different() -> None:
    labels = [item.label for item in POOL]
    assert choose(labels, 16, 13) == choose(labels, 16, 13) != choose(labels, 16, 21)
    assert len(set(choose(labels, 60, 1))) == 60 and choose(labels, 0, 1) == []
    assert choose(labels, 4, 13) == choose(labels, 16, 13)[:4]
    state = np.random.get_state()[1].copy()
    choose(labels, 16, 13, balanced=True)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("shots", [3, 6, 16, 17, 2])
def test_balanced_choices(shots: int) -> None:
    labels = [item.label for item in POOL]
    for seed in range(6):
        rows = choose(labels, shots, seed, balanced=True)
        counts = Counter(labels[row] for row in rows)
        assert len(set(rows)) == shots and max(counts.values()) - min(counts.get(c, 0) for c in range(3)) <= 1
    if shots == 17:
        drawn = [Counter(labels[row] for row in choose(labels, shots, seed, True)) for seed in range(9)]
        assert len({tuple(counts[c] for c in range(3)) for counts in drawn}) > 1
    if shots == 16:
        orders = {tuple(labels[row] for row in choose(labels, shots, seed, True)) for seed in range(6)}
        assert len(orders) > 1 and all(sorted(order) != list(order) for order in orders), "classes are mixed"


def test_choices_that_cannot_be_made() -> None:
    with pytest.raises(BadData, match="61 demonstrations were asked for, but there are 60"):
        choose([0] * 60, 61, 0)
    with pytest.raises(BadData, match="need 2 rows of class 1; there are 1"):
        choose([0, 0, 0, 1], 4, 0, balanced=True)
    with pytest.raises(NoSuchSetting, match="shots must be at least 0"):
        choose([0], -1, 0)


@pytest.mark.parametrize("items", [POOL, BINARY, CHOICES])
@pytest.mark.parametrize(("share", "right"), [("gold", 16), ("75_correct", 12), ("50_correct", 8), ("25_correct", 4),
                                              ("0_correct", 0)])
def test_exactly_so_many_answers_are_right(items: list[Item], share: str, right: int) -> None:
    for seed in range(5):
        shown = show(share, items[:16], items, seed)
        assert sum(a == b for a, b in zip(outputs(shown), true(items[:16]), strict=True)) == right
        assert all(one.output in item.options for one, item in zip(shown.fixed, items, strict=False))
        assert [one.input for one in shown.fixed] == [item.input for item in items[:16]] and not shown.spelling
    if share == "0_correct" and items is BINARY:
        assert outputs(shown) == ["yes" if item.label == 0 else "no" for item in items[:16]]
    assert [len([a for a, b in zip(outputs(show(share, items[:5], items, 1)), true(items[:5]), strict=True) if a == b])
            ] == [5 * int(share.split("_")[0]) // 100 if share != "gold" else 5]


def test_random_answers_are_even_and_those_of_the_distribution_are_not() -> None:
    chosen = [Item(f"t{i}", ("a", "b", "c"), 0) for i in range(3000)]
    counts = Counter(outputs(show("random", chosen, POOL, 5)))
    assert sum((counts[x] - 1000) ** 2 / 1000 for x in "abc") < 13.8    # chi-square with 2 degrees of freedom, p = 0.001
    shares = Counter(true(POOL))
    counts = Counter(outputs(show("random_true_distribution", chosen, POOL, 5)))
    assert sum((counts[x] - 50 * shares[x]) ** 2 / (50 * shares[x]) for x in "abc") < 13.8 and shares["a"] > shares["b"]


def test_random_numbers_are_those_of_the_authors_code() -> None:
    chosen = POOL[:16]
    np.random.seed(87)
    wanted = [np.random.choice(item.options) for item in chosen]
    assert outputs(show("random", chosen, POOL, 87)) == wanted
    np.random.seed(87)
    kept = set(np.random.permutation(range(16))[:8])
    wanted = [item.options[item.label] if i in kept else
              item.options[np.random.choice([k for k in range(3) if k != item.label])] for i, item in enumerate(chosen)]
    assert outputs(show("50_correct", chosen, POOL, 87)) == wanted
    np.random.seed(87)
    words = dict(zip(chosen[0].options, np.random.choice(WORDS, size=3, replace=False), strict=True))
    assert outputs(show("random_english_words_gold_labels", chosen, POOL, 87)) == [words[label] for label in true(chosen)]
    np.random.seed(87)
    counts = Counter(true(POOL))
    wanted = [np.random.choice(list(counts), p=[n / 60 for n in counts.values()]) for _ in chosen]
    assert outputs(show("random_true_distribution", chosen, POOL, 87)) == wanted


def test_words_in_the_place_of_answers() -> None:
    shown = show("random_english_words", POOL[:16], POOL, 1)
    assert set(outputs(shown)) <= set(WORDS) and len(set(shown.fixed[0].options)) == 3 and not shown.spelling
    assert shown.spell(("a", "b", "c")) == ("a", "b", "c"), "the question keeps its answers"
    gold = show("random_english_words_gold_labels", POOL[:16], POOL, 1)
    assert outputs(gold) == [gold.spelling[label] for label in true(POOL[:16])] and set(gold.spell(("a", "b", "c"))) <= set(WORDS)
    assert show("random_english_words", POOL[:16], POOL, 2).fixed[0].options != shown.fixed[0].options
    each = show("random_english_words", CHOICES[:10], CHOICES, 1)
    assert len({option for one in each.fixed for option in one.options}) == sum(len(item.options) for item in CHOICES[:10])
    with pytest.raises(BadData, match="600 demonstrations have 1500 answers"):
        show("random_english_words", CHOICES * 20, CHOICES, 1)
    assert len(WORDS) == len(set(WORDS)) > 250 and all(word.isalpha() and word.islower() for word in WORDS)


def test_answers_that_stand_for_each_other() -> None:
    shown = show("permutated_labels", POOL[:16], POOL, 1)
    assert outputs(shown) == ["abca"["abc".index(label) + 1] for label in true(POOL[:16])]
    assert shown.spell(("a", "b", "c")) == ("b", "c", "a")


def test_what_is_left_out() -> None:
    labels = show("random_labels_only", POOL[:16], POOL, 1)
    assert {one.input for one in labels.fixed} == {""} and set(outputs(labels)) <= {"a", "b", "c"}
    assert outputs(labels) == outputs(show("random", POOL[:16], POOL, 1))
    texts = show("no_labels", POOL[:16], POOL, 1)
    assert set(outputs(texts)) == {""} and texts.fixed[3].input == "text 3" and texts.fixed[0].unlabelled


def test_other_sentences_as_long_as_the_question() -> None:
    corpus = [" ".join(["word"] * n) + f" {i}" for i in range(40) for n in (3, 8, 20)]
    shown = show("ood_inputs", POOL[:8], POOL, 42, corpus)
    lengths: list[int] = []
    for _ in range(20):
        one = shown.before("eight words make up this very long question")
        assert len({d.input for d in one}) == 8 and [d.output for d in one] == outputs(shown)
        lengths += [len(d.input.split()) for d in one]
    assert Counter(lengths).most_common(1)[0][0] == 9 and lengths.count(21) < len(lengths) / 20
    again = show("ood_inputs", POOL[:8], POOL, 42, corpus)
    assert [d.input for d in again.before("one two three")] != [d.input for d in again.before("one two three")], "drawn anew"
    first = show("ood_inputs", POOL[:8], POOL, 42, corpus)
    np.random.seed(42)
    for item in POOL[:8]:
        np.random.choice(item.options)
    weights = np.exp(-np.power(np.array([len(s.split()) for s in corpus]) - 3, 2) / 50)
    wanted = np.random.choice(corpus, size=8, replace=False, p=weights / weights.sum())
    assert [d.input for d in first.before("a b c")] == list(wanted)
    with pytest.raises(BadData, match="fewer than 8 sentences of about 900 words"):
        first.before("word " * 900)


@pytest.mark.parametrize(("variant", "items", "corpus", "error", "said"), [
    ("golden", POOL, [], NoSuchSetting, "Did you mean 'gold'"), ("permutated_labels", CHOICES, [], NoSuchSetting, "needs classes"),
    ("random_true_distribution", CHOICES, [], NoSuchSetting, "needs classes"), ("ood_inputs", POOL, [], BadData, "give one"),
    ("random", POOL, ["a b"], BadData, "random draws no sentences"),
])
def test_variants_that_make_no_sense(variant: str, items: list[Item], corpus: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        show(variant, items[:4], items, 0, corpus)


def test_every_variant_shows_as_many_as_were_chosen() -> None:
    for variant in VARIANTS:
        corpus = [f"some words {i}" for i in range(30)] if variant == "ood_inputs" else []
        shown = show(variant, POOL[:6], POOL, 0, corpus)
        assert len(shown.before("some words")) == 6 and show(variant, [], POOL, 0, corpus).before("x") == []


def string(layout: Layout, shown: list[tuple[Any, ...]], text: str, option: str) -> str:
    parts = [layout.demonstrate(Demonstration(x, y, options[0] if options else ("no", "yes")), i == 0)
             for i, (x, y, *options) in enumerate(shown)]
    return "".join(map("".join, parts)) + "|".join(layout.ask(text, option, not shown))


def test_pairs_are_strung_together() -> None:
    shown = [("x1", "yes"), ("x2", "no")]
    assert string(Layout(), shown, "x", "yes") == "x1\nyes\n\n\nx2\nno\n\n\nx|\nyes"
    assert string(Layout("channel"), shown, "x", "yes") == "yes\nx1\n\n\nno\nx2\n\n\nyes|\nx"
    assert string(Layout("direct", "spaces"), shown, "x", "yes") == "x1 yes x2 no x| yes"
    assert string(Layout("channel", "spaces"), shown, "x", "yes") == "yes x1 no x2 yes| x"
    assert string(Layout("direct", "flan"), shown, "x", "yes") == "0 x1 X 1 yes X 0 x2 X 1 no X 0 x X 1 FLAN| yes"
    assert string(Layout(), [], "x", "yes") == "x|\nyes", "no demonstrations leave the bare question"
    assert string(Layout("channel"), [], "x", "yes") == "yes|\nx"
    assert string(Layout("direct", "flan"), [], "x", "yes") == "0 x X 1 FLAN| yes"


def test_what_is_empty_leaves_its_line_out() -> None:
    bare = [("", "yes"), ("", "no")]
    assert string(Layout(), bare, "x", "yes") == "\nyes\n\n\nno\n\n\nx|\nyes"
    assert string(Layout("channel"), bare, "x", "yes") == "yes\n\n\nno\n\n\nyes|\nx"
    mute = [("x1", "", ("",)), ("x2", "", ("",))]
    assert string(Layout(), mute, "x", "yes") == "x1\n\n\nx2\n\n\nx|\nyes"
    assert string(Layout("channel"), mute, "x", "yes") == "x1\n\n\nx2\n\n\nyes|\nx"


def test_the_marks_of_flan() -> None:
    assert wrap("Is it so?") == "0 Is it so? X 1 FLAN"
    assert wrap_shots([("a", "b"), ("c", "d")], "e ") == "0 a X 1 b X 0 c X 1 d X 0 e  X 1 FLAN"
    assert wrap_shots([], "e") == wrap("e")


@pytest.mark.parametrize(("words", "said"), [(("directly",), "Did you mean 'direct'"), (("direct", "tabs"), "separator is 'tabs'"),
                                             (("channel", "flan"), "needs scoring='direct'")])
def test_layouts_that_do_not_exist(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(NoSuchSetting, match=said):
        Layout(*words)


def test_kinds_are_held_out_with_those_that_resemble_them() -> None:
    assert len(CLUSTERS) == 17 and all(Counter(n for names in CLUSTERS.values() for n in names)[n] == 1
                                       for names in CLUSTERS.values() for n in names)
    for kind in CLUSTERS:
        train, test = hold_out(kind)
        refuse_overlap(train, test)
        away = {kind}.union(*(pair for pair in TOGETHER if kind in pair))
        assert set(train) == {name for other, names in CLUSTERS.items() if other not in away for name in names}
        assert set(test) == set(CLUSTERS[kind])
    assert "rte" not in hold_out("paraphrase")[0] and "mrpc" not in hold_out("entailment")[0]
    assert "cosmos_qa" not in hold_out("common_sense")[0] and "copa" not in hold_out("read_comp_and_common_sense")[0]
    assert "boolq" in hold_out("common_sense")[0]
    with pytest.raises(BadData, match="mrpc would be trained on and judged by"):
        refuse_overlap(["mrpc", "rte"], ["mrpc"])
    with pytest.raises(NoSuchSetting, match="Did you mean 'sentiment'"):
        hold_out("sentimet")
    from thrifty.formats.flan import FLAN

    listed = {name for names in CLUSTERS.values() for name in names}
    assert {name.removeprefix("flan:") for name in FLAN} - {"classify"} <= listed
