"""Memory: what a training holds, by what it is for."""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors where the training is.

    ``weights`` of the model and of what the method puts beside it; what else is ``kept`` besides these, such as the originals of
    weights that train in place; ``gradients``, the ``optimizer``'s states, the ``activations`` that wait for their backward pass,
    and the ``workspace``, what the worst moment of a ``step`` holds beyond all that. On a CPU ``best`` is the copy of the best
    state so far, and ``writing`` the most that is held while a checkpoint is written. ``peak`` is the most of all.

    Activations and gradients are not all there at the same moment, so the parts may sum to more than the peak.
    """

    weights: int
    kept: int
    best: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    workspace: int = 0
    step: int = 0
    writing: int = 0
    peak: int = 0

    def settle(self, step: int, resting: int) -> Memory:
        """With the most that a ``step`` held, and what is held between two steps, gradients included."""
        held = self.weights + self.kept + self.gradients + self.optimizer + self.activations
        written = 2 * (self.best + self.optimizer)  # as tensors, and as the bytes of a file
        writing = resting + self.best + written if self.best else 0
        return replace(self, workspace=max(0, step - held), step=step, writing=writing, peak=max(step + self.best, writing))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)
