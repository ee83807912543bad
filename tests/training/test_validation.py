"""Validation and averages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from tests.training.runs import (
    MESHES,
    Samples,
    make_autoencoder,
    make_transformer,
    small_run,
)

# validation


def test_validation_restores_every_mode(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=1)
    trainer.unwrapped_model.train()
    frozen = next(iter(trainer.unwrapped_model.children()))
    frozen.eval()
    modes = [module.training for module in trainer.unwrapped_model.modules()]
    trainer.validate()
    assert [module.training for module in trainer.unwrapped_model.modules()] == modes
    trainer()
    assert [module.training for module in trainer.unwrapped_model.modules()] == modes


def test_validation_happens_when_due(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=2)
    trainer()
    assert [record["step"] for record in trainer.history if "val_loss" in record] == [2, 4]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_validation_covers_the_whole_set_whatever_the_batch(
    make_trainer: Any, batch_size: int
) -> None:
    trainer = make_trainer(val_dataset=Samples(), batch_size=batch_size, val_num_batches=None)
    model = trainer.unwrapped_model.eval()
    sums, counts = [], []
    for mesh in MESHES:
        loss = model(vertices=mesh.vertices[None], faces=mesh.faces[None])
        is_autoencoder = isinstance(model, MeshAutoencoder)
        counts.append(len(mesh.faces) if is_autoencoder else len(mesh.faces) * 6 + 1)
        sums.append(loss.item() * counts[-1])
    assert trainer.validate()["val_loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-4)


def test_validation_set_may_be_smaller_than_a_batch(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(MESHES[:1]))
    assert trainer.validate()["val_loss"] > 0


def test_some_batches_are_the_same_each_time(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_num_batches=1)
    assert trainer.validate() == trainer.validate()


# averages


def test_average_follows_its_formula(make_trainer: Any) -> None:
    expected: dict[str, Tensor] = {}

    def average(record: Mapping[str, float]) -> None:
        # the first update copies; later ones keep beta of what was there
        kept = 0.0 if record["step"] == 1 else 0.75
        for name, weight in trainer.unwrapped_model.named_parameters():
            expected[name] = kept * expected.get(name, 0.0) + (1 - kept) * weight.detach()

    trainer = make_trainer(
        ema_kwargs={"beta": 0.75, "update_every": 1, "update_after_step": 0, "power": 10.0},
        on_step=average,
    )
    trainer()
    averaged = {name: t.detach() for name, t in trainer.average.model.named_parameters()}
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


def test_average_keeps_a_codebook_that_was_initialised(tmp_path: Path) -> None:
    model = make_autoencoder(use_residual_lfq=False, codebook_size=8)
    trainer = MeshAutoencoderTrainer(model, **small_run(tmp_path))
    trainer()
    codebook = trainer.ema_tokenizer.quantizer.layers[0]._codebook
    assert codebook.initted.item()
    before = codebook.embed.clone()
    vertices, faces = MESHES[0]
    codes = trainer.tokenize(vertices, faces)
    assert torch.equal(codebook.embed, before)
    assert codes.shape == (36, 2)
    assert torch.equal(codes, trainer.ema_tokenizer.tokenize(vertices, faces))


def test_transformer_is_averaged_only_if_asked_for(tmp_path: Path) -> None:
    assert MeshTransformerTrainer(make_transformer(), **small_run(tmp_path)).average is None
    trainer = MeshTransformerTrainer(make_transformer(), **small_run(tmp_path), ema_kwargs={})
    assert trainer.average is not None


def test_validation_reads_the_average(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=4, ema_kwargs={"update_every": 1000})
    before = trainer.validate()
    trainer()
    # the average has only seen the first step
    assert trainer.history[-1]["val_loss"] == pytest.approx(before["val_loss"], abs=0.5)
    with torch.no_grad():
        for weight in trainer.unwrapped_model.parameters():
            weight.fill_(torch.nan)
    assert trainer.validate()["val_loss"] == trainer.history[-1]["val_loss"]
