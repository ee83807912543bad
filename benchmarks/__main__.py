"""Measure this library against upstream.

    python -m benchmarks list
    python -m benchmarks run [ROW ...] [--quick] [--cpu-only] [--upstream PYTHON] [--write]
    python -m benchmarks tables

Without rows, all of them. `--upstream` names the interpreter of an environment with
meshgpt-pytorch 1.8.1; `make bench` makes one. `--write` puts what came out into
benchmarks/results.json and the tables of docs/performance.md, which `tables` writes again.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.client import Side, Workers
from benchmarks.comparison import Effort, measure
from benchmarks.machine import describe_machine
from benchmarks.report import table_of_row, write_tables
from benchmarks.rows import ROWS
from benchmarks.upstream import VERSION as UPSTREAM_VERSION
from benchmarks.worker import ROOT

RESULTS = ROOT / "benchmarks" / "results.json"
DOCUMENT = ROOT / "docs" / "performance.md"
UPSTREAM_PYTHON = ROOT / ".venv-upstream" / "bin" / "python"


def choose_rows(patterns: Sequence[str]) -> list[str]:
    """Name the rows that patterns such as `train-*` choose; none chooses all.

    Raises:
        ValueError: a pattern chooses nothing.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in ROWS):
            raise ValueError(
                f"no row is called {pattern!r}; `python -m benchmarks list` lists them"
            )
    return [name for name in ROWS if not patterns or any(fnmatch(name, p) for p in patterns)]


def versions_of(workers: Workers) -> dict[str, dict[str, str]]:
    """Ask each side what it runs.

    Raises:
        RuntimeError: upstream is another version, or torch is not the same.
    """
    versions = {side: dict(workers.of(side).versions) for side in workers.sides}
    if "upstream" in versions:
        upstream, ours = versions["upstream"], versions["ours"]
        if upstream["meshgpt-pytorch"] != UPSTREAM_VERSION or upstream["torch"] != ours["torch"]:
            raise RuntimeError(
                f"upstream must be {UPSTREAM_VERSION} with torch {ours['torch']}, got "
                f"{upstream['meshgpt-pytorch']} with torch {upstream['torch']}; run `make bench`"
            )
    return versions


def run(names: Sequence[str], sides: dict[str, Side], effort: Effort) -> dict[str, Any]:
    """Measure rows, print each as it comes, and return what the file of results holds."""
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "machine": describe_machine(),
        "versions": {},
        "rows": [],
    }
    with closing(Workers(sides)) as workers:
        results["versions"] = versions_of(workers)
        for number, name in enumerate(names, start=1):
            start = time.perf_counter()
            row = asdict(measure(name, ROWS[name], workers, effort))
            results["rows"].append(row)
            print(f"\n[{number}/{len(names)}] {name}, {time.perf_counter() - start:.0f} s")
            print("\n".join(table_of_row(row, results["machine"])), flush=True)
    return results


def merged(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put rows that were measured again into the results that are there already.

    Raises:
        ValueError: those are of another machine or of other versions.
    """
    if not path.exists():
        return results
    there = json.loads(path.read_text())
    same = all(there["machine"][key] == results["machine"][key] for key in ("processor", "cores"))
    if not same or there["versions"] != results["versions"]:
        raise ValueError(
            f"{path} must be of this machine and these versions to take in some rows, got another; "
            "run all rows"
        )
    rows = {row["name"]: row for row in [*there["rows"], *results["rows"]]}
    return {**there, "rows": [rows[name] for name in ROWS if name in rows]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name all rows")
    commands.add_parser("tables", help="write the tables of docs/performance.md again")
    run_parser = commands.add_parser("run", help="measure")
    run_parser.add_argument("rows", nargs="*", help="names of rows, or patterns such as 'train-*'")
    run_parser.add_argument("--quick", action="store_true", help="tiny sizes, once: does it work?")
    run_parser.add_argument("--cpu-only", action="store_true", help="not by the wall clock")
    run_parser.add_argument("--upstream", type=Path, default=UPSTREAM_PYTHON, help="interpreter")
    run_parser.add_argument("--alone", action="store_true", help="ours without upstream")
    run_parser.add_argument("--write", action="store_true", help="keep what comes out")
    chosen = parser.parse_args(arguments)

    if chosen.command == "run" and chosen.write and (chosen.quick or chosen.alone):
        parser.error("--write keeps whole measurements: leave out --quick and --alone")
    if chosen.command == "list":
        print("\n".join(f"{name:28} {row.title}" for name, row in ROWS.items()))
    elif chosen.command == "tables":
        write_tables(json.loads(RESULTS.read_text()), DOCUMENT)
    else:
        names = choose_rows(chosen.rows)
        effort = Effort(is_quick=chosen.quick, cpu_only=chosen.cpu_only)
        results = run(names, choose_sides(chosen.upstream, chosen.alone), effort)
        if chosen.write:
            results = merged(results, RESULTS) if chosen.rows else results
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            write_tables(results, DOCUMENT)


def choose_sides(upstream: Path, alone: bool) -> dict[str, Side]:
    """Name the interpreter of each side.

    Raises:
        FileNotFoundError: upstream has none where it should be.
    """
    sides = {"ours": Side("ours")}
    if alone:
        return sides
    if not upstream.exists():
        raise FileNotFoundError(
            f"upstream needs an environment with meshgpt-pytorch {UPSTREAM_VERSION}, got no "
            f"{upstream}; `make bench` makes one, --upstream names another, --alone does without"
        )
    # not resolved: the link is what tells Python of its environment
    return {**sides, "upstream": Side("upstream", upstream.absolute())}


if __name__ == "__main__":
    main()
