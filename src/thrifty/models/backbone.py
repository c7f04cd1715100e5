"""A pretrained model, what prepares its input, and where both came from."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from thrifty.core import weight
from thrifty.core.errors import NoSuchSite, nearest
from thrifty.models.preprocessing import describe


@dataclass
class Backbone:
    """A model ready to be adapted.

    Attributes:
        model: in evaluation mode, on the CPU.
        preprocess: its tokenizer or image processor (Hugging Face), a callable from a picture to a tensor [C, H, W], or None.
        source: plain JSON. ``id`` as the user wrote it, ``kind`` (built-in, folder, hub, timm or module), ``revision``,
            ``task``, ``class``, ``files``, ``config_sha256``, ``dtype``, ``attention``, ``pooling``, ``seed`` of the new
            tensors, ``image`` (how pictures are prepared), ``new_tensors`` (parameters that no checkpoint filled and that
            therefore must train), ``weights`` where they are not held in full, ``parameters`` and ``notes``, whole sentences about
            what was decided on the way.
        head: the values of the checkpoint's own classifier by the model's parameter names, in whatever shape they were; empty
            where it has none. `attach` takes it as ``source_head``.
    """

    model: nn.Module
    preprocess: Any = None
    source: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)


def wrap(module: nn.Module, preprocess: Any = None, *, new: Sequence[str] = (), name: str | None = None,
         head: Mapping[str, Tensor] | None = None) -> Backbone:
    """A backbone from a module that you built yourself.

    ``new`` names the parameters or modules that hold no pretrained weights, such as a fresh head: they train with every
    method and are saved with the adapter. ``preprocess`` is a tokenizer or image processor of Hugging Face, or for pictures
    any callable from a PIL picture to a tensor [C, H, W]. ``name`` is what reports call the model. ``head`` holds the values
    that a replaced classifier had, by the names of the new one's parameters.

    Raises: NoSuchSite for a name in ``new`` under which the module has no parameter.
    """
    known = [path for path, _ in module.named_parameters()]
    found: list[str] = []
    for wanted in new:
        under = [path for path in known if path == wanted or path.startswith(wanted + ".")]
        if not under:
            raise NoSuchSite(f"new={wanted!r} is no parameter or module of {type(module).__name__}.{nearest(wanted, known)}")
        found += under
    return Backbone(module, preprocess, {
        "id": name or type(module).__name__, "kind": "module", "revision": None, "task": None, "class": type(module).__name__,
        "files": [], "config_sha256": None, "dtype": _dtype(module), "attention": None, "pooling": None, "seed": None,
        "new_tensors": list(dict.fromkeys(found)), "parameters": count(module), "notes": [],
        **({} if (image := describe(preprocess)) is None else {"image": image}),
    }, dict(head or {}))


def count(module: nn.Module) -> int:
    """The numbers in all parameters, each tied one once."""
    return sum(weight.count(parameter) for parameter in module.parameters())


def _dtype(module: nn.Module) -> str | None:
    first = next(module.parameters(), None)
    return None if first is None else str(first.dtype).removeprefix("torch.")
