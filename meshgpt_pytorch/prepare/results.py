"""What is kept between runs: the mesh or the verdict that each file came to."""

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from meshgpt_pytorch.mesh import Mesh

__all__ = ["MeshRecord", "Result", "ResultFolder"]


@dataclass
class MeshRecord:
    """What became of one mesh.

    Attributes:
        key: of the source.
        outcome: "kept"; or why not: "unreadable", "unsupported", "too large", "unusable" (nothing
            left once cleaned), "not quads", "inaccurate" (not the same shape within the budget),
            "crashed", "timed out".
        reason: in words, where it was not kept.
        max_faces: the budget that it was to fit.
        result: the name under which the mesh is kept between runs.
        faces_before: in the file, once cleaned.
        faces_after: in the data set.
        hausdorff: distance to the original, two-sided, in the [-1, 1] cube.
        chamfer: mean distance, in the same unit.
        method: how it came within the budget.
        inspection: `inspect_mesh` of the cleaned mesh, before its winding was repaired.
        seconds: of work.
        is_reused: it was found as an earlier run had left it.
    """

    key: str
    outcome: str
    reason: str = ""
    max_faces: int | None = None
    result: str | None = None
    faces_before: int | None = None
    faces_after: int | None = None
    hausdorff: float | None = None
    chamfer: float | None = None
    method: str | None = None
    inspection: dict[str, Any] | None = None
    seconds: float = 0.0
    is_reused: bool = False


class Result(NamedTuple):
    """A record; of a kept mesh also the mesh and the cells that its surface runs through."""

    record: MeshRecord
    mesh: Mesh | None = None
    marks: np.ndarray | None = None


class ResultFolder:
    """Keep results under names, each in an npz of its own that is whole or not there.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def path_of(self, name: str) -> Path:
        """Return the file of a result."""
        return self.path / name[:2] / f"{name}.npz"

    def record(self, name: str) -> MeshRecord | None:
        """Read the record of a result; None where there is none that is whole."""
        result = self.get(name)
        return None if result is None else result.record

    def get(self, name: str) -> Result | None:
        """Read a result; None where there is none that is whole."""
        try:
            with self.path_of(name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                record = MeshRecord(**json.loads(str(arrays["record"])))
                if record.outcome != "kept":
                    return Result(record)
                mesh = Mesh(
                    torch.from_numpy(arrays["vertices"]),
                    torch.from_numpy(arrays["faces"].astype(np.int64)),
                )
                return Result(record, mesh, arrays["marks"])
        except Exception:
            # damaged archives fail in every way there is
            return None

    def put(self, name: str, result: Result) -> None:
        """Write a result in one step.

        Raises:
            OSError: the folder cannot be written; nothing is left behind.
        """
        arrays: dict[str, Any] = {"record": json.dumps(asdict(result.record))}
        if result.mesh is not None and result.marks is not None:
            arrays["vertices"] = result.mesh.vertices.numpy()
            arrays["faces"] = result.mesh.faces.numpy().astype(np.int32)
            arrays["marks"] = result.marks
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{uuid.uuid4().hex}.npz")
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
