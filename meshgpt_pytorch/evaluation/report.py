"""What a run found, as a JSON file that says where and with what it was run."""

import json
import math
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meshgpt_pytorch.checkpoint.atomic import PathLike, atomic_path
from meshgpt_pytorch.typing import typecheck
from meshgpt_pytorch.version import __version__

__all__ = ["describe_environment", "write_report"]

SIGNIFICANT_DIGITS = 6


def describe_environment() -> dict[str, Any]:
    """Return versions, the time in UTC and the machine, as far as they bear on a result."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "meshgpt_pytorch": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }


def to_plain(value: Any, name: str) -> Any:
    """Turn a value into what JSON holds; ``name`` is its place in the report, for errors."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return to_plain(value.tolist(), name)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # JSON has no nan and no infinity
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{name} must be a number, text, path, tensor, list or mapping, "
        f"got {type(value).__name__}; convert it before writing the report"
    )


@typecheck
def write_report(path: PathLike, values: Mapping[str, Any]) -> Path:
    """Write results as JSON, in one step.

    Args:
        path: file to write.
        values: results in the order in which they are to be read: numbers, text, paths, tensors,
            named tuples, lists and mappings of these. Floats keep 6 significant digits; nan and
            infinity become null. What `describe_environment` tells is added as "environment".

    Returns:
        the path.

    Raises:
        TypeError: a value is of another type.
        ValueError: ``values`` has an "environment" of its own.
    """
    if "environment" in values:
        raise ValueError('values must leave "environment" to write_report; use another name')
    plain = to_plain(values, "values") | {"environment": describe_environment()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return Path(path)
