"""The set that ships with thrifty: its counts, its balance, and that no text leaks from one split into another."""
from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import thrifty

FOLDER = Path(thrifty.__file__).parent / "data" / "cityline"
PER_CLASS = {"train": 48, "validation": 8, "test": 20}
LABELS = {
    "animals_and_pests",
    "building_and_planning",
    "illegal_dumping",
    "noise",
    "parking",
    "roads_and_paths",
    "street_lighting",
    "trees_and_parks",
    "waste_collection",
    "water_and_drains",
}


def read_split(name: str) -> list[tuple[str, str]]:
    """The (text, label) rows of one split, after checking the header and that every row has exactly two fields."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    assert header == ["text", "label"]
    assert all(len(row) == 2 for row in rows)
    return [(text, label) for text, label in rows]


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe joins, so that "isn't" and "isnt" are one word."""
    return re.findall(r"[a-z0-9]+", re.sub(r"['’]", "", text.lower()))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for name in PER_CLASS for text, _ in read_split(name)]


@pytest.mark.parametrize("name", PER_CLASS)
def test_every_class_has_its_share_of_every_split(name: str) -> None:
    counts = Counter(label for _, label in read_split(name))
    assert counts == dict.fromkeys(LABELS, PER_CLASS[name])


@pytest.mark.parametrize("name", PER_CLASS)
def test_rows_are_shuffled(name: str) -> None:
    """Sorted by class, neighbours would differ only nine times; shuffled, about nine in ten do."""
    labels = [label for _, label in read_split(name)]
    changes = sum(one != other for one, other in zip(labels, labels[1:], strict=False))
    assert changes > 0.75 * len(labels)


def test_texts_have_5_to_45_words_and_no_stray_spaces(texts: list[str]) -> None:
    assert all(5 <= len(text.split()) <= 45 for text in texts)
    assert all(text == " ".join(text.split()) for text in texts)


def test_lengths_vary(texts: list[str]) -> None:
    lengths = [len(text.split()) for text in texts]
    assert sum(length <= 10 for length in lengths) >= 50
    assert sum(length >= 30 for length in lengths) >= 20


def test_no_text_says_its_own_label_as_written(texts: list[str]) -> None:
    assert not [text for text in texts if "_" in text]


def test_no_two_texts_share_most_of_their_words(texts: list[str]) -> None:
    words = [frozenset(split_words(text)) for text in texts]
    near = [
        (texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)
        if len(words[i] & words[j]) >= 0.6 * len(words[i] | words[j])
    ]
    assert near == []


def test_no_two_texts_share_six_words_in_a_row(texts: list[str]) -> None:
    first_seen: dict[tuple[str, ...], int] = {}
    shared = []
    for number, text in enumerate(texts):
        words = split_words(text)
        for start in range(len(words) - 5):
            run = tuple(words[start:start + 6])
            if first_seen.setdefault(run, number) != number:
                shared.append(" ".join(run))
    assert shared == []


def test_texts_hold_no_contact_details(texts: list[str]) -> None:
    """No mail or web address, and no digits in a row as long as a telephone number."""
    assert not [text for text in texts if re.search(r"@|www\.|https?:|\d[\d ]{6,}\d", text)]


def test_the_card_describes_every_class_and_the_licence() -> None:
    card = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    assert all(f"| `{label}` |" in card for label in LABELS)
    assert all(f"| `{name}.csv` | {10 * share} | {share} |" in card for name, share in PER_CLASS.items())
    assert "MIT" in card
