"""The base: a model's own modules and tensors, without what is attached to it, however much that is."""
from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from .hooks import Edits


def owned(path: str) -> bool:
    """Whether a module or tensor belongs to an attachment rather than to the base model."""
    return "edits" in path.split(".")


def modules(model: nn.Module, remove_duplicate: bool = True, path: str = "", seen: set[int] | None = None
            ) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules``, but edits are not entered: what it takes does not grow with the number of attachments."""
    seen = set() if seen is None else seen
    if remove_duplicate and id(model) in seen:
        return
    seen.add(id(model))
    yield path, model
    for name, child in model._modules.items():
        if child is not None and not isinstance(child, Edits):
            yield from modules(child, remove_duplicate, f"{path}.{name}" if path else name, seen)


def parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters``, of the base alone."""
    seen: set[int] = set()
    for path, module in modules(model, remove_duplicate):
        for name, p in module._parameters.items():
            if p is not None and not (remove_duplicate and id(p) in seen):
                seen.add(id(p))
                yield f"{path}.{name}" if path else name, p


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """As ``dict(model.named_buffers())``, of the base alone."""
    return {f"{path}.{name}" if path else name: buffer for path, module in modules(model)
            for name, buffer in module._buffers.items() if buffer is not None}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """As ``model.state_dict(keep_vars=True)``: parameters and persistent buffers by every name, of the base alone."""
    found: dict[str, Tensor] = {}
    for path, module in modules(model, remove_duplicate=False):
        if module._state_dict_hooks or module._state_dict_pre_hooks or type(module).state_dict is not nn.Module.state_dict:
            every = model.state_dict(keep_vars=True)  # somebody changes what is in it
            return {name: tensor for name, tensor in every.items() if not owned(name)}
        module._save_to_state_dict(found, f"{path}." if path else "", True)
    return found
