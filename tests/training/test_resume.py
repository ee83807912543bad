"""A run that stops and goes on in a new process is the run that never stopped, to the last bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meshgpt_pytorch.checkpoint import load_training_state
from tests.helpers import ROOT
from tests.training.resumed_run import KINDS, build
from tests.training.runs import assert_same_state, flatten, without_speed


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_a_new_process_and_four_more_are_seven_steps(kind: str, tmp_path: Path) -> None:
    first = build(kind, tmp_path, 3)
    first()
    first.save(tmp_path / "3")
    arguments = [kind, tmp_path, "7", tmp_path / "3"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.training.resumed_run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    whole = build(kind, tmp_path, 7)
    whole()
    resumed = build(kind, tmp_path, 7)
    resumed.load(tmp_path / "7")
    assert_same_state(resumed.unwrapped_model, whole.unwrapped_model)
    assert_same_state(resumed.average.model, whole.average.model)
    assert without_speed(resumed.history) == without_speed(whole.history)

    whole.save(tmp_path / "whole")
    # optimizer, schedule, counters of the average, place in the data, and random generators
    states = [load_training_state(tmp_path / name / "trainer_state.pt") for name in ("7", "whole")]
    leaves = [dict(flatten(state)) for state in states]
    tensors = [{k: v for k, v in each.items() if isinstance(v, Tensor)} for each in leaves]
    torch.testing.assert_close(*tensors, rtol=0, atol=0)
    others = [{k: v for k, v in each.items() if not isinstance(v, Tensor)} for each in leaves]
    assert others[0] == others[1]
    assert tensors[0]
    assert others[0]
