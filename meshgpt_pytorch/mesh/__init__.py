"""Geometry without parameters: files, the canonical form, the grid, face edges and features."""

from meshgpt_pytorch.mesh.canonical import canonicalize_mesh, faces_to_mesh
from meshgpt_pytorch.mesh.checks import check_mesh, check_mesh_batch, check_mesh_shapes, holds
from meshgpt_pytorch.mesh.cleaning import clean_mesh
from meshgpt_pytorch.mesh.distance import SurfaceDistance, sample_surface, surface_distance
from meshgpt_pytorch.mesh.edges import derive_face_edges_from_faces
from meshgpt_pytorch.mesh.features import get_derived_face_features
from meshgpt_pytorch.mesh.grid import discretize, undiscretize
from meshgpt_pytorch.mesh.inspect import MeshReport, inspect_mesh
from meshgpt_pytorch.mesh.io import load_mesh, save_mesh
from meshgpt_pytorch.mesh.quads import merge_coplanar_triangles
from meshgpt_pytorch.mesh.repair import repair_winding
from meshgpt_pytorch.mesh.simplify import simplify_mesh
from meshgpt_pytorch.mesh.types import Mesh, MeshFileError, VanishedMeshError

__all__ = [
    "Mesh",
    "MeshFileError",
    "MeshReport",
    "SurfaceDistance",
    "VanishedMeshError",
    "canonicalize_mesh",
    "check_mesh",
    "check_mesh_batch",
    "check_mesh_shapes",
    "clean_mesh",
    "derive_face_edges_from_faces",
    "discretize",
    "faces_to_mesh",
    "get_derived_face_features",
    "holds",
    "inspect_mesh",
    "load_mesh",
    "merge_coplanar_triangles",
    "repair_winding",
    "sample_surface",
    "save_mesh",
    "simplify_mesh",
    "surface_distance",
    "undiscretize",
]
