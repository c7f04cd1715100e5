"""One model for several tasks: which form of it all of them share."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from thrifty.core.errors import Unfit
from thrifty.models.backbone import Backbone
from thrifty.models.finding import find
from thrifty.models.kinds import AUTO, LABELLED, form
from thrifty.models.loading import SENTENCES
from thrifty.models.pooled import SentenceClassifier, pools_by_mean

Labels = Sequence[str] | None


def outputs(kind: str, labels: Labels) -> int:
    """How many outputs the head of a task has."""
    return len(labels or ()) if kind in LABELLED else 1


def widest(kinds: Mapping[str, str], labels: Mapping[str, Labels]) -> str:
    """The task in whose form a model for all of them is loaded: the first of those with the most outputs."""
    return max(kinds, key=lambda name: outputs(kinds[name], labels[name]))


def refuse_apart(model: str | nn.Module | Backbone, kinds: Mapping[str, str]) -> None:
    """Refuse tasks of kinds for which ``model`` has no common form.

    Raises: Unfit, naming the first two that do not go together.
    """
    (first, kind), *rest = kinds.items()
    for name, other in rest:
        if other != kind and (forms := [_form(model, each) for each in (other, kind)])[0] != forms[1]:
            raise Unfit(f"task {name!r} is {other}, but task {first!r} is {kind}: no one form of this model serves both "
                        f"({forms[0]} and {forms[1]}). Train them apart, or write both as text for a model that generates")


def refuse_unlike(tasks: Mapping[str, tuple[str, Labels]]) -> None:
    """Refuse to give one head to tasks, each a kind with its labels, that do not answer alike.

    Raises: Unfit, naming the first two that differ.
    """
    (first, (kind, labels)), *rest = tasks.items()
    for name, (other, own) in rest:
        if (other, own) != (kind, labels):
            raise Unfit(f"one_head: task {name!r} ({other}, labels {own}) does not answer as task {first!r} does ({kind}, labels "
                        f"{labels}), so they cannot share a head")


def _form(model: Any, kind: str) -> str:
    """What serves tasks of a kind: an auto class, or one encoder of sentences for texts, pairs and choices alike."""
    if isinstance(model, str):
        if model.startswith(("timm:", "zoo:")):
            return AUTO[kind]
        folder = find(model).folder
        if kind in SENTENCES and pools_by_mean(folder):
            return SentenceClassifier.__name__
        from transformers import AutoConfig

        return form(kind, AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)) or AUTO[kind]
    module: Any = model.model if isinstance(model, Backbone) else model
    if kind in SENTENCES and isinstance(module, SentenceClassifier):
        return SentenceClassifier.__name__
    if kind == "multiple-choice" and callable(writes := getattr(module, "can_generate", None)) and writes():
        return AUTO["seq2seq-generation" if module.config.is_encoder_decoder else "causal-generation"]
    return AUTO[kind]
