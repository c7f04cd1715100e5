"""From columns to roles. A role is filled only where exactly one column can play it."""
from __future__ import annotations

from collections.abc import Sequence

from thrifty.core.errors import BadData
from thrifty.data.candidates import (
    APPLIES,
    CANDIDATES,
    Named,
    View,
    choice_columns,
    find_pair,
    is_source,
    is_target,
    naming_column,
    without,
)
from thrifty.data.rows import Table
from thrifty.data.tasks import TASKS


def choose(view: View, said: Named, table: Table, generation: str) -> tuple[str, Named]:
    """The one task that the columns allow, with its columns.

    Lists decide first: tokens with tags, then choices with an answer. Then images, generation and text classification
    are weighed; two that fit are an error.

    Raises: BadData when no task fits, or several do.
    """
    fitting = [task for task, roles in TASKS.items() if set(said) <= {*roles.needed, *roles.optional}]
    if not fitting:
        raise BadData(f"no task has the roles {sorted(said)} together. Say task=… (--task) and only its roles.")
    for task in ("token-classification", "multiple-choice"):
        if task in fitting and APPLIES[task](view, said):
            return task, fill(task, view, said, table)
    others = [task for task in (generation, "image-classification", "contrastive", "text-classification")
              if task in fitting and APPLIES[task](view, said)]  # fmt: skip
    if len(others) > 1:
        raise BadData(f"the columns {describe(view)} fit {' and '.join(others)}: say task='{others[0]}' (--task {others[0]}).")
    if not others:
        raise BadData(
            f"cannot tell what to learn from the columns {describe(view)}. {how_to_say('text', 'NAME')}, "
            "and the same for the label (or source and target, tokens and tags, image and label)."
        )
    return others[0], fill(others[0], view, said, table)


def fill(task: str, view: View, said: Named, table: Table) -> Named:
    """The columns of every role of ``task``: as said, else the only candidate.

    Raises: BadData for a role with no candidate or with several, or a said role that the task does not have.
    """
    roles = TASKS[task]
    strange = sorted(set(said) - {*roles.needed, *roles.optional})
    if strange:
        raise BadData(f"{task} has no role {strange}; its roles are {[*roles.needed, *roles.optional]}.")
    found = dict(said)
    if task == "multiple-choice" and "choices" not in found:
        found["choices"] = only("choices", choice_columns(view), view)
    if "references" in found and "target" not in found:
        found["target"] = found["references"]
    if task.endswith("generation"):
        fill_generation(found, view)
    for role in ("tokens", "tags", "image", "captions", "label"):
        if role in roles.needed and role not in found:
            candidates = CANDIDATES[role](without(view, found), found, table, task)
            found[role] = only(role, [[name] for name in candidates], view)
    if "text" in roles.needed and "text" not in found:
        fill_text(task, found, view)
    return {role: found[role] for role in dict.fromkeys(roles.seen + roles.needed + roles.optional) if role in found}


def fill_text(task: str, found: Named, view: View) -> None:
    """The text column, or the two of a pair whose names say that they belong together."""
    naming = naming_column(found["label"][0], view) if "label" in found else None
    texts = [name for name, column in without(view, found).items() if column.is_text and name != naming]
    may_pair = "text_pair" in TASKS[task].optional and "text_pair" not in found
    pair = find_pair(texts) if may_pair else None
    if pair:
        found["text"], found["text_pair"] = [pair[0]], [pair[1]]
    else:
        more = ", and text_pair for a second text" if may_pair else ""
        found["text"] = only("text", [[name] for name in texts], view, more)


def fill_generation(found: Named, view: View) -> None:
    """Source, target and references by their usual names."""
    free = without(view, found)
    if "source" not in found:
        found["source"] = only("source", [[name] for name in free if is_source(free[name])], view)
    free = without(view, found)
    targets = [name for name in free if is_target(free[name])]
    lists = [name for name in targets if free[name].kind == "list"]
    if "target" in found:
        return
    if len(lists) == 1:
        found.setdefault("references", lists)
        found["target"] = only("target", [[name] for name in targets if name not in lists] or [lists], view)
    else:
        found["target"] = only("target", [[name] for name in targets], view)


def only(role: str, candidates: Sequence[list[str]], view: View, more: str = "") -> list[str]:
    """The one candidate. ``more`` is what else can be said, for the error.

    Raises: BadData listing the candidates, or all columns where there is none, and how to say which is meant.
    """
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = [",".join(names) for names in candidates]
        raise BadData(f"{len(names)} columns could be the {role}: {names}. {how_to_say(role, names[0])}{more}.")
    raise BadData(f"no column is clearly the {role} among {describe(view)}. {how_to_say(role, 'NAME')}.")


def how_to_say(role: str, name: str) -> str:
    """How a user names the column of ``role``."""
    return f'Say which with columns={{"{role}": "{name}"}} (--columns {role}={name})'


def describe(view: View) -> str:
    """The columns and their kinds, for an error."""
    return ", ".join(f"{name} ({column.kind})" for name, column in view.items()) or "none"
