"""UDapter: Language Adaptation for Truly Universal Dependency Parsing (Üstün, Bisazza, Bouma, van Noord; EMNLP 2020,
arXiv:2004.14327)."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Shared, Site, need, register
from ..core.errors import NoSuchSetting, nearest
from .branches.generated import Generated, Shapes, refuse_specialised

if TYPE_CHECKING:
    from ..core import Attachment


def shapes(width: int, rank: int) -> Shapes:
    """The tensors of one adapter."""
    return {"down_weight": (width, rank), "down_bias": (rank,), "up_weight": (rank, width), "up_bias": (width,)}


@register("typology")
class Typology(Shared):
    """l = W_2 drop(relu(W_1 f + b_1)) + b_2, with a language's features f [F], W_1 [F, F], W_2 [size, F]."""

    features: Tensor

    def __init__(self, languages: int, features: int, size: int, dropout: float):
        super().__init__()
        self.register_buffer("features", torch.zeros(languages, features))
        self.first, self.second = nn.Linear(features, features), nn.Linear(features, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, language: int) -> Tensor:
        """The language's embedding l [size]. Each adapter that asks while training draws a dropout of its own."""
        return self.second(self.dropout(F.relu(self.first(self.features[language]))))


@register("contextual-adapter")
class ContextualAdapter(Generated):
    """y + gelu(y W_down + b_down) W_up + b_up, where each of the four is sum_k l_k P_k, linear in the language's l [size].

    P has the shapes [size, d, rank], [size, rank], [size, rank, d] and [size, d]; those of weights start at N(0, std), those of
    biases at zero.
    """

    def __init__(self, site: Site, rank: int, size: int, std: float, kept: bool = False):
        held = shapes(site.dout, rank)
        super().__init__(site, held if kept else None)
        if not kept:
            self.P = nn.ParameterDict({name: nn.Parameter(torch.zeros(size, *shape)) for name, shape in held.items()})
            for name in ("down_weight", "up_weight"):
                nn.init.normal_(self.P[name], std=std)

    def make(self, task: int) -> dict[str, Tensor]:
        """The adapter of the language."""
        language = self.context.shared(task)
        return {name: torch.tensordot(language, P, 1) for name, P in self.P.items()}

    def adapt(self, h: Tensor, made: Mapping[str, Tensor]) -> Tensor:
        """h [..., d] -> [..., d]."""
        low = h.to(made["up_bias"].dtype) @ made["down_weight"] + made["down_bias"]
        return F.gelu(low) @ made["up_weight"] + made["up_bias"]


@dataclass
class UDapter(Method):
    """Adapters after attention and feed-forward network of every layer, made from what is known of the language.

    The tasks are languages. ``features`` is a table, language -> its typological features, all of one length (in the paper the
    289 binary ones of lang2vec on syntax, phonology and inventory, gaps filled by nearest neighbours), and may know more
    languages than are trained. A small network turns features into l [size], and every tensor of every adapter is a sum of
    ``size`` learned ones with weights l. So a language that was never seen has an adapter as soon as it has features: name it
    among the tasks, or later with ``thrifty.add_tasks(at, ["yo"], features={"yo": [...]})``.

    Normalisations stay frozen. Most of what trains are the ``size`` times larger tensors that adapters are made of: the method
    spares parameters per language, not in all. ``thrifty.methods.branches.generated.specialise(at, language)`` keeps the
    adapters of one language and throws the rest away. It starts at the base but for rounding.
    """

    name = "udapter"
    route = "add modules"
    modalities = ("text",)
    paper = "Üstün et al., UDapter: Language Adaptation for Truly Universal Dependency Parsing, EMNLP 2020, arXiv:2004.14327"
    trains = "tensors that two adapters per layer are summed from, and a network from a language's features to the weights"
    inference = "two small networks more per layer, made anew for each batch or kept for one language"
    multitask = True
    Edit = ContextualAdapter
    elsewhere = ("where", "features", "dropout")
    rate = 1e-3

    features: dict[str, list[float]] = field(default_factory=dict)
    rank: int = 256
    size: int = 32
    dropout: float = 0.1
    std: float = 1e-4
    where: str = "after.attn|after.mlp"

    def check(self) -> None:
        """Features are lists of finite numbers, all of one length.

        Raises:
            NoSuchSetting: naming the language whose features are not, or the setting.
        """
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.size >= 1, self, "size", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.std > 0, self, "std", "positive")
        length = len(next(iter(self.features.values()), ()))
        for language, values in self.features.items():
            if not isinstance(values, (list, tuple)) or not values or not all(_number(v) for v in values):
                raise NoSuchSetting(f"{self.name}: the features of {language!r} are not a list of finite numbers: {values!r:.60}")
            if len(values) != length:
                first = next(iter(self.features))
                raise NoSuchSetting(f"{self.name}: {language!r} has {len(values)} features, {first!r} has {length}")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The network with the features of the languages at the root, and the adapters.

        Raises:
            NoSuchSetting: a language has no features.
        """
        table = self.table(at.tasks)
        made = at.share(Typology, languages=len(table), features=len(table[0]), size=self.size, dropout=self.dropout)
        made.features.copy_(torch.tensor(table))
        super().attach(at, batches)

    def more_tasks(self, at: Attachment, tasks: list[str]) -> None:
        """Their features; nothing more is needed."""
        refuse_specialised(at, tasks)
        table, about = torch.tensor(self.table(tasks)), at.shared_as
        assert about is not None
        known = at.context.shared.features
        if table.shape[1] != known.shape[1]:
            raise NoSuchSetting(f"{self.name}: {tasks[0]!r} has {table.shape[1]} features, the adapter reads {known.shape[1]}")
        at.context.shared.features = torch.cat([known, table.to(known)])
        at.shared_as = about[0], {**about[1], "languages": len(known) + len(tasks)}

    def table(self, languages: list[str]) -> list[list[float]]:
        """The features of these languages, in order.

        Raises:
            NoSuchSetting: naming the first that has none.
        """
        for language in languages:
            if language not in self.features:
                raise NoSuchSetting(f"{self.name}: the language {language!r} has no features; give them, features={{{language!r}: "
                                    "[...]}." + nearest(language, self.features, 40))
        return [[float(v) for v in self.features[language]] for language in languages]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
