"""URNet: User-Resizable Residual Networks with Conditional Gating Module (Lee, Chang, Kwak; AAAI 2020, arXiv:1901.04687)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, need
from ..core.probe import guess_example
from .depth.dropping import droppable
from .depth.flops import mean_flops
from .depth.scaled_gates import SCALE, USED, Gate, Scale
from .depth.slow_trunk import slow_down
from .features import pictures
from .full import FullFineTuning

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class URNet(Method):
    """A network whose user says how much of it may run, from 0 to 1; a gate at each residual block sees to it. A reconstruction.

        loss = CE + ``weight`` (mean g - S)²,   S ~ U(0, 1) for every batch,   g as in ``Gate``, the mean over blocks and pictures

    Afterwards blocks whose gate is shut are not computed, and ``set_scale(at, 0.5)`` resizes the network without training; at a
    scale of 1 all of it runs. ``scale`` is what it is measured at, and saved with. The authors train the gates with a sigmoid
    with some probability and a step otherwise; that probability (``soft``), ``hidden`` and ``weight`` are our choices. With
    ``trunk="full"`` the network trains along, at a tenth of the rate; "frozen" trains the gates alone.
    """

    name = "urnet"
    aliases = ("ur-net",)
    route = "structure"
    modalities = ("image",)
    paper = "Lee et al., URNet: User-Resizable Residual Networks, AAAI 2020, arXiv:1901.04687"
    trains = "a gate at each residual block, and the network"
    inference = "less: the blocks whose gates are open at the scale that is asked for"
    rate = 2e-4

    scale: float = 0.8
    weight: float = 1.0
    soft: float = 0.5
    hidden: int = 16
    trunk: str = "full"
    where: str = "block"

    def check(self) -> None:
        """The scale is a share, sizes are sizes."""
        need(0 <= self.scale <= 1, self, "scale", "from 0 to 1")
        need(self.weight >= 0, self, "weight", "at least 0")
        need(0 <= self.soft <= 1, self, "soft", "a probability")
        need(self.hidden >= 1, self, "hidden", "at least 1")
        need(self.trunk in ("full", "frozen"), self, "trunk", "'full' or 'frozen'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The scale where the model is entered, and a gate around each block.

        Raises:
            Unfit: the model reads no pictures, or has blocks that cannot be left out.
        """
        pictures.example(at)
        held = at.seen.example if at.seen.example is not None else guess_example(at.model)
        assert held is not None  # or there were no pictures
        blocks = droppable(at, self.where, held)
        at.put(at.sites("model")[0], Scale, scale=self.scale)
        for number, site in enumerate(blocks):
            at.put(site, Gate, number=number, hidden=self.hidden, soft=self.soft)
        if self.trunk == "full":
            FullFineTuning.make().attach(at)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss at a scale that is drawn, and how far the gates are from it."""
        root = scale_of(at)
        root.drawing = True
        try:
            loss, count = super().loss(at, task, model, batch)
        finally:
            root.drawing = False
        scale, _ = at.context.taps[SCALE]  # which stays for blocks that are computed again in the backward pass
        used = torch.stack(list(at.context.taps.pop(USED).values())).mean()
        return loss + self.weight * (used - scale).square(), count

    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Leave in ``at.about["measured"]`` what share of the blocks runs, and the operations that a picture takes."""
        used: list[Tensor] = []
        counted: float | None = None
        for batch in batches:
            given = task.inputs(at.model, batch)
            at.model(**given)
            used.append(torch.stack(list(at.context.taps[USED].values()), 1))
            counted = mean_flops(at.model, given) if counted is None else counted
        at.about["measured"] = {"scale": float(scale_of(at).scale), "blocks": used[0].shape[1],
                                "used": float(torch.cat(used).mean()), "flops": counted}

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """The network at a tenth of the rate of gates and head."""
        return slow_down(at, super().groups(at, rate, decay))


def scale_of(at: Attachment) -> Scale:
    """The edit of an attachment that tells the gates the scale."""
    return next(edit for edit in at.edits.values() if isinstance(edit, Scale))


def set_scale(at: Attachment, scale: float) -> None:
    """Resize the network: about that share of its blocks, from 0 to 1, runs from now on.

    Raises:
        NoSuchSetting: another number.
    """
    probe = URNet.make(scale=scale)
    probe.check()
    scale_of(at).scale.fill_(scale)
