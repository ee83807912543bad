"""Importing the package."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import Context, Job, Stopwatch, Workload

PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
import torch
from worker import enter
enter({side!r})
cpu, wall, modules = time.process_time(), time.perf_counter(), len(sys.modules)
{statement}
print(time.process_time() - cpu, time.perf_counter() - wall, len(sys.modules) - modules)
"""


@dataclass(frozen=True)
class Import(Workload):
    """Run a statement in a fresh interpreter, after ``import torch``."""

    statement: str

    def prepare(self, context: Context) -> Job:
        """Write the program; a first run warms the disk cache."""
        folder = str(Path(__file__).resolve().parents[1])
        program = PROGRAM.format(folder=folder, side=context.side, statement=self.statement)

        def run(watch: Stopwatch) -> float:
            command = [sys.executable, "-W", "ignore", "-c", program]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode != 0:
                raise RuntimeError(f"{self.statement!r} failed:\n{result.stderr}")
            cpu, wall, _ = result.stdout.split()
            watch.set(cpu=float(cpu), wall=float(wall))
            return 0

        return Job(run, warm_up=lambda: run(Stopwatch(context.device)))
