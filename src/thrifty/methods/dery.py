"""DeRy: Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Method, need
from ..core.errors import Unfit
from ..core.hooks import main
from ..zoo.assembled import Assembled
from ..zoo.choosing import Limits
from ..zoo.places import put_head, trunk_site, zoo_of
from ..zoo.reassembly import Plan, Wishes, reassemble
from ..zoo.similarity import KINDS
from .features.pictures import are_pictures

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class DeRy(Method):
    """One network out of pieces of several: models are cut into ``blocks``, and from each stage a block of some model is taken.

    Cutting: blocks of different models are alike where what enters and what leaves them is (``similarity``: "cka", "rbf" or "r2",
    on ``probe`` training pictures); cuts and groups of blocks are sought together, ``trials`` times from random cuts, with at most
    (1 + ``slack``) ceil(N / blocks) of a model's N blocks in each. Choosing: one block of each stage and of each group, so that the
    new network has at most ``params`` million parameters and ``flops`` billion operations (a multiplication with its addition is
    one) for a picture, more than ``least_params`` and ``least_flops``, and no convolutions behind tokens. Costs are exact, stem,
    stitches and head included. The best of those is the one of the highest NASWOT score on the probe, 32 pictures at a time.

    With ``search="integer"`` HiGHS proposes assemblies in the order of the sum of their blocks' own scores, and the best of the
    first ``candidates`` is taken: where there are no more, the best of all. (That sum stands for a score which no linear program
    can hold; it is our own.) "greedy" is the authors' random search, from ``candidates`` starts.
    ``assembly=["resnet50[0:4]", "mobilenetv2[6:16]"]`` names pieces of models instead, by their blocks, and nothing is sought.

    Between pieces lie stitches, see ``Stitch``, of stride 2 where the map is twice as large as the piece was used to (the authors
    draw strides by chance); none, with ``rejoin``, between pieces that followed each other in their model. Stem, stitches and a
    new head train, with labels smoothed by ``smoothing``; with ``whole`` the pieces too.
    """

    name = "dery"
    aliases = ("reassembly",)
    route = "structure"
    modalities = ("image",)
    paper = "Yang et al., Deep Model Reassembly, NeurIPS 2022, arXiv:2210.17409"
    trains = "a stem, stitches between blocks of several models, and a new head"
    inference = "the network that was assembled, and nothing else of the models"
    identity_at_start = False
    needs = "several models"
    rate = 1e-3

    blocks: int = 4
    params: float = 30.0
    flops: float = 6.0
    least_params: float = 0.0
    least_flops: float = 0.0
    search: str = "integer"
    candidates: int = 10
    similarity: str = "cka"
    across: bool = False
    slack: float = 0.2
    trials: int = 200
    iterations: int = 200
    probe: int = 160
    rejoin: bool = False
    whole: bool = False
    smoothing: float = 0.1
    assembly: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Numbers are in their bounds, words are known."""
        for name in ("blocks", "probe"):
            need(getattr(self, name) >= 2, self, name, "at least 2")
        for name in ("candidates", "trials", "iterations"):
            need(getattr(self, name) >= 1, self, name, "at least 1")
        need(self.least_params >= 0, self, "least_params", "at least 0")
        need(self.least_flops >= 0, self, "least_flops", "at least 0")
        need(self.params > self.least_params, self, "params", f"above least_params, {self.least_params:g}")
        need(self.flops > self.least_flops, self, "flops", f"above least_flops, {self.least_flops:g}")
        need(self.search in ("integer", "greedy"), self, "search", "'integer' or 'greedy'")
        need(self.similarity in KINDS, self, "similarity", " or ".join(map(repr, KINDS)))
        need(self.slack >= 0, self, "slack", "at least 0")
        need(0 <= self.smoothing < 1, self, "smoothing", "at least 0 and below 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Cut, choose, and put the new network in the place of the models.

        Raises:
            Unfit: there is one model only, a model that cannot be cut, no data to look at, or nothing that keeps the limits.
            NoSuchSetting: ``assembly`` names a model or blocks that there are not. Missing: SciPy is not installed.
        """
        site = trunk_site(at)
        found = reassemble(zoo_of(at), self.pictures(batches), self.wishes(), at.seed or 0)
        at.put(site, Assembled, channels=found.channels, joints=[joint.plain() for joint in found.joints], nodes=found.nodes,
               whole=self.whole)
        put_head(at, found.width)
        if self.whole:
            claim(at, found)
        at.about["measured"] = found.plain()
        at.about["notes"] = [f"Assembled of {', '.join(found.names)}: {found.parameters / 1e6:.4g} M parameters, "
                             f"{found.operations / 1e9:.4g} G operations for a picture; {found.scored} assemblies were scored."]

    def wishes(self) -> Wishes:
        """The settings that the search reads."""
        limits = Limits(self.params, self.flops, self.least_params, self.least_flops)
        return Wishes(self.blocks, limits, self.search, self.candidates, self.similarity, self.across, self.slack, self.trials,
                      self.iterations, self.rejoin, tuple(self.assembly))

    def pictures(self, batches: Iterable[Any] | None) -> list[Tensor]:
        """The first ``probe`` training pictures, in batches.

        Raises:
            Unfit: there are fewer than two.
        """
        found: list[Tensor] = []
        for batch in batches or ():
            pixels = next((value for value in batch.values() if are_pictures(value)), None)
            if pixels is not None and (left := self.probe - sum(map(len, found))) > 0:
                found.append(pixels[:left])
            if sum(map(len, found)) >= self.probe:
                break
        if sum(map(len, found)) < 2:
            raise Unfit("dery compares blocks by what they make of training pictures, at least two: attach with batches= (dicts of "
                        "pixel_values)")
        return found

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Cross-entropy with smoothed labels; the task's own where nothing is smoothed, or its labels are no classes."""
        labels = batch.get("labels") if isinstance(batch, dict) else None
        if not self.smoothing or not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            return super().loss(at, task, model, batch)
        logits = main(model(**task.inputs(model, batch)))
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing), len(labels)

    def start_rate(self) -> float:
        """A tenth where the blocks train, too."""
        return self.rate / 10 if self.whole else self.rate


def claim(at: Attachment, found: Plan) -> None:
    """Let the blocks of an assembly train, and their batch norms move."""
    for path in (path for part in found.nodes for path in part):
        module = at.model.get_submodule(path)
        for name, _ in module.named_parameters():
            at.train(f"{path}.{name}")
        at.train_buffers([f"{path}.{inner}.{name}" for inner, norm in module.named_modules() if isinstance(norm, _BatchNorm)
                          for name, _ in norm.named_buffers(recurse=False)])
