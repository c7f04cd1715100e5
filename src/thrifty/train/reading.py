"""The data of a run: one dataset, or one for each of several tasks, and what configuration and model must know of it."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from thrifty.core.errors import NoSuchSetting
from thrifty.data import Dataset, Several, is_several, read, read_several
from thrifty.data.several import columns_of, each, words_of
from thrifty.models import Backbone
from thrifty.models.together import refuse_apart, refuse_unlike, widest
from thrifty.train.forms import encodes_and_decodes, form
from thrifty.train.settings import MIXING, Settings


def read_data(data: Any, settings: Settings, model: Any) -> Dataset:
    """The data, one dataset or several.

    Raises:
        NoSuchSetting: settings of several datasets for one; another format than data was read with.
    """
    if isinstance(data, Several):
        return data
    if not is_several(data):
        refuse_for_one(settings)
        return read_one(data, settings, model)
    names = list(data)
    told = {name: each(getattr(settings, name), names, name) for name in ("task", "format")}
    columns, words = columns_of(settings.columns, names), words_of(settings.words, names)
    return read_several(data, lambda name, source: read_one(source, replace(
        settings, task=told["task"][name], columns=columns[name] or None, format=told["format"][name], words=words[name] or None,
        answer=settings.answer if told["format"][name] else "auto"), model), bool(settings.one_head))


def refuse_for_one(settings: Settings) -> None:
    """Raises: NoSuchSetting for what can only be said of several datasets."""
    for name in MIXING:
        if getattr(settings, name) is not None:
            raise NoSuchSetting(f"{name} is about several datasets, but there is one: give them by name, as in "
                                "{'rte': ..., 'mrpc': ...} (--data rte=... --data mrpc=...)")
    for name in ("task", "metric", "format"):
        if isinstance(getattr(settings, name), dict):
            raise NoSuchSetting(f"{name} is told for several datasets, {getattr(settings, name)!r}, but there is one")


def refuse_for_walks(settings: Settings) -> None:
    """Raises: NoSuchSetting for what has no meaning where data are walks."""
    for name in ("columns", "limit", "shots", "format"):
        if getattr(settings, name) is not None:
            raise NoSuchSetting(f"{name} is about tables, and navigation reads walks: leave it away")


def read_one(data: Any, settings: Settings, model: Any) -> Dataset:
    """One dataset; writing a text for a text is left to an encoder and decoder if ``model`` is one.

    Raises:
        NoSuchSetting: settings of a format where there is none, or another format than data was read with.
    """
    assert not isinstance(settings.task, dict) and not isinstance(settings.format, dict)
    if isinstance(data, Dataset):
        if settings.format not in (None, data.format):
            raise NoSuchSetting(f"the data was read with the format {data.format!r}, not {settings.format!r}")
        if settings.shots is not None:
            raise NoSuchSetting("the data was read already: read it with shots=, or give tune its source")
        return data
    if settings.task == "navigation":
        from thrifty import navigation

        refuse_for_walks(settings)
        return navigation.read(data, allow_leak=settings.allow_leak)
    if settings.format is None and (settings.words is not None or settings.answer != "auto"):
        raise NoSuchSetting(f"{'words' if settings.words is not None else 'answer'} is a setting of formats: give one (--format)")
    dataset = read(data, task=settings.task, columns=settings.columns, seed=settings.split_seed, allow_leak=settings.allow_leak,
                   skip_bad=settings.skip_bad,
                   limit=settings.limit, shots=settings.shots, format=settings.format, words=settings.words)
    if dataset.task == "causal-generation" and settings.task is None and encodes_and_decodes(model):
        dataset.task = dataset.record["task"] = "seq2seq-generation"
        dataset.record["task_why"] += " The model has an encoder and a decoder, hence seq2seq-generation."
    return dataset


def find_form(dataset: Dataset, model: str | nn.Module | Backbone, settings: Settings) -> str:
    """The task whose form ``model`` is loaded in; of several tasks the one with the widest head.

    Raises:
        Unfit: several tasks have no form in common, or are to share a head that they cannot.
    """
    if not isinstance(dataset, Several):
        return form(dataset.task, dataset.format, model)
    forms = {name: form(part.task, part.format, model) for name, part in dataset.parts.items()}
    refuse_apart(model, forms)
    if settings.one_head:
        refuse_unlike({name: (part.task, part.labels) for name, part in dataset.parts.items()})
    return forms[widest(forms, {name: part.labels for name, part in dataset.parts.items()})]


def settle(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """What the configuration says of the data, so that it is read alike again; by task where there are several."""
    if not isinstance(dataset, Several):
        return {"task": dataset.task, "format": dataset.format, "words": dataset.words}
    found: dict[str, Any] = {"task": dataset.kinds, "temperature": settings.temperature or 1.0}
    for key in ("format", "words"):
        told = {name: value for name, part in dataset.parts.items() if (value := getattr(part, key)) is not None}
        found[key] = told or None
    return found


def count_rows(dataset: Dataset, cap: int | None) -> int:
    """Training rows that make an epoch; of several datasets at most ``cap`` of each count."""
    if isinstance(dataset, Several):
        return sum(min(count_rows(part, None), cap or count_rows(part, None)) for part in dataset.parts.values())
    return len(next(iter(dataset.splits["train"].values())))


def name_data(dataset: Dataset) -> Any:
    """Where the data was read from, as `tune` takes it; by task where there are several."""
    if isinstance(dataset, Several):
        return {name: name_data(part) for name, part in dataset.parts.items()}
    return dataset.record["source"]["name"] or "data"
