"""A folder that is being replaced is found whole, whenever its writer dies."""

import json
import subprocess
import sys
from pathlib import Path

from meshgpt_pytorch.checkpoint.atomic import atomic_path, clean_up, recover
from tests.helpers import ROOT


def test_a_writer_that_dies_at_any_file_operation_leaves_the_old_folder_or_the_new(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "tests.checkpoint.killed_writer", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    # making and filling a folder, two renames, and the deletion of what was there before
    assert len(found) > 10
    written = "0"
    for number, start in enumerate(found, start=1):
        assert start["names"] == ["checkpoint"]
        assert start["texts"] in ([written, written], [str(number), str(number)])
        written = start["texts"][0]
    assert written == str(len(found))


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "state").write_text(text)
    return path


def test_a_folder_that_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    folder_with(tmp_path / ".run.1.0123abcd.old", "old")
    folder_with(tmp_path / ".run.12.0123abcd.old", "another")
    recover(tmp_path / "run.1")
    assert (tmp_path / "run.1" / "state").read_text() == "old"
    assert not (tmp_path / "run.12").exists()


def test_a_folder_that_is_there_is_not_put_back(tmp_path: Path) -> None:
    folder_with(tmp_path / "run", "new")
    folder_with(tmp_path / ".run.0123abcd.old", "old")
    recover(tmp_path / "run")
    clean_up(tmp_path, "run")
    assert (tmp_path / "run" / "state").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_cleaning_up_leaves_what_others_wrote(tmp_path: Path) -> None:
    names = [".other.0123abcd.tmp", ".run", ".run.tmp", "run.0123abcd.tmp", ".run.0123.old"]
    for name in names:
        folder_with(tmp_path / name, "kept")
    folder_with(tmp_path / ".run.0123abcd.tmp", "left")
    (tmp_path / ".run.file.0123abcd.tmp").write_text("left")
    clean_up(tmp_path, "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_cleaning_up_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    clean_up(tmp_path / "nowhere", "run")
    assert not (tmp_path / "nowhere").exists()


def test_what_a_dead_writer_moved_aside_is_gone_after_the_next_write(tmp_path: Path) -> None:
    folder_with(tmp_path / "run", "new")
    folder_with(tmp_path / ".run.0123abcd.old", "old")
    with atomic_path(tmp_path / "run") as temporary:
        folder_with(temporary, "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "state").read_text() == "newest"
