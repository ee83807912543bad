"""How good meshes are: exact counts, pictures, reports."""

from meshgpt_pytorch.evaluation.metrics import (
    CodebookUsage,
    FaceMatch,
    ReconstructionAccuracy,
    codebook_usage,
    face_counts,
    matching_faces,
    triangle_accuracy,
    which_mesh,
)
from meshgpt_pytorch.evaluation.pictures import render_mesh
from meshgpt_pytorch.evaluation.report import write_report
from meshgpt_pytorch.evaluation.sheets import contact_sheet

__all__ = [
    "CodebookUsage",
    "FaceMatch",
    "ReconstructionAccuracy",
    "codebook_usage",
    "contact_sheet",
    "face_counts",
    "matching_faces",
    "render_mesh",
    "triangle_accuracy",
    "which_mesh",
    "write_report",
]
