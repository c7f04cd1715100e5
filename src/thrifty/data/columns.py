"""Which column plays which role: what was said, or what can be meant in one way only."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.data import guess
from thrifty.data.candidates import naming_column
from thrifty.data.describe import Look, is_finite, look
from thrifty.data.rows import Table
from thrifty.data.tasks import ROLES, TASKS


@dataclass
class Choice:
    """A task and its columns. ``columns`` maps each role to the columns it is read from (one, but for choices)."""

    task: str
    why: str
    columns: dict[str, list[str]]
    naming: str | None = None  # the column that may name the classes of the label column
    ignored: list[str] = field(default_factory=list)
    readers: dict[str, Callable[[Any, str], Any]] = field(default_factory=dict)  # of roles that only a format has
    fields: tuple[str, ...] = ()  # the roles that a format writes down

    @property
    def seen(self) -> tuple[str, ...]:
        """The roles that a model sees."""
        return self.fields or TASKS[self.task].seen


def decide(table: Table, task: str | None, columns: Mapping[str, Any] | None, generation: str) -> Choice:
    """The task and the columns of ``table``, from what the user said and what is unambiguous.

    Raises:
        NoSuchSetting: an unknown task, role or generation kind.
        BadData: a named column that does not exist; no candidate, or several, for a role; roles that fit no task.
    """
    if task is not None and task not in TASKS:
        raise NoSuchSetting(f"unknown task {task!r}.{nearest(task, TASKS)}")
    kinds = [name for name in TASKS if name.endswith("generation")]
    if generation not in kinds:
        raise NoSuchSetting(f"unknown generation {generation!r}.{nearest(generation, kinds)}")
    said = check_said(table, columns or {})
    view = look(table)
    if task is not None:
        why = f"{task} because it was asked for."
        found = guess.fill(task, view, said, table)
    else:
        task, found = guess.choose(view, said, table, generation)
        if task == "text-classification":
            task = weigh_label(found, view, table)
        why = explain(task, found, view)
    used = [column for group in found.values() for column in group]
    naming = naming_column(found.get("label", [""])[0], view) if task.endswith("classification") else None
    ignored = [column for column in table if column not in used and column != naming]
    return Choice(task, why, found, naming, ignored)


def check_said(table: Table, columns: Mapping[str, Any]) -> dict[str, list[str]]:
    """Role -> columns as the user named them; choices may be several, in a list or with commas.

    Raises: NoSuchSetting for an unknown role; BadData for an unknown column or one that has two roles.
    """
    said: dict[str, list[str]] = {}
    for role, value in columns.items():
        if role not in ROLES:
            raise NoSuchSetting(f"unknown role {role!r} in columns.{nearest(role, ROLES)}")
        if value is None:
            continue
        names = [value] if isinstance(value, str) else list(value)
        if names and names[0] not in table and role == "choices":
            names = [part.strip() for name in names for part in name.split(",")]
        for name in names:
            if name not in table:
                raise BadData(f"there is no column {name!r} to be the {role}.{nearest(name, table)}")
            if any(name in others for others in said.values()):
                raise BadData(f"the column {name!r} is given two roles, {next(r for r in said if name in said[r])} and {role}.")
        if len(names) != 1 and role != "choices":
            raise BadData(f"the role {role} takes one column, not {names}.")
        said[role] = names
    return said


def weigh_label(found: dict[str, list[str]], view: dict[str, Look], table: Table) -> str:
    """Text classification or regression, by the values of the label column.

    Raises: BadData where the values allow both.
    """
    name = found["label"][0]
    label = view[name]
    if label.kind == "float":
        values = {float(value) for value in table[name] if is_finite(value)}
        if values <= {0.0, 1.0}:
            raise BadData(ambiguous_label(name, "holds only 0.0 and 1.0, which may be two classes or numbers"))
        return "regression"
    if label.kind == "int" and label.distinct > max(100, label.rows // 3):
        raise BadData(ambiguous_label(name, f"holds {label.distinct} different whole numbers in {label.rows} rows"))
    return "text-classification"


def ambiguous_label(name: str, fact: str) -> str:
    """The error for a label that may be a class or a number."""
    return (
        f"the label column {name!r} {fact}. Say task='text-classification' or task='regression' "
        "(--task text-classification or --task regression)."
    )


def explain(task: str, found: dict[str, list[str]], view: dict[str, Look]) -> str:
    """One plain sentence on why the columns mean ``task``."""
    name = {role: " and ".join(map(repr, columns)) for role, columns in found.items()}
    if task == "token-classification":
        return f"{task} because {name['tokens']} holds lists and {name['tags']} a tag for each item."
    if task.endswith("generation"):
        return f"{task} because {name['source']} is a text and {name['target']} the text to write for it."
    if task == "multiple-choice":
        return f"{task} because {name['choices']} holds the choices and {name['label']} says which one is right."
    if task == "image-classification":
        return f"{task} because {name['image']} holds images and {name['label']} their classes."
    if task == "contrastive":
        return f"{task} because {name['image']} holds images and {name['captions']} texts about them."
    texts = " and ".join(name[role] for role in ("text", "text_pair") if role in name)
    if task == "regression":
        return f"{task} because the label {name['label']} holds decimal numbers beside the text {texts}."
    seen = view[found["label"][0]].distinct
    return f"{task} because the label {name['label']} holds classes ({seen} seen) beside the text {texts}."
