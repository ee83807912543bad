"""Order of samples, place in an epoch, and what of a batch reaches a model."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset, IterableDataset

from meshgpt_pytorch.data import custom_collate
from meshgpt_pytorch.training.batches import (
    ShuffledSampler,
    TrainingBatches,
    forward_arguments,
    num_samples,
    require_arguments,
)

MESH = frozenset({"vertices", "faces", "face_edges"})


class Numbers(Dataset[dict[str, Any]]):
    """Samples that say which one they are."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": torch.tensor(index)}


class Stream(IterableDataset[int]):
    """Has no length."""

    def __iter__(self) -> Iterator[int]:
        yield 0


def make(length: int = 7, batch_size: int = 2, seed: int = 0) -> TrainingBatches:
    return TrainingBatches(
        Numbers(length),
        Accelerator(cpu=True),
        batch_size=batch_size,
        collate=custom_collate,
        seed=seed,
    )


def take(batches: TrainingBatches, count: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in islice(batches, count)]


def test_an_epoch_sees_each_sample_at_most_once_in_a_new_order() -> None:
    first, second = torch.tensor(take(make(), 6)).flatten().split(6)
    assert len(first.unique()) == len(second.unique()) == 6
    assert not torch.equal(first, second)


def test_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    torch.manual_seed(1)
    first = take(make(), 6)
    torch.manual_seed(2)
    assert take(make(), 6) == first
    assert take(make(seed=1), 6) != first


def test_batches_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(make(), 7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("place", range(7))
def test_batches_go_on_where_they_were_left(place: int) -> None:
    whole = take(make(), 9)
    first = make()
    start = take(first, place)
    second = make(seed=5)
    second.load_state_dict(first.state_dict())
    assert start + take(second, 9 - place) == whole
    assert start + take(first, 9 - place) == whole


def test_other_data_starts_with_the_next_epoch() -> None:
    first = make()
    take(first, 2)
    second = make(length=8)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {**second.state_dict(), "epoch": 1, "batches_used": 0}


def test_data_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one batch of 8 samples.*got 7.*batch_size=7"):
        make(length=7, batch_size=8)
    assert len(take(make(length=7, batch_size=7), 2)[1]) == 7


def test_data_set_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="got Stream without __len__"):
        num_samples(Stream())


class RandomNumbers(Numbers):
    """Samples with something drawn from each global generator."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = [random.random(), np.random.random(), torch.rand(()).item()]
        return {"index": torch.tensor(index), "drawn": torch.tensor(drawn)}


def draws(batches: TrainingBatches, count: int) -> dict[tuple[int, int], list[float]]:
    """Return what each sample drew, by its turn and index."""
    drawn = {}
    for turn, batch in enumerate(islice(batches, count)):
        for index, numbers in zip(batch["index"].tolist(), batch["drawn"].tolist(), strict=True):
            drawn[turn, index] = numbers
    return drawn


def test_items_draw_the_same_at_random_whoever_reads_them() -> None:
    options: dict[str, Any] = {"batch_size": 2, "collate": custom_collate, "seed": 0}
    accelerator = Accelerator(cpu=True)
    whole = draws(TrainingBatches(RandomNumbers(7), accelerator, **options), 6)
    assert len({tuple(numbers) for numbers in whole.values()}) == 12
    by_workers = TrainingBatches(RandomNumbers(7), accelerator, **options, num_workers=2)
    start = draws(by_workers, 2)
    assert start == {key: drawn for key, drawn in whole.items() if key[0] < 2}
    resumed = TrainingBatches(RandomNumbers(7), accelerator, **options, num_workers=2)
    resumed.load_state_dict(by_workers.state_dict())
    rest = {(turn + 2, index): drawn for (turn, index), drawn in draws(resumed, 4).items()}
    assert start | rest == whole


def accumulated_batches() -> TrainingBatches:
    """Batches of 2 of 7 numbers, two to a step."""
    return TrainingBatches(
        Numbers(7),
        Accelerator(cpu=True),
        batch_size=2,
        collate=custom_collate,
        seed=0,
        grad_accum_every=2,
    )


def test_items_of_the_last_step_are_known() -> None:
    batches = accumulated_batches()
    taken = take(batches, 4)
    assert batches.recent_indices() == taken[2] + taken[3]


def test_steps_read_every_batch_of_the_epochs() -> None:
    batches = accumulated_batches()
    assert batches.batches_an_epoch == 3
    assert [batches.steps_in_epochs(epochs) for epochs in (1, 2, 3)] == [2, 3, 5]


def test_sampler_has_a_length() -> None:
    assert len(ShuffledSampler(5, seed=0)) == len(list(ShuffledSampler(5, seed=0))) == 5


def test_entries_that_a_model_does_not_take_are_dropped() -> None:
    tensor = torch.zeros(1)
    batch = {"vertices": tensor, "faces": tensor, "names": ["a"], "texts": ["b"]}
    assert forward_arguments(batch, (), MESH) == {"vertices": tensor, "faces": tensor}
    assert "names" in batch


def test_tuples_are_named_in_order_and_none_is_left_out() -> None:
    tensor = torch.zeros(1)
    names = ("faces", "vertices", "face_edges", "texts")
    kept = forward_arguments((tensor, tensor, [None, None]), names, MESH)
    assert kept == {"faces": tensor, "vertices": tensor}


def test_more_entries_than_names_are_refused() -> None:
    tensor = torch.zeros(1)
    with pytest.raises(ValueError, match=r"3 entries, but data_kwargs names only \['faces'"):
        forward_arguments((tensor, tensor, tensor), ("faces", "vertices"), MESH)


def test_text_in_the_place_of_a_tensor_is_refused() -> None:
    tensor = torch.zeros(1)
    with pytest.raises(ValueError, match="face_edges of a sample must be a tensor, got str"):
        forward_arguments((tensor, tensor, ["a chair"]), ("vertices", "faces", "face_edges"), MESH)


def test_missing_entry_is_named() -> None:
    with pytest.raises(ValueError, match=r"got \['faces'\] without \['vertices'\]"):
        require_arguments({"faces": 1}, "vertices", "faces")
