"""The only place where a value becomes HTML. Whatever comes from users goes through ``text``."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

LONGEST = 200   # entries of one list in a record that are shown
# What neither HTML nor XML can hold: control characters, lone surrogates, non-characters.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(value: object, most: int | None = None) -> str:
    """``value`` as text that shows as itself: escaped, without unfit characters, cut after ``most`` characters."""
    shown = str(value)
    if most is not None and len(shown) > most:
        shown = shown[: most - 1].rstrip() + "…"
    return escape(_UNFIT.sub("\ufffd", shown))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of ready markup; the first column names the row, the others are numbers."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str, str]]) -> str:
    """A list of name, value and remark, all ready markup."""
    rows = "".join(f"<div><dt>{name}</dt><dd><b>{value}</b>{f' <span>{remark}</span>' if remark else ''}</dd></div>"
                   for name, value, remark in pairs)
    return f'<dl class="facts">{rows}</dl>'


def note(words: str) -> str:
    """A sentence, ready markup, where something else would have been."""
    return f'<p class="note">{words}</p>'


def cards(entries: Iterable[str], kind: str = "") -> str:
    """A list of ready cards."""
    return f'<ol class="cards {kind}">{"".join(entries)}</ol>'


def figure(chart: str, caption: str = "", kind: str = "") -> str:
    """A chart with ready markup beneath it."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{chart}{below}</figure>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Swatches with their meaning: (class of the swatch, ready markup)."""
    return '<span class="legend">' + "".join(f'<span><i class="{kind}"></i>{name}</span>' for kind, name in entries) + "</span>"


def section(name: str, remark: str, body: str) -> str:
    """One part of the page: its name and what to know about it at the side, its content beside them."""
    side = f"<p>{remark}</p>" if remark else ""
    return f'<section><header><h2>{name}</h2>{side}</header><div class="body">{body}</div></section>'


def record(value: object) -> str:
    """Any JSON as nested lists and tables that can be read: objects by key, lists of like objects as a table."""
    if isinstance(value, dict):
        return '<dl class="record">' + "".join(f"<dt>{text(k)}</dt><dd>{record(v)}</dd>" for k, v in value.items()) + "</dl>"
    if not isinstance(value, list):
        return text(_word(value))
    rest = len(value) - LONGEST
    return _entries(value[:LONGEST]) + (f"<p>and {rest:,} more</p>" if rest > 0 else "")


def _entries(values: list[object]) -> str:
    dicts = [one for one in values if isinstance(one, dict) and one]
    if dicts and len(dicts) == len(values) and all(one.keys() == dicts[0].keys() for one in dicts):
        return table([text(key) for key in dicts[0]], [[record(cell) for cell in one.values()] for one in dicts], "plain")
    if all(not isinstance(one, dict | list) and len(str(one)) <= 40 for one in values):
        return text(", ".join(map(_word, values)) or "none")
    return "<ol>" + "".join(f"<li>{record(one)}</li>" for one in values) + "</ol>"


def _word(value: object) -> str:
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
