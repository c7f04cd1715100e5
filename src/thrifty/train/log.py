"""What happened in one training so far, as plain data: the part of a run that a report shows and a checkpoint keeps."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

POINTS = 2000  # steps of the loss curve that are kept; of a longer training, every few


@dataclass
class Log:
    """One training from its seed on. ``worse`` counts evaluations since the best; ``stopped`` is None while it goes on."""

    seed: int
    step: int = 0
    evaluated: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0
    stopped: str | None = None
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    examples: int = 0

    def stepped(self, total: int, epoch: float, loss: float, rate: float) -> None:
        """Note one optimiser step of ``total``."""
        self.step += 1
        every = -(-total // POINTS)
        if self.step % every == 0 or self.step in (1, total):
            self.history.append({"step": self.step, "epoch": epoch, "loss": loss, "rate": rate})

    def judged(self, epoch: float, values: dict[str, float], metric: str, eligible: bool = True) -> bool:
        """Note one evaluation; whether it is the best so far of those that are ``eligible``."""
        self.evaluated = self.step
        self.evaluations.append({"step": self.step, "epoch": epoch, "values": values})
        if not eligible:
            return False
        if self.best_value is None or values[metric] > self.best_value:
            self.best_step, self.best_value, self.worse = self.step, values[metric], 0
            return True
        self.worse += 1
        return False

    def forget(self) -> None:
        """Begin the search for the best evaluation anew."""
        self.best_step, self.best_value, self.worse = None, None, 0

    def last_loss(self) -> float | None:
        """Mean training loss since the evaluation before the last one; None before the first step."""
        after = self.evaluations[-2]["step"] if len(self.evaluations) > 1 else 0
        losses = [s["loss"] for s in self.history if s["step"] > after] or [s["loss"] for s in self.history[-1:]]
        return sum(losses) / len(losses) if losses else None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)
