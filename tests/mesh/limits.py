"""A process with bounds on time and memory, for work that may ask for any amount of both."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

MEGABYTE = 1 << 20
# a process that neither answers nor computes
SECONDS_WITHOUT_AN_ANSWER = 300


class LimitedProcess:
    """Call a function many times in one process of its own.

    The limits are generous, and hard: processor time, not that of the clock, so that a busy machine
    changes nothing.

    Args:
        function: found by its name in a module; what it takes and returns can be pickled.
        seconds: processor time of one call.
        megabytes: memory of all calls, on top of what the process has when it starts.
    """

    def __init__(self, function: Callable[[Any], Any], *, seconds: float, megabytes: int) -> None:
        self.arguments = function, seconds, megabytes * MEGABYTE
        self.process: Any = None

    def start(self) -> None:
        """Start the process, with nothing of this one but the path."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, argument: Any) -> Any:
        """Return what the function returns; AssertionError if it went past a limit."""
        if self.process is None:
            self.start()
        self.connection.send(argument)
        assert self.connection.poll(SECONDS_WITHOUT_AN_ANSWER), f"{argument} hangs"
        try:
            answer, fault = self.connection.recv()
        except EOFError:
            self.process.join()
            status, self.process = self.process.exitcode, None
            raise AssertionError(f"{argument} ended its process with status {status}") from None
        assert not fault, f"{argument}: {fault}"
        return answer

    def __enter__(self) -> "LimitedProcess":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()


def serve(
    connection: Connection, function: Callable[[Any], Any], seconds: float, num_bytes: int
) -> None:
    """Answer each argument with what the function returns, and the limit that it went past."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    most = mapped + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # the signal of this timer ends the process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while True:
        argument = connection.recv()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer, fault = function(argument), ""
        except MemoryError as error:
            answer, fault = None, f"out of memory: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send((answer, fault))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error came of one that says that there was no memory."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None
