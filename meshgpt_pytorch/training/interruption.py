"""SIGTERM, with which cluster managers announce that a job is about to be stopped."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Interruption:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.is_requested = False

    def request(self, number: int, frame: FrameType | None) -> None:
        """Note the request; what is being done is finished first."""
        self.is_requested = True


@contextmanager
def noting_sigterm() -> Iterator[Interruption]:
    """Note a SIGTERM during a block in place of dying of it.

    Only the main thread can; elsewhere nothing changes. What handled the signal before handles it
    again after the block.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = signal.signal(signal.SIGTERM, interruption.request)
    try:
        yield interruption
    finally:
        # None stands for a handler that was not installed from Python and cannot be put back
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
