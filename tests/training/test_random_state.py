"""Every generator that training draws from goes on where it was."""

import random
from pathlib import Path

import numpy as np
import torch

from meshgpt_pytorch.checkpoint import load_training_state, save_training_state
from meshgpt_pytorch.training.random_state import get_random_state, seeded, set_random_state


def draw() -> list[float]:
    # an odd count leaves numpy and Python with half a pair of normal numbers in stock
    return [random.gauss(0, 1), np.random.normal(), torch.randn(()).item(), random.random()]


def test_generators_go_on_from_a_saved_state(tmp_path: Path) -> None:
    draw()
    save_training_state(tmp_path / "state", get_random_state())
    wanted = draw() + draw()
    set_random_state(load_training_state(tmp_path / "state"))
    assert draw() + draw() == wanted


def test_seeded_block_leaves_the_generators_as_they_were() -> None:
    state = get_random_state()
    wanted = draw()
    set_random_state(state)
    with seeded(0, 1, 2):
        inside = draw()
    assert draw() == wanted
    with seeded(0, 1, 2):
        assert draw() == inside != wanted
    with seeded(0, 2, 1):
        assert draw() != inside
