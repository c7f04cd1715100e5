"""What a person sees while it trains: a bar on a terminal, a line per evaluation elsewhere."""
from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """One training's display: loss, rate and time left. Silent if not ``shown``."""

    def __init__(self, total: int, done: int, name: str, shown: bool) -> None:
        self.total, self.done, self.name, self.shown = total, done, name, shown
        self.began, self.first = time.monotonic(), done
        self.bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=name, unit="step", dynamic_ncols=True, leave=False)

    def step(self, loss: float, rate: float) -> None:
        """One step further."""
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4g}", rate=f"{rate:.2g}", refresh=False)
            self.bar.update()

    def say(self, epoch: float, loss: float | None, rate: float, values: dict[str, float], metric: str, best: bool) -> None:
        """One evaluation."""
        if not self.shown:
            return
        kept = " (best)" if best else ""
        known = "" if loss is None else f"  loss {loss:.4g}"
        line = (f"{self.name}: step {self.done}/{self.total}  epoch {epoch:.3g}{known}  rate {rate:.2g}  "
                f"{metric} {values[metric]:.4g}{kept}  {self._left()}")
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def _left(self) -> str:
        steps = self.done - self.first
        if steps == 0 or self.done >= self.total:
            return "done" if self.done >= self.total else ""
        return f"{clock((time.monotonic() - self.began) / steps * (self.total - self.done))} left"


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    whole = int(round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
