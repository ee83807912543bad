"""Laws of the measurements: both sides do the same work, failures stay in the table.

Upstream is not installed where the tests run, so that this package plays both sides here.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.client import Side, Workers
from benchmarks.comparison import measure
from benchmarks.memory import growth
from benchmarks.rows import ROWS

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_gb": 8.0,
    "read_gb_per_s": {"1": 10.0, "2": 20.0},
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Both sides, kept for all tests here."""
    both = Workers({"ours": Side("ours"), "upstream": Side("upstream")})
    yield both
    both.close()


@pytest.mark.parametrize("name", ["edges", "generate-long", "generate-text", "train-ragged"])
def test_both_sides_give_the_same_numbers(name: str, workers: Workers):
    measurement = measure(name, ROWS[name], workers, quick=True)
    ours = measurement.ours["float32"]
    assert ours.error is None
    assert measurement.upstream.error is None
    assert ours.result == measurement.upstream.result
    assert ours.cpu.median > 0
    assert measurement.upstream.wall.median > 0


def test_memory_is_measured_in_fresh_processes(workers: Workers):
    measurement = measure("autoencoder-memory", ROWS["autoencoder-memory"], workers, quick=True)
    assert measurement.ours["float32"].memory.median > 0
    assert measurement.upstream.memory.median > 0


def test_growth_of_memory_is_that_of_the_peak():
    def work() -> int:
        torch.ones(2**25)
        return 7

    # 128 MB that are gone when the work is done
    result, num_bytes = growth(work, "cpu")
    assert result == 7
    assert num_bytes == pytest.approx(2**27, rel=0.1)
