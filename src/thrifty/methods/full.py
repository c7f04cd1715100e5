"""Full fine-tuning: every weight trains. The reference that all other methods are held against, as in

BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin, Chang, Lee, Toutanova; NAACL 2019,
arXiv:1810.04805).
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Method, base, need, set_apart
from ..core.ledger import unfrozen
from ..core.roles import HEADS

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class FullFineTuning(Method):
    """Every parameter trains in place, and batch-norm statistics move; what the model itself keeps fixed stays fixed.

    Fixed are parameters that did not require a gradient when the model came, such as sinusoidal position tables. The head, which
    starts from nothing, learns ``head_factor`` times as fast as the rest; 10 is usual for images.
    """

    name = "full"
    aliases: ClassVar[tuple[str, ...]] = ("full-fine-tuning", "fine-tuning")
    route = "few weights"
    paper = "Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019, arXiv:1810.04805"
    trains = "every weight of the model"
    inference = "none; a whole model per task on disk"
    rate = 2e-5

    head_factor: float = 1.0

    def check(self) -> None:
        """The head learns."""
        need(self.head_factor > 0, self, "head_factor", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim every parameter, and the buffers of every batch norm.

        Raises:
            Unfit: weights are quantised.
        """
        for name in unfrozen(at.model):
            at.train(name, wildcard=True)
        at.train_buffers([f"{path}.{name}" if path else name for path, module in base.modules(at.model)
                          if isinstance(module, _BatchNorm) for name, _ in module.named_buffers(recurse=False)])

    def new_layers(self, at: Attachment) -> list[str]:
        """What learns at ``head_factor`` times the rate, by its names among what ``at`` trains: the head."""
        return head_names(at)

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """As for every method; where the head learns faster than the rest, it has groups of its own, behind the others."""
        groups = super().groups(at, rate, decay)
        if self.head_factor == 1:
            return groups
        named, new = dict(at.named_parameters()), self.new_layers(at)
        return set_apart(groups, [named[name] for name in new], rate * self.head_factor)


def head_names(at: Attachment) -> list[str]:
    """What trains as the head, by its names among what ``at`` trains, in its order.

    That is what stands in the place of a layer (a head for each task), and of the base what ``also_train`` claimed, else what lies
    where heads are. The embeddings that a language model writes with came with its weights, and are none.
    """
    instead = [f"edit:{key}:{name}" for key, edit in at.edits.items() if edit.replaces for name, _ in edit.named_parameters()]
    held = {name.removeprefix("base:"): p for name, p in at.named_parameters() if name.startswith("base:")}
    claimed = [name for name in held if name not in at.wildcard]
    words = getattr(at.model, "get_output_embeddings", lambda: None)()
    known = {id(p) for p in words.parameters()} if words is not None else set()
    placed = [name for name, p in held.items() if HEADS.search(name) and id(p) not in known]
    return instead + [f"base:{name}" for name in claimed or placed]
