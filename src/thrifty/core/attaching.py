"""Attaching: freeze a model, put a method on it, and refuse what is half done, dead or empty."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import ledger as ledgers
from .attachment import Attachment
from .digest import digest
from .drawing import is_drawing
from .errors import NoSuchSetting, NothingTrains
from .method import Method
from .probe import Example, Seen, guess_example
from .routing import name_tasks, task
from .watch import Watch, refuse_reentrant


def attach(model: nn.Module, method: Method, name: str = "default", *, also_train: str | None = None,
           example: Example | None = None, batches: Iterable[Any] | None = None, seed: int | None = 0,
           roles: Mapping[str, str] | None = None, tied: str = "refuse", check: bool = True,
           tasks: Sequence[str] = (), beside: Callable[[Attachment], object] | None = None,
           source_head: Mapping[str, Tensor] | None = None, activations: str | None = None) -> Attachment:
    """Freeze ``model``, put ``method`` on it and return the handle. The model keeps its class and its keys.

    Args:
        also_train: roles, module paths or parameter names that train in full beside the method and are saved with it
            (``"head"``, ``"classifier.*"``).
        example: a batch, to run once: widths of whole blocks are seen on it, and every edit must be reached by it. Without
            one, models that describe their own input (transformers, timm) are run on a tiny made-up batch.
        batches: data for methods that look at it before they decide where to act.
        seed: of the edits' initial values; the global random state is left alone. None draws from the global state.
        roles: {path pattern: role} for models whose names the table does not know.
        tied: "refuse" edits on one use of a tied weight, or "leave" the other uses as they are.
        check: whether to run the model once in search of dead edits.
        tasks: names of the tasks that one method serves at once; ``thrifty.task`` then says which a batch belongs to.
        beside: puts edits beside those of any method, such as ``thrifty.methods.heads.heads(2, 3)``, a head for each task.
        source_head: values that the model's head had before it got a new one, by the new one's names (`models.Backbone.head`),
            for methods that ask what the model knew.
        activations: "all", "less" or "least" of them stay in memory for the backward pass; see `Attachment.activations`. None
            leaves it as it is, which at first is "all".

    Raises:
        NoSuchSite, HalfAdapted, Unfit, NothingTrains, DeadEdit, NoSuchSetting: see each; the model is left as it was.
    """
    if not isinstance(method, Method):
        raise TypeError(f"attach takes a method such as thrifty.LoRA(), not {type(method).__name__}")
    method.check()
    if method.multitask and not tasks:
        raise NoSuchSetting(f"{method.name} serves several tasks: name them, attach(model, method, tasks=['rte', 'mrpc']), and say "
                            "with thrifty.task(model, name) which a batch belongs to")
    at = Attachment(model, name, seen=Seen(model, example), roles=roles, tied=tied)
    at.method, at.seed, at.source_head = method, seed, dict(source_head or {})
    if tasks:
        at.about["tasks"] = name_tasks(tasks)
    try:
        if activations is not None:
            at.activations = activations
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            if also_train:  # first, so that a method which claims whole models can leave it out
                at.train_matching(also_train)
            method.attach(at, batches)
            if beside is not None:
                beside(at)
        finish(at, example, check)
    except BaseException:
        at.detach()
        raise
    return at


def finish(at: Attachment, example: Example | None, check: bool) -> None:
    """End of building: refuse what is half done, dead or empty, and start to watch the gradients."""
    if at.tied == "refuse":
        ledgers.refuse_tied(at.model, {r.path: at.model.get_submodule(r.path) for r in at.plan if r.path})
    if not at.parameters() and not ((at.method is None or at.method.solved) and at.state()):
        raise NothingTrains(f"nothing trains: {type(at.method).__name__} put no edit with parameters on "
                            f"{type(at.model).__name__} and named no parameter of it")
    if frozen := [n for n, p in at.named_parameters() if not p.requires_grad]:
        raise NothingTrains(f"{frozen[0]!r} is to train, but something froze it while {type(at.method).__name__} was attached "
                            f"({len(frozen)} such)")
    refuse_reentrant(at.model)
    if check and not is_drawing(next(at.model.parameters())):
        with task(at.model, 0) if at.tasks else contextlib.nullcontext():
            if example is not None:
                at.check(example)
            elif (guess := guess_example(at.model)) is not None:
                with contextlib.suppress(TypeError, ValueError, RuntimeError, IndexError):  # a guess that fails proves nothing
                    at.check(guess)
    at.surveyed = None
    at.start = {n: digest(p) for n, p in at.named_parameters()}
    at.watch = Watch(at)
