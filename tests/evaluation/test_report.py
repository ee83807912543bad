"""A report is JSON that any reader takes, written whole or not at all."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from meshgpt_pytorch.evaluation import FaceMatch, write_report
from meshgpt_pytorch.version import __version__


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_a_report_reads_back_in_its_order(tmp_path):
    values = {
        "meshes": 32,
        "accuracy": 0.98765432198,
        "lost": math.nan,
        "all": True,
        "nothing": None,
        "captions": {"стул": FaceMatch(1.0, 0.5, 0.25)},
        "files": [Path("out") / "chair.glb", "table.obj"],
        "seconds": {"train": torch.tensor([1.5, math.inf]), "draw": np.float32(0.25)},
        1: np.arange(3),
    }
    path = write_report(tmp_path / "out" / "report.json", values)
    assert path == tmp_path / "out" / "report.json"
    text = path.read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=refuse_constant)
    environment = report.pop("environment")
    assert report == {
        "meshes": 32,
        "accuracy": 0.987654,
        "lost": None,
        "all": True,
        "nothing": None,
        "captions": {"стул": {"precision": 1.0, "recall": 0.5, "faces_right": 0.25}},
        "files": [str(Path("out") / "chair.glb"), "table.obj"],
        "seconds": {"train": [1.5, None], "draw": 0.25},
        "1": [0, 1, 2],
    }
    assert list(report) == [str(key) for key in values]
    assert "стул" in text
    assert environment["meshgpt_pytorch"] == __version__
    assert environment["torch"] == torch.__version__


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = write_report(tmp_path / "report.json", {"run": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"values\.parts\[1\]\.x must be a number.* got object"):
        write_report(path, {"parts": [0, {"x": object()}]})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_environment_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match='leave "environment" to write_report'):
        write_report(tmp_path / "report.json", {"environment": 1})
    assert list(tmp_path.iterdir()) == []
