"""Ctrl-C at a place where everything can be written down."""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """The user stopped a training; the message says where its checkpoint is and how to go on."""


class Wish:
    """Whether the user has asked to stop. The first Ctrl-C sets it; a second one stops at once."""

    def __init__(self) -> None:
        self.stop = False

    def _hear(self, *_: object) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen as long as the block lasts. Outside the main thread Python cannot, and Ctrl-C does what it always does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
