"""Measure a row: both sides in turn, repeat by repeat."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.client import Worker, WorkerError, Workers
from benchmarks.row import UPSTREAM, Row

# by how much the numbers that both sides' work gives may differ: losses that were mended differ
# a little
SAME_WORK = 5e-3


@dataclass(frozen=True)
class Effort:
    """How much of each row is done.

    Args:
        is_quick: the work in small, once.
        cpu_only: nothing by the wall clock, which means little on a busy machine.
    """

    is_quick: bool = False
    cpu_only: bool = False


@dataclass(frozen=True)
class Figure:
    """What some repeats took: seconds, or bytes."""

    median: float
    min: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure | None":
        """Sum up repeats; none give None."""
        return cls(median(values), min(values), len(values)) if values else None


@dataclass
class Outcome:
    """What one contestant of a row took.

    cpu: seconds of the CPU with 1 thread. wall: seconds by the clock with 2 threads. memory: bytes
    at the peak over those before. result: a number that the work gives. error: what went wrong.
    """

    cpu: Figure | None = None
    wall: Figure | None = None
    memory: Figure | None = None
    result: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Measurement:
    """A row as it came out: upstream once, ours in each variant.

    load: of the machine before the first repeat, as processes that run or wait. skipped: why the
    row was not measured.
    """

    name: str
    load: float = 0.0
    ours: dict[str, Outcome] = field(default_factory=dict)
    upstream: Outcome | None = None
    skipped: str | None = None


def measure(name: str, row: Row, workers: Workers, effort: Effort) -> Measurement:
    """Measure one row.

    Args:
        name, row: what to measure.
        workers: the sides' processes, for rows of time; those of memory start their own.
        effort: how much of it.
    """
    if row.device == "cuda" and not torch.cuda.is_available():
        return Measurement(name, skipped="not measured: needs a GPU")
    load = os.getloadavg()[0]
    contestants = list(row.variants)
    if row.has_upstream and UPSTREAM in workers.sides:
        contestants.append(UPSTREAM)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        request = {"prepare": name, "weights": str(weights), "quick": effort.is_quick}
        if row.measure == "memory":
            outcomes = measure_memory(contestants, workers, request)
        else:
            outcomes = measure_time(contestants, workers, request, schedule(row, effort))
    upstream = outcomes.pop(UPSTREAM, None)
    measurement = Measurement(name, load, outcomes, upstream)
    check_same_work(measurement)
    return measurement


def check_same_work(measurement: Measurement) -> None:
    """Take away what cannot be compared: our work gave another number than upstream's."""
    if measurement.upstream is None or measurement.upstream.result is None:
        return
    wanted = measurement.upstream.result
    for outcome in measurement.ours.values():
        got = outcome.result
        if got is not None and not math.isclose(got, wanted, rel_tol=SAME_WORK):
            outcome.cpu = outcome.wall = outcome.memory = None
            outcome.error = f"the work must give upstream's {wanted:g}, got {got:g}"


def measure_time(
    contestants: Sequence[str],
    workers: Workers,
    request: Mapping[str, Any],
    repeats: Iterable[tuple[int, str]],
) -> dict[str, Outcome]:
    """Let the contestants work in turn, while the others wait.

    Args:
        request: what gets them ready.
        repeats: how many threads, and which clock counts.
    """
    outcomes = {contestant: Outcome() for contestant in contestants}
    seconds: dict[str, dict[str, list[float]]] = {
        contestant: {"cpu": [], "wall": []} for contestant in contestants
    }
    for contestant, outcome in outcomes.items():
        prepare(workers.of(side_of(contestant)), contestant, outcome, request)
    for threads, clock in repeats:
        for contestant, outcome in outcomes.items():
            worker = workers.of(side_of(contestant))
            answer = run(worker, contestant, outcome, threads=threads, measure="time")
            if answer is not None:
                seconds[contestant][clock].append(answer[clock])
    for contestant, outcome in outcomes.items():
        outcome.cpu = Figure.of(seconds[contestant]["cpu"])
        outcome.wall = Figure.of(seconds[contestant]["wall"])
    return outcomes


def schedule(row: Row, effort: Effort) -> Iterator[tuple[int, str]]:
    """List the repeats of a row: how many threads, and which clock counts."""
    repeats = 1 if effort.is_quick else row.repeats
    if row.device == "cpu":
        yield from [(1, "cpu")] * repeats
    if row.by_wall_clock and not effort.cpu_only:
        yield from [(2, "wall")] * repeats


def measure_memory(
    contestants: Sequence[str], workers: Workers, request: Mapping[str, Any]
) -> dict[str, Outcome]:
    """Let each contestant work once in a process of its own."""
    outcomes = {contestant: Outcome() for contestant in contestants}
    for contestant, outcome in outcomes.items():
        with closing(Worker(workers.sides[side_of(contestant)], for_memory=True)) as worker:
            prepare(worker, contestant, outcome, request)
            answer = run(worker, contestant, outcome, threads=1, measure="memory")
            if answer is not None:
                outcome.memory = Figure.of([answer["bytes"]])
    return outcomes


def side_of(contestant: str) -> str:
    """Name the side of a contestant."""
    return UPSTREAM if contestant == UPSTREAM else "ours"


def prepare(worker: Worker, contestant: str, outcome: Outcome, request: Mapping[str, Any]) -> None:
    """Let a contestant get ready; note if it cannot."""
    try:
        outcome.facts = worker.ask(**request, contestant=contestant)["facts"]
    except WorkerError as error:
        outcome.error = str(error)


def run(
    worker: Worker, contestant: str, outcome: Outcome, *, threads: int, measure: str
) -> dict[str, Any] | None:
    """Let a contestant work once; note if it cannot, and ask it no more."""
    if outcome.error is not None:
        return None
    try:
        answer = worker.ask(run=contestant, threads=threads, measure=measure)
    except WorkerError as error:
        outcome.error = str(error)
        return None
    outcome.result = answer["result"]
    return answer
