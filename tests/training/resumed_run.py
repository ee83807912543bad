"""Runs with everything random switched on, for a process of their own.

    python -m tests.training.resumed_run <kind> <folder> <steps> <checkpoint to go on from>

Run by test_resume.py: trains up to a step, saves as ``<folder>/<steps>``.
"""

import sys
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingLR

from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training.loop import MeshTrainer
from tests.training.runs import (
    Samples,
    make_autoencoder,
    make_text_transformer,
    small_run,
)

KINDS = ("learned codebook", "lookup-free", "transformer")


def build(kind: str, folder: Path, num_train_steps: int) -> MeshTrainer:
    """Build a trainer of a kind."""
    options: dict[str, Any] = {
        **small_run(folder),
        "num_train_steps": num_train_steps,
        "grad_accum_every": 2,
        "warmup_steps": 3,
        "scheduler": CosineAnnealingLR,
        "scheduler_kwargs": {"T_max": 5},
        "weight_decay": 0.1,
        "ema_kwargs": {"update_every": 2, "update_after_step": 1},
        "val_every": 2,
    }
    if kind == "transformer":
        samples = Samples(texts="a box")
        model = make_text_transformer(dropout=0.2, text_condition_cond_drop_prob=0.5)
        return MeshTransformerTrainer(
            model, **{**options, "dataset": samples, "val_dataset": samples}
        )
    is_learned = kind == "learned codebook"
    sizes = {"use_residual_lfq": not is_learned, "codebook_size": 8 if is_learned else 16}
    quantizer = {"num_quantizers": 3, "rq_kwargs": {"quantize_dropout": True}}
    model = make_autoencoder(resnet_dropout=0.2, **sizes, **quantizer)
    options["num_workers"] = 0 if is_learned else 1
    return MeshAutoencoderTrainer(model, **options, val_dataset=Samples())


def main(kind: str, folder: Path, num_train_steps: int, checkpoint: str) -> None:
    """Train and save."""
    trainer = build(kind, folder, num_train_steps)
    if checkpoint:
        trainer.load(checkpoint)
    trainer()
    trainer.save(folder / str(num_train_steps))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
