"""Zoo-Tuning: Adaptive Transfer from a Zoo of Models (Shu, Kou, Cao, Wang, Long; ICML 2021, arXiv:2106.15434)."""
from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Edit, attachments, base, need, register
from ..core.errors import Unfit
from ..core.roles import blocks
from ..core.site import at_path
from ..zoo.aggregation import Aggregated
from ..zoo.costs import Measure, refuse_beyond
from ..zoo.places import OwnHead, put_head, trunk_site, zoo_of
from ..zoo.zoo import Alone, Pooled, Trunk, path_of
from .features import pictures
from .full import FullFineTuning

if TYPE_CHECKING:
    from ..core import Attachment

STAGE = re.compile(r"(?:stages?\.|layer)(\d+)\.")


@register("zoo-first")
class First(Edit):
    """The first model alone, in the place of all: its convolutions hold what the others know."""

    port = "around"

    def forward(self, run: Any, pixel_values: Tensor) -> Pooled:
        """Pictures [B, 3, h, w] -> f_0 [B, widths[0]]."""
        trunk: Any = self.site.module
        return Pooled(trunk.see(0, pixel_values))


@dataclass
class ZooTuning(FullFineTuning):
    """Models of one architecture become one network, in which every convolution is a mixture of theirs; see ``Aggregated``.

    Everything trains: the models' convolutions, the alignments T_e, the gates, one set of batch norms and a new head. The batch
    norms start with the mean of the models' scales and shifts; their running statistics start anew (``reset``), or at the mean too.
    T_e stands where the kernel is larger than 1 and, unless ``align`` is "all", in the stem or the later half of the stages: 10
    layers of a ResNet-50. "none" has none. With ``lite`` gates are of the task and not of the picture: their mean over a batch, and
    in evaluation a running mean, from 0, of which each batch is a share ``momentum``. Every convolution takes part in that, so
    that `collapse` can make one plain network of it. (The authors' code leaves the shortcuts' gates to the picture.)

    ``params`` and ``flops`` refuse zoos that become a network of more million parameters, or of more billion operations for a
    picture (a multiplication with its addition is one); 0 is no limit. Of Lite that is the plain network, else all that is mixed.

    The authors: SGD at 0.01, momentum 0.9, decay 5e-4, batches of 48, 15,050 steps.
    """

    name = "zoo-tuning"
    aliases = ("zootuning",)
    presets = {"lite-zoo-tuning": {"lite": True}}
    route = "structure"
    modalities = ("image",)
    paper = "Shu et al., Zoo-Tuning: Adaptive Transfer from a Zoo of Models, ICML 2021, arXiv:2106.15434"
    trains = "the convolutions of all models, their alignments, gates, batch norms and a new head"
    inference = "one network, whose convolutions are mixed for each picture; with lite one plain network"
    identity_at_start = False
    needs = "several models"
    rate = 1e-4

    lite: bool = False
    align: str = "late"
    momentum: float = 0.1
    reset: bool = True
    params: float = 0.0
    flops: float = 0.0

    def check(self) -> None:
        """Words are known, a share is one."""
        super().check()
        need(self.align in ("late", "all", "none"), self, "align", "'late', 'all' or 'none'")
        need(0 < self.momentum <= 1, self, "momentum", "above 0 and at most 1")
        need(self.params >= 0, self, "params", "at least 0")
        need(self.flops >= 0, self, "flops", "at least 0")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The mixtures, at the first model's convolutions; and claim what trains.

        Raises:
            Unfit: there is one model only, or they are not of one architecture, or of one that is not made of convolutions, or
                they are beyond the limits.
        """
        site, trunk = trunk_site(at), zoo_of(at).trunk
        refuse_unlike(trunk)
        first = f"{site.path}.{path_of(0)}"
        convolutions = [path for path, module in trunk.base(0).named_modules() if isinstance(module, nn.Conv2d)]
        late = later_half(at.model, first)
        for path in convolutions:
            every = [f"{site.path}.{path_of(i)}.{path}" for i in range(len(trunk))]
            module: Any = at.model.get_submodule(every[0])
            at.put(at_path(at.model, every[0], "conv", None, -1, "", at.seen), Aggregated, models=every, lite=self.lite,
                   align=max(module.kernel_size) > 1 and (self.align == "all" or self.align == "late" and late(path)),
                   momentum=self.momentum)
            for one in every:
                for name, _ in at.model.get_submodule(one).named_parameters(recurse=False):
                    at.train(f"{one}.{name}")
        at.put(site, First)
        put_head(at, trunk.widths[0])
        share_norms(at, [f"{site.path}.{path_of(i)}" for i in range(len(trunk))], self.reset)
        if self.params or self.flops:
            refuse_beyond(self.name, self.params, self.flops, *self.costs(at))

    def costs(self, at: Attachment) -> tuple[int, int]:
        """Parameters of the network that comes of it, and its operations for a picture."""
        zoo, measure, shape = zoo_of(at), Measure(), tuple(pictures.example(at).shape[1:])
        if not self.lite:
            return sum(p.numel() for p in at.parameters()), measure.run([zoo], shape)[0]
        with at.disabled():
            operations = measure.run([Alone(zoo.trunk, 0)], shape)[0]
        width, outputs = zoo.trunk.widths[0], zoo.head.out_features
        plain = sum(p.numel() for _, p in base.parameters(zoo.trunk.base(0)))
        return plain + (width + 1) * outputs, operations + width * outputs


def refuse_unlike(trunk: Trunk) -> None:
    """Raises: Unfit where models differ in a tensor's name or shape, or are made of more than convolutions and norms."""
    first = {name: tuple(tensor.shape) for name, tensor in base.tensors(trunk.base(0)).items()}
    for i in range(1, len(trunk)):
        own = {name: tuple(tensor.shape) for name, tensor in base.tensors(trunk.base(i)).items()}
        if own != first or type(trunk.base(i)) is not type(trunk.base(0)):
            differs = next((f"{name!r} is {list(first[name]) if name in first else 'missing'} in one and "
                            f"{list(own[name]) if name in own else 'missing'} in the other"
                            for name in {**first, **own} if first.get(name) != own.get(name)),
                           f"one is {type(trunk.base(0)).__name__}, the other {type(trunk.base(i)).__name__}")
            raise Unfit(f"zoo-tuning merges models of one architecture, and {trunk.names[i]!r} has not that of {trunk.names[0]!r}: "
                        f"{differs}. hub-pathway and dery take models of several")
    held = {path.rpartition(".")[0] for path, _ in base.parameters(trunk.base(0))}
    for path in sorted(held):
        module = trunk.base(0).get_submodule(path)
        if not isinstance(module, nn.Conv2d | _BatchNorm):
            raise Unfit(f"zoo-tuning merges convolutions and batch norms, and {trunk.names[0]!r} has {path!r} "
                        f"({type(module).__name__}), which would be the first model's alone. hub-pathway and dery take such models")


def later_half(model: nn.Module, under: str) -> Callable[[str], bool]:
    """Whether a path below ``under`` lies in the stem, or in the later half of the stages; of the blocks, where there are none."""
    depths = {path.removeprefix(f"{under}."): place for path, (_, place) in blocks(model).items() if path.startswith(f"{under}.")}
    stages = sorted({int(found[1]) for path in depths if (found := STAGE.search(f"{path}."))})
    late = set(stages[len(stages) // 2 :])

    def is_late(path: str) -> bool:
        block = next((b for b in depths if path == b or path.startswith(f"{b}.")), None)
        found = STAGE.search(path)
        if block is None and found is None:
            return True
        if len(stages) > 1 and found is not None:
            return int(found[1]) in late
        return block is not None and depths[block] >= len(depths) / 2

    return is_late


@torch.no_grad()
def share_norms(at: Attachment, bases: Sequence[str], reset: bool) -> None:
    """Let the first model's batch norms train, from the means over all models; running statistics from those, or anew."""
    paths = [path for path, module in at.model.get_submodule(bases[0]).named_modules() if isinstance(module, _BatchNorm)]
    for path in paths:
        norms: list[Any] = [at.model.get_submodule(f"{one}.{path}") for one in bases]
        for name in [name for name, _ in norms[0].named_parameters(recurse=False)]:
            at.train(f"{bases[0]}.{path}.{name}")
            getattr(norms[0], name).copy_(torch.stack([getattr(norm, name) for norm in norms]).mean(0))
        at.train_buffers([f"{bases[0]}.{path}.{name}" for name, _ in norms[0].named_buffers(recurse=False)])
        if norms[0].track_running_stats and reset:
            norms[0].reset_running_stats()
        elif norms[0].track_running_stats:
            for name in ("running_mean", "running_var"):
                getattr(norms[0], name).copy_(torch.stack([getattr(norm, name) for norm in norms]).mean(0))


def collapse(at: Attachment) -> nn.Module:
    """The plain network that a trained Lite attachment is in evaluation: the first model's class, with W = sum_e G_e T_e W_e.

    It is a copy that knows nothing of the zoo, with the new head in the place of its own.

    Raises:
        Unfit: gates depend on the picture, so that there is no such network.
    """
    if not isinstance(at.method, ZooTuning) or not at.method.lite:
        raise Unfit("only zoo-tuning with lite=True mixes weights alike for all pictures: no other can be one plain network")
    first = f"trunk.{path_of(0)}"
    values = {name: tensor.detach().clone() for name, tensor in base.tensors(at.model.get_submodule(first)).items()}
    for edit in at.edits.values():
        if isinstance(edit, Aggregated):
            short = edit.site.path.removeprefix(f"{first}.")
            values |= {f"{short}.{name}": tensor for name, tensor in edit.collapsed().items()}
    twin: Any = copy.deepcopy(at.model)
    handle = attachments(twin)[at.name]
    head = next(edit.linear for edit in handle.edits.values() if isinstance(edit, OwnHead))
    handle.detach()
    plain = twin.get_submodule(first)
    plain.load_state_dict(values)
    plain.set_submodule(twin.trunk.heads[0], head.to(next(plain.parameters()).dtype))
    network: nn.Module = plain.eval().requires_grad_(True)
    return network
