"""BSS, batch spectral shrinkage: Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer
Learning (Chen, Wang, Fu, Long, Wang; NeurIPS 2019)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import need
from .features.reading import heard, listen, stop_listening
from .full import FullFineTuning
from .guidance.outer import Around

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class BSS(Around):
    """Another method, with the smallest singular values of what the head reads, F [batch, d], pushed to zero:

        L + eta sum_{i = 1..k} sigma_{-i}(F)²

    where sigma_{-i} is the i-th smallest of the min(batch, d) singular values; F is not centred. ``around`` is the method's name,
    full fine-tuning by default, ``settings_of`` its settings; "l2-sp" and "delta" are what the authors combine it with.
    """

    name = "bss"
    aliases = ("batch-spectral-shrinkage",)
    route = "few weights"
    paper = "Chen et al., Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage, NeurIPS 2019"
    trains = "what the method trains that it goes around, by default every weight"
    inference = "that method's"
    rate = FullFineTuning.rate

    around: str = "full"
    settings_of: dict[str, Any] = field(default_factory=dict)
    eta: float = 1e-3
    k: int = 1

    def check(self) -> None:
        """Something is shrunk, of another method that is fit."""
        need(self.eta >= 0, self, "eta", "at least 0")
        need(self.k >= 1, self, "k", "at least 1")
        super().check()

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The other method, and a tap where the head reads.

        Raises:
            Unfit: the model does not answer from one vector per example.
        """
        super().attach(at, batches)
        listen(at)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The other method's, and eta times the shrunk part of the spectrum of this batch."""
        mean, count = super().loss(at, task, model, batch)
        return mean + self.eta * smallest(heard(at), self.k), count

    def finish(self, at: Attachment) -> None:
        """The other method's; the tap is no longer needed."""
        super().finish(at)
        stop_listening(at)


def smallest(features: Tensor, k: int) -> Tensor:
    """The sum of the squares of the ``k`` smallest singular values of ``features`` [n, d].

    They are the smallest eigenvalues of the Gram matrix, whose gradient, unlike that of singular vectors, exists where values
    coincide. In float64 where there is any: squaring costs half of the digits.
    """
    wide = features if features.device.type == "mps" else features.double()
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    return torch.linalg.eigvalsh(gram)[:k].clamp(min=0).sum().to(torch.float32 if features.dtype != torch.float64 else wide.dtype)
