"""Training on data sets that cache, augment and are batched by length."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from meshgpt_pytorch.data import MeshDataset, Shift, custom_collate
from meshgpt_pytorch.trainer import MeshTransformerTrainer
from meshgpt_pytorch.training.batches import TrainingBatches
from tests.training.runs import (
    MESHES,
    LetterEncoder,
    Samples,
    assert_same_state,
    make_text_transformer,
    make_transformer,
    small_run,
)


class NamedEncoder(LetterEncoder):
    """Counts its calls; has a name, by which a cache knows it."""

    calls = 0

    def __repr__(self) -> str:
        return "NamedEncoder()"

    def embed(self, texts: list[str]) -> Any:
        self.calls += 1
        return super().embed(texts)


def stored(tmp_path: Path) -> MeshDataset:
    texts = [f"box {i}" for i in range(len(MESHES))]
    return MeshDataset(MeshDataset.from_meshes(MESHES, texts=texts).save(tmp_path / "prepared"))


def count_calls(model: Any) -> list[str]:
    """Note every call of the autoencoder, of any of its parts, and of its tokenizer."""
    calls: list[str] = []
    for name, module in model.autoencoder.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    tokenize = model.autoencoder.tokenize

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("tokenize")
        return tokenize(*args, **kwargs)

    model.autoencoder.tokenize = counted
    return calls


def test_with_all_cached_a_step_calls_neither_autoencoder_nor_text_encoder(
    tmp_path: Path,
) -> None:
    model = make_text_transformer()
    encoder = NamedEncoder()
    model.conditioner.encoders = [encoder]
    calls = count_calls(model)
    options = {**small_run(tmp_path), "model": model}

    dataset = stored(tmp_path)
    MeshTransformerTrainer(**{**options, "dataset": dataset, "num_train_steps": 1}).train()
    assert calls and encoder.calls, "without caches both are called"

    dataset.cache_face_edges()
    dataset.cache_codes(model.autoencoder)
    dataset.cache_text_encodings(encoder)
    calls.clear()
    encoder.calls = 0
    again = MeshDataset(tmp_path / "prepared")
    trainer = MeshTransformerTrainer(
        **{**options, "dataset": again, "val_dataset": again, "val_every": 2}
    )
    trainer.train()
    assert trainer.step == 4 and "val_loss" in trainer.history[-1]
    assert calls == [] and encoder.calls == 0


def test_codes_on_disk_train_as_codes_in_memory_do(tmp_path: Path) -> None:
    model, other = make_transformer(), make_transformer()
    in_memory = MeshDataset.from_meshes(MESHES)
    on_disk = MeshDataset(in_memory.save(tmp_path / "prepared"))
    for each, dataset in ((model, in_memory), (other, on_disk)):
        dataset.cache_codes(each.autoencoder)
        MeshTransformerTrainer(**{**small_run(tmp_path), "model": each, "dataset": dataset}).train()
    assert_same_state(model, other)


# augmentation


def test_each_epoch_is_augmented_anew_and_a_run_is_repeatable(make_trainer: Any) -> None:
    runs = []
    for _ in range(2):
        dataset = MeshDataset.from_meshes(MESHES).augment(Shift(0.3), seed=1)
        trainer = make_trainer(dataset=dataset, num_train_steps=6)
        trainer.train()
        assert dataset.epoch == 2
        runs.append(trainer)
    assert_same_state(runs[0].unwrapped_model, runs[1].unwrapped_model)


def faces_and_vertices(batches: Iterator[Any], count: int) -> list[torch.Tensor]:
    return [batch["vertices"] for batch in islice(batches, count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_batches_are_augmented_as_without_interruption(num_workers: int) -> None:
    def make() -> TrainingBatches:
        dataset = MeshDataset.from_meshes(MESHES[:4]).augment(Shift(0.3))
        return TrainingBatches(
            dataset,
            Accelerator(cpu=True),
            batch_size=2,
            collate=custom_collate,
            seed=0,
            num_workers=num_workers,
        )

    whole = faces_and_vertices(iter(make()), 6)
    first = make()
    start = faces_and_vertices(iter(first), 3)
    resumed = make()
    resumed.load_state_dict(first.state_dict())
    for found, expected in zip([*start, *faces_and_vertices(iter(resumed), 3)], whole, strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(whole[0], whole[2])


# batches by length


def bucketed(dataset: Any, **options: Any) -> TrainingBatches:
    sizes = {"batch_size": 2, "collate": custom_collate, "seed": 0, **options}
    return TrainingBatches(dataset, Accelerator(cpu=True), bucket_by_length=True, **sizes)


def test_batches_by_length_hold_each_mesh_once_and_little_padding() -> None:
    dataset = MeshDataset.from_meshes([*MESHES, *MESHES[1:4]])
    batches = bucketed(dataset)
    for _ in range(3):
        epoch = [batch["faces"] for batch in islice(batches, 4)]
        sizes = [(faces[..., 0] >= 0).sum(dim=1).tolist() for faces in epoch]
        assert sorted(size for pair in sizes for size in pair) == sorted(dataset.num_faces.tolist())
        assert sorted(map(sorted, sizes)) == [[4, 4], [6, 6], [12, 12], [12, 12]]


def test_batches_by_length_go_on_where_they_were_left() -> None:
    dataset = MeshDataset.from_meshes([*MESHES, *MESHES])
    whole = [batch["vertices"] for batch in islice(bucketed(dataset), 12)]
    first = bucketed(dataset)
    list(islice(first, 7))
    second = bucketed(dataset)
    second.load_state_dict(first.state_dict())
    for found, expected in zip(islice(second, 5), whole[7:], strict=True):
        assert torch.equal(found["vertices"], expected)


def test_a_run_that_was_not_bucketed_goes_on_with_the_next_epoch() -> None:
    dataset = MeshDataset.from_meshes(MESHES)
    first = TrainingBatches(
        dataset, Accelerator(cpu=True), batch_size=2, collate=custom_collate, seed=0
    )
    list(islice(first, 1))
    second = bucketed(dataset)
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["epoch"] == 1 and second.batches_used == 0


def test_trainers_take_batches_by_length(make_trainer: Any) -> None:
    trainer = make_trainer(dataset=MeshDataset.from_meshes(MESHES), bucket_by_length=True)
    trainer.train()
    assert trainer.step == 4


def test_a_data_set_without_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a data set with num_faces, .* got Samples; use a Mesh"):
        bucketed(Samples())
