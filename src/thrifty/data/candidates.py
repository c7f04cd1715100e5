"""Which columns could play a role, by their names and by what they hold."""
from __future__ import annotations

import re
from collections.abc import Callable

from thrifty.data.describe import LABEL_NAMES, Look, parts
from thrifty.data.rows import Table

View = dict[str, Look]
Named = dict[str, list[str]]

PAIRS = (
    ("premise", "hypothesis"), ("question", "sentence"), ("passage", "question"), ("context", "question"),
    ("text", "text_pair"), ("query", "passage"), ("query", "document"), ("question", "passage"), ("question", "context"),
    ("claim", "evidence"),
    ("sentence", "sentence_pair"),
)  # fmt: skip
SOURCES = frozenset({
    "article", "context", "dialogue", "document", "input", "instruction", "mr", "problem", "prompt", "query",
    "question", "source", "src", "text",
})  # fmt: skip
TARGETS = frozenset({
    "answer", "completion", "highlights", "output", "ref", "response", "solution", "summary", "target", "tgt",
    "translation",
})  # fmt: skip
REFERENCES = frozenset({
    "references", "refs", "targets",
})  # fmt: skip
CAPTIONS = frozenset({
    "caption", "captions", "description", "descriptions", "sentence", "sentences", "text", "texts",
})  # fmt: skip
ANSWERS = frozenset({
    "answer", "answer_idx", "answer_index", "answer_key", "answerkey", "correct", "correct_answer", "gold", "label",
    "target",
})  # fmt: skip
CHOICE_WORDS = frozenset({
    "alternative", "answer", "candidate", "choice", "ending", "option", "sol", "solution",
})  # fmt: skip


def without(view: View, found: Named) -> View:
    """The columns that have no role yet."""
    taken = {name for names in found.values() for name in names}
    return {name: column for name, column in view.items() if name not in taken}


def naming_column(label: str, view: View) -> str | None:
    """The column that by its name gives the names of the classes in ``label``, if there is one."""
    return next((name for name in (f"{label}_name", f"{label}_names", f"{label}_text", f"{label}_str") if name in view), None)


def find_pair(texts: list[str]) -> tuple[str, str] | None:
    """The two ``texts`` in their order if their names make a known pair: premise and hypothesis, X1 and X2, X_a and X_b."""
    if len(texts) != 2:
        return None
    lower = {name.lower(): name for name in texts}
    for first, second in PAIRS:
        if set(lower) == {first, second}:
            return lower[first], lower[second]
    first, second = sorted(texts, key=str.lower)
    stem = re.sub(r"[_-]?(1|a|A)$", "", first)
    numbered = re.fullmatch(re.escape(stem) + r"[_-]?(2|b|B)", second) is not None and stem != first
    return (first, second) if numbered else None


def label_candidates(view: View, found: Named, table: Table, task: str) -> list[str]:
    """Columns called label (or class, target, …); if there is none, columns whose few values could be classes."""
    scalar = [name for name, column in view.items() if column.kind in ("text", "int", "float", "bool") and not column.is_id]
    wanted = ANSWERS if task == "multiple-choice" else LABEL_NAMES
    broken = [name for name, column in view.items() if column.kind in ("mixed", "empty")]
    named = [name for name in scalar + broken if name.lower() in wanted and not view[name].is_prose]
    if task == "regression":
        named = [name for name in named if view[name].kind in ("int", "float")] or named
    if named:
        return named
    numbers = [name for name in scalar if view[name].kind == "float" or (task == "regression" and view[name].kind == "int")]
    texts = [name for name, column in view.items() if column.is_text]
    classes = [name for name in scalar if view[name].is_class and name not in texts]
    if task == "regression":
        return numbers
    return classes + (numbers if task == "text-classification" and "text" not in found else [])


def token_candidates(view: View, found: Named, table: Table, task: str) -> list[str]:
    """List columns called tokens or words."""
    return [name for name, column in view.items() if column.kind == "list" and {*parts(name)} & {"tokens", "words"}]


def tag_candidates(view: View, found: Named, table: Table, task: str) -> list[str]:
    """List columns that in most rows are as long as the tokens."""
    tokens = table[found["tokens"][0]]

    def fits(name: str) -> bool:
        pairs = [(a, b) for a, b in zip(tokens, table[name], strict=True) if isinstance(a, list) and isinstance(b, list)]
        return 2 * sum(len(a) == len(b) for a, b in pairs) > len(pairs) > 0

    return [name for name, column in view.items() if column.kind == "list" and fits(name)]


def image_candidates(view: View, found: Named, table: Table, task: str) -> list[str]:
    """Columns of image bytes; if there is none, columns of image paths."""
    held = [name for name, column in view.items() if column.kind == "bytes"]
    return held or [name for name, column in view.items() if column.kind == "path"]


def caption_candidates(view: View, found: Named, table: Table, task: str) -> list[str]:
    """Columns called caption, or text, sentence and so on, of texts or of lists of them."""
    named = [name for name, column in view.items() if column.kind in ("text", "list") and CAPTIONS & {*parts(name)}]
    return named or [name for name, column in view.items() if column.is_prose]


def choice_columns(view: View) -> list[list[str]]:
    """Groups of columns that hold the choices: one of lists, or one per choice (choice1, choice2; ending0, …; A, B, C)."""
    plural = {"choices", "options", "endings", "candidates"}
    lists = [[name] for name, column in view.items() if column.kind in ("list", "mapping") and plural & {*parts(name)}]
    groups: dict[str, list[str]] = {}
    for name in view:
        match = re.fullmatch(r"([A-Za-z]+)[_ -]?(\d|[A-Za-z])", name)
        if match and match[1].lower() in CHOICE_WORDS:
            groups.setdefault(match[1], []).append(name)
    letters = [letter for letter in "ABCDEFGH" if letter in view]
    if len(letters) > 1 and letters == list("ABCDEFGH")[: len(letters)]:
        groups["letters"] = letters
    return lists + [sorted(names) for names in groups.values() if len(names) > 1]


def is_source(column: Look) -> bool:
    """Whether this is a text to start from, by its name."""
    return column.kind == "text" and not column.is_id and column.name.lower() in SOURCES


def is_target(column: Look) -> bool:
    """Whether this is a text to write, or a list of references, by its name; a column of classes is not."""
    name = column.name.lower()
    if column.kind == "list":
        return name in REFERENCES
    return name in TARGETS | REFERENCES and column.kind == "text" and (column.is_prose or 2 * column.distinct > column.rows)


def applies_to_tokens(view: View, said: Named) -> bool:
    """Tokens and another column of lists stand there, or were named. Tokens alone may be a text split into words."""
    lists = sum(column.kind == "list" for column in view.values())
    return bool({"tokens", "tags"} & set(said)) or (lists > 1 and bool(token_candidates(view, {}, {}, "")))


def applies_to_text(view: View, said: Named) -> bool:
    """A text and a label stand there, or were named."""
    rest = without(view, said)
    labels = label_candidates(rest, {}, {}, "text-classification")
    if any(map(is_source, view.values())) and any(map(is_target, view.values())):
        labels = [name for name in labels if name.lower() in LABEL_NAMES and not is_target(view[name])]
    labelled = "label" in said or bool(labels)
    return labelled and ("text" in said or any(column.is_text for column in rest.values()))


def applies_to_generation(view: View, said: Named) -> bool:
    """A source and a target stand there by name and no column is called label, or they were named."""
    if {"source", "target", "references"} & set(said):
        return True
    labels = [name for name, column in view.items() if name.lower() in LABEL_NAMES and not is_target(column)]
    return not labels and any(map(is_source, view.values())) and any(map(is_target, view.values()))


APPLIES: dict[str, Callable[[View, Named], bool]] = {
    "token-classification": applies_to_tokens,
    "multiple-choice": lambda view, said: "choices" in said or bool(choice_columns(view)),
    "image-classification": lambda view, said: "image" in said or bool(image_candidates(view, {}, {}, "")),
    "contrastive": lambda view, said: "captions" in said,
    "causal-generation": applies_to_generation,
    "seq2seq-generation": applies_to_generation,
    "text-classification": applies_to_text,
}
CANDIDATES: dict[str, Callable[[View, Named, Table, str], list[str]]] = {
    "tokens": token_candidates,
    "tags": tag_candidates,
    "image": image_candidates,
    "captions": caption_candidates,
    "label": label_candidates,
}
