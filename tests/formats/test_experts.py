"""Experts: what they say stands in front of the prompt."""
from __future__ import annotations

import pytest

from thrifty.core.errors import BadData
from thrifty.formats.experts import consult


def test_what_experts_say_comes_first_in_their_order() -> None:
    experts = {"Caption": lambda p: f"a picture of {p} ", "OCR": lambda p: "STOP {name}" if p == "a sign" else "  "}
    assert consult(["What is it?", "Why?"], ["a sign", "a cat"], experts) == [
        "Caption: a picture of a sign\nOCR: STOP {name}\nWhat is it?", "Caption: a picture of a cat\nWhy?"]
    assert consult(["Why?"], ["x"], {"OCR": str.upper}, line="[{said}] ") == ["[X] Why?"]
    assert consult(["Why?"], ["x"], {}) == ["Why?"]


def test_refusals() -> None:
    with pytest.raises(BadData, match="2 prompts come with 1 pictures"):
        consult(["a", "b"], ["x"], {})
    with pytest.raises(BadData, match="said"):
        consult(["a"], ["x"], {}, line="{name}")
    with pytest.raises(BadData, match="'OCR' answers row 0 with list"):
        consult(["a"], ["x"], {"OCR": lambda p: [p]})  # type: ignore[dict-item,return-value]
