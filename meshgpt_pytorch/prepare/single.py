"""One file to one mesh of the data set, or to the reason why not."""

import tempfile
import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from meshgpt_pytorch.mesh import Mesh, MeshFileError, load_mesh
from meshgpt_pytorch.mesh.cleaning import clean_mesh
from meshgpt_pytorch.mesh.file_size import estimate_num_faces
from meshgpt_pytorch.mesh.inspect import inspect_mesh
from meshgpt_pytorch.mesh.repair import repair_winding
from meshgpt_pytorch.mesh.simplify import MissingSimplifierError
from meshgpt_pytorch.prepare.occupancy import occupancy
from meshgpt_pytorch.prepare.options import PrepareOptions
from meshgpt_pytorch.prepare.reduction import InaccurateError, reduce_mesh
from meshgpt_pytorch.prepare.results import MeshRecord, Result, ResultFolder
from meshgpt_pytorch.prepare.sources import (
    FileTooLargeError,
    MeshSource,
    UnpackingError,
    copy_source,
    source_files,
)

__all__ = ["prepare_one"]

# another run would come to these again: what is found once is not looked for twice
LASTING = ("kept", "inaccurate", "unusable")


class RejectedError(Exception):
    """A mesh that is left out: the outcome and the reason."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Prepared(NamedTuple):
    """A mesh with the cells it runs through, and what the record of it is to say."""

    mesh: Mesh
    marks: np.ndarray
    facts: dict


def prepare_one(source: MeshSource, options: PrepareOptions, results: ResultFolder) -> MeshRecord:
    """Prepare one mesh, unless that was done before with the same bytes and the same options.

    Args:
        source: where it is.
        options: what it is to be.
        results: what is kept between runs.

    Returns:
        what became of it.

    Raises:
        OSError: the results, or what comes out of an archive, cannot be written.
        MissingSimplifierError: no package to decimate with works, and the mesh needs it.
    """
    begin = time.perf_counter()
    record = MeshRecord(source.key, "kept")
    if source.problem is not None:
        return MeshRecord(source.key, source.problem_kind, source.problem)
    with tempfile.TemporaryDirectory(prefix="meshgpt-") as folder:
        try:
            path = local_copy(source, Path(folder), options)
            record.result = result_name(source, path, options)
            known = results.record(record.result)
            if known is not None:
                known.key, known.is_reused = source.key, True
                return known
            mesh = clean(read(source, path, options))
            record.faces_before = len(mesh.faces)
            inspection = inspect_mesh(mesh)
            record.inspection = {**asdict(inspection), "size": list(inspection.size)}
            prepared = reduce(repair_winding(mesh), options)
        except (UnpackingError, MissingSimplifierError):
            raise
        except RejectedError as error:
            record.outcome, record.reason = error.outcome, str(error)
            prepared = None
        except OSError as error:
            record.outcome, record.reason = "unreadable", str(error)
            prepared = None
        except MemoryError:
            record.outcome, record.reason = "too large", "it does not fit into memory"
            prepared = None
        except Exception as error:
            # whatever a library makes of one file, the others go on
            record.outcome = "unreadable" if record.faces_before is None else "crashed"
            record.reason = f"{type(error).__name__}: {error}"
            prepared = None
    record.seconds = round(time.perf_counter() - begin, 3)
    if prepared is not None:
        vars(record).update(prepared.facts, faces_after=len(prepared.mesh.faces))
    if record.result is not None and record.outcome in LASTING:
        if prepared is None:
            results.put(record.result, Result(record))
        else:
            results.put(record.result, Result(record, prepared.mesh, prepared.marks))
    else:
        record.result = None
    return record


def local_copy(source: MeshSource, folder: Path, options: PrepareOptions) -> Path:
    """Bring the file to a path, unless it is too large."""
    try:
        return copy_source(source, folder, options.max_file_bytes)
    except FileTooLargeError as error:
        raise RejectedError("too large", str(error)) from error
    except (ValueError, KeyError) as error:
        raise RejectedError("unreadable", str(error)) from error


def result_name(source: MeshSource, path: Path, options: PrepareOptions) -> str:
    """Hash all that decides what becomes of a mesh: its bytes, its rotation and the options."""
    name = sha256(f"{options.fingerprint} {path.suffix.lower()} {source.rotation}".encode())
    for file in source_files(path):
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                name.update(chunk)
    return name.hexdigest()


def read(source: MeshSource, path: Path, options: PrepareOptions) -> Mesh:
    """Read a mesh file and turn the mesh upright."""
    num_faces = estimate_num_faces(path)
    if num_faces > options.max_input_faces:
        raise RejectedError(
            "too large",
            f"it has about {num_faces:,} faces, more than max_input_faces="
            f"{options.max_input_faces:,}; decimate it first, or raise the limit",
        )
    try:
        mesh = load_mesh(path, quads=options.quads, mixed="triangulate")
    except MeshFileError as error:
        # a path in a temporary folder says nothing
        reason = str(error).replace(f"cannot read {path}: ", "")
        raise RejectedError("unreadable", reason) from error
    if options.quads and mesh.faces.shape[1] == 3 and not options.merge_triangles:
        raise RejectedError(
            "not quads",
            "its faces are not all quads; pass merge_triangles=True to make quads of them",
        )
    if source.rotation is not None:
        rotation = torch.tensor(source.rotation, dtype=torch.float64).reshape(3, 3)
        mesh = Mesh((mesh.vertices.double() @ rotation.T).float(), mesh.faces)
    return mesh


def clean(mesh: Mesh) -> Mesh:
    """Clean a mesh, if something is left of it."""
    try:
        return clean_mesh(mesh)
    except ValueError as error:
        raise RejectedError("unusable", str(error)) from error


def reduce(mesh: Mesh, options: PrepareOptions) -> Prepared:
    """Bring a mesh to its budget, if that leaves its shape."""
    try:
        reduction = reduce_mesh(mesh, options)
    except MissingSimplifierError:
        raise
    except InaccurateError as error:
        raise RejectedError("inaccurate", str(error)) from error
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        raise RejectedError("unusable", str(error)) from error
    facts = {
        "hausdorff": round(reduction.distance.hausdorff, 5),
        "chamfer": round(reduction.distance.chamfer, 6),
        "method": reduction.method,
    }
    return Prepared(reduction.mesh, occupancy(reduction.mesh), facts)
