"""Write a model's file and a trainer's checkpoint in the present format.

Run once for each format version, from the root of the repository, before the version is raised:

    python -m tests.golden.checkpoints.make_checkpoints tests/golden/checkpoints/v1

``expected.safetensors`` holds the codes of the mesh that tests/helpers.py calls box_mesh, and the
logits of those codes. Stored files are never written anew: that they still load is what they are
for.
"""

import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from meshgpt_pytorch.trainer import MeshAutoencoderTrainer
from tests.helpers import box_mesh
from tests.training.runs import Samples, make_autoencoder, make_transformer, small_run


def build_trainer(folder: Path, num_train_steps: int) -> MeshAutoencoderTrainer:
    """Build a trainer with all that a checkpoint can hold but a scaler."""
    options = {**small_run(folder), "num_train_steps": num_train_steps, "warmup_steps": 3}
    return MeshAutoencoderTrainer(
        make_autoencoder(),
        **options,
        val_dataset=Samples(),
        val_every=1,
        ema_kwargs={"update_every": 1, "update_after_step": 0},
    )


def main(folder: Path) -> None:
    """Write everything into a folder."""
    with tempfile.TemporaryDirectory() as unused:
        trainer = build_trainer(Path(unused), 2)
        trainer()
    trainer.save(folder / "trainer")
    codes = trainer.unwrapped_model.tokenize(*box_mesh())

    transformer = make_transformer().eval()
    transformer.save(folder / "transformer.safetensors")
    logits = transformer.forward_on_codes(codes[None], return_loss=False, append_eos=False)
    save_file({"codes": codes, "logits": logits.detach()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
