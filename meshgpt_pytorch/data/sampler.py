"""Batches of meshes of similar size, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

POOL_BATCHES = 16


def bucketed_batches(
    lengths: Sequence[int] | Tensor,
    batch_size: int,
    *,
    generator: torch.Generator,
    pool_batches: int = POOL_BATCHES,
) -> list[list[int]]:
    """Cut shuffled items into batches of similar length, in random order.

    Shuffled items are taken in pools of some batches; a pool is sorted by length and cut. What does
    not fill a batch is drawn at random like the rest, and comes last.

    Args:
        lengths: of each item, its number of faces.
        batch_size: items in a batch.
        generator: decides the order.
        pool_batches: batches in a pool: more of them mean less padding, and batches that vary less.

    Raises:
        ValueError: `batch_size` or `pool_batches` is below 1.
    """
    _check_counts(batch_size, pool_batches)
    lengths = torch.as_tensor(lengths)
    order = torch.randperm(len(lengths), generator=generator)
    num_full = len(order) // batch_size * batch_size
    batches: list[list[int]] = []
    for pool in order[:num_full].split(batch_size * pool_batches):
        by_length = pool[lengths[pool].argsort(stable=True)]
        batches += [batch.tolist() for batch in by_length.split(batch_size)]
    shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    rest = order[num_full:].tolist()
    return [*shuffled, rest] if rest else shuffled


def _check_counts(batch_size: int, pool_batches: int) -> None:
    for name, value in (("batch_size", batch_size), ("pool_batches", pool_batches)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class LengthBucketSampler(Sampler[list[int]]):
    """Give batches of items of similar length, for ``DataLoader(batch_sampler=...)``.

    Each item comes once an epoch. The order depends on the seed and the epoch alone; without
    `set_epoch`, epochs are counted by how often iteration starts.

    Args:
        lengths: of each item; for a `MeshDataset` its ``num_faces``.
        batch_size: items in a batch.
        drop_last: leave out what does not fill a batch: other items in each epoch.
        seed: of the order.
        pool_batches: batches that are sorted together: more of them mean less padding, and batches
            that vary less from epoch to epoch.

    Raises:
        ValueError: there are no items, or `batch_size` or `pool_batches` is below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        batch_size: int,
        *,
        drop_last: bool = False,
        seed: int = 0,
        pool_batches: int = POOL_BATCHES,
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        if self.lengths.ndim != 1 or len(self.lengths) == 0:
            raise ValueError(
                f"lengths must be one number for each item, got shape {(*self.lengths.shape,)}"
            )
        _check_counts(batch_size, pool_batches)
        # names that accelerate reads
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.pool_batches = pool_batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        # seeds of neighbouring runs must not share epochs, hence no plain sum
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        batches = bucketed_batches(
            self.lengths, self.batch_size, generator=generator, pool_batches=self.pool_batches
        )
        yield from batches[: len(self)]


def padded_share(lengths: Sequence[int] | Tensor, batches: Sequence[Sequence[int]]) -> float:
    """Return the share of places in padded batches that hold padding, from 0 to 1.

    Args:
        lengths: of each item.
        batches: items of each batch.
    """
    lengths = torch.as_tensor(lengths)
    used = sum(int(lengths[list(batch)].sum()) for batch in batches)
    places = sum(int(lengths[list(batch)].amax()) * len(batch) for batch in batches)
    return 1 - used / places
