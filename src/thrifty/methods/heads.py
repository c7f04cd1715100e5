"""A head for each task beside whatever method adapts the body that they share, as in

Multitask Learning (Caruana; Machine Learning 28, 1997), and for transformers in
Multi-Task Deep Neural Networks for Natural Language Understanding (Liu, He, Chen, Gao; ACL 2019, arXiv:1901.11504).
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Site, base, register, task
from ..core.errors import CannotMerge, NoSuchSetting, ThriftyError, Unfit
from ..core.hooks import main
from ..core.probe import Example, guess_example, run_once
from ..core.site import at_path

if TYPE_CHECKING:
    from ..core import Attachment


@register("heads")
class Heads(Edit):
    """W_t x + b_t in the place of the model's own last layer, for the task t of the batch; W_t is [outputs[t], din].

    W_t is drawn from a normal distribution as wide as the layer's own weight (their root mean square), b_t is zero, and there
    is none where the layer has none. The layer's own weight is neither trained nor saved, nor part of what identifies the base.
    """

    replaces = True
    per_task = ("heads",)

    def __init__(self, site: Site, outputs: list[int]):
        super().__init__(site)
        heads = [nn.Linear(site.din, width, bias=site.bias is not None) for width in outputs]
        for head in heads:
            own = site.weight.detach().to(head.weight.device, torch.float32)
            head.weight = nn.Parameter(torch.randn_like(head.weight) * own.square().mean().sqrt())
            if head.bias is not None:
                nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., any], x [..., din] -> [..., outputs of the batch's task].

        Raises:
            ThriftyError: nobody said which task the batch belongs to, its rows belong to several, or the task has no head.
        """
        told = self.context.which()
        if isinstance(told, Tensor):
            raise ThriftyError("each task has a head of its own, so a batch belongs to one task, not each row to another")
        if told >= len(self.heads):
            raise ThriftyError(f"there are heads for {len(self.heads)} tasks, and none for task number {told}")
        head = self.heads[told]
        return head(x.to(head.weight.dtype)).to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """There is none.

        Raises:
            CannotMerge: always.
        """
        raise CannotMerge(f"{self.site.path!r} has a head for each of {len(self.heads)} tasks: one weight cannot stand for all")


def heads(*outputs: int) -> Callable[[Attachment], None]:
    """What ``attach(..., tasks=[...], beside=heads(2, 3))`` calls: a head with that many outputs for each of the tasks.

    Raises:
        NoSuchSetting: as many heads as tasks there must be, each with an output.
        Unfit: the model does not end in a linear layer, or the method acts on that layer itself.
    """

    def beside(at: Attachment) -> None:
        if len(outputs) != len(at.tasks) or min(outputs, default=0) < 1:
            raise NoSuchSetting(f"heads take the number of outputs of every task: {len(at.tasks)} tasks, not {list(outputs)}")
        example = at.seen.example if at.seen.example is not None else guess_example(at.model)
        if example is None:
            raise Unfit(f"where {type(at.model).__name__} ends is only known by running it: pass example= (a batch)")
        with task(at.model, 0) if at.tasks else contextlib.nullcontext():
            path = last_linear(at.model, example)
        acting = [row.edit for row in at.plan if row.path == path]
        if acting:
            raise Unfit(f"{acting[0]!r} acts on {path!r}, where each task has a head of its own: leave that layer out of where=")
        at.put(at_path(at.model, path, "head", None, -1, "", at.seen), Heads, outputs=list(outputs))

    return beside


def last_linear(model: nn.Module, example: Example) -> str:
    """Path of the linear layer that makes the logits: of all layers with weights the one that is called last.

    Raises:
        Unfit: the last layer is no linear one.
    """
    called: list[tuple[str, Any, Any]] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, out: called.append((path, module, out))

    hooks = [module.register_forward_hook(note(path)) for path, module in base.modules(model)
             if next(module.parameters(recurse=False), None) is not None and all(n == "edits" for n, _ in module.named_children())]
    try:
        answer = main(run_once(model, example))
    finally:
        for hook in hooks:
            hook.remove()
    path, last, out = called[-1] if called else ("", model, answer)
    if not hasattr(last, "in_features") or answer.shape[-1:] != out.shape[-1:] and answer.numel() != out.numel():
        raise Unfit(f"{type(model).__name__} does not end in a linear layer but in {path or 'none'!r} ({type(last).__name__}), so "
                    "what reads its features is not known")
    return path
