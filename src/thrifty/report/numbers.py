"""Numbers as people read them: a unit, a sensible rounding, a true minus sign. Spaces before units do not break."""
from __future__ import annotations

import re

GAP = "\u00a0"
_FRACTIONS = {"accuracy", "f1", "precision", "recall", "match", "share", "success", "spl"}
_TITLES = {"f1": "F1", "matthews": "Matthews correlation", "mcc": "Matthews correlation", "pearson": "Pearson correlation",
           "spearman": "Spearman correlation", "mse": "mean squared error", "rmse": "root mean squared error",
           "mae": "mean absolute error", "bleu": "BLEU", "chrf": "chrF", "cider": "CIDEr", "nll": "NLL", "ece": "ECE", "r2": "R²",
           "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougel": "ROUGE-L", "rougelsum": "ROUGE-Lsum",
           "spl": "SPL", "ndtw": "nDTW", "sdtw": "SDTW", "cls": "CLS"}


def count(n: int) -> str:
    """Exact, in groups of three: ``22,713,216``."""
    return f"{n:,}".replace("-", "−")


def short(n: int) -> str:
    """Three digits and a magnitude: ``22.7 M``. Below ten thousand exact."""
    if n < 10_000:
        return count(n)
    step, unit = next((step, unit) for step, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if n >= step)
    return _three(n / step) + GAP + unit


def size(n: int) -> str:
    """Bytes in powers of a thousand: ``295 kB``."""
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= step:
            return _three(n / step) + GAP + unit
    return f"{n}{GAP}bytes"


def seconds(s: float) -> str:
    """``0.42 s``, ``12.3 s``, ``2 min 05 s``, ``1 h 12 min``."""
    if s < 59.95:
        return _three(s) + GAP + "s"
    whole = round(s)
    if whole < 3600:
        return f"{whole // 60}{GAP}min{GAP}{whole % 60:02d}{GAP}s"
    minutes = round(s / 60)
    return f"{minutes // 60:,}{GAP}h{GAP}{minutes % 60:02d}{GAP}min"


def share(part: float, whole: float) -> str:
    """``0.33 %`` of the whole; never a rounded zero."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"below 0.001{GAP}%" if 0 < percent < 0.001 else f"{_three(percent)}{GAP}%"


def percent(fraction: float, places: int = 1) -> str:
    """``87.5 %``."""
    return f"{_signless(100 * fraction, places)}{GAP}%"


def probability(p: float) -> str:
    """``96.7 %``; what would round to nothing or to certainty says so: ``under 0.1 %``, ``over 99.9 %``."""
    if 0 < p < 0.001:
        return f"under 0.1{GAP}%"
    return f"over 99.9{GAP}%" if 0.999 < p < 1 else percent(p)


def is_fraction(metric: str) -> bool:
    """Whether a metric is a share between 0 and 1, and so is read in percent and in points."""
    return bool(_FRACTIONS & set(_words(metric.rpartition(".")[2])))


def title(metric: str) -> str:
    """The name of a metric in a sentence: ``macro F1``, ``Pearson correlation``; of one of several tasks ``rte: accuracy``."""
    task, dot, own = metric.rpartition(".")
    return (f"{task}: " if dot else "") + " ".join(_TITLES.get(word, word) for word in _words(own))


def value(metric: str, number: float) -> str:
    """One value of a metric, in percent where it is a share: ``87.5 %``, ``0.612``, ``27.3``."""
    return percent(number) if is_fraction(metric) else plain(number)


def plain(number: float) -> str:
    """A number without a unit: ``0.612``, ``27.3``, ``1,204``."""
    return _signless(number, _places(number))


def rounded(number: float) -> str:
    """Three significant digits: ``89.4``, ``0.412``, ``1,204``."""
    return _three(number)


def interval(metric: str, low: float | None, high: float | None) -> str:
    """``82.5 to 91.5``, without the unit; a dash where there is none."""
    if low is None or high is None:
        return "–"
    if is_fraction(metric):
        return f"{_signless(100 * low, 1)} to {_signless(100 * high, 1)}"
    places = _places(max(abs(low), abs(high)))
    return f"{_signless(low, places)} to {_signless(high, places)}"


def difference(metric: str, number: float, low: float | None, high: float | None) -> str:
    """``+3.2 points, 95 % interval 0.9 to 5.5``; more digits where rounding would hide on which side of zero an end lies."""
    times = 100 if is_fraction(metric) else 1
    ends = [times * end for end in (low, high) if end is not None]
    places = 1 if times == 100 else _places(max(map(abs, [number, *ends])))
    while places < 6 and any(end and not round(end, places) for end in ends):
        places += 1
    sign = "+" if round(times * number, places) > 0 else ""
    said = sign + _signless(times * number, places) + (" points" if times == 100 else "")
    if len(ends) < 2:
        return said + ", without an interval"
    return f"{said}, 95{GAP}% interval {_signless(ends[0], places)} to {_signless(ends[1], places)}"


def _words(metric: str) -> list[str]:
    return re.split(r"[\s_\-]+", metric.lower())


def _places(number: float) -> int:
    return 3 if abs(number) < 10 else 1 if abs(number) < 1000 else 0


def _signless(number: float, places: int) -> str:
    """Rounded, with a true minus sign and no negative zero."""
    return f"{round(number, places) + 0.0:,.{places}f}".replace("-", "−")


def _three(number: float) -> str:
    """Three significant digits without an exponent."""
    places = 0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2 if abs(number) >= 0.0995 else 3
    text = _signless(number, places)
    return text.rstrip("0").rstrip(".") if "." in text and abs(number) < 0.0995 else text
