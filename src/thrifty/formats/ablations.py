"""What demonstrations show besides the truth: other labels, other words, other texts, or none.

Min, Lyu, Holtzman, Artetxe, Lewis, Hajishirzi, Zettlemoyer: Rethinking the Role of Demonstrations: What Makes In-Context Learning
Work?; EMNLP 2022, arXiv:2202.12837. Random numbers are drawn as the authors' code draws them.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import RandomState

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.formats.demonstrations import Demonstration, Item
from thrifty.formats.english import WORDS

VARIANTS = ("gold", "random", "75_correct", "50_correct", "25_correct", "0_correct", "random_true_distribution", "ood_inputs",
            "random_english_words", "random_english_words_gold_labels", "permutated_labels", "random_labels_only", "no_labels")
ONE_SET = ("random_true_distribution", "random_english_words_gold_labels", "permutated_labels")  # where all have the same answers
GOLD = ("gold", "permutated_labels", "random_english_words_gold_labels")


@dataclass
class Shown:
    """The demonstrations of one seed. ``spelling`` says by which word a question's answers are spelled, where not by their own;
    ``corpus`` are the sentences from which each question draws inputs of its own."""

    fixed: list[Demonstration]
    spelling: dict[str, str] = field(default_factory=dict)
    corpus: Sequence[str] = ()
    drawn: RandomState = field(default_factory=RandomState)

    def before(self, question: str) -> list[Demonstration]:
        """What stands in front of one question. Questions must come in their order, as random numbers are drawn."""
        if not self.corpus or not self.fixed:
            return self.fixed
        lengths = np.array([len(sentence.split()) for sentence in self.corpus])
        weights = np.exp(-(lengths - len(question.split())) ** 2 / 50)
        if np.count_nonzero(weights) < len(self.fixed):
            raise BadData(f"the corpus has fewer than {len(self.fixed)} sentences of about {len(question.split())} words, "
                          f"which the question {question[:60]!r} has.")
        picks = self.drawn.choice(len(self.corpus), size=len(self.fixed), replace=False, p=weights / weights.sum())
        return [Demonstration(self.corpus[i], one.output, one.options) for i, one in zip(picks, self.fixed, strict=True)]

    def spell(self, options: Sequence[str]) -> tuple[str, ...]:
        """A question's answers as they are spelled here."""
        return tuple(self.spelling.get(option, option) for option in options)


def show(variant: str, chosen: Sequence[Item], pool: Sequence[Item], seed: int, corpus: Sequence[str] = ()) -> Shown:
    """The ``chosen`` rows as demonstrations of one ``variant``; ``pool`` are all training rows.

    gold: the true answers. random: any of a row's answers. N_correct: N % keep the true one, the others get a wrong one.
    random_true_distribution: drawn as often as in the pool. ood_inputs: sentences of ``corpus`` as long as the question, with
    random answers. random_english_words: words in place of the answers, drawn by lot; with gold_labels each word stands for one
    answer, in the question too. permutated_labels: every answer stands for the one before it, in the question too.
    random_labels_only: no inputs. no_labels: no answers.

    Raises: NoSuchSetting for an unknown variant, or one that needs the same answers for all rows; BadData for a missing corpus.
    """
    if variant not in VARIANTS:
        raise NoSuchSetting(f"demonstrations are {variant!r}.{nearest(variant, VARIANTS, 20)}")
    same = len({item.options for item in pool}) <= 1
    if variant in ONE_SET and not same:
        raise NoSuchSetting(f"{variant} needs classes: here every row has choices of its own.")
    if (variant == "ood_inputs") != bool(corpus):
        raise BadData("ood_inputs draws sentences from a corpus: give one, one sentence a line." if not corpus else
                      f"{variant} draws no sentences from a corpus; ood_inputs does.")
    drawn = RandomState(seed)
    rows, spelling = rename(variant, chosen, same, drawn)
    correct = keep(variant, len(rows), drawn)
    fixed = []
    for number, row in enumerate(rows):
        options = ("",) if variant == "no_labels" else row.options
        output = "" if variant == "no_labels" else answer(variant, row, number in correct, pool, drawn)
        fixed.append(Demonstration("" if variant == "random_labels_only" else row.input, output, options))
    return Shown(fixed, spelling, corpus, drawn)


def rename(variant: str, chosen: Sequence[Item], same: bool, drawn: RandomState) -> tuple[list[Item], dict[str, str]]:
    """The rows with the words that stand for their answers, and answer -> word where a question is spelled so, too."""
    rows = list(chosen)
    if not rows:
        return rows, {}
    options = rows[0].options
    if variant.startswith("random_english_words") and same:
        words = dict(zip(options, (WORDS[i] for i in drawn.choice(len(WORDS), size=len(options), replace=False)), strict=True))
        renamed = [Item(row.input, tuple(words[option] for option in row.options), row.label) for row in rows]
        return renamed, words if variant.endswith("gold_labels") else {}
    if variant == "random_english_words":
        needed = sum(len(row.options) for row in rows)
        if needed > len(WORDS):
            raise BadData(f"{len(rows)} demonstrations have {needed} answers, but there are {len(WORDS)} words to replace them.")
        supply = iter([WORDS[i] for i in drawn.permutation(len(WORDS))])
        return [Item(row.input, tuple(next(supply) for _ in row.options), row.label) for row in rows], {}
    if variant == "permutated_labels":
        turned = dict(zip(options, (*options[1:], options[0]), strict=True))
        return [Item(row.input, tuple(turned[option] for option in row.options), row.label) for row in rows], turned
    return rows, {}


def keep(variant: str, shots: int, drawn: RandomState) -> set[int]:
    """Which demonstrations keep their true answer: all, none, or a share drawn by lot."""
    share = re.fullmatch(r"(\d+)_correct", variant)
    if share and int(share[1]):
        return {int(i) for i in drawn.permutation(shots)[:shots * int(share[1]) // 100]}
    return set(range(shots)) if variant in GOLD else set()


def answer(variant: str, row: Item, right: bool, pool: Sequence[Item], drawn: RandomState) -> str:
    """What is shown as the answer of a row."""
    if right:
        return row.options[row.label]
    if variant.endswith("_correct"):
        wrong = [i for i, option in enumerate(row.options) if option != row.options[row.label]]
        return row.options[wrong[drawn.choice(len(wrong))]]
    if variant == "random_true_distribution":
        counts = Counter(item.options[item.label] for item in pool)
        return list(counts)[drawn.choice(len(counts), p=[count / len(pool) for count in counts.values()])]
    return row.options[drawn.choice(len(row.options))]
