"""Replace a folder again and again in processes that die at each file operation in turn.

Run by test_atomic.py: prints, for each death, the text of the two files that the next start finds.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from meshgpt_pytorch.checkpoint.atomic import atomic_path, clean_up

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def write(folder: Path, text: str) -> None:
    """Replace the folder by one with two files of one text."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)


def read(folder: Path) -> list[str]:
    """Return the text of the files, in order."""
    return [path.read_text() for path in sorted(folder.iterdir())]


def die_at(number: int) -> None:
    """End the process, without any clean-up, before one of its file operations."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        count += event in OPERATIONS
        if count == number:
            os._exit(9)

    sys.addaudithook(hook)


def main(folder: Path) -> None:
    """Die at the first operation, at the second, and so on, until a write gets through."""
    path = folder / "checkpoint"
    write(path, "0")
    found = []
    for number in range(1, 1000):
        process = os.fork()
        if process == 0:
            die_at(number)
            write(path, str(number))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        clean_up(folder, "checkpoint")
        found.append({"texts": read(path), "names": sorted(os.listdir(folder))})
        if os.waitstatus_to_exitcode(status) == 0:
            break
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
