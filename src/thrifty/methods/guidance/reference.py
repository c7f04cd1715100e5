"""Reference models: pretrained models of which only features are wanted, of the same rows as the student sees."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.errors import ThriftyError, Unfit
from ..heads import last_linear
from .teacher import Onlooker, load_run

if TYPE_CHECKING:
    from ...models import Backbone


class Reference(Onlooker):
    """One that tells what its last linear layer reads, a vector [d] per example, whatever that layer makes of it."""

    def __init__(self, name: str, backbone: Backbone, device: torch.device):
        super().__init__(backbone, device)
        self.name = name
        self.path: str | None = None  # of the layer: known when the model has run

    def features(self, task: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The student's ``inputs`` -> [batch, d].

        Raises:
            Unfit: the model cannot read what the student reads, does not end in a linear layer over one vector per example, or
                holds tensors below it that no checkpoint filled.
        """
        self.path = self.path or self._find(task, inputs)
        given: list[Tensor] = []
        handle = self.model.get_submodule(self.path).register_forward_pre_hook(lambda _, args: given.append(args[0]))
        try:
            self.ask(task, inputs)
        finally:
            handle.remove()
        if given[-1].dim() != 2:
            raise Unfit(f"the reference model {self.name!r} ends in {self.path!r}, which reads {list(given[-1].shape)}: only one "
                        "vector per example can be compared")
        return given[-1]

    def _find(self, task: Any, inputs: dict[str, Tensor]) -> str:
        path = last_linear(self.model, self.show(task, inputs))
        if below := [name for name in self.backbone.source["new_tensors"] if not name.startswith(path + ".")]:
            raise Unfit(f"the features of the reference model {self.name!r} pass through {below[0]!r}, which no checkpoint filled: "
                        "they would be random")
        return path


def find_references(given: Sequence[Any], task: Any, device: torch.device) -> list[Reference]:
    """A reference model for each of ``given``: a name, the folder of a run or adapter, a module, or a `models.Backbone`.

    ``task`` says in which form named ones are loaded; it is not needed for the others.

    Raises:
        ThriftyError: a named one without a task; see `models.load` and `artifact.load`.
    """
    return [Reference(name_model(one), _load(one, task), device) for one in given]


def name_model(given: Any) -> str:
    """What is written down of a model."""
    if isinstance(given, nn.Module):
        return type(given).__name__
    return str(given) if not hasattr(given, "source") else str(given.source["id"])


def _load(given: Any, task: Any) -> Backbone:
    from ...artifact.files import ABOUT, adapter_folder
    from ...models import Backbone, load, wrap

    if isinstance(given, (nn.Module, Backbone)):
        return wrap(given) if isinstance(given, nn.Module) else given
    if task is None:
        raise ThriftyError(f"the reference model {str(given)!r} is loaded in the form that a task needs, and the batches do not "
                           "say of which task they are: train with thrifty.tune, or give modules instead of names")
    folder = adapter_folder(given)
    if (folder / ABOUT).is_file():
        return load_run(folder, task)[0]
    return load(str(given), task.name, task.labels)
