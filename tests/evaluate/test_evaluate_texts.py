"""BLEU and chrF against sacrebleu's own corpus scores, on everything and on resamples written out."""
from __future__ import annotations

import sys

import numpy as np
import pytest

from thrifty.core.errors import Missing
from thrifty.evaluate.texts import bleu_statistic, chrf_statistic, exact_match, need_sacrebleu

sacrebleu = pytest.importorskip("sacrebleu")

WRITTEN = ["the cat sat on the mat .", "he likes to read books in the evening", "completely different words here now",
           "yes", "", "An aging, well-known restaurant near the river; it's cheap."]
REFERENCES = [["the cat is on the mat .", "a cat sat on the mat ."],
              ["he likes reading books in the evening", "he reads at night"],
              ["nothing in common at all with that", "no"], ["yes", "indeed"], ["something", "anything else"],
              ["A cheap, well-known restaurant near the river.", "It's an aging restaurant; cheap, and near the river."]]
RANDOM = np.random.default_rng(0)
COUNTS = np.concatenate([np.ones((1, 6)), RANDOM.multinomial(6, np.full(6, 1 / 6), size=12)]).astype(float)


def corpus(metric: object, row: np.ndarray) -> float:
    places = np.repeat(np.arange(6), row.astype(int))
    streams = [[REFERENCES[place][k] for place in places] for k in range(2)]
    return float(metric.corpus_score([WRITTEN[place] for place in places], streams).score)  # type: ignore[attr-defined]


def test_bleu() -> None:
    wanted = [corpus(sacrebleu.metrics.BLEU(), row) for row in COUNTS]
    assert bleu_statistic(WRITTEN, REFERENCES)(COUNTS) == pytest.approx(wanted, abs=1e-9)
    assert max(wanted) > min(wanted) > 0


@pytest.mark.parametrize("place", [3, 4])
def test_bleu_of_texts_too_short_for_it(place: int) -> None:
    alone = np.zeros((1, 6))
    alone[0, place] = 6.0
    assert bleu_statistic(WRITTEN, REFERENCES)(alone)[0] == pytest.approx(corpus(sacrebleu.metrics.BLEU(), alone[0]))


def test_chrf() -> None:
    wanted = [corpus(sacrebleu.metrics.CHRF(), row) for row in COUNTS]
    assert chrf_statistic(WRITTEN, REFERENCES)(COUNTS) == pytest.approx(wanted, abs=1e-9)


def test_each_text_may_have_its_own_number_of_references() -> None:
    found = chrf_statistic(["a b c", "d e f"], [["a b c"], ["x", "d e f", "y"]])(np.ones((1, 2)))
    assert found[0] == pytest.approx(100.0)
    assert bleu_statistic(["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h"]])(np.ones((1, 2)))[0] == pytest.approx(100.0)


def test_exact_match_ignores_only_white_space() -> None:
    assert exact_match(["a  b ", "A b", "c"], [["a b"], ["a b"], ["d", "c"]]) == pytest.approx(2 / 3)


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Missing, match=r"thrifty\[generation\]"):
        need_sacrebleu()
