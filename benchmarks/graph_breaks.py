"""Count the graphs that ``compile=True`` makes, and the breaks in them.

python -m benchmarks.graph_breaks
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._dynamo.utils import counters

from meshgpt_pytorch import MeshAutoencoder, MeshDataset, MeshTransformer
from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training import acceleration
from meshgpt_pytorch.training.loop import MeshTrainer


def report(trainer: MeshTrainer) -> None:
    """Train, and print what was compiled."""
    torch._dynamo.reset()
    counters.clear()
    trainer.train()
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    print(f"{type(trainer.unwrapped_model).__name__}: {graphs} graphs, {breaks} breaks")


def main() -> None:
    """Train each model for two steps of two lengths."""
    torch.manual_seed(0)
    # another backend changes no graph, and a C++ compiler takes minutes
    acceleration.COMPILER = "eager"
    meshes = [
        Mesh(torch.rand(40, 3) * 2 - 1, torch.randint(0, 40, (length, 3))) for length in (64, 50)
    ]
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "dataset": MeshDataset.from_meshes(meshes),
            "num_train_steps": 2,
            "batch_size": 1,
            "checkpoint_folder": folder,
            "compile": True,
            "progress": False,
        }
        autoencoder = MeshAutoencoder(decoder_dims_through_depth=(128,) * 2)
        report(MeshAutoencoderTrainer(autoencoder, **options))
        transformer = MeshTransformer(autoencoder, dim=64, attn_depth=2, max_seq_len=384)
        report(MeshTransformerTrainer(transformer, **options))


if __name__ == "__main__":
    main()
