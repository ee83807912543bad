"""What a benchmark does, apart from how it is measured.

A workload says what is done. It is prepared in the process of one side, with that side's package,
and becomes a job, which can be repeated. The code of a workload is the same for both sides, so that
what they do is the same too.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn import Module

AnyModule = TypeVar("AnyModule", bound=Module)


class Stopwatch:
    """Seconds of wall clock and of this process's CPU, from the last start to the stop."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = {"cpu": 0.0, "wall": 0.0}
        self.start()

    def start(self) -> None:
        """Count from here, whatever was counted before."""
        self._synchronize()
        self._start = {"cpu": time.process_time(), "wall": time.perf_counter()}

    def stop(self) -> None:
        """Count up to here."""
        self._synchronize()
        self.set(
            cpu=time.process_time() - self._start["cpu"],
            wall=time.perf_counter() - self._start["wall"],
        )

    def set(self, *, cpu: float, wall: float) -> None:
        """Take seconds that were counted elsewhere."""
        self.seconds = {"cpu": cpu, "wall": wall}

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Job:
    """Prepared work.

    Args:
        run: does the work once, and stops the watch where counting ends (it was started before);
            returns a number by which both sides are compared, that their work was the same.
        warm_up: does a little of the work, so that what happens only once is over.
        facts: what the report needs to know, e.g. how many tokens a run makes.
    """

    run: Callable[[Stopwatch], float]
    warm_up: Callable[[], object] = lambda: None
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Where a workload is prepared.

    Args:
        side: whose package is imported in this process, "ours" or "upstream".
        device: where the work is done.
        weights: a file by which the sides share weights: ours writes it, upstream reads it.
    """

    side: str
    device: str
    weights: Path

    def share(self, model: AnyModule) -> AnyModule:
        """Give a model of either side the same weights, and move it to the device."""
        if self.side == "ours":
            torch.save(model.state_dict(), self.weights)
        else:
            model.load_state_dict(torch.load(self.weights, weights_only=True), strict=True)
        return model.to(self.device)


class Workload(ABC):
    """Something that both sides can do."""

    @abstractmethod
    def prepare(self, context: Context) -> Job:
        """Build all that the work needs with the package of this process."""
