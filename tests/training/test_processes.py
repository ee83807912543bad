"""Two processes train as one does with twice the batch."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.helpers import ROOT
from tests.training import preempted_run, resumed_run
from tests.training.runs import assert_same_state, without_speed
from tests.training.two_processes import NUM_STEPS, make_trainer, meshes_of

KINDS = {"autoencoder": MeshAutoencoder, "transformer": MeshTransformer}


def launch(config: str, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module of these tests in two processes, as an example's configuration says."""
    path = ROOT / "examples" / "accelerate_configs" / f"{config}.yaml"
    # the command `accelerate` imports all its subcommands, and with them torchvision
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    command += ["--mixed_precision", "no", "--module", f"tests.training.{module}"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


# of the weights and of the moments, in each process
SHARES = {"ddp": (1.0, 1.0), "fsdp": (0.5, 0.5), "deepspeed": (1.0, 0.5)}


@pytest.fixture(scope="module", params=SHARES)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes trained, in each way of working together."""
    folder = tmp_path_factory.mktemp(request.param)
    result = launch(request.param, "two_processes", folder, request.param)
    assert result.returncode == 0, result.stderr
    return folder


def read_report(runs: Path, kind: str, process: int) -> dict[str, Any]:
    return json.loads((runs / f"{kind}.{process}.json").read_text())


def losses(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "loss" in k} for record in history]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_with_twice_the_batch(
    runs: Path, kind: str, tmp_path: Path
) -> None:
    one = make_trainer(kind, tmp_path, batch_size=2)
    one()
    two = read_report(runs, kind, process=0)["whole"]
    assert len(one.history) == len(two) == NUM_STEPS
    for single, double in zip(losses(one.history), losses(two), strict=True):
        assert single == pytest.approx(double, rel=1e-5, abs=1e-5)
    assert one.history[-1]["val_loss"] == pytest.approx(two[-1]["val_loss"], rel=1e-5)

    folder = runs / kind / f"{one.checkpoint_name}.ckpt.{NUM_STEPS}"
    for name, model in (("model", one.unwrapped_model), ("ema", one.average.model)):
        saved = KINDS[kind].init_and_load(folder / f"{name}.safetensors")
        torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=1e-5, atol=1e-5)


def test_two_processes_with_everything_random_go_on_where_they_were(runs: Path) -> None:
    for process in (0, 1):
        report = json.loads((runs / f"resume.{process}.json").read_text())
        assert report.keys() == set(resumed_run.KINDS)
        assert all(all(each.values()) for each in report.values())
        assert ("averaged_model" in report["transformer"]) == (process == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_where_two_were(runs: Path, kind: str, tmp_path: Path) -> None:
    one = make_trainer(kind, tmp_path, batch_size=2)
    one.load(runs / kind / f"mesh-{kind}.ckpt.3")
    one()
    two = read_report(runs, kind, process=0)["whole"]
    for single, double in zip(losses(one.history), losses(two), strict=True):
        assert single == pytest.approx(double, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", resumed_run.KINDS)
def test_one_process_reads_the_moments_of_two(runs: Path, kind: str, tmp_path: Path) -> None:
    one = resumed_run.build(kind, tmp_path, 4)
    one.load(runs / "random" / kind / "checkpoint")
    optimizer = one.optimizer.optimizer
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for parameter in parameters:
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert state["step"] == 2
    one()
    # each parameter counts for itself
    assert {float(optimizer.state[parameter]["step"]) for parameter in parameters} == {4.0}


@pytest.mark.parametrize("kind", KINDS)
def test_processes_have_the_whole_model_or_a_share(runs: Path, kind: str) -> None:
    weights, moments = SHARES[runs.name.rstrip("0123456789")]
    for process in (0, 1):
        found = read_report(runs, kind, process)["shares"]
        assert found == pytest.approx([weights, moments], abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_in_one_process_is_skipped_in_both(runs: Path, kind: str) -> None:
    for process in (0, 1):
        spoiled = read_report(runs, kind, process)["spoiled"]
        assert spoiled == ["step 2 was skipped", "step 3 was skipped"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_item_is_seen_once_an_epoch(runs: Path, kind: str) -> None:
    reads = [path.read_text().split() for path in (runs / kind).glob("read.*.txt")]
    assert len(reads) == 2
    # six steps of two batches of one: three epochs of eight items, half of each in either process;
    # one item is read to check it, and one ahead
    counts = Counter(item for process in reads for item in process)
    assert sorted(counts) == [str(index) for index in range(len(meshes_of(kind)))]
    assert all(count >= 3 for count in counts.values())
    assert sum(counts.values()) <= 3 * 8 + 2 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_logs_and_checkpoints_are_written_once(runs: Path, kind: str) -> None:
    folder = runs / kind
    name = f"mesh-{kind}"
    lines = (folder / f"{name}.history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    left = sorted(p.name for p in folder.iterdir() if not p.name.startswith("read."))
    names = ("ckpt.3", "ckpt.6", "history.jsonl", "samples.6")
    assert left == [f"{name}.{each}" for each in names]
    assert (folder / f"{name}.samples.6" / "samples.png").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_go_on_where_they_were(runs: Path, kind: str) -> None:
    report = read_report(runs, kind, process=0)
    assert without_speed(report["resumed"]) == without_speed(report["whole"])
    for name in ("model", "ema"):
        file = f"mesh-{kind}.ckpt.{NUM_STEPS}/{name}.safetensors"
        folders = (runs / kind, runs / f"{kind}.resumed")
        assert_same_state(*(KINDS[kind].init_and_load(folder / file) for folder in folders))


def test_two_processes_of_which_sigterm_reaches_one_save_once_and_go_on(tmp_path: Path) -> None:
    for signalled in preempted_run.SIGNALLED:
        result = launch("ddp", "preempted_run", tmp_path, "end", signalled)
        assert result.returncode != 0
        checkpoints = tmp_path / signalled / "checkpoints"
        lines = (checkpoints / "mesh-transformer.history.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
        # nothing is left of the writing, and there is one checkpoint: that of the last step
        assert sorted(path.name for path in checkpoints.iterdir()) == [
            f"mesh-transformer.ckpt.{len(lines)}",
            "mesh-transformer.history.jsonl",
        ]
        if signalled == "one process":
            assert len(lines) == 3
            assert "exitcode  : 143" in result.stderr
    result = launch("ddp", "preempted_run", tmp_path, "go-on")
    assert result.returncode == 0, result.stderr
    for process in (0, 1):
        report = json.loads((tmp_path / f"report.{process}.json").read_text())
        assert report.keys() == set(preempted_run.SIGNALLED)
        assert all(all(each.values()) for each in report.values())
