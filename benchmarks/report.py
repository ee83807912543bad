"""The tables of docs/performance.md, from the file of results."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import GIGABYTE
from benchmarks.row import Row
from benchmarks.rows import ROWS

MARKERS = ("<!-- benchmarks: begin -->", "<!-- benchmarks: end -->")

HEADS = {
    "time": (
        "### Time",
        "| what | goal | ratio, CPU time | ratio, wall clock | ours | upstream | note |",
    ),
    "memory": ("### Memory at the peak", "| what | goal | ratio | ours | upstream | note |"),
    "growth of time": (
        "### How the time of a token grows",
        "| what | ratio, CPU time | ours | upstream | note |",
    ),
    "growth of memory": (
        "### How memory grows, small width",
        "| what | ratio | ours | upstream | note |",
    ),
}


# processes that run or wait on a machine where nothing else does: two threads of a row before
QUIET_LOAD = 2.5

# what the columns of ratios compare
CLOCKS = {
    "time": ("cpu", "wall"),
    "memory": ("memory",),
    "growth of time": ("cpu",),
    "growth of memory": ("memory",),
}


def write_tables(results: Mapping[str, Any], document: Path) -> None:
    """Replace what stands between the markers of a document.

    Raises:
        ValueError: the document has no such markers.
    """
    begin, end = MARKERS
    text = document.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{document} must have the markers {begin} and {end} once each")
    before, after = text.split(begin)[0], text.split(end)[1]
    document.write_text(f"{before}{begin}\n{tables(results)}\n{end}{after}")


def tables(results: Mapping[str, Any]) -> str:
    """Write all tables that have rows."""
    parts = [introduction(results)]
    for table, (heading, head) in HEADS.items():
        lines = [
            line
            for result in results["rows"]
            if result["name"] in ROWS and ROWS[result["name"]].table == table
            for line in lines_of(result, ROWS[result["name"]], results["machine"])
        ]
        if lines:
            parts.append("\n".join([heading, "", head, rule_below(head), *lines]))
    return "\n\n".join(parts)


def table_of_row(result: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """Write a table of one row."""
    row = ROWS[result["name"]]
    return [HEADS[row.table][1], *lines_of(result, row, machine)]


def rule_below(head: str) -> str:
    """Write the line below the head of a table."""
    return re.sub(r"[^|]+", "---", head)


def introduction(results: Mapping[str, Any]) -> str:
    """Say what was run, where and with what."""
    machine = results["machine"]
    rates = machine["read_gb_per_s"]
    sides = [
        f"{side}: " + ", ".join(f"{name} {version}" for name, version in versions.items())
        for side, versions in results["versions"].items()
    ]
    lines = [
        f"Measured with `{results['command']}` on {machine['processor']}, {machine['cores']} "
        f"cores, {machine['memory_gb']:.0f} GB, which reads {rates['1']} GB/s with one thread and "
        f"{rates['2']} with two.",
        *sides,
    ]
    if machine.get("gpu") is not None:
        rate = machine["gpu_read_gb_per_s"]
        lines.insert(1, f"GPU: {machine['gpu']}, which reads {rate} GB/s.")
    return "\n\n".join(f"{line.rstrip('.')}." for line in lines)


def lines_of(result: Mapping[str, Any], row: Row, machine: Mapping[str, Any]) -> list[str]:
    """Write the lines of a row, one for each variant."""
    upstream = result["upstream"] or {}
    clock = "memory" if row.measure == "memory" else "cpu" if row.device == "cpu" else "wall"
    lines = []
    for name, variant in row.variants.items():
        ours = result["ours"].get(name, {})
        cells = [row.title if name == "float32" else f"{row.title}, {name}"]
        if "growth" not in row.table:
            cells.append("" if variant.goal is None else f"{variant.goal:g}x")
        cells += [ratio(ours, upstream, each) for each in CLOCKS[row.table]]
        cells += [absolute(ours, clock), absolute(upstream, clock)]
        notes = [variant.note, limit(ours, row, machine), result["skipped"], load(result)]
        notes += [
            f"{side}: {outcome['error']}"
            for side, outcome in (("ours", ours), ("upstream", upstream))
            if outcome.get("error")
        ]
        cells.append("; ".join(filter(None, notes)).replace("\n", " ").replace("|", "/"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def load(result: Mapping[str, Any]) -> str:
    """Say so where something else kept the machine busy."""
    return f"measured at a load of {result['load']:.1f}" if result["load"] > QUIET_LOAD else ""


def ratio(ours: Mapping[str, Any], upstream: Mapping[str, Any], clock: str) -> str:
    """Write how many times less ours took."""
    if not ours.get(clock) or not upstream.get(clock):
        return ""
    times = upstream[clock]["median"] / max(ours[clock]["median"], 1e-9)
    return f"**{times:.1f}x**" if times < 10 else f"**{times:,.0f}x**"


def absolute(outcome: Mapping[str, Any], clock: str) -> str:
    """Write what a side took, by the token where there are some."""
    if not outcome.get(clock):
        return ""
    value = outcome[clock]["median"]
    if clock == "memory":
        return f"{value / 1e6:,.0f} MB" if value < GIGABYTE else f"{value / GIGABYTE:.2f} GB"
    tokens = outcome["facts"].get("tokens")
    if tokens is not None:
        return f"{value / tokens * 1e3:.2f} ms/token"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def limit(outcome: Mapping[str, Any], row: Row, machine: Mapping[str, Any]) -> str:
    """Say how long it takes to read the weights of a token, and what share of that is reached."""
    num_bytes = outcome.get("facts", {}).get("weight_bytes_per_token")
    if row.device == "cuda":
        readers = [("wall", "on the GPU", machine.get("gpu_read_gb_per_s"))]
    else:
        rates = machine["read_gb_per_s"]
        readers = [("cpu", "with 1", rates["1"]), ("wall", "with 2", rates["2"])]
    digits = 3 if row.device == "cuda" else 1
    shares = []
    for clock, reader, rate in readers:
        if num_bytes is not None and rate is not None and outcome.get(clock):
            least = num_bytes / (rate * GIGABYTE)
            share = least * outcome["facts"]["tokens"] / outcome[clock]["median"]
            shares.append(f"{least * 1e3:.{digits}f} ms {reader}, {share:.0%} reached")
    if not shares:
        return ""
    return f"reads {num_bytes / 1e6:.0f} MB of weights a token: at least " + "; ".join(shares)
