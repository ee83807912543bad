"""How much memory a piece of work needs at its peak."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def growth(work: Callable[[], T], device: str) -> tuple[T, int]:
    """Do the work; return its result, and by how many bytes memory grew at most.

    On the CPU this is the growth of resident memory over that before, as Linux counts it; the
    worker runs with settings by which blocks that are freed leave the process at once. On CUDA it
    is that of allocated memory.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before

    ctypes.CDLL(None).malloc_trim(0)
    # sets the peak to what is resident now
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = work()
    return result, resident("VmHWM") - before


def resident(field: str) -> int:
    """Read the bytes of this process that are resident, now (VmRSS) or at the peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    kilobytes = re.search(rf"^{field}:\s+(\d+) kB$", status, flags=re.MULTILINE)
    assert kilobytes is not None, "Linux counts resident memory"
    return int(kilobytes[1]) * 1024
