"""The tasks that rows can be read for, and the roles that columns play in each."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Roles:
    """What a task needs, what it can use, and which of these the model sees (the rest is what it must say)."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    seen: tuple[str, ...]


GENERATION = Roles(("source", "target"), ("references",), ("source",))
TASKS: dict[str, Roles] = {
    "text-classification": Roles(("text", "label"), ("text_pair",), ("text", "text_pair")),
    "regression": Roles(("text", "label"), ("text_pair",), ("text", "text_pair")),
    "token-classification": Roles(("tokens", "tags"), (), ("tokens",)),
    "multiple-choice": Roles(("text", "choices", "label"), (), ("text", "choices")),
    "causal-generation": GENERATION,
    "seq2seq-generation": GENERATION,
    "masked-language": Roles(("text",), (), ("text",)),
    "image-classification": Roles(("image", "label"), (), ("image",)),
    "contrastive": Roles(("image", "captions"), (), ("image", "captions")),
}
ROLES = tuple(dict.fromkeys(role for task in TASKS.values() for role in task.needed + task.optional))
CLASSIFICATION = ("text-classification", "image-classification")
