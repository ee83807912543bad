"""The protocol of training measures what users are given, and keeps what it measured."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import autoencoder_quality
from benchmarks.autoencoder_quality import (
    LEARNING_RATE,
    SIZES,
    VARIANTS,
    learning_rate,
    main,
    print_table,
)
from meshgpt_pytorch import quick_recipe


def test_the_recipe_that_is_measured_is_the_one_of_the_library():
    recipe = quick_recipe(num_train_steps=1000)
    assert {**SIZES, **VARIANTS["recipe"].options} == recipe.model
    assert VARIANTS["recipe"].is_augmented
    assert recipe.trainer["learning_rate"] == LEARNING_RATE
    assert recipe.trainer["warmup_steps"] == 50
    fall = recipe.trainer["scheduler_kwargs"]["lr_lambda"]
    for step in (100, 299, 300, 500, 999):
        assert learning_rate(step, step / 1000) == pytest.approx(LEARNING_RATE * fall(step))


def result(variant: str, seed: int, coordinate: float) -> dict:
    shares = {"coordinate": coordinate, "triangle": coordinate / 2}
    setting = {"minutes": 0.5, "clock": "cpu", "threads": 1, "pack": "furniture.npz"}
    parts = {"steps": 10 + seed, "train": shares, "val": shares}
    return {"variant": variant, "seed": seed, **setting, **parts}


def test_the_table_has_means_and_ends_over_seeds(capsys):
    runs = [result("lfq", 0, 0.5), result("recipe", 0, 1.0), result("lfq", 2, 0.75)]
    print_table(runs)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    columns = len(rows[0])
    assert [row[0] for row in rows[2:]] == ["lfq", "recipe"]
    assert rows[2][5:] == [
        "2",
        "11",
        "0.625 (0.500-0.750)",
        "0.625 (0.500-0.750)",
        "0.312 (0.250-0.375)",
        "0.312 (0.250-0.375)",
    ]
    assert rows[3][5:] == ["1", "10", "1.000", "1.000", "0.500", "0.500"]
    assert all(len(row) == columns for row in rows[2:])


def test_what_a_file_has_is_not_measured_again(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "results.jsonl"
    monkeypatch.setattr(autoencoder_quality, "MAX_FACES", 30)
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
    assert printed.splitlines()[-1].startswith("| recipe | 1e-05 | cpu |")
    monkeypatch.setattr(sys, "argv", ["quality", "--table", str(out)])
    main()
    assert printed.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
