"""Batches by length: every item once, reproducible, and less padding."""

from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from meshgpt_pytorch.data import LengthBucketSampler, custom_collate
from meshgpt_pytorch.data.sampler import bucketed_batches, padded_share

LENGTHS = torch.randint(1, 500, (103,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("drop_last", [False, True])
def test_each_item_comes_once_an_epoch(drop_last):
    sampler = LengthBucketSampler(LENGTHS, 8, drop_last=drop_last)
    batches = list(sampler)
    items = [item for batch in batches for item in batch]
    assert len(batches) == len(sampler) == (12 if drop_last else 13)
    assert len(set(items)) == len(items) == (96 if drop_last else 103)
    assert all(len(batch) == 8 for batch in batches[:12])


def test_what_is_dropped_differs_between_epochs():
    sampler = LengthBucketSampler(LENGTHS, 8, drop_last=True)
    dropped = [set(range(103)) - {i for batch in sampler for i in batch} for _ in range(3)]
    assert all(len(each) == 7 for each in dropped)
    assert dropped[0] != dropped[1] != dropped[2]


def test_order_depends_on_the_seed_and_the_epoch_alone():
    first = LengthBucketSampler(LENGTHS, 8, seed=1)
    epochs = [list(first) for _ in range(2)]
    assert epochs[0] != epochs[1]
    torch.manual_seed(9)
    again = LengthBucketSampler(LENGTHS, 8, seed=1)
    again.set_epoch(1)
    assert list(again) == epochs[1]
    assert list(LengthBucketSampler(LENGTHS, 8, seed=2)) != epochs[0]


def test_batches_hold_neighbours_of_a_sorted_pool_in_random_order():
    batches = bucketed_batches(
        LENGTHS, 8, generator=torch.Generator().manual_seed(0), pool_batches=1000
    )
    spans = [(int(LENGTHS[b].min()), int(LENGTHS[b].max())) for b in batches[:12]]
    ordered = sorted(spans)
    assert spans != ordered
    assert all(one[1] <= other[0] for one, other in pairwise(ordered))


def test_one_batch_a_pool_is_a_plain_shuffle():
    batches = bucketed_batches(
        LENGTHS, 8, generator=torch.Generator().manual_seed(0), pool_batches=1
    )
    assert sorted(i for batch in batches for i in batch) == list(range(103))


def test_padded_share_counts_places():
    assert padded_share([3, 1, 2, 2], [[0, 1], [2, 3]]) == pytest.approx(2 / 10)
    assert padded_share([3, 3], [[0], [1]]) == 0


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_furniture_is_padded_less_than_half_as_much(pack, batch_size):
    lengths = pack.num_faces
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    plain = padded_share(lengths, [batch.tolist() for batch in order.split(batch_size)])
    bucketed = padded_share(lengths, list(LengthBucketSampler(lengths, batch_size)))
    assert bucketed < plain / 2


def test_loaders_and_accelerate_take_the_sampler(small):
    sampler = LengthBucketSampler(small.num_faces, 5, drop_last=True)
    loader = DataLoader(small, batch_sampler=sampler, collate_fn=custom_collate)
    assert [len(batch["faces"]) for batch in Accelerator(cpu=True).prepare(loader)] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 2), r"one number for each item, got shape \(0,\)"),
        (([[1, 2]], 2), r"one number for each item, got shape \(1, 2\)"),
        (([1, 2], 0), "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LengthBucketSampler(*arguments)
    with pytest.raises(ValueError, match="pool_batches must be at least 1, got 0"):
        LengthBucketSampler([1, 2], 1, pool_batches=0)
