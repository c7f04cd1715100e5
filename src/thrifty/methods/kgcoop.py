"""KgCoOp: Visual-Language Prompt Tuning with Knowledge-guided Context Optimization (Yao, Zhang, Xu; CVPR 2023,
arXiv:2303.13283)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import need
from .coop import CoOp

if TYPE_CHECKING:
    from ..core import Attachment

TEACHER = "features of the classes in the model's own sentences"


@dataclass
class KgCoOp(CoOp):
    """CoOp that stays near the sentences written by hand:

        L = CE + ``weight`` (1 - mean_k cos(t_k, u_k))      t_k the learned class feature, u_k that of the model's own templates

    The paper writes squared distances of unit features, 2 (1 - cos), with half the weight. At the start, with the words of the
    template, the second term and its gradient are zero, and the model answers as without training. The authors train with batch
    128, 100 epochs, SGD at 2e-3.
    """

    name = "kgcoop"
    presets = {}
    paper = ("Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023, "
             "arXiv:2303.13283")
    trains = "vectors around class names, kept near the sentences written by hand"
    identity_at_start = True

    words: str = "a photo of a"
    weight: float = 8.0

    def check(self) -> None:
        """The weight is not negative."""
        super().check()
        need(self.weight >= 0, self, "weight", "at least 0")

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Cross-entropy, and the distance to the sentences written by hand."""
        out, labels = model(**task.inputs(model, batch)), batch["labels"]
        near = (out["text_embeds"].float() * teacher(at)).sum(-1).mean()
        return F.cross_entropy(out["logits"].float(), labels) + self.weight * (1 - near), len(labels)


def teacher(at: Attachment) -> Tensor:
    """Unit features [K, d] of the classes in the model's own sentences; computed once and remembered."""
    if TEACHER not in at.memory:
        model: Any = at.model
        with at.disabled(), torch.no_grad():
            at.memory[TEACHER] = F.normalize(model.class_features().float(), dim=-1)
    return at.memory[TEACHER].to(at.seen.device)
