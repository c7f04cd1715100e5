"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning (Pfeiffer, Kamath, Rücklé, Cho, Gurevych; EACL 2021,
arXiv:2005.00247), and its pruning after AdapterDrop: On the Efficiency of Adapters in Transformers (Rücklé, Geigle, Glockner,
Beck, Pfeiffer, Reimers, Gurevych; EMNLP 2021, arXiv:2010.11918)."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..core import Method, need
from ..core.errors import NoSuchSetting

if TYPE_CHECKING:
    from ..composition.composed import Composed
    from ..composition.fusion import Fusion
    from ..core import Attachment

HOTTEST, COOLING = 50.0, 0.05  # where an annealed temperature begins, and by how much it falls at each step


@dataclass
class AdapterFusion(Method):
    """Attention over saved adapters, per token and layer. With x_q the tensor that enters them and z_n what adapter n adds:

        a = softmax_n(<W_Q x_q + b_Q, W_K z_n + b_K> / T),   o = sum_n a_n W_V z_n

    o takes the place of what one adapter adds. The adapters are frozen and their heads left out; the fusion and a new head
    train, on the task's loss + ``regularise`` · sum over layers of ||I - W_V||². ``anneal`` starts T at 50 and lowers it by
    0.05 at every step until it is 1.

    ``adapters`` are their folders, with commas between them. All must act at the same places, and read and write alike.
    """

    name = "adapter-fusion"
    aliases = ("fusion",)
    route = "add modules"
    paper = "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition, EACL 2021, arXiv:2005.00247"
    trains = "W_Q, W_K [d, d] with biases and W_V [d, d] per layer, over frozen saved adapters"
    inference = "every adapter, and one attention over them per layer"
    identity_at_start = False
    needs: ClassVar[str] = "saved adapters"
    rate = 5e-5

    adapters: str = ""
    value: bool = True
    regularise: float = 0.01
    dropout: float = 0.0
    anneal: bool = False

    def check(self) -> None:
        """There are adapters to fuse, and the numbers have a meaning."""
        need(bool(self._folders()), self, "adapters", "folders of saved adapters, with commas between them")
        need(self.regularise >= 0, self, "regularise", "at least 0")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Read the adapters, verified, and put a fusion wherever they act.

        Raises:
            CannotCombine: they do not act at the same places, or are no bottlenecks of the same kind and width.
            BrokenArtifact, WrongBase: one is not whole, or was trained on another base.
        """
        from ..composition import Fuse
        from ..composition.building import put

        temperature = HOTTEST if self.anneal else 1.0
        put(at, Fuse(*self._folders(), value=self.value, dropout=self.dropout, temperature=temperature), heads="new")

    def penalty(self, at: Attachment) -> Tensor | float:
        """regularise · sum over layers of ||I - W_V||_F²."""
        if not self.value or not self.regularise:
            return 0.0
        return self.regularise * sum((fusion.penalty() for _, fusion in fusions(at)), torch.zeros(()))

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Cool down, if annealed."""
        if self.anneal:
            for _, fusion in fusions(at):
                fusion.temperature.sub_(COOLING).clamp_(min=1.0)

    def _folders(self) -> list[str]:
        return [folder.strip() for folder in self.adapters.split(",") if folder.strip()]


def fusions(at: Attachment) -> list[tuple[Composed, Fusion]]:
    """The places where ``at`` fuses adapters, each with its fusion, in the model's order."""
    from ..composition.composed import Composed

    return [(edit, cast("Fusion", fusion)) for edit in at.edits.values() if isinstance(edit, Composed)
            for fusion in edit.fusions.values()]


@torch.no_grad()
def shares(at: Attachment, batches: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The attention that each adapter gets on average over all tokens of ``batches``: place -> adapter -> share.

    Padding counts as tokens, so give batches of texts of one length where that matters.
    """
    found = fusions(at)
    sums: dict[int, Tensor] = {}
    model: nn.Module = at.model
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for _, fusion in found:
            fusion.keep = True
        for batch in batches:
            model(**batch)
            for _, fusion in found:
                assert fusion.attention is not None
                tokens = fusion.attention.flatten(0, -2)
                total = torch.cat([tokens.sum(0), tokens.new_tensor([len(tokens)])])
                sums[id(fusion)] = sums.get(id(fusion), torch.zeros_like(total)) + total
    finally:
        for _, fusion in found:
            fusion.keep, fusion.attention = False, None
        for module, mode in modes:
            module.training = mode
    return {edit.site.key: {part["part"]: float(sums[id(fusion)][i] / sums[id(fusion)][-1])
                            for i, part in enumerate(edit.tree["parts"])} for edit, fusion in found}


def prune(at: Attachment, batches: Iterable[Mapping[str, Any]], keep: int) -> dict[str, list[str]]:
    """Keep, at every place, the ``keep`` adapters that get the most attention over ``batches``; returns which those are.

    The softmax over those that remain renormalises by itself.

    Raises:
        NoSuchSetting: fewer adapters than ``keep`` are there, or none would be left.
    """
    measured = shares(at, batches)
    kept: dict[str, list[str]] = {}
    for edit, _ in fusions(at):
        parts = measured[edit.site.key]
        if not 1 <= keep <= len(parts):
            raise NoSuchSetting(f"keep={keep!r} is not between 1 and the {len(parts)} adapters at {edit.site.path!r}")
        kept[edit.site.key] = sorted(parts, key=lambda name: -parts[name])[:keep]
        for name in parts:
            if name not in kept[edit.site.key]:
                edit.drop(name)
    return kept
