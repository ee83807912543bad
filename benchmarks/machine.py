"""The machine: what it is, and how fast it reads memory."""

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

GIGABYTE = 1e9


def describe_machine() -> dict[str, Any]:
    """Say what this machine is and how fast one and two threads, and its GPU, read memory."""
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_read_gb_per_s": gpu_read_rate() if torch.cuda.is_available() else None,
    }
    rates = {str(threads): round(read_rate(threads), 1) for threads in (1, 2)}
    return {**machine, "read_gb_per_s": rates}


def processor() -> str:
    """Name the processor and the instructions that matter here."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    flags = set(re.findall(r"\w+", next(iter(re.findall(r"^flags\s*:.*$", text, re.M)), "")))
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    features = ", ".join(flag for flag in known if flag in flags)
    return f"{name[1] if name else platform.processor()} ({features})"


def read_rate(threads: int, num_bytes: int = 2**30, repeats: int = 5) -> float:
    """Measure how many GB/s some threads read, by the sum of a long vector; the best of some.

    The time is that of the threads themselves, which other processes disturb less than the clock's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    vector = torch.ones(num_bytes // 4)
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        vector.sum()
        seconds = (time.process_time() - start) / threads
        rates.append(num_bytes / seconds / GIGABYTE)
    torch.set_num_threads(before)
    return max(rates)


def gpu_read_rate(num_bytes: int = 2**32, repeats: int = 10) -> float:
    """Measure how many GB/s the GPU reads, by the sum of a long vector; the best of some."""
    vector = torch.ones(num_bytes // 4, device="cuda")
    rates = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        vector.sum()
        end.record()
        torch.cuda.synchronize()
        rates.append(num_bytes / (start.elapsed_time(end) / 1e3) / GIGABYTE)
    del vector
    torch.cuda.empty_cache()
    return round(max(rates))
