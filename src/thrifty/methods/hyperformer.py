"""HyperFormer and HyperFormer++: Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks (Karimi
Mahabadi, Ruder, Dehghani, Henderson; ACL 2021, arXiv:2106.04489)."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Shared, Site, need, register
from ..core.errors import Unfit
from .branches.generated import Generated, Shapes, refuse_specialised

if TYPE_CHECKING:
    from ..core import Attachment

ORDER = ("after.mlp", "after.attn")  # the numbers that the authors' code gives to the two kinds of place


def shapes(width: int, rank: int) -> Shapes:
    """The tensors of one adapter."""
    return {"down_weight": (rank, width), "down_bias": (rank,), "up_weight": (width, rank), "up_bias": (width,),
            "gamma": (width,), "beta": (width,)}


class Hypernetwork(nn.Module):
    """Makes the adapters of one stack of layers: I = LN(W_2 relu(W_1 [z; l_i; p_j])), and every tensor is linear in I [e].

    z [e] is the task's embedding, l_i [e] the layer's. Embeddings start at N(0, 1), linear layers at N(0, 0.01) and bias 0.
    ``unified`` is HyperFormer++: p_j [e] says which kind of place the adapter is for, and one set of generators serves all;
    without it there is no p_j, and each kind has its own set.
    """

    def __init__(self, embedding: int, hidden: int, unified: bool, layers: int, kinds: int, width: int, rank: int):
        super().__init__()
        self.layers = nn.Embedding(layers, embedding)
        self.kinds = nn.Embedding(kinds, embedding) if unified else None
        self.first = nn.Linear((3 if unified else 2) * embedding, hidden)
        self.second = nn.Linear(hidden, embedding)
        self.norm = nn.LayerNorm(embedding, eps=1e-6)
        self.shapes = shapes(width, rank)
        self.generators = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(embedding, prod(shape)) for name, shape in self.shapes.items()})
            for _ in range(1 if unified else kinds))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, layer: int, kind: int) -> dict[str, Tensor]:
        """The tensors of the adapter for the task z [e], in a layer, at a kind of place."""
        code = [z, self.layers.weight[layer]]
        if self.kinds is not None:
            code.append(self.kinds.weight[kind])
        made = self.norm(self.second(F.relu(self.first(torch.cat(code)))))
        generators: Any = self.generators[kind if self.kinds is None else 0]
        return {name: generators[name](made).view(shape) for name, shape in self.shapes.items()}


@register("hypernetworks")
class Hypernetworks(Shared):
    """The embeddings z [e] of all tasks, and one ``Hypernetwork`` per stack: {"layers", "kinds", "width", "rank"} of each."""

    per_task = ("tasks",)

    def __init__(self, tasks: int, embedding: int, hidden: int, unified: bool, stacks: list[dict[str, int]]):
        super().__init__()
        self.tasks = nn.ParameterList(nn.Parameter(torch.randn(embedding)) for _ in range(tasks))
        self.stacks = nn.ModuleList(Hypernetwork(embedding, hidden, unified, **stack) for stack in stacks)

    def forward(self, task: int, stack: int, layer: int, kind: int) -> dict[str, Tensor]:
        """The tensors of one adapter."""
        return self.stacks[stack](self.tasks[task], layer, kind)


@register("hyper-adapter")
class HyperAdapter(Generated):
    """y + gamma * norm(U gelu(D y + b_D) + b_U) + beta, where a sub-layer ends: before its dropout, at ``port="input"`` of it.

    D [rank, d] and U [d, rank]; gelu is its tanh form; norm makes mean 0 and variance 1 over d (eps 1e-5).
    """

    def __init__(self, site: Site, stack: int, layer: int, kind: int, rank: int, port: str, kept: bool = False):
        if port not in ("input", "output"):
            raise ValueError(f"an adapter acts on 'input' or 'output', not on {port!r}")
        super().__init__(site, shapes(site.dout, rank) if kept else None)
        self.port, self.place = port, (stack, layer, kind)

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """y [batch, ..., d] -> [batch, ..., d]; x is not read."""
        return y + self.branch(y).to(y.dtype)

    def make(self, task: int) -> dict[str, Tensor]:
        """What the hypernetwork of the stack makes for this place."""
        return self.context.shared(task, *self.place)

    def adapt(self, h: Tensor, made: Mapping[str, Tensor]) -> Tensor:
        """h [..., d] -> [..., d]."""
        low = F.linear(h.to(made["up_bias"].dtype), made["down_weight"], made["down_bias"])
        high = F.linear(F.gelu(low, approximate="tanh"), made["up_weight"], made["up_bias"])
        return F.layer_norm(high, high.shape[-1:], made["gamma"], made["beta"], 1e-5)


@dataclass
class HyperFormer(Method):
    """One adapter per task, layer and kind of place, none of them stored: a small network makes each from embeddings.

    What is shared between tasks and layers is learned in the network, what is not in the embeddings: z [e] of the task, l_i of
    the layer and, with ``unified`` (HyperFormer++), p_j of the place, after attention or feed-forward network. Encoder and
    decoder have a network each; the tasks' embeddings serve both. Every normalisation trains too (``norms``). A batch trains
    the embedding of its own task only; rows of different tasks may stand in one batch. ``rank`` 0 stands for d / 32.

    ``thrifty.methods.branches.generated.specialise(at, task)`` keeps the adapters of one task as they are made. A task added later
    (``thrifty.add_tasks``) begins with the mean of the embeddings.
    """

    name = "hyperformer"
    presets = {"hyperformer++": {"unified": True}}
    route = "add modules"
    paper = ("Karimi Mahabadi et al., Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks, "
             "ACL 2021, arXiv:2106.04489")
    trains = "an embedding per task, the networks that make adapters from them, and every normalisation"
    inference = "two small networks more per layer, made anew for each batch or kept for one task"
    identity_at_start = False
    multitask = True
    rate = 3e-4

    rank: int = 0
    embedding: int = 64
    hidden: int = 128
    unified: bool = False
    norms: bool = True
    where: str = "after.attn|after.mlp"

    def check(self) -> None:
        """Widths are positive."""
        need(self.rank >= 0, self, "rank", "positive, or 0 for a 32nd of the width")
        need(self.embedding >= 1, self, "embedding", "at least 1")
        need(self.hidden >= 1, self, "hidden", "at least 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The networks at the root, and an edit that asks them at every place.

        Raises:
            Unfit: the layers of one stack have different widths.
        """
        sites = at.sites(self.where)
        kinds = sorted({s.role for s in sites}, key=lambda role: (ORDER.index(role) if role in ORDER else len(ORDER), role))
        stacks: dict[str, list[Site]] = {}
        for site in sites:
            stacks.setdefault(site.stack, []).append(site)
        made, depths = [], []
        for own in stacks.values():
            widths = {s.dout for s in own}
            if len(widths) > 1:
                raise Unfit(f"{self.name}: the layers of {own[0].stack!r} are {sorted(widths)} wide, one network makes adapters of "
                            "one width: choose layers of one width with where=")
            depths.append(sorted({s.depth for s in own}))
            width = widths.pop()
            made.append({"layers": len(depths[-1]), "kinds": len(kinds), "width": width, "rank": self.rank or max(1, width // 32)})
        at.share(Hypernetworks, tasks=len(at.tasks), embedding=self.embedding, hidden=self.hidden, unified=self.unified,
                 stacks=made)
        for stack, own in enumerate(stacks.values()):
            for site in own:
                at.put(site, HyperAdapter, stack=stack, layer=depths[stack].index(site.depth), kind=kinds.index(site.role),
                       rank=made[stack]["rank"], port="input" if isinstance(site.module, nn.Dropout) else "output")
        if self.norms:
            at.train_matching("norm*", wildcard=True)

    def more_tasks(self, at: Attachment, tasks: list[str]) -> None:
        """An embedding for each, the mean of those that there are, which trains."""
        refuse_specialised(at, tasks)
        shared, about = at.context.shared, at.shared_as
        assert about is not None
        mean = torch.stack([z.detach() for z in shared.tasks]).mean(0)
        shared.tasks.extend(nn.Parameter(mean.clone()) for _ in tasks)
        at.shared_as = about[0], {**about[1], "tasks": len(shared.tasks)}
