"""What a row of the tables is: the work, how it is measured, and what should come out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.workload import Workload

Table = Literal["time", "memory", "growth of time", "growth of memory"]

# the contestant that is not a variant of ours
UPSTREAM = "upstream"


@dataclass(frozen=True)
class Variant:
    """Our side of a row.

    Args:
        goal: how many times quicker or smaller than upstream it should be.
        changes: fields of the workload in which our side differs from upstream's.
        note: what the report says beside it.
    """

    goal: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One comparison: the work, how it is measured, and what should come out.

    Args:
        title: what the report calls it.
        workload: what both sides do.
        quick: the same in small, to see that the row works.
        variants: our side, once or more, by name.
        table: where it is reported; "memory" and "growth of memory" measure memory.
        repeats: of the work, by each clock.
        by_wall_clock: do it with 2 threads too, and look at the clock on the wall.
        has_upstream: whether upstream does it too.
        device: "cuda" rows run where there is a GPU.
    """

    title: str
    workload: Workload
    quick: Workload
    variants: Mapping[str, Variant]
    table: Table = "time"
    repeats: int = 3
    by_wall_clock: bool = True
    has_upstream: bool = True
    device: str = "cpu"

    @property
    def measure(self) -> str:
        """What is compared: "time" or "memory"."""
        return "memory" if "memory" in self.table else "time"

    def workload_of(self, contestant: str, *, quick: bool) -> Workload:
        """Return what upstream or a variant does."""
        workload = self.quick if quick else self.workload
        changes = {} if contestant == UPSTREAM else self.variants[contestant].changes
        # a dataclass, as all workloads are
        return replace(workload, **changes)  # type: ignore[type-var]
