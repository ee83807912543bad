"""Batches of a data set: their order, where it was left, and what of them a model takes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from meshgpt_pytorch.data import custom_collate

TEXT_KEYS = frozenset({"texts", "text_embeds", "text_encodings", "text_mask"})


class ShuffledSampler(Sampler[int]):
    """Give the indices of an epoch in an order that its number and the seed alone decide."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        # seeds of neighbouring runs must not share epochs, hence no plain sum
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


def num_samples(dataset: Dataset[Any]) -> int:
    """Return the length of a data set.

    Raises:
        ValueError: the data set has none.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"a data set needs __len__ and __getitem__, got {type(dataset).__name__} without "
            f"__len__; read a stream into a list first"
        )
    return len(dataset)


def build_loader(
    dataset: Dataset[Any],
    sampler: ShuffledSampler,
    *,
    batch_size: int,
    pad_id: int,
    drop_last: bool,
) -> DataLoader[Any]:
    """Make a loader of padded batches."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=partial(custom_collate, pad_id=pad_id),
        # a generator of its own: the global one belongs to the model, and must not depend on how
        # often iteration starts
        generator=torch.Generator().manual_seed(sampler.seed),
    )


class TrainingBatches:
    """Batches without end, epoch after epoch, that can be left and taken up again.

    Raises:
        ValueError: the data set is smaller than one batch of all processes together.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        accelerator: Accelerator,
        *,
        batch_size: int,
        pad_id: int,
        seed: int,
    ) -> None:
        self.length = num_samples(dataset)
        self.samples_a_batch = batch_size * accelerator.num_processes
        if self.length < self.samples_a_batch:
            raise ValueError(
                f"the data set must hold at least one batch of {self.samples_a_batch} samples "
                f"(batch_size {batch_size} x {accelerator.num_processes} processes), got "
                f"{self.length}; pass batch_size={self.length // accelerator.num_processes} or "
                f"add samples"
            )
        self.sampler = ShuffledSampler(self.length, seed)
        loader = build_loader(
            dataset, self.sampler, batch_size=batch_size, pad_id=pad_id, drop_last=True
        )
        self.loader = accelerator.prepare(loader)
        self.batches_used = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            loader = self.loader
            if self.batches_used:
                loader = skip_first_batches(loader, self.batches_used)
            for batch in loader:
                self.batches_used += 1
                yield batch
            self.sampler.epoch += 1
            self.batches_used = 0

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epoch."""
        return {
            "seed": self.sampler.seed,
            "epoch": self.sampler.epoch,
            "batches_used": self.batches_used,
            "length": self.length,
            "samples_a_batch": self.samples_a_batch,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a saved place; with other data or batches, at the start of the next epoch."""
        self.sampler.seed = state["seed"]
        same = all(state[name] == getattr(self, name) for name in ("length", "samples_a_batch"))
        self.sampler.epoch = state["epoch"] if same else state["epoch"] + 1
        self.batches_used = state["batches_used"] if same else 0


def forward_arguments(
    batch: Any, data_kwargs: Sequence[str], accepted: frozenset[str]
) -> dict[str, Any]:
    """Name the entries of a batch and keep those that a model takes.

    Args:
        batch: mapping, or tuple whose entries `data_kwargs` names in order.
        data_kwargs: names of a tuple's entries.
        accepted: names of the model's arguments; others (file names, categories) are dropped.

    Raises:
        ValueError: more entries than names, or something else than a tensor where one belongs.
    """
    if not isinstance(batch, Mapping):
        if len(batch) > len(data_kwargs):
            raise ValueError(
                f"samples have {len(batch)} entries, but data_kwargs names only "
                f"{list(data_kwargs)}; name every entry in data_kwargs, of the trainer or of the "
                f"data set"
            )
        batch = dict(zip(data_kwargs, batch, strict=False))

    kept = {name: entry for name, entry in batch.items() if name in accepted}
    for name, entry in list(kept.items()):
        if isinstance(entry, list) and all(part is None for part in entry):
            del kept[name]
        elif name != "texts" and not isinstance(entry, Tensor):
            raise ValueError(
                f"{name} of a sample must be a tensor, got {type(entry[0]).__name__}; data_kwargs "
                f"{list(data_kwargs)} name the entries of a tuple in order"
            )
    return kept


def require_arguments(arguments: Mapping[str, Any], *names: str) -> None:
    """Check that a batch has what a model needs.

    Raises:
        ValueError: an argument is missing.
    """
    missing = [name for name in names if name not in arguments]
    if missing:
        raise ValueError(
            f"a batch must hold {list(names)}, got {sorted(arguments)} without {missing}; return "
            f"dicts with these keys from the data set, or name the entries of its tuples in "
            f"data_kwargs"
        )
