"""Capture: what stands at the places of a cut when a batch goes through the model."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.hooks import main
from thrifty.trunk.cut import Place
from thrifty.trunk.timeline import first


class Enough(Exception):
    """Everything that is wanted has been seen; the rest of the model need not run."""


def capture(model: nn.Module, places: Sequence[Place], inputs: Mapping[str, Any], training: bool = False) -> dict[Place, Tensor]:
    """The tensors at ``places``, before edits there act. Modes and random state are as before afterwards.

    ``training`` lets dropout act, and draws from the random state.
    """
    found: dict[Place, Tensor] = {}

    def hear(place: Place) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, *more: Any) -> None:
            heard = first(args, more[0]) if place.port == "in" else main(more[-1])
            assert heard is not None
            found[place] = heard.detach().clone()
            if len(found) == len(places):
                raise Enough
        return hook

    handles = []
    for place in places:
        module = model.get_submodule(place.path)
        listen = module.register_forward_pre_hook if place.port == "in" else module.register_forward_hook
        handles.append(listen(hear(place), prepend=True, with_kwargs=True))
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with torch.no_grad():
            model(**inputs)
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return found
