"""Names under which PEFT will find exactly the modules that are meant, short where that is possible."""
from __future__ import annotations

import re
from typing import Any

from torch import nn

from .config import Config
from .refusal import CannotExpress
from .targets import matched, targets


def target_names(model: nn.Module, paths: list[str], config: Config) -> list[str] | str:
    """What to put into ``target_modules``: last names, full paths, or a regular expression.

    Raises:
        CannotExpress: none of them means these paths and no other, because some lie inside a module that is kept in full.
        HalfAdapted: one of them is a module that stands at two places.
    """
    choices: tuple[list[str] | str, ...] = (
        sorted({p.rpartition(".")[2] for p in paths}), sorted(paths), "|".join(re.escape(p) for p in sorted(paths)))
    for names in choices:
        said = {**config, "target_modules": names}
        if sorted(matched(model, said)) == sorted(paths):
            targets(model, said)
            return names
    raise CannotExpress(f"PEFT cannot adapt modules inside those that are kept in full ({config.get('modules_to_save')}): "
                        f"{paths[:3]}")


def commonest(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value that most paths have, and a pattern for each path that has another."""
    every = list(values.values())
    usual = max(every, key=every.count)
    return usual, {f"^{re.escape(path)}": value for path, value in values.items() if value != usual}
