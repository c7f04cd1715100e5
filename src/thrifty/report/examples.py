"""Single test items: those that were wrong with the most confidence, those tagged worst, and what a model wrote."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from thrifty.report import numbers
from thrifty.report.calibration import probability
from thrifty.report.files import Prediction
from thrifty.report.markup import cards, note, section, text
from thrifty.report.reading import Results

MOST = 10
LONG = 600      # characters of an input that are shown


def wrong(results: Results) -> str:
    """The test items that were wrong, the most confident first; without probabilities the first that were wrong."""
    labels, seeds = results.metrics["labels"], len(results.metrics["seeds"])
    missed = [p for p in results.predictions if p["prediction"] != p["target"]]
    if not missed:
        what = "Every test item was predicted right." if results.predictions else "The folder holds no test predictions."
        return section("Most confidently wrong", "", note(what))
    worst = unlike(sorted(missed, key=lambda p: -probability(p, p["prediction"], labels) if p["scores"] else 0))
    times = Counter(p["index"] for p in missed)
    often = {p["index"]: f", wrong in {times[p['index']]} of {seeds} seeds" if seeds > 1 else "" for p in worst}
    name = "Most confidently wrong" if any(p["scores"] for p in missed) else "Wrong test items"
    remark = "Often the label is at fault, not the model: read these first."
    if all(p["input"] is None for p in worst):
        shown = (f'<li>{_picture(p)}<p class="fate">{_said(p, labels)}<br>{_true(p, labels)}<br>row {p["index"]}'
                 f'{often[p["index"]]}</p></li>' for p in worst)
        return section(name, remark, cards(shown, "pictures"))
    shown = (row(p, f'<div>{_picture(p)}{quote(p)}{_choices(p)}<p class="fate">{_said(p, labels)}, {_true(p, labels)}'
                    f'{often[p["index"]]}</p></div>') for p in worst)
    return section(name, remark, cards(shown))


def written(results: Results) -> str:
    """Ten sources with the text that was wanted and the text that came."""
    first = [p for p in results.predictions if p["seed"] == results.metrics["seeds"][0]["seed"]]
    if not first:
        return section("Examples", "", note("The folder holds no test predictions."))
    number = min(MOST, len(first))
    chosen = [first[i * len(first) // number] for i in range(number)]
    shown = (row(p, f'<dl class="threefold">{_part("source", p["input"])}{_part("target", p["target"])}'
                    f'{_part("output", p["prediction"])}</dl>') for p in chosen)
    remark = "Spread evenly over the test split, not chosen by how good they are."
    return section("Examples", remark if len(first) > number else "The whole test split.", cards(shown))


def mistagged(results: Results) -> str:
    """The token sequences with the most wrong tags, each token that matters with its tag."""
    worst = unlike(sorted((p for p in results.predictions if p["prediction"] != p["target"]), key=_misses, reverse=True))
    if not worst:
        return ""
    shown = (row(p, f'<div class="tokens" dir="auto">{_tokens(p)}</div>') for p in worst)
    return section("Most wrong tags", "Under a wrong token: what it is, then in bold what was predicted.", cards(shown))


def unlike(rows: Iterable[Prediction], most: int = MOST) -> list[Prediction]:
    """The first ``most`` different test items, so that one item is not listed for every seed."""
    kept: dict[int, Prediction] = {}
    for prediction in rows:
        kept.setdefault(prediction["index"], prediction)
        if len(kept) == most:
            break
    return list(kept.values())


def row(p: Prediction, body: str) -> str:
    """One card: where the item lies in the test split, and ready markup."""
    return f'<li><span class="number">row {p["index"]}</span>{body}</li>'


def quote(p: Prediction) -> str:
    """The text or texts of a test item."""
    parts = p["input"] if isinstance(p["input"], list) else [p["input"]]
    return "".join(f'<blockquote dir="auto">{text(part, LONG)}</blockquote>' for part in parts if part is not None)


def _said(p: Prediction, labels: list[str] | None) -> str:
    if p["prediction"] is None:
        return f'wrote <b class="bad">{text(p.get("written", ""), 80) or "nothing"}</b>, which names no answer'
    return f'predicted <b class="bad">{_named(p["prediction"])}</b>{_sure(p, p["prediction"], labels)}'


def _true(p: Prediction, labels: list[str] | None) -> str:
    return f'true <b class="good">{_named(p["target"])}</b>{_sure(p, p["target"], labels)}'


def _named(value: object) -> str:
    return f"choice {value + 1}" if isinstance(value, int) else text(value, 80)


def _sure(p: Prediction, value: object, labels: list[str] | None) -> str:
    return f" ({numbers.probability(probability(p, value, labels))})" if p["scores"] else ""


def _choices(p: Prediction) -> str:
    marks = {p["target"]: " <b>(true)</b>", p["prediction"]: " <b>(predicted)</b>"} if "choices" in p else {}
    lines = "".join(f"<li>{i + 1}. {text(choice, 200)}{marks.get(i, '')}</li>" for i, choice in enumerate(p.get("choices", [])))
    return f'<ol class="choices" dir="auto">{lines}</ol>' if lines else ""


def _picture(p: Prediction) -> str:
    return f'<img alt="test item {p["index"]}" src="{text(p["image"])}">' if "image" in p else ""


def _part(name: str, value: object) -> str:
    lines = "\n".join(map(str, value)) if isinstance(value, list) else value
    return f'<dt>{name}</dt><dd class="{name}" dir="auto">{text(lines, LONG)}</dd>'


def _tokens(p: Prediction) -> str:
    shown = []
    for word, true, said in zip(*_sequences(p), strict=True):
        if true != said:
            shown.append(f'<span class="odd">{text(word, 40)}<small>{text(true)} <b>{text(said)}</b></small></span>')
        elif true != "O":
            shown.append(f'<span class="fine">{text(word, 40)}<small>{text(true)}</small></span>')
        else:
            shown.append(f"<span>{text(word, 40)}</span>")
    return "".join(shown)


def _misses(p: Prediction) -> int:
    return sum(true != said for _, true, said in zip(*_sequences(p), strict=True))


def _sequences(p: Prediction) -> tuple[list[str], list[str], list[str]]:
    """Tokens, true tags and predicted tags, equally long; ``check_prediction`` has made sure that they are."""
    return p["input"], p["target"], p["prediction"]  # type: ignore[return-value]
