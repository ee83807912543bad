"""From a folder of anybody's meshes to a data set: read, clean, decimate, check, write."""

from meshgpt_pytorch.prepare.prepare import prepare_meshes
from meshgpt_pytorch.prepare.report import PrepareReport
from meshgpt_pytorch.prepare.results import MeshRecord

__all__ = ["MeshRecord", "PrepareReport", "prepare_meshes"]
