"""Several worker processes, each replaced when a mesh has ended it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Timer
from typing import Any

from meshgpt_pytorch.prepare.options import PrepareOptions
from meshgpt_pytorch.prepare.results import MeshRecord
from meshgpt_pytorch.prepare.sources import MeshSource

__all__ = ["prepare_in_processes"]

# the paths are handed on, so that a worker finds what this process found, and needs no main guard
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from meshgpt_pytorch.prepare.worker import main; main()"
)


class Worker:
    """A worker process, started with the first job and again after one that ended it.

    Args:
        setup: the first line that it is sent.
        seconds_per_mesh: how long a job may take before the process is ended.
    """

    def __init__(self, setup: dict[str, Any], seconds_per_mesh: float) -> None:
        self.setup = setup
        self.seconds_per_mesh = seconds_per_mesh
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Start the process. One thread each: the processes share the cores already."""
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads},
            text=True,
            encoding="utf-8",
        )
        self.process = process
        self.send(process, self.setup)
        assert process.stdout is not None, "made with pipes"
        if process.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError(
                f"a worker process could not be started, it ended with {process.returncode}; pass "
                "num_workers=0 to work in this process and see why"
            )
        return process

    def send(self, process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        """Send a line; a process that has ended does not answer, which is noticed there."""
        assert process.stdin is not None, "made with pipes"
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return

    def run(self, source: MeshSource) -> MeshRecord:
        """Have one mesh prepared.

        Raises:
            OSError: the results cannot be written.
            RuntimeError: no package to decimate with is installed.
        """
        process = self.process or self.start()
        assert process.stdout is not None, "made with pipes"
        timer = Timer(self.seconds_per_mesh, process.kill)
        timer.start()
        try:
            self.send(process, asdict(source))
            line = process.stdout.readline()
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
        if not line.endswith("\n"):
            self.stop()
            return ended_record(source, process.returncode, is_late, self.seconds_per_mesh)
        answer = json.loads(line)
        if "os_error" in answer:
            number, text, path = answer["os_error"]
            raise OSError(number, text, path)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return MeshRecord(**answer["record"])

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None, "made with pipes"
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
            process.wait()


def ended_record(
    source: MeshSource, exit_status: int, is_late: bool, seconds_per_mesh: float
) -> MeshRecord:
    """Describe a mesh that its process did not survive."""
    if is_late:
        reason = f"it took longer than seconds_per_mesh={seconds_per_mesh:g}"
        return MeshRecord(source.key, "timed out", reason)
    how = f"by signal {-exit_status}" if exit_status < 0 else f"with status {exit_status}"
    return MeshRecord(source.key, "crashed", f"the process that read it was ended {how}")


def prepare_in_processes(
    sources: Sequence[MeshSource],
    options: PrepareOptions,
    results: Path,
    *,
    num_workers: int,
    seconds_per_mesh: float,
) -> Iterator[MeshRecord]:
    """Prepare meshes in processes of their own; yield a record of each as it is done.

    Args:
        sources: the meshes.
        options: what they are to be.
        results: folder of what is kept between runs.
        num_workers: processes at work at once.
        seconds_per_mesh: a mesh that takes longer is given up.

    Raises:
        OSError: the results cannot be written.
        RuntimeError: no package to decimate with is installed, and a mesh needs it.
    """
    setup = {"options": asdict(options), "results": str(results)}
    workers = [Worker(setup, seconds_per_mesh) for _ in range(num_workers)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def prepare(source: MeshSource) -> MeshRecord:
        worker = idle.get()
        try:
            return worker.run(source)
        finally:
            idle.put(worker)

    waiting = iter(sources)
    pending: set[Future[MeshRecord]] = set()
    with ThreadPoolExecutor(num_workers) as threads:
        try:
            while True:
                # a few more than there are workers, so that none waits for this loop
                while len(pending) < 2 * num_workers and (source := next(waiting, None)):
                    pending.add(threads.submit(prepare, source))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()
            for worker in workers:
                worker.stop()
