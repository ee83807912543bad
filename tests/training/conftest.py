"""Fixtures of the training tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training.loop import MeshTrainer
from tests.training.runs import (
    MESHES,
    LetterEncoder,
    make_autoencoder,
    make_transformer,
    small_run,
)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps the mixed precision of the first trainer for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=["autoencoder", "transformer"])
def make_trainer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Both trainers in turn, with few steps and no warm-up."""

    def make(**kwargs: Any) -> MeshTrainer:
        is_autoencoder = request.param == "autoencoder"
        if "model" not in kwargs:
            kwargs["model"] = make_autoencoder() if is_autoencoder else make_transformer()
        trainer_class = MeshAutoencoderTrainer if is_autoencoder else MeshTransformerTrainer
        return trainer_class(**{**small_run(tmp_path), **kwargs})

    return make


@pytest.fixture
def cached() -> MeshDataset:
    dataset = MeshDataset.from_meshes(MESHES, texts=[f"box {i}" for i in range(len(MESHES))])
    dataset.cache_codes(make_autoencoder())
    dataset.cache_text_encodings(LetterEncoder())
    return dataset
