"""thrifty: adapt large pretrained models with little memory, time, data and storage, and say honestly how well that went.

    import thrifty
    at = thrifty.attach(model, thrifty.LoRA(rank=8, where="attn.q|attn.v"))
    ...                                    # train with any loop
    at.save("adapter/")
    at = thrifty.load(model, "adapter/")

Names are looked up when they are first used, so that importing thrifty costs little more than importing torch.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "attach": "core", "attachments": "core", "sites": "core", "register": "core", "task": "core", "add_tasks": "core",
    "Attachment": "core", "Edit": "core", "Method": "core", "Site": "core",
    "save": "artifact", "load": "artifact", "fingerprint": "artifact",
    **dict.fromkeys(("Average", "Fuse", "Parallel", "Rows", "Split", "Stack", "combine", "compose", "swap"),
                    "composition"),
    "tune": "train", "in_context": "train", "plan": "planning", "ThriftyError": "core.errors",
}
_ROOMS = ("navigation", "rank")  # called by their own names: thrifty.rank.logme

if TYPE_CHECKING:
    from . import navigation, rank
    from .artifact import fingerprint, load, save
    from .composition import Average, Fuse, Parallel, Rows, Split, Stack, combine, compose, swap
    from .core import Attachment, Edit, Method, Site, add_tasks, attach, attachments, register, sites, task
    from .core.errors import ThriftyError
    from .methods import *  # noqa: F403
    from .planning import plan
    from .train import in_context, tune


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if not name.startswith("_"):
        methods = importlib.import_module(".methods", __name__)
        if name in methods.__all__:
            return getattr(methods, name)
    raise AttributeError(f"module 'thrifty' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_WHERE, *_ROOMS, *importlib.import_module(".methods", __name__).__all__, "__version__"])
