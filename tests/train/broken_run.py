"""`thrifty`, but every process dies at step 7; the checkpoint before it is of step 6."""
from __future__ import annotations

import sys

from thrifty.cli import main
from thrifty.train import training


def step(self: training.Training) -> None:
    if self.log.step == 7:
        raise RuntimeError("enough")
    real(self)


real, training.Training._step = training.Training._step, step  # type: ignore[method-assign]
sys.exit(main())
