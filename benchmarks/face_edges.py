"""What the face graph of a large mesh costs.

    python -m benchmarks.face_edges [--faces 110000] [--runs 5]

A closed surface, a torus, of that many triangles. The time is processor time, the median of some
runs; the memory is the peak of the process above what it had before the first call, the edges
themselves included. Upstream compares all pairs of faces, and needs over 100 GB for the default.
"""

import argparse
import resource
import statistics
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor

from meshgpt_pytorch.mesh import derive_face_edges_from_faces

MEGABYTE = 1 << 20


class Cost(NamedTuple):
    """What deriving the edges of one mesh costs."""

    num_faces: int
    num_edges: int
    seconds: float
    megabytes: float


def torus_faces(num_faces: int) -> Tensor:
    """Return the faces of a torus (nf, 3) in random order: two triangles a cell of a grid."""
    rows = max(3, round((num_faces / 2) ** 0.5))
    columns = max(3, round(num_faces / 2 / rows))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    below, right = (row + 1) % rows, (column + 1) % columns
    corners = [r * columns + c for r in (row, below) for c in (column, right)]
    here, beside, under, across = (corner.flatten() for corner in corners)
    faces = torch.cat(
        (torch.stack((here, under, beside), dim=1), torch.stack((beside, under, across), dim=1))
    )
    return faces[torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))]


def peak_megabytes() -> float:
    """Return the most memory that this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEGABYTE if sys.platform == "darwin" else peak / 1024


def measure(num_faces: int, runs: int) -> Cost:
    """Derive the edges of a torus some times."""
    faces = torus_faces(num_faces)
    # what the first call of anything loads is not of this mesh
    derive_face_edges_from_faces(faces[:1000])
    before = peak_megabytes()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        edges = derive_face_edges_from_faces(faces)
        seconds.append(time.process_time() - start)
    # each triangle has three neighbours and itself
    assert len(edges) == 4 * len(faces), "a torus is closed"
    return Cost(len(faces), len(edges), statistics.median(seconds), peak_megabytes() - before)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure what a face graph costs")
    parser.add_argument("--faces", type=int, default=110_000, help="triangles of the mesh")
    parser.add_argument("--runs", type=int, default=5, help="runs, of which the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cost = measure(arguments.faces, arguments.runs)
    print("| faces | edges | seconds | MB more |\n|---|---|---|---|")
    print(f"| {cost.num_faces} | {cost.num_edges} | {cost.seconds:.2f} | {cost.megabytes:.0f} |")


if __name__ == "__main__":
    main()
