"""Single test items: the ones that were wrong with the most confidence, the largest errors, and what a model wrote."""
from __future__ import annotations

from collections.abc import Iterable

from thrifty.report import numbers
from thrifty.report.markup import section, text
from thrifty.report.reading import Results
from thrifty.report.schema import Prediction
from thrifty.report.sections import confidence, given

MOST = 10
LONG = 600      # characters of an input that are shown


def wrong(results: Results) -> str:
    """The test items that were wrong, the most confident first; without probabilities the first that were wrong."""
    labels = results.metrics["labels"]
    missed = [p for p in results.predictions if p["prediction"] != p["target"]]
    if not missed:
        what = "Every test item was predicted right." if results.predictions else "The folder holds no test predictions."
        return section("Most confidently wrong", "", f'<p class="note">{what}</p>')
    sure = any(p["scores"] for p in missed)
    worst = _once(sorted(missed, key=lambda p: -confidence(p, labels) if p["scores"] else 0))
    times = _times(missed)
    pictures = all(p["input"] is None for p in worst)
    cards = "".join(f'<li>{_card(p, labels, pictures, times[p["index"]], len(results.metrics["seeds"]))}</li>' for p in worst)
    name = "Most confidently wrong" if sure else "Wrong test items"
    return section(name, "Often the label is at fault, not the model: read these first.",
                   f'<ol class="cards{" pictures" if pictures else ""}">{cards}</ol>')


def far(results: Results) -> str:
    """The test items whose predicted number is farthest from the true one."""
    worst = _once(sorted(results.predictions, key=lambda p: -_distance(p)))
    if not worst:
        return ""
    cards = "".join(f'<li><span class="number">{p["index"]}</span><div>{_input(p)}<p class="fate">predicted '
                    f'<b class="bad">{_number(p["prediction"])}</b>, true <b class="good">{_number(p["target"])}</b></p></div></li>' for p in worst)
    return section("Largest errors", "The ten test items predicted farthest from the truth, with their row.", f'<ol class="cards">{cards}</ol>')


def written(results: Results) -> str:
    """Ten sources with the text that was wanted and the text that came."""
    first = [p for p in results.predictions if p["seed"] == results.metrics["seeds"][0]["seed"]]
    if not first:
        return section("Examples", "", '<p class="note">The folder holds no test predictions.</p>')
    chosen = [first[i * len(first) // min(MOST, len(first))] for i in range(min(MOST, len(first)))]
    cards = "".join(f'<li><span class="number">{p["index"]}</span><dl class="threefold">{_part("source", p["input"])}'
                    f'{_part("target", p["target"])}{_part("output", p["prediction"])}</dl></li>' for p in chosen)
    remark = "Spread evenly over the test split, not chosen by how good they are." if len(first) > len(chosen) else "The whole test split."
    return section("Examples", remark, f'<ol class="cards">{cards}</ol>')


def mistagged(results: Results) -> str:
    """The token sequences with the most wrong tags, each token that matters with its tag."""
    worst = _once(sorted((p for p in results.predictions if p["prediction"] != p["target"]), key=lambda p: -_misses(p)))
    if not worst:
        return ""
    cards = "".join(f'<li><span class="number">{p["index"]}</span><div class="tokens" dir="auto">{_tokens(p)}</div></li>' for p in worst)
    return section("Most wrong tags", "Under a wrong token: what it is, then in bold what was predicted.", f'<ol class="cards">{cards}</ol>')


def _card(p: Prediction, labels: list[str] | None, picture: bool, times: int, seeds: int) -> str:
    said = f'predicted <b class="bad">{_label(p, "prediction")}</b>'
    true = f'true <b class="good">{_label(p, "target")}</b>'
    if p["scores"]:
        said += f" with {numbers.percent(confidence(p, labels))}"
        true += f" with {numbers.percent(given(p, labels))}"
    often = f", wrong in {times} of {seeds} seeds" if seeds > 1 else ""
    if picture:
        return f'{_picture(p)}<p class="fate">{said}<br>{true}<br>test item {p["index"]}{often}</p>'
    return f'<span class="number">{p["index"]}</span><div>{_picture(p)}{_input(p)}{_choices(p)}<p class="fate">{said}, {true}{often}</p></div>'


def _label(p: Prediction, side: str) -> str:
    value = p["target"] if side == "target" else p["prediction"]
    return f"choice {value + 1}" if isinstance(value, int) else text(value, 80)


def _choices(p: Prediction) -> str:
    if "choices" not in p:
        return ""
    mark = {p["target"]: " <b>(true)</b>", p["prediction"]: " <b>(predicted)</b>"} if isinstance(p["target"], int) else {}
    lines = "".join(f"<li>{i + 1}. {text(choice, 200)}{mark.get(i, '')}</li>" for i, choice in enumerate(p["choices"]))
    return f'<ol class="choices" dir="auto">{lines}</ol>'


def _input(p: Prediction) -> str:
    parts = p["input"] if isinstance(p["input"], list) else [p["input"]]
    return "".join(f'<blockquote dir="auto">{text(part, LONG)}</blockquote>' for part in parts if part is not None)


def _picture(p: Prediction) -> str:
    return f'<img alt="test item {p["index"]}" src="{text(p["image"])}">' if "image" in p else ""


def _part(name: str, value: object) -> str:
    shown = value if isinstance(value, list) else [value]
    return f'<dt>{name}</dt><dd class="{name}" dir="auto">{text(chr(10).join(map(str, shown)), LONG)}</dd>'


def _tokens(p: Prediction) -> str:
    words = p["input"] if isinstance(p["input"], list) else []
    true, said = p["target"], p["prediction"]
    if not isinstance(true, list) or not isinstance(said, list):
        return ""
    shown = []
    for i, (a, b) in enumerate(zip(true, said, strict=False)):
        word = text(words[i] if i < len(words) else "·", 40)
        if a != b:
            shown.append(f'<span class="odd">{word}<small>{text(a)} <b>{text(b)}</b></small></span>')
        elif a != "O":
            shown.append(f'<span class="fine">{word}<small>{text(a)}</small></span>')
        else:
            shown.append(f"<span>{word}</span>")
    return "".join(shown)


def _misses(p: Prediction) -> int:
    if not isinstance(p["target"], list) or not isinstance(p["prediction"], list):
        return 0
    return sum(a != b for a, b in zip(p["target"], p["prediction"], strict=False))


def _distance(p: Prediction) -> float:
    a, b = p["target"], p["prediction"]
    return abs(a - b) if isinstance(a, int | float) and isinstance(b, int | float) else 0.0


def _number(value: object) -> str:
    return numbers.value("", value) if isinstance(value, int | float) else text(value)


def _once(rows: Iterable[Prediction], most: int = MOST) -> list[Prediction]:
    """The first of every test item, so that one item is not listed for every seed."""
    kept: dict[int, Prediction] = {}
    for row in rows:
        if len(kept) == most:
            break
        kept.setdefault(row["index"], row)
    return list(kept.values())


def _times(rows: Iterable[Prediction]) -> dict[int, int]:
    times: dict[int, int] = {}
    for row in rows:
        times[row["index"]] = times.get(row["index"], 0) + 1
    return times
