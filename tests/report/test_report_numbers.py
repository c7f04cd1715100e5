"""Numbers read as they should, and the counts behind the pictures agree with independent ones."""
from __future__ import annotations

import math
import random

import numpy
import pytest

from thrifty.report import charts, measure, numbers
from thrifty.report.axes import name_ticks, ticks, widen
from thrifty.report.headline import brief

GAP = numbers.GAP


@pytest.mark.parametrize(("shown", "wanted"), [
    (numbers.count(22_713_216), "22,713,216"), (numbers.short(22_713_216), f"22.7{GAP}M"),
    (numbers.short(9_999), "9,999"),
    (numbers.short(73_728), f"73.7{GAP}k"), (numbers.short(7_000_000_000), f"7.00{GAP}B"),
    (numbers.size(512), f"512{GAP}bytes"), (numbers.size(318_204), f"318{GAP}kB"),
    (numbers.size(1_250_000_000), f"1.25{GAP}GB"),
    (numbers.seconds(0.042), f"0.042{GAP}s"), (numbers.seconds(12.34), f"12.3{GAP}s"),
    (numbers.seconds(59.99), f"1{GAP}min{GAP}00{GAP}s"),
    (numbers.seconds(125), f"2{GAP}min{GAP}05{GAP}s"), (numbers.seconds(4_330), f"1{GAP}h{GAP}12{GAP}min"),
    (numbers.share(73_728, 22_713_216), f"0.32{GAP}%"), (numbers.share(1, 10**9), f"below 0.001{GAP}%"),
    (numbers.share(1, 0), "–"),
    (numbers.value("accuracy", 0.875), f"87.5{GAP}%"), (numbers.value("macro_f1", 0.875), f"87.5{GAP}%"),
    (numbers.value("pearson", 0.8714), "0.871"), (numbers.value("bleu", 27.31), "27.3"),
    (numbers.value("pearson", -0.0001), "0.000"),
    (numbers.value("pearson", -0.25), "−0.250"),
    (numbers.difference("accuracy", 0.032, 0.009, 0.055), f"+3.2 points, 95{GAP}% interval 0.9 to 5.5"),
    (numbers.difference("accuracy", 0.0002, 0.0001, 0.0003), f"+0.02 points, 95{GAP}% interval 0.01 to 0.03"),
    (numbers.difference("pearson", -0.03, -0.05, -0.01), f"−0.030, 95{GAP}% interval −0.050 to −0.010"),
    (numbers.difference("accuracy", 0.01, None, None), "+1.0 points, without an interval"),
    (numbers.probability(0.0004), f"under 0.1{GAP}%"), (numbers.probability(0.9999), f"over 99.9{GAP}%"),
    (numbers.title("rougeL"), "ROUGE-L"), (numbers.title("macro_f1"), "macro F1"),
    (brief("/data/a b/reviews.csv"), "reviews.csv"), (brief("owner/name"), "owner/name"),
    (brief("./x/"), "x"), (brief("minilm"), "minilm"),
    (brief("C:\\data\\x.csv"), "x.csv"), (brief("/"), "/"),
])
def test_numbers_read_as_they_should(shown: str, wanted: str) -> None:
    assert shown == wanted


def test_ticks_are_few_round_and_inside() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        low = rng.uniform(-1, 1) * 10 ** rng.uniform(-5, 5)
        high = low + 10 ** rng.uniform(-5, 5)
        most = rng.randint(3, 8)
        marks = ticks(low, high, most)
        assert 1 <= len(marks) <= most
        assert all(low - 1e-6 * (high - low) <= mark <= high + 1e-6 * (high - low) for mark in marks)
        assert len(set(name_ticks(marks))) == len(marks)
        if len(marks) > 1:
            step = (marks[-1] - marks[0]) / (len(marks) - 1)
            leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
            assert min(abs(leading - good) for good in (1, 2, 2.5, 5, 10)) < 1e-6
        wide = widen(low, high, 5)
        assert wide[0] <= low + 1e-8 * (high - low) and wide[1] >= high - 1e-8 * (high - low)
    assert name_ticks([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert name_ticks([0.2, 0.4], percent=True) == [f"20{GAP}%", f"40{GAP}%"]
    low, high = widen(3.0, 3.0)
    assert low < 3 < high


def test_smoothing_keeps_straight_lines_and_calms_noise() -> None:
    line = [3 - 0.01 * i for i in range(500)]
    assert charts.smooth(line) == pytest.approx(line)
    rng = random.Random(1)
    noisy = [v + rng.gauss(0, 0.5) for v in line]
    gaps = numpy.abs(numpy.array(charts.smooth(noisy)) - line)
    assert gaps.mean() < 0.2
    assert charts.smooth([]) == [] and charts.smooth([2.0]) == [2.0]


def test_thinning_keeps_extremes_and_order() -> None:
    rng = random.Random(2)
    points = [(float(i), rng.random()) for i in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    kept = charts.thin(points)
    assert len(kept) <= 602 and (31_234.0, 9.0) in kept and kept == sorted(kept)
    assert min(kept, key=lambda p: p[1]) == min(points, key=lambda p: p[1])


def test_confusion_and_scores_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(3)
    labels = ["a", "b", "c", "d", "never"]
    true = [rng.choice(labels[:4]) for _ in range(300)]
    said = [t if rng.random() < 0.6 else rng.choice(labels[:3]) for t in true]
    counts = measure.confusion(zip(true, said, strict=True), labels)
    assert counts == metrics.confusion_matrix(true, said, labels=labels).tolist()
    precision, recall, f1, items = metrics.precision_recall_fscore_support(true, said, labels=labels, zero_division=0)
    for i, found in enumerate(measure.label_scores(counts)):
        assert (found.precision or 0, found.recall or 0, found.f1 or 0) == pytest.approx((precision[i], recall[i], f1[i]))
        assert found.items == items[i]
    assert measure.label_scores(counts)[4] == measure.Score(None, None, None, 0)
    worst = measure.mixed_up(counts)
    assert worst[0][2] == max(n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j)
    assert sum(n for _, _, n in worst) == sum(t != s for t, s in zip(true, said, strict=True))


def test_wilson_interval_is_the_published_one() -> None:
    assert measure.likely(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert measure.likely(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_scores_of_entities_and_of_plain_tags() -> None:
    labels = ["O", "B-a", "I-a", "B-b"]
    found = measure.entity_scores([(["B-a", "I-a", "O", "B-b"], ["B-a", "O", "O", "B-b"]), (["O"], ["B-b"])], labels)
    assert found["a"] == measure.Score(0.0, 0.0, 0.0, 1)
    assert found["b"] == measure.Score(0.5, 1.0, pytest.approx(2 / 3), 1)
    plain = measure.entity_scores([(["noun", "verb"], ["noun", "noun"])], ["noun", "verb"])
    assert plain["noun"].precision == 0.5 and plain["verb"].recall == 0.0
