"""The processes of both sides, as the parent sees them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.worker import ROOT

# threads wait asleep, so that those of the idle side take no time from the other
SETTINGS = {
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# blocks of 128 kB or more come from the system and go back when freed, so that what is resident
# is what is in use
MEMORY_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
# of this process's environment, what would change either side
DROPPED = ("PYTHONPATH", "TYPECHECK", "PYTHONHASHSEED")


class WorkerError(RuntimeError):
    """What a side could not do."""


@dataclass(frozen=True)
class Side:
    """One of both sides.

    Args:
        name: "ours" or "upstream".
        python: the interpreter of its environment.
    """

    name: str
    python: Path = Path(sys.executable)


class Worker:
    """A process of one side.

    Args:
        side: whose.
        for_memory: set it up to be measured by its memory.
    """

    def __init__(self, side: Side, *, for_memory: bool = False) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
        environment |= SETTINGS | (MEMORY_SETTINGS if for_memory else {})
        self.side = side
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [side.python, "-W", "ignore", ROOT / "benchmarks" / "worker.py", side.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            # a relative path of the interpreter stays valid
            cwd=ROOT,
        )
        try:
            self.versions: Mapping[str, str] = self._read()["versions"]
        except WorkerError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; return the answer.

        Raises:
            WorkerError: the side failed at it, or ended.
        """
        assert self.process.stdin is not None, "the worker's input is a pipe"
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._obituary()) from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "the worker's output is a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self._obituary())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _obituary(self) -> str:
        """Say how the process ended."""
        code = self.process.wait()
        if code < 0:
            return f"the {self.side.name} process was ended by {signal.Signals(-code).name}"
        self.log.seek(0)
        last_lines = self.log.read().splitlines()[-15:]
        return "\n".join([f"the {self.side.name} process ended with {code}:", *last_lines])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


class Workers:
    """The processes that measure time: one a side, kept from row to row.

    Args:
        sides: "ours", and "upstream" if there is one.
    """

    def __init__(self, sides: Mapping[str, Side]) -> None:
        self.sides = sides
        self._workers: dict[str, Worker] = {}

    def of(self, side: str) -> Worker:
        """Return the process of a side, a new one if it has ended."""
        worker = self._workers.get(side)
        if worker is not None and worker.process.poll() is not None:
            worker.close()
            worker = None
        if worker is None:
            worker = self._workers[side] = Worker(self.sides[side])
        return worker

    def close(self) -> None:
        """End all."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
