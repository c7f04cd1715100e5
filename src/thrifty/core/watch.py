"""Watch: whether gradients arrive, in whatever loop trains the model."""
from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from . import base
from .errors import NothingTrains, ThriftyError

if TYPE_CHECKING:
    from .attachment import Attachment
    from .building import Building

REMEDY = ("Either the loss does not depend on it, or the graph is cut before it (reentrant checkpointing over a frozen "
          "embedding does that: use use_reentrant=False)")


class Watch:
    """Counts the gradients that each trainable tensor of one attachment gets, until all have had one.

    When a third backward pass begins and some have had none, the pass stops with an error that names them. Those that are
    only ``occasional``, or belong to a method that trains intermittently, are listed in ``unreached`` instead.
    """

    def __init__(self, at: Attachment):
        self.at = at
        self.seen: dict[str, int] = {}
        self.unreached: list[str] = []
        self.handles = [p.register_post_accumulate_grad_hook(self._note(name)) for name, p in at.named_parameters()
                        if p.device.type != "meta"]

    def _note(self, name: str):  # type: ignore[no-untyped-def]
        def arrived(_: Tensor) -> None:
            self.seen[name] = self.seen.get(name, 0) + 1
            if self.seen[name] >= 3 and self.handles:
                self.judge()
        return arrived

    def judge(self) -> None:
        """Decide now.

        Raises:
            NothingTrains: some tensor that must train never received a gradient.
        """
        self.stop()
        dead = [n for n in self.at.active() if n not in self.seen]
        may, rare = self.at.method is not None and self.at.method.intermittent, occasional(self.at)
        self.unreached = [n for n in dead if may or n in rare]
        dead = [n for n in dead if n not in self.unreached]
        if dead:
            raise NothingTrains(f"{len(dead)} trainable tensors of {self.at.name!r} got no gradient in two steps: {dead[:5]}. "
                                + REMEDY)

    def stop(self) -> None:
        """Stop counting."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def occasional(at: Building) -> set[str]:
    """Names of what trains and need not be reached by every batch: claimed by a wildcard (all biases, all weights), as a task
    need not use them all, or kept for one of several tasks."""
    found = {f"base:{name}" for name in at.wildcard}
    owners: dict[str, nn.Module] = {f"edit:{key}:": edit for key, edit in at.edits.items()}
    if at.context.shared is not None:
        owners["shared:"] = at.context.shared
    for prefix, owner in owners.items():
        kept = tuple(f"{path}.{child}.".lstrip(".") for path, module in owner.named_modules()
                     for child in getattr(module, "per_task", ()))
        found |= {prefix + name for name, _ in owner.named_parameters() if name.startswith(kept)}
    return found


def refuse_reentrant(model: nn.Module) -> None:
    """Refuse reentrant checkpointing, which loses every gradient behind a frozen embedding.

    Raises:
        ThriftyError: with the remedy.
    """
    if getattr(model, "_require_grads_hook", None) is not None:
        return
    for path, module in base.modules(model):
        keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and keywords.get("use_reentrant"):
            raise ThriftyError(f"{path or type(model).__name__} uses reentrant checkpointing, which cuts the graph at the frozen "
                               "embedding and loses every gradient: call model.gradient_checkpointing_enable("
                               "gradient_checkpointing_kwargs={'use_reentrant': False})")
