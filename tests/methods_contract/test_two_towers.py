"""Every method that needs classes by their names keeps every promise on a model that knows them."""
from __future__ import annotations

import pytest

from thrifty.methods import CATALOGUE
from thrifty.testing import PROMISES, contract, tiny

SETTINGS: dict[str, dict[str, object]] = {
    "coop": {"length": 3}, "cocoop": {"words": "a photo", "reduction": 4}, "kgcoop": {}, "prograd": {"length": 5},
    "defo": {"queries": 5, "length": 2},
    "clip-adapter": {}, "taskres": {}, "clip-lora": {"dropout": 0.0}, "lp++": {}, "tip-adapter": {}, "tip-adapter-f": {},
    "sus-x": {}, "ape": {}, "ape-t": {},
    "maple": {"depth": 2}, "ivlp": {"text_depth": 2, "image_depth": 2}, "promptsrc": {"text_depth": 2, "image_depth": 2},
}
COMPILED = ("coop", "cocoop", "maple", "defo", "clip-adapter", "taskres", "lp++", "sus-x", "ape", "ape-t")
NEEDY = [name for name, method in CATALOGUE.items() if method.needs == "an image-text model"]


def test_none_is_left_out() -> None:
    assert sorted(NEEDY) == sorted(SETTINGS)


@pytest.mark.parametrize("promise", [p for p in PROMISES if p is not contract.routes_rows], ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_method_keeps_its_promise(name: str, promise: contract.Promise) -> None:
    if promise is contract.compiles and name not in COMPILED:
        pytest.skip("made of the same edits as one that is compiled")
    promise(CATALOGUE[name].make(**SETTINGS[name]), tiny.make("image_text"))
