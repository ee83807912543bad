"""One side of a comparison: a process that does work when told to.

    PYTHON benchmarks/worker.py ours|upstream

A request is a line of JSON on standard input, the answer a line on standard output:

| request | with | answer |
|---|---|---|
| none, when ready | | `versions` |
| `prepare`: a row | `contestant`, `weights`, `quick` | `facts` |
| `run`: a contestant | `threads`, `measure` (time, memory) | `cpu`, `wall`, `bytes`, `result` |

What fails answers `error`. A contestant is upstream, or a variant of ours; several of a row may be
prepared.
"""

import json
import os
import re
import resource
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/proc/meminfo")
# of the memory that is available, what a worker may take: near the end a machine only swaps
MEMORY_SHARE = 0.6
DISTRIBUTIONS = (
    "meshgpt-pytorch",
    "torch",
    "x-transformers",
    "vector-quantize-pytorch",
    "torch-geometric",
    "gateloop-transformer",
    "numpy",
)


def enter(side: str) -> None:
    """Let `meshgpt_pytorch` be this side's package, and `benchmarks` this folder."""
    here = str(Path(__file__).resolve().parent)
    installed = [path for path in sys.path if path not in ("", here)]
    sys.path[:] = [str(ROOT), *installed]
    import benchmarks

    assert Path(benchmarks.__path__[0]) == ROOT / "benchmarks", "another package is in the way"
    if side == "upstream":
        # parts of `benchmarks` are found all the same: it knows its folder
        sys.path[:] = installed
        from benchmarks.upstream import allow_torchvision

        allow_torchvision()


def introduce() -> dict[str, Any]:
    """Say what this side runs."""
    from meshgpt_pytorch.version import __version__

    versions = {name: version(name) for name in DISTRIBUTIONS}
    # an editable installation may be of another checkout
    versions["meshgpt-pytorch"] = __version__
    versions["python"] = sys.version.split()[0]
    return {"versions": versions}


class Desk:
    """Takes requests of the parent, one by one."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.row = ""
        self.jobs: dict[str, Any] = {}

    def prepare(self, row: str, *, contestant: str, weights: str, quick: bool) -> dict[str, Any]:
        """Build all that a contestant of a row needs; what another row needed is dropped."""
        import torch

        from benchmarks.rows import ROWS
        from benchmarks.workload import Context

        if row != self.row:
            self.jobs.clear()
        self.row, self.device = row, ROWS[row].device
        if self.device == "cuda":
            lift_limit_of_memory()
        workload = ROWS[row].workload_of(contestant, quick=quick)
        job = workload.prepare(Context(self.side, self.device, Path(weights)))
        torch.set_num_threads(1)
        job.warm_up()
        self.jobs[contestant] = job
        return {"facts": dict(job.facts)}

    def run(self, contestant: str, *, threads: int, measure: str) -> dict[str, Any]:
        """Do the work of a contestant once, and say what it took."""
        import torch

        from benchmarks.memory import growth
        from benchmarks.workload import Stopwatch

        torch.set_num_threads(threads)
        watch = Stopwatch(self.device)
        job = self.jobs[contestant]
        if measure == "memory":
            result, num_bytes = growth(lambda: job.run(watch), self.device)
            return {**watch.seconds, "bytes": num_bytes, "result": result}
        watch.start()
        result = job.run(watch)
        return {**watch.seconds, "result": result}


def serve(side: str, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    desk = Desk(side)
    answer(introduce())
    for line in requests:
        request = json.loads(line)
        try:
            if "prepare" in request:
                answer(desk.prepare(request.pop("prepare"), **request))
            else:
                answer(desk.run(request.pop("run"), **request))
        except Exception as error:
            traceback.print_exc()
            answer({"error": describe(error)})


def limit_memory() -> None:
    """Let an allocation fail before it takes the last memory of the machine."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMORY.read_text(), flags=re.MULTILINE)
    assert available is not None, "Linux says how much memory is available"
    limit = int(int(available[1]) * 1024 * MEMORY_SHARE)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def lift_limit_of_memory() -> None:
    """Let CUDA map as much as it wants, most of which it never touches."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def describe(error: Exception) -> str:
    """Say in a line what went wrong."""
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        return f"needs more than the {limit / 1e9:.0f} GB that it may take"
    return f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else ''}"


def main() -> None:
    """Keep standard output for the answers, and serve."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit_memory()
    enter(sys.argv[1])
    serve(sys.argv[1], sys.stdin, answers)


if __name__ == "__main__":
    main()
