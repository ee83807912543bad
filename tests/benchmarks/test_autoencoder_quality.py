"""The protocol of training measures what users are given, and keeps what it measured."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import autoencoder_training
from benchmarks.autoencoder_quality import main, parse_arguments, print_table
from benchmarks.autoencoder_training import (
    LOOK_ALIKES,
    PACK,
    as_list,
    learning_rate,
    load_model,
    look_alikes,
    measure,
    path_of,
    read_data,
)
from benchmarks.autoencoder_variants import SIZES, VARIANTS, Training
from benchmarks.result_lines import add_line, read_lines
from meshgpt_pytorch import MeshDataset, quick_recipe


def test_the_recipe_that_is_measured_is_the_one_of_the_library():
    recipe = quick_recipe(num_train_steps=1000)
    assert {**SIZES, **VARIANTS["recipe"].options} == recipe.model
    assert VARIANTS["recipe"].is_augmented
    highest = recipe.trainer["learning_rate"]
    assert highest == VARIANTS["recipe"].learning_rate
    assert recipe.trainer["warmup_steps"] == 50
    fall = recipe.trainer["scheduler_kwargs"]["lr_lambda"]
    for step in (100, 299, 300, 500, 999):
        assert learning_rate(step, step / 1000, highest) == pytest.approx(highest * fall(step))


def test_no_mesh_to_validate_with_looks_like_one_to_train_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        sys, "argv", ["quality", "recipe", "--threads", str(torch.get_num_threads())]
    )
    keys = {part: set(data.labels["key"]) for part, data in read_data(parse_arguments()).items()}
    with LOOK_ALIKES.open() as file:
        pairs = [{row["key_a"], row["key_b"]} for row in csv.DictReader(file, delimiter="\t")]
    assert any(pair <= keys["train"] for pair in pairs)
    assert any(pair <= keys["val"] for pair in pairs)
    assert not any(pair & keys["train"] and pair & keys["val"] for pair in pairs)


def test_the_look_alikes_are_those_of_the_bundled_pack(monkeypatch: pytest.MonkeyPatch):
    with LOOK_ALIKES.open() as file:
        pairs = [{row["key_a"], row["key_b"]} for row in csv.DictReader(file, delimiter="\t")]
    assert set().union(*pairs) <= set(MeshDataset(PACK).labels["key"])
    # another pack has others
    monkeypatch.setattr(sys, "argv", ["quality", "recipe", "--pack", "other.npz"])
    assert look_alikes(parse_arguments()) is None


def result(variant: str, seed: int, coordinate: float) -> dict:
    shares = {"coordinate": coordinate, "triangle": coordinate / 2}
    setting = {"minutes": 0.5, "of": 0.5, "clock": "cpu", "threads": 1}
    setting |= {"pack": "furniture.npz", "near_duplicates": ""}
    parts = {"steps": 10 + seed, "train": shares, "val": shares}
    return {"variant": variant, "seed": seed, **setting, **parts}


def test_the_table_has_means_and_ends_over_seeds(capsys):
    runs = [result("lfq", 0, 0.5), result("recipe", 0, 1.0), result("lfq", 2, 0.75)]
    print_table(runs)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    columns = len(rows[0])
    assert [row[0] for row in rows[2:]] == ["lfq", "recipe"]
    assert rows[2][7:] == [
        "2",
        "11",
        "0.625 (0.500-0.750)",
        "0.625 (0.500-0.750)",
        "0.312 (0.250-0.375)",
        "0.312 (0.250-0.375)",
    ]
    assert rows[3][7:] == ["1", "10", "1.000", "1.000", "0.500", "0.500"]
    assert all(len(row) == columns for row in rows[2:])


def test_what_a_file_has_is_not_measured_again(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "results.jsonl"
    monkeypatch.setattr(autoencoder_training, "MAX_FACES", 30)
    # a budget in which there is time for one step
    command = ["quality", "recipe", "--minutes", "1e-5", "--clock", "cpu", "--out", str(out)]
    command += ["--threads", str(torch.get_num_threads()), "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, "0"])
    main()
    first = out.read_text()
    assert json.loads(first)["steps"] == 1
    monkeypatch.setattr(sys, "argv", [*command, "0", "1"])
    main()
    assert out.read_text().startswith(first)
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 1]
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("| recipe | 1e-05 | 1e-05 | cpu |")
    monkeypatch.setattr(sys, "argv", ["quality", "--table", str(out)])
    main()
    assert printed.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_a_longer_training_is_measured_on_its_way(tmp_path: Path, monkeypatch):
    out, models = tmp_path / "results.jsonl", tmp_path / "models"
    monkeypatch.setattr(autoencoder_training, "MAX_FACES", 30)
    command = ["quality", "recipe", "--clock", "cpu", "--out", str(out), "--models", str(models)]
    command += ["--threads", str(torch.get_num_threads()), "--seeds", "0", "--minutes", "0.02"]
    monkeypatch.setattr(sys, "argv", [*command, "--also-after", "1e-5"])
    main()
    results = read_lines(out)
    assert [(result["minutes"], result["of"]) for result in results] == [(1e-5, 0.02), (0.02, 0.02)]
    assert results[0]["steps"] == 1 < results[1]["steps"]
    monkeypatch.setattr(sys, "argv", [*command, "--also-after", "0.01"])
    with pytest.raises(ValueError, match=r"must be measured whole, got \[1e-05, 0.02\] minutes"):
        main()
    monkeypatch.setattr(sys, "argv", [*command, "--also-after", "1e-5"])
    # the file is gone, the trained weights are not: they are not trained again
    out.unlink()
    weights = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    main()
    assert read_lines(out) == results
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == weights
    [kept] = weights
    setting = ("cpu", torch.get_num_threads(), PACK.name, LOOK_ALIKES.name)
    training = Training("recipe", 0, 0.02, *setting)
    assert path_of(training, models) == kept
    meshes = as_list(read_data(parse_arguments())["val"])
    model = load_model(training, torch.load(kept)["weights"])
    assert asdict(measure(model, meshes)) == results[1]["val"]


def test_a_broken_line_of_results_is_named(tmp_path: Path):
    out = tmp_path / "results.jsonl"
    add_line(out, {"seed": 0})
    add_line(None, {"seed": 1})
    assert read_lines(out) == [{"seed": 0}]
    with out.open("a") as file:
        file.write('{"seed": 1')
    with pytest.raises(
        ValueError, match=r"must be a result as JSON, got .* in line 2; take it out"
    ):
        read_lines(out)


def test_only_the_version_that_is_compared_trains_as_upstream(tmp_path: Path):
    script = autoencoder_training.ROOT / "benchmarks" / "train_upstream.py"
    ended = subprocess.run(
        [sys.executable, script, tmp_path, "[{}, []]"], capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert "upstream must be 1.8.1, got" in ended.stderr
    assert "pass --upstream the interpreter" in ended.stderr
