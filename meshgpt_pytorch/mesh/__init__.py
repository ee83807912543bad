"""Geometry without parameters: files, the canonical form, the grid, face edges and features."""

from meshgpt_pytorch.mesh.canonical import canonicalize_mesh, faces_to_mesh
from meshgpt_pytorch.mesh.checks import check_mesh, check_mesh_batch, check_mesh_shapes
from meshgpt_pytorch.mesh.edges import derive_face_edges_from_faces
from meshgpt_pytorch.mesh.features import get_derived_face_features
from meshgpt_pytorch.mesh.grid import discretize, undiscretize
from meshgpt_pytorch.mesh.io import load_mesh, save_mesh
from meshgpt_pytorch.mesh.types import Mesh, MeshFileError

__all__ = [
    "Mesh",
    "MeshFileError",
    "canonicalize_mesh",
    "check_mesh",
    "check_mesh_batch",
    "check_mesh_shapes",
    "derive_face_edges_from_faces",
    "discretize",
    "faces_to_mesh",
    "get_derived_face_features",
    "load_mesh",
    "save_mesh",
    "undiscretize",
]
