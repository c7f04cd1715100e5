"""Everything that can be set about making a student, with the authors' defaults."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import NoSuchSetting
from thrifty.tinyclip.masks import PARTS
from thrifty.train.checking import Checked, need, said


@dataclass(frozen=True)
class Distilling(Checked):
    """How to distil. The defaults are the authors', but for ``batch`` (theirs is 32,768 on 32 processors). On small sets a stage is
    shorter than their ``warm_up``, ``sparsity_warm_up`` and ``prune_at``, which must then be said."""

    purpose = "distillation"

    alpha: float = said(1.0, "share of the teacher's affinities in the loss; the rest is the pairs themselves")
    weight: float = said(1.0, "weight of the loss against the price of size")
    epochs: float = said(6.0, "passes over the training rows in each stage")
    batch: int = said(32, "pairs that are compared with each other")
    rate: float = said(1e-4, "peak learning rate")
    decay: float = said(0.2, "weight decay of tensors with two or more dimensions")
    warm_up: int = said(2000, "steps over which the rate rises from zero; then it falls by a cosine")
    clip: float = said(5.0, "largest norm of the gradient; longer ones are scaled down")
    scale: float = said(50.0, "of cosines, at the start")

    parts: str = said("hidden,heads,inner", "what gates are put on: " + ", ".join(PARTS))
    joint: bool = said(True, "count the size of both towers together, so that one may lose more than the other")
    gate_rate: float = said(0.02, "learning rate of the gates, and of the price of size")
    sparsity_warm_up: int = said(1000, "steps over which the wanted sparsity rises from zero")
    prune_at: int = said(3000, "step after which what gates closed is cut out")

    max_length: int | None = said(None, "tokens after which a caption is cut")
    columns: dict[str, Any] | None = said(None, "role=column pairs where names leave a choice: captions=sentences")
    limit: int | None = said(None, "train on at most this many rows, drawn with the split seed")
    allow_leak: bool = said(False, "go on although equal pictures lie in different splits")
    skip_bad: bool = said(False, "leave out rows that cannot be used")
    split_seed: int = said(0, "for carving splits where the data has none")
    seed: int = said(0, "of the order of rows, captions and gates")
    device: str = said("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one")

    def refuse_odd(self) -> None:
        """Raises: NoSuchSetting."""
        need(0 <= self.alpha <= 1, "alpha", self.alpha, "in [0, 1]")
        need(self.batch >= 2, "batch", self.batch, "at least 2: a pair alone can be told from nothing")
        for name in ("weight", "epochs", "rate", "clip", "scale", "gate_rate"):
            need(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "positive")
        for name in ("decay", "warm_up", "sparsity_warm_up", "seed", "split_seed"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        need(self.prune_at >= 1, "prune_at", self.prune_at, "at least 1")
        need(self.limit is None or self.limit >= 2, "limit", self.limit, "at least 2")
        need(bool(self.gated()) and set(self.gated()) <= set(PARTS), "parts", self.parts, "some of " + ", ".join(PARTS))

    def gated(self) -> tuple[str, ...]:
        """What gates are put on."""
        return tuple(part.strip() for part in self.parts.split(",") if part.strip())

    def check_steps(self, steps: int, gated: bool) -> None:
        """Raises: NoSuchSetting where a stage of so many steps is over before it has begun."""
        for name in ("warm_up", "prune_at", "sparsity_warm_up") if gated else ("warm_up",):
            if getattr(self, name) >= steps:
                raise NoSuchSetting(f"a stage has {steps} steps ({self.epochs:g} epochs in batches of {self.batch}), so {name} "
                                    f"must be less, not {getattr(self, name)}")
        if gated and self.sparsity_warm_up > self.prune_at:
            raise NoSuchSetting(f"the wanted sparsity is reached after sparsity_warm_up={self.sparsity_warm_up} steps, so prune_at "
                                f"must not be less, but it is {self.prune_at}")
