"""Where methods act on a zoo, and a head of another width than its own."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import Edit, Site, register
from ..core.errors import Unfit
from ..core.site import at_path
from .zoo import Zoo

if TYPE_CHECKING:
    from ..core import Attachment


def zoo_of(at: Attachment) -> Zoo:
    """The zoo that a method for several models is attached to.

    Raises:
        Unfit: it is one model.
    """
    if not isinstance(at.model, Zoo):
        method = at.method.name if at.method else "this method"
        raise Unfit(f"{method} makes one model of several, and {type(at.model).__name__} is one: name them all, as in "
                    "thrifty tune --models a,b,c (in Python models.load('zoo:a,b,c', ...))")
    return at.model


def trunk_site(at: Attachment) -> Site:
    """The place where the features of all models come together.

    Raises:
        Unfit: there is one model only.
    """
    return at_path(zoo_of(at), "trunk", "trunk", None, -1, "", at.seen)


def put_head(at: Attachment, width: int) -> None:
    """Let a new head read ``width`` features in the place of the zoo's own, which reads those of all models."""
    at.put(at_path(at.model, "head", "head", None, -1, "", at.seen), OwnHead, width=width)


@register("zoo-head")
class OwnHead(Edit):
    """W x + b in the place of the zoo's head, x [B, width], W [outputs, width] as torch draws it."""

    port = "around"
    replaces = True

    def __init__(self, site: Site, width: int):
        super().__init__(site)
        self.linear = nn.Linear(width, site.dout)

    def forward(self, run: Any, x: Tensor) -> Tensor:
        """x [B, width] -> [B, outputs]; the zoo's own head does not run."""
        y: Tensor = self.linear(x.to(self.linear.weight.dtype)).to(x.dtype)
        return y
