"""Files of every format version that this library wrote keep loading."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from meshgpt_pytorch.checkpoint.files import FORMAT_VERSION as MODEL_FORMAT_VERSION
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.training.folders import FORMAT_VERSION as TRAINER_FORMAT_VERSION
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.golden.checkpoints.make_checkpoints import build_trainer
from tests.helpers import GOLDEN, box_mesh
from tests.training.runs import assert_same_state

CHECKPOINTS = GOLDEN / "checkpoints"
VERSIONS = sorted(path.name for path in CHECKPOINTS.glob("v*"))


def test_there_are_files_of_every_version() -> None:
    newest = max(MODEL_FORMAT_VERSION, TRAINER_FORMAT_VERSION)
    assert VERSIONS == [f"v{version}" for version in range(1, newest + 1)]


@pytest.mark.parametrize("version", VERSIONS)
def test_models_give_the_outputs_that_they_gave(version: str) -> None:
    folder = CHECKPOINTS / version
    expected = load_file(folder / "expected.safetensors")
    autoencoder = MeshAutoencoder.from_pretrained(folder / "trainer")
    assert torch.equal(autoencoder.tokenize(*box_mesh()), expected["codes"])
    transformer = MeshTransformer.init_and_load(folder / "transformer.safetensors").eval()
    logits = transformer.forward_on_codes(
        expected["codes"][None], return_loss=False, append_eos=False
    )
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_goes_on_from_an_old_checkpoint(version: str, tmp_path: Path) -> None:
    folder = CHECKPOINTS / version / "trainer"
    trainer = build_trainer(tmp_path, num_train_steps=4)
    trainer.load(folder)
    assert trainer.step == 2
    assert trainer.learning_rate.value == pytest.approx(1e-2)
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert trainer.history == [json.loads(line) for line in lines]
    averaged = MeshAutoencoder.init_and_load(folder / "ema.safetensors")
    assert_same_state(trainer.ema_tokenizer, averaged)
    steps = {float(state["step"]) for state in trainer.optimizer.optimizer.state.values()}
    assert steps == {2.0}
    trainer()
    assert [record["step"] for record in trainer.history] == [1, 2, 3, 4]
