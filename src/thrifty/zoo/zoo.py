"""A zoo: pretrained classifiers of pictures without their heads, side by side under one new head."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import NoSuchSetting, NoSuchSite, Unfit
from ..core.finding import sites
from ..core.hooks import main

View = Callable[[Tensor], Tensor]  # pictures as they are prepared for the first model -> as another wants to see them


class Pooled(NamedTuple):
    """What a trunk makes of pictures: one vector each [B, D], under the name that models of transformers have for it."""

    pooler_output: Tensor


class Trunk(nn.Module):
    """Classifiers in their order, without their heads, as children ``base0``, ``base1``, ...: [f_0(x) ; f_1(x) ; ...].

    f_i(x) [B, widths[i]] is what the i-th model's own head read. Places and not names are in the keys, so that what is saved fits
    the same models wherever they lie.
    """

    def __init__(self, bases: Sequence[nn.Module], names: Sequence[str], views: Sequence[View | None] = ()) -> None:
        super().__init__()
        self.names, cut = list(names), [cut_head(base, name) for base, name in zip(bases, names, strict=True)]
        self.heads, self.widths = [path for path, _ in cut], [width for _, width in cut]
        self.views = list(views) or [None] * len(bases)
        for i, base in enumerate(bases):
            self.add_module(path_of(i), base)

    def __len__(self) -> int:
        return len(self.names)

    def base(self, i: int) -> nn.Module:
        """The i-th model."""
        return self.get_submodule(path_of(i))

    def see(self, i: int, pixel_values: Tensor) -> Tensor:
        """f_i of pictures [B, 3, h, w] that are prepared for the first model, [B, widths[i]]."""
        view = self.views[i]
        return main(self._modules[path_of(i)](pixel_values if view is None else view(pixel_values)))  # type: ignore[misc]

    def forward(self, pixel_values: Tensor) -> Pooled:
        """All features, one behind the other."""
        return Pooled(torch.cat([self.see(i, pixel_values) for i in range(len(self))], 1))


class Alone(nn.Module):
    """One model of a trunk, as a module that can be called."""

    def __init__(self, trunk: Trunk, i: int) -> None:
        super().__init__()
        self.trunk, self.i = trunk, i

    def forward(self, pixel_values: Tensor) -> Tensor:
        """f_i(x) [B, widths[i]]."""
        return self.trunk.see(self.i, pixel_values)


class Zoo(nn.Module):
    """y = W [f_0(x) ; ... ; f_m(x)] + b, a new head on what all models see; methods for several models answer otherwise.

    W [outputs, sum of widths] and b are as torch draws them.
    """

    base_model_prefix = "trunk"
    main_input_name = "pixel_values"

    def __init__(self, trunk: Trunk, outputs: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(sum(trunk.widths), outputs)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Pictures [B, 3, h, w], prepared for the first model -> ``logits`` [B, outputs]."""
        return {"logits": self.head(self.trunk(pixel_values).pooler_output)}


def gather(models: Sequence[nn.Module], names: Sequence[str], outputs: int, views: Sequence[View | None] = ()) -> Zoo:
    """The classifiers ``models``, which lose their heads, as one zoo in evaluation mode. ``names`` are what messages call them.

    Raises:
        NoSuchSetting: there is one model only, or one of them twice.
        Unfit: one of them does not end in a single linear layer.
    """
    if len(models) < 2:
        raise NoSuchSetting(f"a zoo is made of at least two models, not of {' and '.join(names) or 'none'} alone")
    if len({id(model) for model in models}) < len(models):
        raise NoSuchSetting("the same module stands twice among the models of a zoo: load it twice, or copy it")
    return Zoo(Trunk(models, distinct(names), views), outputs).eval()


def cut_head(model: nn.Module, name: str) -> tuple[str, int]:
    """Let a classifier give out what its last layer reads, from now on; returns where that layer was, and how wide it read.

    Raises:
        Unfit: there is no such layer, or there are several.
    """
    try:
        found = [site for site in sites(model, "head") if isinstance(site.module, nn.Linear)]
    except NoSuchSite:
        found = []
    if len(found) != 1:
        which = " and ".join(site.path for site in found) or "none"
        raise Unfit(f"{name!r} ({type(model).__name__}) cannot join a zoo: of its layers one linear one must be the head, and here "
                    f"that is {which}")
    head = found[0]
    model.set_submodule(head.path, nn.Identity())
    return head.path, head.din


def distinct(names: Sequence[str]) -> list[str]:
    """``names``, with a number behind those that were there before."""
    counts = [list(names[:i]).count(name) for i, name in enumerate(names)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(names, counts, strict=True)]


def path_of(i: int) -> str:
    """What the i-th model is called among the modules of a trunk."""
    return f"base{i}"
