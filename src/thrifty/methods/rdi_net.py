"""RDI-Net: Relational Dynamic Inference Networks (Wang, Li, Su, Qin, Li; ICCV 2021)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, need
from .depth.flops import mean_flops
from .depth.relational_router import ROUTES, Block, Router
from .depth.slow_trunk import slow_down
from .features import pictures
from .full import FullFineTuning

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class RDINet(Method):
    """Routers that send each picture through a block, through a cheap part of it, or past it; see ``Router``. ResNets only.

        loss = CE + ``cost`` · mean_b (usage_b - ``target``)²,   usage_b = mean over blocks of r_2 + r_1 / 2

    The authors' released training has cross-entropy alone (``cost=0``); what a way uses is our reading. Their contrastive loss
    between the ways of like pictures, whose weight is zero in that release, is left out. They train the network first, then the
    routers (``trunk="frozen"``), then both ("full", the network at a tenth of the rate). ``hard`` draws one way per picture.
    """

    name = "rdi-net"
    aliases = ("rdinet",)
    route = "structure"
    modalities = ("image",)
    paper = "Wang et al., RDI-Net: Relational Dynamic Inference Networks, ICCV 2021"
    trains = "a router at each residual block, and the network"
    inference = "less: of each block the way that was chosen for the picture"
    identity_at_start = False
    rate = 2e-4

    width: int = 256
    dropout: float = 0.4
    hard: bool = False
    cost: float = 0.0
    target: float = 0.5
    trunk: str = "full"
    where: str = "block"

    def check(self) -> None:
        """Sizes are sizes, shares are shares."""
        need(self.width >= 1, self, "width", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.cost >= 0, self, "cost", "at least 0")
        need(0 <= self.target <= 1, self, "target", "from 0 to 1")
        need(self.trunk in ("full", "frozen"), self, "trunk", "'full' or 'frozen'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A router around each block.

        Raises:
            Unfit: the model reads no pictures, or a block is no residual block of two or three convolutions.
        """
        pictures.example(at)
        for number, site in enumerate(site for site in at.sites(self.where) if site.role == "block"):
            Block(site.module)
            at.put(site, Router, number=number, width=self.width, hard=self.hard, dropout=self.dropout)
        if self.trunk == "full":
            FullFineTuning.make().attach(at)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss on ways that are drawn, and what they use beyond or below the target."""
        routers = routers_of(at)
        for router in routers:
            router.drawing = True
        try:
            loss, count = super().loss(at, task, model, batch)
        finally:
            for router in routers:
                router.drawing = False
        r = torch.stack(list(at.context.taps.pop(ROUTES).values()), 1)
        if self.cost:
            loss = loss + self.cost * (usage(r) - self.target).square().mean()
        return loss, count

    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """Leave in ``at.about["measured"]`` how often each way is taken, and the operations that a picture takes."""
        taken: list[Tensor] = []
        counted: float | None = None
        for batch in batches:
            given = task.inputs(at.model, batch)
            at.model(**given)
            r = torch.stack(list(at.context.taps[ROUTES].values()), 1)
            taken.append(torch.nn.functional.one_hot(r.argmax(-1), 3).double())
            counted = mean_flops(at.model, given) if counted is None else counted
        every = torch.cat(taken)
        at.about["measured"] = {"blocks": every.shape[1], "ways": every.mean((0, 1)).tolist(),
                                "used": float(usage(every).mean()), "flops": counted}

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """The network at a tenth of the rate of routers and head."""
        return slow_down(at, super().groups(at, rate, decay))


def routers_of(at: Attachment) -> list[Router]:
    """The routers of an attachment, in order."""
    return sorted((edit for edit in at.edits.values() if isinstance(edit, Router)), key=lambda edit: edit.number)


def usage(r: Tensor) -> Tensor:
    """What ways r [B, blocks, 3] use of the network: [B], the full way 1 and the cheap one 1/2."""
    return (r[..., 2] + r[..., 1] / 2).mean(1)
