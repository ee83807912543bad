"""Laws of the measurements: both sides do the same work, and failures stay in the table.

Upstream is not installed where the tests run, so that this package plays both sides here.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import choose_rows, choose_sides, main, merged, versions_of
from benchmarks.client import Side, WorkerError, Workers
from benchmarks.comparison import (
    Effort,
    Figure,
    Measurement,
    Outcome,
    check_same_work,
    measure,
    prepare,
    run,
)
from benchmarks.machine import read_rate
from benchmarks.memory import growth
from benchmarks.report import MARKERS, lines_of, write_tables
from benchmarks.rows import ROWS
from benchmarks.workloads.meshes import furniture_batch, grid_mesh, ragged_sizes
from meshgpt_pytorch import derive_face_edges_from_faces
from meshgpt_pytorch.version import __version__

QUICK = Effort(is_quick=True)
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_gb": 8.0,
    "read_gb_per_s": {"1": 10.0, "2": 20.0},
    "gpu": "a GPU",
    "gpu_read_gb_per_s": 2000,
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Both sides, kept for all tests here."""
    both = Workers({"ours": Side("ours"), "upstream": Side("upstream")})
    yield both
    both.close()


@pytest.mark.parametrize("name", ["edges", "tokenize", "generate-long", "train-ragged"])
def test_both_sides_give_the_same_numbers(name: str, workers: Workers):
    measurement = measure(name, ROWS[name], workers, QUICK)
    ours, upstream = measurement.ours["float32"], measurement.upstream
    assert (ours.error, upstream.error) == (None, None)
    assert ours.result == upstream.result
    assert ours.cpu.median > 0
    assert upstream.wall.median > 0


def test_weights_are_shared(workers: Workers, tmp_path: Path):
    request = {"contestant": "upstream", "weights": str(tmp_path / "none.pt"), "quick": True}
    with pytest.raises(WorkerError, match=r"No such file or directory: .*none\.pt"):
        workers.of("upstream").ask(prepare="tokenize", **request)


def test_memory_is_measured_in_a_fresh_process():
    alone = Workers({"ours": Side("ours")})
    measurement = measure("train-800-memory", ROWS["train-800-memory"], alone, QUICK)
    assert measurement.upstream is None
    assert measurement.ours["float32"].memory.median > 0


def test_growth_of_memory_is_that_of_the_peak():
    def work() -> int:
        torch.ones(2**25)
        return 7

    # 128 MB, gone when the work is done
    result, num_bytes = growth(work, "cpu")
    assert result == 7
    assert num_bytes == pytest.approx(2**27, rel=0.1)


def test_work_that_fails_is_reported(workers: Workers, tmp_path: Path):
    outcome = Outcome()
    request = {"prepare": "no such row", "weights": str(tmp_path), "quick": True}
    prepare(workers.of("ours"), "float32", outcome, request)
    assert outcome.error == "KeyError: 'no such row'"
    # and is not tried again
    assert run(workers.of("ours"), "float32", outcome, threads=1, measure="time") is None


def test_a_process_that_ended_is_reported_and_replaced():
    alone = Workers({"ours": Side("ours")})
    with closing(alone):
        killed = alone.of("ours")
        killed.process.kill()
        with pytest.raises(WorkerError, match="the ours process was ended by SIGKILL"):
            killed.ask(run="float32", threads=1, measure="time")
        assert alone.of("ours").versions["meshgpt-pytorch"] == __version__


def test_work_of_other_results_is_not_compared():
    figure = Figure.of([1.0])
    measurement = Measurement("train-200", 0.0, {"float32": Outcome(cpu=figure, result=2.0)})
    measurement.upstream = Outcome(cpu=figure, result=2.001)
    check_same_work(measurement)
    assert measurement.ours["float32"].cpu == figure
    measurement.upstream = Outcome(cpu=figure, result=2.1)
    check_same_work(measurement)
    assert measurement.ours["float32"].cpu is None
    assert measurement.ours["float32"].error == "the work must give upstream's 2.1, got 2"


def test_figures_are_medians_of_repeats():
    assert Figure.of([3.0, 1.0, 2.5]) == Figure(median=2.5, min=1.0, repeats=3)
    assert Figure.of([]) is None


def line(measurement: Measurement) -> list[str]:
    """The cells of the first line that a measurement gives."""
    first, *_ = lines_of(asdict(measurement), ROWS[measurement.name], MACHINE)
    return [cell.strip() for cell in first.split("|")[1:-1]]


def test_line_of_decoding_says_what_share_of_the_limit_is_reached():
    facts = {"tokens": 600, "weight_bytes_per_token": 50e6}
    ours = Outcome(Figure.of([6.0]), Figure.of([3.0]), facts=facts)
    upstream = Outcome(Figure.of([18.0]), Figure.of([6.0]), facts=facts)
    _, goal, cpu, wall, absolute, other, note = line(
        Measurement("generate", 1.0, {"float32": ours}, upstream)
    )
    assert (goal, cpu, wall) == ("2x", "**3.0x**", "**2.0x**")
    assert (absolute, other) == ("10.00 ms/token", "30.00 ms/token")
    assert "50 MB of weights a token: at least 5.0 ms with 1, 50% reached; 2.5 ms with 2" in note


def test_line_of_decoding_on_a_gpu_compares_with_its_memory():
    facts = {"tokens": 600, "weight_bytes_per_token": 50e6}
    ours = Outcome(wall=Figure.of([0.06]), facts=facts)
    measurement = Measurement("gpu-generate", 1.0, {"float32": ours})
    assert "at least 0.025 ms on the GPU, 25% reached" in line(measurement)[-1]


def test_line_of_memory():
    ours, upstream = (Outcome(memory=Figure.of([size])) for size in (3e6, 2.4e9))
    cells = line(Measurement("edges-memory", 9.0, {"float32": ours}, upstream))
    assert cells[1:] == ["50x", "**800x**", "3 MB", "2.40 GB", "measured at a load of 9.0"]


def test_line_says_why_there_is_no_figure(monkeypatch: pytest.MonkeyPatch):
    failed = Measurement("edges", 0.0, {"float32": Outcome(error="a|b\nc")}, Outcome())
    assert line(failed)[-1] == "ours: a/b c"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    skipped = measure("gpu-train", ROWS["gpu-train"], Workers({}), QUICK)
    assert line(skipped)[-1] == "not measured: needs a GPU"


def test_tables_are_written_between_markers(tmp_path: Path):
    document = tmp_path / "performance.md"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*MARKERS))
    measurement = Measurement("edges", 1.0, {"float32": Outcome(cpu=Figure.of([0.5]))})
    results = {
        "command": "a command",
        "machine": MACHINE,
        "versions": {"ours": {"torch": "2"}},
        "rows": [asdict(measurement)],
    }
    write_tables(results, document)
    text = document.read_text()
    assert text.startswith(f"before\n{MARKERS[0]}\n")
    assert text.endswith(f"{MARKERS[1]}\nafter\n")
    assert "old" not in text
    assert "6,400 faces | 500x |  |  | 500.0 ms |  |" in text
    assert "\n\nGPU: a GPU, which reads 2000 GB/s.\n\n" in text

    document.write_text("no markers")
    with pytest.raises(ValueError, match=r"must have the markers .* once each"):
        write_tables(results, document)


def test_rows_measured_again_replace_those_of_the_same_machine(tmp_path: Path):
    def results(versions: str, **rows: float) -> dict[str, Any]:
        return {
            "machine": MACHINE,
            "versions": versions,
            "rows": [{"name": name, "load": load} for name, load in rows.items()],
        }

    path = tmp_path / "results.json"
    assert merged(results("a", edges=1), path) == results("a", edges=1)
    path.write_text(json.dumps(results("a", edges=1, tokenize=1, import_=1)))
    again = merged(results("a", tokenize=2), path)
    # in the order of the rows; a row that is there no more is dropped
    assert [(row["name"], row["load"]) for row in again["rows"]] == [("edges", 1), ("tokenize", 2)]
    with pytest.raises(ValueError, match="must be of this machine and these versions"):
        merged(results("b", tokenize=2), path)


def test_rows_are_chosen_by_pattern():
    assert choose_rows(["edges*", "tokenize"])[:3] == ["edges", "edges-110000", "tokenize"]
    assert choose_rows([]) == list(ROWS)
    with pytest.raises(ValueError, match="no row is called 'edge'; `python -m benchmarks list`"):
        choose_rows(["edge"])


def test_upstream_must_be_what_is_compared_with(workers: Workers, tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"upstream must be 1\.8\.1 with torch .*, got "):
        versions_of(workers)
    with pytest.raises(FileNotFoundError, match=r"got no .*/none; `make bench` makes one"):
        choose_sides(tmp_path / "none", alone=False)
    assert list(choose_sides(tmp_path / "none", alone=True)) == ["ours"]


def test_rate_of_reading_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    assert read_rate(threads=before + 1, num_bytes=2**20) > 0
    assert torch.get_num_threads() == before


def test_grids_are_meshes_of_any_size():
    vertices, faces = grid_mesh(80)
    assert faces.shape == (80, 3)
    assert faces.unique().equal(torch.arange(len(vertices)))
    assert vertices.abs().max() <= 1
    # two rows of squares, each cut in two: an edge inside for all but the border's 2 * 20 + 4
    inside = (3 * 80 - 44) // 2
    assert len(derive_face_edges_from_faces(faces)) == 2 * inside + 80


def test_furniture_of_one_size_and_of_spread_sizes():
    vertices, faces = furniture_batch(100, 3)
    assert faces.shape == (3, 100, 3)
    assert faces.min() == 0
    assert faces.max() < vertices.shape[1]
    sizes = ragged_sizes(8, share=0.25)
    assert list(sizes) == sorted(sizes)
    assert sizes[-1] <= 200
    with pytest.raises(ValueError, match="wanted 3 furniture meshes of 801 faces, got 0"):
        furniture_batch(801, 3)


@pytest.mark.parametrize("option", ["--quick", "--alone"])
def test_only_whole_measurements_are_kept(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["run", "--write", option])
    assert "--write keeps whole measurements" in capsys.readouterr().err
