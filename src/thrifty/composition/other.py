"""Other values for a module's own parameters: what an adapter that trained them in place is, where it is one of several."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import Edit, Site, register
from ..core.errors import CannotCombine


@register("other-values")
class Other(Edit):
    """The site's own operation with other parameters, which may have other shapes: a head with another number of outputs.

    ``shapes`` names the parameters that the edit holds; the rest are the module's.
    """

    rowwise = True

    def __init__(self, site: Site, shapes: dict[str, list[int]]):
        super().__init__(site)
        if next(site.module.children(), None) not in (None, getattr(site.module, "edits", None)):
            raise CannotCombine(f"{site.path!r} ({type(site.module).__name__}) holds other modules, so its parameters cannot be "
                                "exchanged row by row")
        self.own = nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()})

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """x as the module takes it -> what the module would give with these values."""
        module = self.site.module
        held = {name: module._parameters[name] for name in self.own}
        try:
            for name, value in self.own.items():
                module._parameters[name] = value  # for the time of this one call
            again: Tensor = module.forward(x)  # not a call: a call would run the hooks, and with them this edit, again
        finally:
            module._parameters.update(held)
        return again.to(y.dtype)
