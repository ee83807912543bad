"""One mesh to its budget: decimated where it must be, measured against what it was."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from meshgpt_pytorch.mesh import Mesh, canonicalize_mesh
from meshgpt_pytorch.mesh.cleaning import drop_coincident_faces, weld_vertices
from meshgpt_pytorch.mesh.distance import SurfaceDistance, surface_distance
from meshgpt_pytorch.mesh.grid import discretize, undiscretize
from meshgpt_pytorch.mesh.quads import merge_coplanar_triangles, split_quads
from meshgpt_pytorch.mesh.simplify import (
    MissingSimplifierError,
    SimplifyMethod,
    default_simplifier,
    is_available,
    simplify_mesh,
)
from meshgpt_pytorch.prepare.options import PrepareOptions

__all__ = ["InaccurateError", "Reduction", "reduce_mesh"]

GRID_RANGE = (-1.0, 1.0)

# fast-simplification is good with parts that touch without sharing vertices, once these are welded
Attempt = tuple[SimplifyMethod, float]
ATTEMPTS: tuple[Attempt, ...] = (
    ("planar", 0.0),
    ("quadric", 0.0),
    ("planar", 1 / 256),
    ("fast", 1 / 256),
    ("planar", 1 / 64),
    ("fast", 1 / 64),
)

# a mesh with more faces than this share of the budget has too many on the grid as well
GRID_SHARE = 3

# from one budget to the next lower one, when the fewest faces are looked for
BUDGET_RATIO = 2**0.5
FEWEST_FACES = 12


class InaccurateError(ValueError):
    """No attempt gave a mesh within the budget that is still the same shape."""


class Reduction(NamedTuple):
    """A mesh in canonical form, how far it is from what it was, and how it was made."""

    mesh: Mesh
    distance: SurfaceDistance
    method: str


def reduce_mesh(mesh: Mesh, options: PrepareOptions) -> Reduction:
    """Bring a clean mesh to its budget and into canonical form.

    Args:
        mesh: in the [-1, 1] cube.
        options: the budget, the distances allowed and the grid; with ``adaptive``, of the budgets
            that are each the last one divided by the square root of 2, the lowest that a mesh
            within the distances fits is taken.

    Raises:
        InaccurateError: there is no such mesh; the message tells the best attempt.
        MissingSimplifierError: no package to decimate with works, and the mesh needs it.
    """
    best = within_budget(mesh, options.max_faces, options)
    if not options.adaptive:
        return best

    budgets = []
    budget = len(best.mesh.faces) / BUDGET_RATIO
    while budget >= FEWEST_FACES:
        budgets.append(int(budget))
        budget /= BUDGET_RATIO
    # the lower the budget, the farther the mesh: the last good one is found by halving
    low, high = 0, len(budgets)
    while low < high:
        middle = (low + high) // 2
        try:
            candidate = within_budget(mesh, budgets[middle], options)
        except InaccurateError:
            high = middle
        else:
            best, low = candidate, middle + 1
    return best


def within_budget(mesh: Mesh, budget: int, options: PrepareOptions) -> Reduction:
    """Return the first attempt that is accurate."""
    closest, failure = None, ""
    for method, make in attempts(mesh, budget, options):
        try:
            candidate = on_grid(make(), options)
            if len(candidate.faces) > budget:
                failure = failure or f"{len(candidate.faces)} faces, budget {budget}"
                continue
        except MissingSimplifierError:
            raise
        except (ValueError, RuntimeError) as error:
            failure = failure or str(error)
            continue
        distance = surface_distance(mesh, candidate)
        if distance.hausdorff < options.max_hausdorff and distance.chamfer < options.max_chamfer:
            return Reduction(candidate, distance, method)
        if closest is None or distance.chamfer < closest.chamfer:
            closest = distance
    if closest is None:
        raise InaccurateError(f"no attempt fits {budget} faces: {failure}")
    raise InaccurateError(
        f"with at most {budget} faces it is {closest.hausdorff:.3f} (Hausdorff) and "
        f"{closest.chamfer:.4f} (Chamfer) from the original, allowed are "
        f"{options.max_hausdorff:g} and {options.max_chamfer:g}"
    )


def attempts(
    mesh: Mesh, budget: int, options: PrepareOptions
) -> Iterator[tuple[str, Callable[[], Mesh]]]:
    """Yield the ways to make a mesh within the budget, cheapest and best first."""
    if mesh.faces.shape[1] == 4:
        yield "as it is", partial(finished, mesh, options)
        if not options.merge_triangles:
            return
        mesh = Mesh(mesh.vertices, split_quads(mesh.faces))
    single = drop_coincident_faces(mesh)

    # a pair of triangles makes one quad, so that more of them fit
    budgets = (2 * budget, 3 * budget // 2, budget) if options.merge_triangles else (budget,)
    for max_triangles in budgets:
        if len(mesh.faces) <= max_triangles:
            yield "as it is", partial(finished, mesh, options)
            continue
        if len(mesh.faces) <= GRID_SHARE * max_triangles:
            yield "on the grid", partial(finished, mesh, options)
        if len(single.faces) <= max_triangles:
            yield "one side of coincident faces", partial(finished, single, options)
        default_simplifier()  # raises where there is no package to decimate with
        for method, weld in ATTEMPTS:
            if is_available(method):
                name = f"{method}, welded at 1/{round(1 / weld)}" if weld else method
                yield name, partial(decimated, single, max_triangles, method, weld, options)


def finished(mesh: Mesh, options: PrepareOptions) -> Mesh:
    """Make quads of triangles, if that was asked for."""
    if options.merge_triangles and mesh.faces.shape[1] == 3:
        return merge_coplanar_triangles(mesh)
    return mesh


def decimated(
    mesh: Mesh, max_triangles: int, method: SimplifyMethod, weld: float, options: PrepareOptions
) -> Mesh:
    """Make one attempt."""
    welded = weld_vertices(mesh, weld) if weld else mesh
    return finished(simplify_mesh(welded, max_triangles, method=method), options)


def on_grid(mesh: Mesh, options: PrepareOptions) -> Mesh:
    """Snap a mesh where it is, without scaling it again, and order it."""
    num_discrete = options.num_discrete_coors
    bins = discretize(
        mesh.vertices.clamp(*GRID_RANGE), continuous_range=GRID_RANGE, num_discrete=num_discrete
    )
    centres = undiscretize(bins, continuous_range=GRID_RANGE, num_discrete=num_discrete)
    return canonicalize_mesh(
        Mesh(centres.to(torch.float32), mesh.faces),
        num_discrete_coors=num_discrete,
        coor_continuous_range=GRID_RANGE,
        up_axis=options.up_axis,
    )
