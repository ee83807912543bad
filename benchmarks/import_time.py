"""Measure what importing the package costs on top of importing torch.

    python -m benchmarks.import_time [--runs 7] [--json import_time.json]

Each statement runs in fresh interpreters, after `import torch`; the time is that of the statement
alone. The first run of each warms the disk cache and is not counted. The target for a plain
`import meshgpt_pytorch` is 0.5 s.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

STATEMENTS = (
    "import meshgpt_pytorch",
    "from meshgpt_pytorch import load_mesh, canonicalize_mesh, save_mesh",
    "from meshgpt_pytorch import MeshAutoencoder",
    "from meshgpt_pytorch import MeshAutoencoder, MeshTransformer",
    "from meshgpt_pytorch import MeshAutoencoderTrainer, MeshTransformerTrainer",
)

PROGRAM = """
import sys, time
import torch
modules_before = len(sys.modules)
start = time.perf_counter()
{statement}
print(time.perf_counter() - start, len(sys.modules) - modules_before)
"""


class Cost(NamedTuple):
    """What a statement costs: the median of some runs."""

    statement: str
    seconds: float
    modules: int


def run_once(statement: str) -> tuple[float, int]:
    """Run a statement in a fresh interpreter; return its seconds and the modules it loads."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(statement=statement)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{statement!r} failed:\n{result.stderr}")
    seconds, modules = result.stdout.split()
    return float(seconds), int(modules)


def measure(statement: str, runs: int) -> Cost:
    """Take the median time of a statement over some runs, after one that is not counted."""
    run_once(statement)
    rows = [run_once(statement) for _ in range(runs)]
    return Cost(statement, statistics.median(seconds for seconds, _ in rows), rows[0][1])


def main() -> None:
    """Measure each statement, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description="measure what importing the package costs")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each statement")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    arguments = parser.parse_args()

    costs = [measure(statement, arguments.runs) for statement in STATEMENTS]
    print(f"Python {platform.python_version()}, {platform.machine()}, {arguments.runs} runs each\n")
    print("| on top of `import torch` | seconds | modules |")
    print("|---|---|---|")
    for cost in costs:
        print(f"| `{cost.statement}` | {cost.seconds:.2f} | {cost.modules} |")
    if arguments.json:
        rows = [cost._asdict() for cost in costs]
        arguments.json.write_text(json.dumps({"runs": arguments.runs, "costs": rows}, indent=1))


if __name__ == "__main__":
    main()
