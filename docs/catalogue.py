"""Writes docs/methods.md, and the README's list of names, from the catalogue, so that they cannot disagree with it:
``python docs/catalogue.py``. The counts come from models without weights, which need transformers but no download."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import thrifty
from thrifty.core import Method
from thrifty.core.errors import ThriftyError
from thrifty.core.method import ROUTES
from thrifty.methods import CATALOGUE

DOCS = Path(__file__).resolve().parent
README, METHODS = DOCS.parent / "README.md", DOCS / "methods.md"
MARKS = re.compile(r"(<!-- methods: [^\n]*-->\n).*?(<!-- /methods -->)", re.DOTALL)
HEAD = """# Every method

Made by `python docs/catalogue.py`. `thrifty methods NAME` shows a method's settings.

Counts are of what trains at the default settings, without the new head of the task, on the shapes of BERT-base, ViT-B/16,
ResNet-50 and CLIP ViT-B/32 (a classifier of ten classes). "–" stands where a method is refused on that kind of model, or asks for
something that no table can give it: a saved adapter, a teacher, the data of the task. A method for several tasks serves two.
"merges" says whether it can be folded into the weights, so that nothing is left to pay when the model is used.
"""


def bert() -> nn.Module:
    """A classifier of texts."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_labels=2))


def vit() -> nn.Module:
    """A classifier of pictures by attention."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=2))


def resnet() -> nn.Module:
    """A classifier of pictures by convolutions."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=2))


def clip() -> nn.Module:
    """A classifier of pictures by the names of classes, each a word of one token."""
    from transformers import CLIPConfig, CLIPModel

    from thrifty.clip import ImageTextModel

    return ImageTextModel(CLIPModel(CLIPConfig()), Reader(), [f"class{i}" for i in range(10)])


class Reader:
    """Every word is one token: numbers of parameters do not depend on which."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The tokens of ``text``."""
        ids = [1 + sum(map(ord, word)) % 40000 for word in text.replace(".", " .").replace(",", " ,").split()]
        return {"input_ids": [49406, *ids, 49407] if add_special_tokens else ids}


SHAPES: dict[str, Callable[[], nn.Module]] = {"BERT": bert, "ViT": vit, "ResNet": resnet, "CLIP": clip}


def count(method: type[Method], shape: Callable[[], nn.Module]) -> str:
    """How many parameters the method trains on that model, beside its new head; "–" if it does not go there alone."""
    with torch.device("meta"):
        model = shape()
    also: dict[str, Any] = {"tasks": ["a", "b"]} if method.multitask else {}
    try:
        at = thrifty.attach(model, method(), check=False, **also)
    except ThriftyError:
        return "–"
    return f"{sum(p.numel() for n, p in at.named_parameters() if not n.removeprefix('base:').startswith('classifier')):,}"


def names(method: type[Method]) -> str:
    """Its name, and the others that it goes by."""
    others = [*method.aliases, *method.presets]
    return f"`{method.name}`" + (f" ({', '.join(others)})" if others else "")


def about(method: type[Method]) -> list[str]:
    """The cells of its row behind the counts."""
    return ["yes" if method.mergeable else "no", method.inference, method.paper]


def table(route: str) -> str:
    """The methods of one route, one row each."""
    heads = ["method", "what trains", *SHAPES, "merges", "at inference", "paper"]
    lines = [f"\n## On the route: {route}\n", f"| {' | '.join(heads)} |", "|---" * 2 + "|--:" * len(SHAPES) + "|---" * 3 + "|"]
    for method in CATALOGUE.values():
        if method.route == route:
            counts = [count(method, shape) for shape in SHAPES.values()]
            lines.append(f"| {' | '.join([names(method), method.trains, *counts, *about(method)])} |")
    return "\n".join(lines) + "\n"


def short() -> str:
    """The names of all methods, route by route."""
    lines = ["| route | methods |", "|---|---|"]
    for route in ROUTES:
        lines.append(f"| {route} | {', '.join(f'`{m.name}`' for m in CATALOGUE.values() if m.route == route)} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """The README with the names in their place."""
    return MARKS.sub(lambda m: m[1] + short() + m[2], text)


def page() -> str:
    """docs/methods.md."""
    return HEAD + "".join(map(table, ROUTES))


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
    METHODS.write_text(page())
