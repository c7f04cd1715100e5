"""Full fine-tuning: every weight trains. The reference that all other methods are held against, as in

BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin, Chang, Lee, Toutanova; NAACL 2019,
arXiv:1810.04805).
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Method
from ..core.ledger import ledger
from ..core.site import owned

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class FullFineTuning(Method):
    """Every parameter trains in place, and batch-norm statistics move; what the model itself keeps fixed stays fixed.

    Fixed are parameters that did not require a gradient when the model came, such as sinusoidal position tables.
    """

    name = "full"
    aliases = ("full-fine-tuning", "fine-tuning")
    route = "few weights"
    paper = "Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019, arXiv:1810.04805"
    trains = "every weight of the model"
    inference = "none; a whole model per task on disk"
    rate = 2e-5

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim every parameter, and the buffers of every batch norm."""
        book = ledger(at.model)
        assert book is not None
        for name in [n for n, _ in at.model.named_parameters() if not owned(n)]:
            if book.wanted.get(name, True):
                at.train(name, wildcard=True)
        at.train_buffers([f"{path}.{name}" if path else name for path, module in at.model.named_modules()
                          if isinstance(module, _BatchNorm) and not owned(path) for name, _ in module.named_buffers(recurse=False)])
