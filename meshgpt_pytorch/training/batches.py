"""Batches of a data set: their order, where it was left, and what of them a model takes."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from meshgpt_pytorch.data import custom_collate
from meshgpt_pytorch.data.sampler import bucketed_batches
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.training.random_state import seeded

Collate = Callable[[list[Any]], Any]


def collate_for(autoencoder: MeshAutoencoder, pad_id: int) -> Callable[..., Any]:
    """Return ``custom_collate`` that pads for a model, and warns of what its range clamps.

    The warning comes from here, where a batch is on the CPU: models do not wait for a device.
    """
    return partial(
        custom_collate, pad_id=pad_id, coor_continuous_range=autoencoder.coor_continuous_range
    )


TEXT_KEYS = frozenset({"texts", "text_embeds", "text_encodings", "text_mask"})


class ShuffledSampler(Sampler[int]):
    """Give the items of an epoch in an order that its number and the seed alone decide.

    An item comes as its index plus the number of all items in the epochs before.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length
        yield from (first + index for index in self.order(self.epoch))

    def order(self, epoch: int) -> list[int]:
        """Return the indices of an epoch in its order."""
        return torch.randperm(self.length, generator=self._seeded_generator(epoch)).tolist()

    def _seeded_generator(self, epoch: int) -> torch.Generator:
        """Return what decides the order of an epoch."""
        # seeds of neighbouring runs must not share epochs, hence no plain sum
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)


class BucketedSampler(ShuffledSampler):
    """Shuffle items so that those of a batch are of similar length.

    Args:
        lengths: of each item.
        seed: of the order.
        batch_size: items in a batch, of all processes together.
    """

    def __init__(self, lengths: Tensor, seed: int, *, batch_size: int) -> None:
        super().__init__(len(lengths), seed)
        self.lengths = lengths
        self.batch_size = batch_size

    def order(self, epoch: int) -> list[int]:
        """Return the indices of an epoch in its order, batch after batch."""
        batches = bucketed_batches(
            self.lengths, self.batch_size, generator=self._seeded_generator(epoch)
        )
        return [index for batch in batches for index in batch]


class SeededItems(Dataset[Any]):
    """Read each item with a randomness that the seed, the epoch and the item alone decide.

    What a data set draws at random (augmentation, one caption of several) then depends neither on
    the worker that reads the item nor on where a run was interrupted.
    """

    def __init__(self, dataset: Dataset[Any], sampler: ShuffledSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler

    def __getitem__(self, number: int) -> Any:
        epoch, index = divmod(number, self.sampler.length)
        with seeded(self.sampler.seed, epoch, index):
            return self.dataset[index]


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


def lengths_of(dataset: Dataset[Any]) -> Tensor:
    """Return the number of faces of each sample, int64.

    Raises:
        ValueError: the data set does not know them.
    """
    num_faces = getattr(dataset, "num_faces", None)
    if num_faces is None:
        raise ValueError(
            f"bucket_by_length needs a data set with num_faces, the number of faces of each "
            f"sample, got {type(dataset).__name__}; use a MeshDataset, or bucket_by_length=False"
        )
    return torch.as_tensor(num_faces)


def build_loader(
    dataset: Dataset[Any],
    sampler: ShuffledSampler,
    *,
    batch_size: int,
    collate: Collate,
    drop_last: bool,
    num_workers: int = 0,
) -> DataLoader[Any]:
    """Make a loader of padded batches."""
    return DataLoader(
        SeededItems(dataset, sampler),
        num_workers=num_workers,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=collate,
        # a generator of its own: the global one belongs to the model, and must not depend on how
        # often iteration starts
        generator=torch.Generator().manual_seed(sampler.seed),
    )


def build_validation_loader(
    dataset: Dataset[Any], *, batch_size: int, collate: Collate, num_workers: int = 0
) -> DataLoader[Any]:
    """Make a loader of all samples, in one order at all times: a fixed random share comes first.

    Raises:
        ValueError: the data set is empty.
    """
    length = num_samples(dataset)
    if length == 0:
        raise ValueError("val_dataset must hold at least one sample, got none; pass None")
    return build_loader(
        dataset,
        ShuffledSampler(length, seed=0),
        batch_size=batch_size,
        collate=collate,
        drop_last=False,
        num_workers=num_workers,
    )


class TrainingBatches:
    """Batches without end, epoch after epoch, that can be left and taken up again.

    Raises:
        ValueError: the data set is smaller than one batch of all processes together, or cannot be
            bucketed since it does not know its lengths.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        accelerator: Accelerator,
        *,
        batch_size: int,
        collate: Collate,
        seed: int,
        num_workers: int = 0,
        bucket_by_length: bool = False,
        grad_accum_every: int = 1,
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
        self.dataset = dataset
        self.bucket_by_length = bucket_by_length
        self.sampler = ShuffledSampler(self.length, seed)
        if bucket_by_length:
            self.sampler = BucketedSampler(
                lengths_of(dataset), seed, batch_size=self.samples_a_batch
            )
        loader = build_loader(
            dataset,
            self.sampler,
            batch_size=batch_size,
            collate=collate,
            drop_last=True,
            num_workers=num_workers,
        )
        self.loader = accelerator.prepare(loader)
        self.batches_used = 0
        self.grad_accum_every = grad_accum_every
        # epoch and number of the batches of the last step
        self.recent: deque[tuple[int, int]] = deque(maxlen=grad_accum_every)

    @property
    def batches_an_epoch(self) -> int:
        """Batches of each process in an epoch; what does not fill one is left to another epoch."""
        return self.length // self.samples_a_batch

    def steps_in_epochs(self, num_epochs: int) -> int:
        """Return the least number of steps that read every batch of so many epochs."""
        return ceil(num_epochs * self.batches_an_epoch / self.grad_accum_every)

    def recent_indices(self) -> list[int]:
        """Return the indices of the items of the last step, of all processes together."""
        indices = []
        for epoch, batch in self.recent:
            first = batch * self.samples_a_batch
            indices += self.sampler.order(epoch)[first : first + self.samples_a_batch]
        return indices

    def __iter__(self) -> Iterator[Any]:
        while True:
            # what a data set draws itself, as augmentation, is drawn anew
            set_epoch = getattr(self.dataset, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.sampler.epoch)
            loader = self.loader
            if self.batches_used:
                loader = skip_first_batches(loader, self.batches_used)
            for batch in loader:
                self.recent.append((self.sampler.epoch, self.batches_used))
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
            "bucket_by_length": int(self.bucket_by_length),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a saved place; with other data or batches, at the start of the next epoch."""
        self.sampler.seed = state["seed"]
        facts = ("length", "samples_a_batch", "bucket_by_length")
        same = all(state.get(name, 0) == getattr(self, name) for name in facts)
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


def require_texts(arguments: Mapping[str, Any]) -> None:
    """Check that each sample of a batch has a text.

    Raises:
        ValueError: there are no texts, or one is missing.
    """
    texts = arguments.get("texts")
    if texts is None or any(not isinstance(text, str) for text in texts):
        got = f"{list(arguments)}" if texts is None else f"{texts}"
        raise ValueError(
            f"every sample must have a text, since the transformer is conditioned on text, got "
            f"{got}; add texts or text_encodings to the data set, or build the transformer with "
            f"condition_on_text=False"
        )
