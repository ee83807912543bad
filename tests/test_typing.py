"""Laws of the switch for type checks, and of the checks it switches on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from meshgpt_pytorch.typing import Bool, Float, Int, beartype_isinstance, read_flag, typecheck
from tests.helpers import ROOT

CHECK_OF_SHAPES = """
import torch
from meshgpt_pytorch.typing import Float, beartype_isinstance, typecheck

@typecheck
def mean(t: Float["b n d"]) -> Float["b d"]:
    return t.mean(dim=1)

assert beartype_isinstance("three", str) and not beartype_isinstance("three", int)
try:
    mean(torch.zeros(2, 3))
except Exception as error:
    assert type(error).__name__ == "TypeCheckError"
else:
    raise SystemExit("a wrong shape went through")
"""
NO_CHECK_OF_SHAPES = """
import torch
from meshgpt_pytorch.typing import Float, beartype_isinstance, typecheck

def mean(t: Float["b n d"]) -> Float["b d"]:
    return t.mean(dim=1)

assert typecheck(mean) is mean
assert beartype_isinstance("three", int)
"""


@typecheck
def face_centres(coordinates: Float["b nf nvf 3"], mask: Bool["b nf"]) -> Float["b nf 3"]:
    """Average the corners of each face."""
    return coordinates.mean(dim=2).masked_fill(~mask[..., None], 0.0)


@typecheck
def count_codes(codes: Int["b n q"]) -> int:
    """Count the codes of a row."""
    return codes.shape[1]


def test_right_shapes_and_dtypes_go_through():
    centres = face_centres(torch.ones(2, 4, 3, 3), torch.ones(2, 4, dtype=torch.bool))
    assert centres.shape == (2, 4, 3)
    assert count_codes(torch.zeros(1, 6, 2, dtype=torch.long)) == 6


@pytest.mark.parametrize(
    ("coordinates", "mask"),
    [
        (torch.ones(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)),
        (torch.ones(2, 4, 3, 2), torch.ones(2, 4, dtype=torch.bool)),
        (torch.ones(2, 4, 3, 3), torch.ones(2, 5, dtype=torch.bool)),
        (torch.ones(2, 4, 3, 3), torch.ones(2, 4)),
        (torch.ones(2, 4, 3, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)),
    ],
    ids=["axis missing", "width", "lengths that differ", "mask of floats", "whole coordinates"],
)
def test_wrong_shapes_and_dtypes_are_refused(coordinates: Tensor, mask: Tensor):
    with pytest.raises(TypeCheckError, match="face_centres"):
        face_centres(coordinates, mask)


def test_wrong_result_is_refused():
    @typecheck
    def flatten(t: Float["b n d"]) -> Float["b n d"]:
        return t.flatten(1)

    with pytest.raises(TypeCheckError, match="flatten"):
        flatten(torch.ones(2, 3, 4))


def test_any_hint_can_be_asked_for():
    assert beartype_isinstance(["chair", "table"], list[str])
    assert not beartype_isinstance([3], list[str])
    assert not beartype_isinstance(torch.ones(2, 3), Int["b n"])


@pytest.mark.parametrize("word", ["True", "true", "1", "yes", "on", " TRUE "])
def test_words_for_yes(word: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPECHECK", word)
    assert read_flag("TYPECHECK")


@pytest.mark.parametrize("word", ["False", "0", "no", "off", ""])
def test_words_for_no(word: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPECHECK", word)
    assert not read_flag("TYPECHECK")


def test_any_other_word_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPECHECK", "perhaps")
    with pytest.raises(ValueError, match=r"TYPECHECK must be True or False, got 'perhaps'"):
        read_flag("TYPECHECK")


def run_in(folder: Path, code: str, typecheck_variable: str | None = None) -> None:
    """Run code in a fresh interpreter whose working directory is the folder."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if typecheck_variable is not None:
        environment["TYPECHECK"] = typecheck_variable
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_checks_are_off_by_default(tmp_path: Path):
    run_in(tmp_path, NO_CHECK_OF_SHAPES)


def test_sample_settings_switch_the_checks_on(tmp_path: Path):
    (tmp_path / ".env").write_text((ROOT / ".env.sample").read_text())
    (tmp_path / "experiments").mkdir()
    run_in(tmp_path / "experiments", CHECK_OF_SHAPES)


def test_environment_wins_over_the_file(tmp_path: Path):
    (tmp_path / ".env").write_text("TYPECHECK=True\n")
    run_in(tmp_path, NO_CHECK_OF_SHAPES, typecheck_variable="False")
