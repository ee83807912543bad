"""From a folder of anybody's meshes to a data set."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
from tqdm.auto import tqdm

from meshgpt_pytorch.checkpoint.atomic import atomic_path
from meshgpt_pytorch.data.disk import MeshWriter
from meshgpt_pytorch.evaluation.sheets import contact_sheet
from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.prepare.captions import Labels, check_captions, label_sources
from meshgpt_pytorch.prepare.occupancy import near_duplicates
from meshgpt_pytorch.prepare.options import Captions, PrepareOptions
from meshgpt_pytorch.prepare.pool import prepare_in_processes
from meshgpt_pytorch.prepare.report import PrepareReport, names_of_groups
from meshgpt_pytorch.prepare.results import MeshRecord, ResultFolder
from meshgpt_pytorch.prepare.single import prepare_one
from meshgpt_pytorch.prepare.sources import MeshSource, find_sources

__all__ = ["prepare_meshes"]

RESULTS = "results"
SHEET_MESHES = 96
SHEET_COLUMNS = 12


def prepare_meshes(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_faces: int | Sequence[int] = 800,
    adaptive: bool = False,
    captions: Captions = "name",
    captions_file: str | os.PathLike[str] | None = None,
    quads: bool = False,
    merge_triangles: bool = False,
    max_hausdorff: float = 0.10,
    max_chamfer: float = 0.010,
    min_overlap: float = 0.8,
    num_discrete_coors: int = 128,
    up_axis: int = 1,
    max_input_faces: int = 2_000_000,
    max_file_bytes: int = 1_000_000_000,
    seconds_per_mesh: float = 300.0,
    num_workers: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Make a data set of all meshes in a folder: clean, small enough, and in canonical form.

    Reads .obj, .ply, .stl, .off, .glb, .gltf, .3mf and .dae files, and those in .zip archives and
    Sweet Home 3D libraries (.sh3f). Each is made one mesh in the [-1, 1] cube, cleaned, its winding
    repaired, decimated to the budget, put on the grid, and kept if it is still the same shape. One
    bad file never stops the run: the report tells of it. A second run does only what is new or was
    changed. ::

        report = prepare_meshes("my_models/", "prepared/", max_faces=800)
        dataset = MeshDataset("prepared/")

    In ``target`` lie the data set, report.json, report.txt, contact_sheet.png (some of what was
    kept; only where Pillow is installed), and the folder results/, from which a second run takes
    what it need not do again; it can be deleted.

    Args:
        source: a folder, or one mesh file or archive.
        target: folder of the data set; one that is there is replaced once the new one is whole.
        max_faces: most faces of a mesh. Several numbers give several levels of decimation of each,
            as far as they differ and are accurate: meshes with the same label "key", of which
            ``dataset.augment(..., one_of="key")`` draws one in each epoch.
        adaptive: give each mesh the fewest faces at which it is accurate, not as many as it may.
        captions: what a mesh is called: "name", after its catalogue or its file; "folder", after
            the folder it is in; "sidecar", by a .txt or .json beside it; "csv", by `captions_file`;
            "catalogue", by its catalogue alone.
        captions_file: a CSV with a column "file" (path, file name or that without suffix), a column
            "caption", and any others, which become labels of the data set too.
        quads: keep quads; leave out meshes with other faces or more quads than `max_faces`.
        merge_triangles: with `quads`, triangulate and decimate those instead, and merge coplanar
            triangles to quads; one without a partner becomes a quad that repeats a vertex.
        max_hausdorff: farthest that a mesh may be from the original, in the [-1, 1] cube.
        max_chamfer: the same for the mean distance.
        min_overlap: meshes whose surfaces share more than this of the cells of a coarse grid get
            the same label "group", so that `MeshDataset.split` can keep them together.
        num_discrete_coors: cells of the grid along each axis.
        up_axis: 0, 1 or 2, the axis of height that faces are sorted by; meshes are not turned.
        max_input_faces: larger files are refused before they are read.
        max_file_bytes: the same, by size.
        seconds_per_mesh: a mesh that takes longer is given up. Not with ``num_workers=0``.
        num_workers: processes, by default one for each core that this one may use; 0 works in this
            process, where a mesh that crashes a library ends all.
        progress: show a progress bar.

    Returns:
        the report.

    Raises:
        FileNotFoundError: there is no source, or no `captions_file`.
        ValueError: an option is out of range, no mesh was found, or none was kept; in the last case
            the report is written all the same.
        OSError: the target cannot be written; what was done so far is found again.
        RuntimeError: a mesh must be decimated, and no package to do so can be imported.
    """
    begin = time.perf_counter()
    budgets = check_budgets(max_faces, adaptive)
    options = PrepareOptions(
        max_faces=budgets[-1],
        adaptive=adaptive,
        quads=quads,
        merge_triangles=merge_triangles,
        max_hausdorff=max_hausdorff,
        max_chamfer=max_chamfer,
        num_discrete_coors=num_discrete_coors,
        up_axis=up_axis,
        max_input_faces=max_input_faces,
        max_file_bytes=max_file_bytes,
    )
    check_run(min_overlap, seconds_per_mesh, num_workers)
    table = None if captions_file is None else Path(captions_file)
    check_captions(captions, table)
    source, target = Path(source), Path(target)
    sources = [each for each in find_sources(source) if not is_below(each, target)]
    if not sources:
        raise ValueError(f"found no mesh files in {source}; see prepare_meshes for their formats")
    labels, cut = label_sources(sources, captions, table)
    check_writable(target)

    results = ResultFolder(target / RESULTS)
    levels = [replace(options, max_faces=budget) for budget in budgets]
    records = run_levels(sources, levels, results, num_workers, seconds_per_mesh, progress)
    kept = [record for record in records if record.outcome == "kept"]
    # by its finest level: all levels of a mesh are one
    finest = list({record.key: record for record in kept}.values())
    groups = near_duplicates([marks_of(results, record) for record in finest], min_overlap)
    report = PrepareReport(
        source=str(source),
        target=str(target),
        options={
            **asdict(options),
            "max_faces": list(budgets) if len(budgets) > 1 else budgets[0],
            "captions": captions,
            "min_overlap": min_overlap,
        },
        records=tuple(records),
        duplicate_groups=names_of_groups(groups, [record.key for record in finest]),
        missing_captions=tuple(
            record.key for record in finest if "caption" not in labels[record.key]
        ),
        cut_labels=tuple(record.key for record in finest if record.key in cut),
        seconds=round(time.perf_counter() - begin, 1),
    )
    write_text(target / "report.json", report.to_json())
    write_text(target / "report.txt", report.page())
    if not kept:
        raise ValueError(f"none of {len(sources)} meshes was kept: {report}")
    write_dataset(target, kept, results, labels, report.duplicate_groups)
    draw_sheet(target / "contact_sheet.png", kept, results, labels)
    return report


def check_budgets(max_faces: int | Sequence[int], adaptive: bool) -> list[int]:
    """Return the budgets from few faces to many."""
    budgets = [max_faces] if isinstance(max_faces, int) else sorted({*max_faces})
    if not budgets:
        raise ValueError("max_faces must be a number or several, got none")
    if adaptive and len(budgets) > 1:
        raise ValueError(
            f"adaptive=True chooses one number of faces for each mesh, got max_faces={budgets}; "
            "pass one of them, or adaptive=False"
        )
    if budgets[0] < 4:
        raise ValueError(f"max_faces must be at least 4, got {budgets[0]}")
    return budgets


def check_run(min_overlap: float, seconds_per_mesh: float, num_workers: int | None) -> None:
    """Check the options that do not decide what becomes of one mesh."""
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap must be above 0 and at most 1, got {min_overlap}")
    if not seconds_per_mesh > 0:
        raise ValueError(f"seconds_per_mesh must be above 0, got {seconds_per_mesh}")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers must be None, 0 or more, got {num_workers}")


def check_writable(folder: Path) -> None:
    """Raise OSError at once, rather than after the first mesh, if a folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{uuid4().hex}"
    probe.touch()
    probe.unlink()


def is_below(source: MeshSource, folder: Path) -> bool:
    """Tell whether a file lies in the folder that is written to."""
    return folder.resolve() in Path(source.file).resolve().parents


def run_levels(
    sources: list[MeshSource],
    levels: Sequence[PrepareOptions],
    results: ResultFolder,
    num_workers: int | None,
    seconds_per_mesh: float,
    progress: bool,
) -> list[MeshRecord]:
    """Prepare all meshes for each budget, from few faces to many.

    Returns:
        the records in the order of the sources, those of one mesh next to each other.
    """
    waiting, found = sources, dict[str, list[MeshRecord]]()
    for options in levels:
        for record in run(waiting, options, results, num_workers, seconds_per_mesh, progress):
            record.max_faces = options.max_faces
            found.setdefault(record.key, []).append(record)
        waiting = [
            source for source in waiting if gains_by_faces(found[source.key][-1], options.quads)
        ]
    return [record for source in sources for record in found[source.key]]


def gains_by_faces(record: MeshRecord, quads: bool) -> bool:
    """Tell whether a mesh can come to something else with a higher budget."""
    if record.outcome == "kept":
        whole = ("as it is",) if quads else ("as it is", "on the grid")
        return record.method not in whole
    return record.outcome == "inaccurate"


def run(
    sources: list[MeshSource],
    options: PrepareOptions,
    results: ResultFolder,
    num_workers: int | None,
    seconds_per_mesh: float,
    progress: bool,
) -> list[MeshRecord]:
    """Prepare all meshes for one budget; return the records in the order of the sources."""
    if not sources:
        return []
    if num_workers is None:
        num_workers = min(num_cores(), len(sources))
    if num_workers == 0:
        stream: Iterator[MeshRecord] = (prepare_one(each, options, results) for each in sources)
    else:
        stream = prepare_in_processes(
            sources,
            options,
            results.path,
            num_workers=num_workers,
            seconds_per_mesh=seconds_per_mesh,
        )
    done: dict[str, MeshRecord] = {}
    with tqdm(
        total=len(sources), desc=f"meshes, {options.max_faces} faces", disable=not progress
    ) as bar:
        for record in stream:
            done[record.key] = record
            bar.update()
            bar.set_postfix(kept=sum(each.outcome == "kept" for each in done.values()))
    return [done[source.key] for source in sources]


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mesh_of(results: ResultFolder, record: MeshRecord) -> Mesh:
    """Read a kept mesh again."""
    result = results.get(record.result or "")
    assert result is not None and result.mesh is not None, "kept meshes were written"
    return result.mesh


def marks_of(results: ResultFolder, record: MeshRecord) -> np.ndarray:
    """Read the cells that a kept mesh runs through."""
    result = results.get(record.result or "")
    assert result is not None and result.marks is not None, "kept meshes were written"
    return result.marks


def write_dataset(
    target: Path,
    kept: list[MeshRecord],
    results: ResultFolder,
    labels: dict[str, Labels],
    groups: Sequence[Sequence[str]],
) -> None:
    """Write the kept meshes and their labels."""
    group_of = {key: number for number, group in enumerate(groups) for key in group}
    with MeshWriter(target) as writer:
        for record in kept:
            # a mesh that looks like no other is a group of its own
            group = group_of.setdefault(record.key, len(group_of) + len(groups))
            writer.add(
                mesh_of(results, record),
                {
                    "caption": "",
                    **labels[record.key],
                    "key": record.key,
                    "group": group,
                    "max_faces": record.max_faces,
                    "method": record.method,
                    "hausdorff": record.hausdorff,
                    "chamfer": record.chamfer,
                    "faces_original": record.faces_before,
                },
            )


def draw_sheet(
    path: Path, kept: list[MeshRecord], results: ResultFolder, labels: dict[str, Labels]
) -> None:
    """Draw meshes from all over the data set, where pictures can be drawn."""
    step = max(1, len(kept) / SHEET_MESHES)
    shown = [kept[int(index * step)] for index in range(min(SHEET_MESHES, len(kept)))]
    names = [labels[record.key].get("caption", record.key) for record in shown]
    try:
        contact_sheet(
            [[mesh_of(results, record)] for record in shown],
            row_labels=[f"{name}, {r.faces_after}" for name, r in zip(names, shown, strict=True)],
            column_labels=[""],
            path=path,
            tile=128,
            row_groups=min(SHEET_COLUMNS, len(shown)),
        )
    except RuntimeError:
        # Pillow is an extra, and the data set does not need it
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    with atomic_path(path) as unfinished:
        # names of files can hold halves of characters
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
