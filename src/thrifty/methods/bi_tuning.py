"""Bi-Tuning: Bi-tuning of Pre-trained Representations (Zhong, Wang, Kou, Long, Wang; 2020, arXiv:2011.06182)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..core import Edit, Site, need, register
from ..core.errors import Unfit
from .features.reading import find_reader
from .full import FullFineTuning
from .guidance.contrast import contrast, enqueue
from .guidance.views import KINDS, second_view

if TYPE_CHECKING:
    from ..core import Attachment

SEEN, KEY = "features and projections", "key "
QUEUE_H, QUEUE_Z, PLACES = "queue of features", "queue of projections", "places in the queues"


@register("projector")
class Projector(Edit):
    """Beside the head, phi(f) = W f + b of the features f [batch, d] that it reads; leaves f and phi(f) [batch, width]."""

    def __init__(self, site: Site, width: int):
        super().__init__(site)
        self.phi = nn.Linear(site.din, width)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, classes] -> y."""
        self.context.taps[SEEN] = x, self.phi(x.to(self.phi.weight.dtype))
        return y


@dataclass
class BiTuning(FullFineTuning):
    """Full fine-tuning that also contrasts each example with others of its class and of other classes:

        L = CE(y, c) + trade_off (CCE + CCL),   h = [f; 1] / |[f; 1]|,   z = phi(f) / |phi(f)|,   w_c = [W_c; b_c] / |[W_c; b_c]|
        CCE  w_c·h_i beside w_c·h_k of the queued keys;   CCL  z_i·z_i^key beside z_i·z_k of the queued keys

    each the divergence of softmax(· / temperature) from an even one over the K + 1 positives: the first, and the K keys queued for
    the example's class c (``contrast``). W and b are the head's, and get no gradient from CCE. Keys come from a copy of the network
    that follows it, ``momentum`` of itself and the rest of the network's after every step, on a second view of the batch
    (``views``): the one that the batch holds, or as ``view`` says. For CCL the queues are as before the batch, for CCE as after.

    The copy, in training mode as the network itself, and the queues are part of checkpoints, not of the adapter.
    """

    name = "bi-tuning"
    aliases = ("bituning",)
    paper = "Zhong et al., Bi-tuning of Pre-trained Representations, 2020, arXiv:2011.06182"
    trains = "every weight of the model, by contrast too"
    second_view = True

    head_factor: float = 10.0
    keys: int = 40
    width: int = 128
    momentum: float = 0.999
    temperature: float = 0.07
    trade_off: float = 1.0
    view: str = "auto"

    def check(self) -> None:
        """Sizes are positive, the copy is a mean, the view is known."""
        super().check()
        need(self.keys >= 1, self, "keys", "at least 1")
        need(self.width >= 1, self, "width", "at least 1")
        need(0 <= self.momentum <= 1, self, "momentum", "in [0, 1]")
        need(self.temperature > 0, self, "temperature", "positive")
        need(self.trade_off >= 0, self, "trade_off", "at least 0")
        need(self.view in KINDS, self, "view", " or ".join(map(repr, KINDS)))

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, and put the projector beside the head.

        Raises:
            Unfit: the model does not answer from one vector per example.
        """
        super().attach(at, batches)
        at.put(find_reader(at), Projector, width=self.width)

    def new_layers(self, at: Attachment) -> list[str]:
        """The head and the projector."""
        return [*super().new_layers(at), *(name for name, _ in at.named_parameters() if name.startswith("edit:"))]

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The task's loss on the batch, and its contrasts with the queues, into which the batch's keys go.

        Raises:
            Unfit: labels are no classes, one per example; or there are several processes, whose queues would drift apart.
        """
        labels = batch.get("labels")
        if labels is None or labels.dim() != 1 or labels.is_floating_point():
            raise Unfit(f"Bi-Tuning contrasts classes, one per example, and {task.name} has none")
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise Unfit("Bi-Tuning queues the keys of every batch, which several processes would each do alone: train it in one")
        mean, count = super().loss(at, task, model, batch)
        f, z = at.context.taps.pop(SEEN)
        key_f, key_z = self._ask_key(at, second_view(task, at.model, batch, self.view))
        memory, head = at.memory, _projector(at).site
        h, z, key_h, key_z = with_one(f), unit(z), with_one(key_f), unit(key_z)
        ccl = contrast((z * key_z).sum(1), torch.einsum("bd,ckd->bck", z, memory[QUEUE_Z].clone()), labels, self.temperature)
        enqueue(memory[QUEUE_Z], memory[PLACES], key_z, labels)
        memory[PLACES] = enqueue(memory[QUEUE_H], memory[PLACES], key_h, labels)
        w = prototypes(head)[labels]
        cce = contrast((w * h).sum(1), torch.einsum("bd,ckd->bck", w, memory[QUEUE_H]), labels, self.temperature)
        return mean + self.trade_off * (cce + ccl), count

    @torch.no_grad()
    def step(self, at: Attachment, step: int, total: int) -> None:
        """Let the copy follow the network."""
        for name, p in _moving(at).items():
            if KEY + name in at.memory:
                at.memory[KEY + name].lerp_(p.detach(), 1 - self.momentum)

    def finish(self, at: Attachment) -> None:
        """Only the network itself is needed any more."""
        for key in [row.key for row in at.plan if row.edit == Projector.registered]:
            at.take_away(key)
        at.memory.clear()

    @torch.no_grad()
    def _ask_key(self, at: Attachment, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """f and phi(f) of the copy; its batch norms use the batch, and nobody's running statistics move."""
        if PLACES not in at.memory:
            self._begin(at)
        copy = {name: at.memory[KEY + name] for name in _moving(at)}
        statistics = {name: b.clone() for name, b in at.model.named_buffers() if name in at.base}
        functional_call(at.model, copy | statistics, (), inputs)
        found: tuple[Tensor, Tensor] = at.context.taps.pop(SEEN)
        return found

    def _begin(self, at: Attachment) -> None:
        """The copy as the network is now, and queues of random keys of length one."""
        edit = _projector(at)
        classes, device, kind = edit.site.dout, at.seen.device, edit.phi.weight.dtype
        at.memory |= {KEY + name: p.detach().clone() for name, p in _moving(at).items()}
        at.memory[QUEUE_H] = unit(torch.randn(classes, self.keys, edit.site.din + 1)).to(device, kind)
        at.memory[QUEUE_Z] = unit(torch.randn(classes, self.keys, self.width)).to(device, kind)
        at.memory[PLACES] = torch.zeros(classes, dtype=torch.long, device=device)


def unit(x: Tensor) -> Tensor:
    """x [..., d] at length one, in float32."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def with_one(f: Tensor) -> Tensor:
    """[f; 1] / |[f; 1]|, f [B, d] -> [B, d + 1]: a feature beside an entry for the bias."""
    return unit(F.pad(f, (0, 1), value=1.0))


def prototypes(head: Site) -> Tensor:
    """[W; b] of the head, each class at length one [C, d + 1], outside the graph."""
    weight, bias = head.weight.detach(), head.bias
    return unit(torch.cat([weight, (torch.zeros_like(weight[:, 0]) if bias is None else bias.detach())[:, None]], 1))


def _projector(at: Attachment) -> Projector:
    return next(edit for edit in at.edits.values() if isinstance(edit, Projector))


def _moving(at: Attachment) -> dict[str, nn.Parameter]:
    """All that trains, by its names in the model."""
    return {name: p for name, p in at.model.named_parameters() if p.requires_grad}
