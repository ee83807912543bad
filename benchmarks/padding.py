"""How much of a batch is padding, with and without batches by length.

    python -m benchmarks.padding

Prints a table over the bundled furniture meshes: the share of padded faces, the mean of five
epochs.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from meshgpt_pytorch.data import LengthBucketSampler, MeshDataset
from meshgpt_pytorch.data.sampler import padded_share

PACK = Path(__file__).parent.parent / "examples" / "data" / "furniture_adaptive.npz"
EPOCHS = 5
BATCH_SIZES = (4, 8, 16, 32, 64)
POOLS = (4, 16, 64)


def shuffled_batches(length: int, batch_size: int, seed: int) -> list[list[int]]:
    """Cut shuffled items into batches of any length."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return [batch.tolist() for batch in order.split(batch_size)]


def mean_padding(lengths: Tensor, epochs: Sequence[Sequence[Sequence[int]]]) -> float:
    """Average the share of padding over epochs of batches."""
    return sum(padded_share(lengths, batches) for batches in epochs) / len(epochs)


def main() -> None:
    """Measure and print."""
    lengths = MeshDataset(PACK).num_faces
    pools = " | ".join(f"pools of {pool}" for pool in POOLS)
    print(f"{len(lengths)} meshes, median {int(lengths.median())} faces")
    print(f"| batch | shuffled | {pools} |")
    print("|---" * (2 + len(POOLS)) + "|")
    for batch_size in BATCH_SIZES:
        plain = [shuffled_batches(len(lengths), batch_size, seed) for seed in range(EPOCHS)]
        shares = [mean_padding(lengths, plain)]
        for pool in POOLS:
            sampler = LengthBucketSampler(lengths, batch_size, pool_batches=pool)
            shares.append(mean_padding(lengths, [list(sampler) for _ in range(EPOCHS)]))
        print(f"| {batch_size} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


if __name__ == "__main__":
    main()
