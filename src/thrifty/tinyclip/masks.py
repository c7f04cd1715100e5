"""Gates on everything of a tower that can be left out, while it trains: states, heads, inner units, and whole layers."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.models.ragged import sizes_of
from thrifty.tinyclip.gates import Gates

PARTS = ("hidden", "heads", "inner", "layers")


@dataclass(frozen=True)
class Layer:
    """A block: where it stands, its heads (0: it has no attention), their width, and its inner width (0: it has no MLP)."""

    place: int
    heads: int
    head: int
    inner: int


class Masks(nn.Module):
    """The gates of one tower of a CLIPModel, and their effect on it while ``acting``.

    ``hidden`` [d] multiplies what is written to the states: embeddings, attention, MLPs; LayerNorms see the rest alone, as if the
    closed ones were not there. ``heads.i`` [H] multiplies what heads give, ``inner.i`` [f] what the inner units of an MLP give,
    ``attention`` and ``mlp`` [layers] what whole layers give. Which of them there are is said by ``parts``.
    """

    def __init__(self, tower: nn.Module, parts: tuple[str, ...] = ("hidden", "heads", "inner")) -> None:
        super().__init__()
        for part in parts:
            if part not in PARTS:
                raise NoSuchSetting(f"there are no gates on {part!r}." + nearest(part, PARTS))
        self._tower = [tower]  # in a list, so that its parameters are not among the gates'
        self.width, sizes = sizes_of(tower)
        self.layers = [Layer(i, *size) for i, size in enumerate(sizes)]
        made = {"hidden": self.width} if "hidden" in parts else {}
        for layer in self.layers:
            made |= {f"heads.{layer.place}": layer.heads} if "heads" in parts and layer.heads else {}
            made |= {f"inner.{layer.place}": layer.inner} if "inner" in parts and layer.inner else {}
        self.whole = {"attention": [layer.place for layer in self.layers if layer.heads],
                      "mlp": [layer.place for layer in self.layers if layer.inner]} if "layers" in parts else {}
        made |= {name: len(places) for name, places in self.whole.items() if places}
        self.gates = nn.ModuleDict({name.replace(".", "_"): Gates(size) for name, size in made.items()})
        self.values: dict[str, Tensor] = {}

    @property
    def tower(self) -> Any:
        """The tower that the gates are on."""
        return self._tower[0]

    def all(self) -> list[Gates]:
        """Every group of gates."""
        return [gates for gates in self.gates.values() if isinstance(gates, Gates)]

    def clamp(self) -> None:
        """Every gate back into its bounds."""
        for gates in self.all():
            gates.clamp()

    def draw(self) -> None:
        """Draw every gate anew."""
        self.values = {name: gates.sample() for name, gates in self.gates.items() if isinstance(gates, Gates)}

    def settle(self) -> None:
        """Give every gate the value that it keeps; of the states at least one stays."""
        self.values = {name: gates.settle() for name, gates in self.gates.items() if isinstance(gates, Gates)}
        hidden = self.values.get("hidden")
        if hidden is not None and not hidden.any():
            hidden[0] = 1.0

    def value(self, name: str) -> Tensor | None:
        """The values of the gates ``name``, None where there are none."""
        return self.values.get(name.replace(".", "_"))

    def layer(self, name: str, place: int) -> Tensor | float:
        """The value of the gate on the attention or MLP of a block."""
        values = self.value(name)
        return 1.0 if values is None else values[self.whole[name].index(place)]

    def chance(self, name: str) -> Tensor | None:
        """P(z > 0) of the gates ``name``."""
        found = self.gates[key] if (key := name.replace(".", "_")) in self.gates else None
        return found.chance() if isinstance(found, Gates) else None

    def count(self, name: str, size: int) -> Tensor | float:
        """How many of ``size`` things are expected to stay."""
        chance = self.chance(name)
        return float(size) if chance is None else chance.sum()

    def stays(self, name: str, place: int) -> Tensor | float:
        """The chance that a block keeps its attention, or its MLP."""
        chance = self.chance(name)
        return 1.0 if chance is None or place not in self.whole[name] else chance[self.whole[name].index(place)]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The tower with its gates as they are drawn or settled last."""
        handles = [norm.register_forward_hook(self._norm) for norm in self.tower.modules() if isinstance(norm, nn.LayerNorm)]
        handles.append(self.tower.embeddings.register_forward_hook(self._written))
        for layer in self.layers:
            block = self.tower.encoder.layers[layer.place]
            if layer.heads:
                spread = partial(torch.repeat_interleave, repeats=layer.head)
                handles += [block.self_attn.out_proj.register_forward_pre_hook(self._read(f"heads.{layer.place}", spread)),
                            block.self_attn.register_forward_hook(partial(self._attended, layer.place))]
            if layer.inner:
                handles += [block.mlp.fc2.register_forward_pre_hook(self._read(f"inner.{layer.place}", lambda z: z)),
                            block.mlp.register_forward_hook(partial(self._thought, layer.place))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _norm(self, norm: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        hidden = self.value("hidden")
        if hidden is None:
            return out
        kept = hidden.detach().nonzero()[:, 0]
        x = args[0].index_select(-1, kept)
        x = F.layer_norm(x, (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps)
        return torch.zeros_like(out).index_copy(-1, kept, x)

    def _written(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        hidden = self.value("hidden")
        return out if hidden is None else out * hidden

    def _attended(self, place: int, module: nn.Module, args: Any, out: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return self._written(module, args, out[0] * self.layer("attention", place)), out[1]

    def _thought(self, place: int, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return self._written(module, args, out * self.layer("mlp", place))

    def _read(self, name: str, spread: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        def scale(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
            values = self.value(name)
            return None if values is None else (args[0] * spread(values), *args[1:])

        return scale
