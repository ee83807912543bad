"""A process of its own that prepares meshes: jobs in by standard input, records out.

One line of JSON each way. A mesh that crashes a library, or takes all memory, ends this process
and no other.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Answer jobs until the input ends. The first line holds the options and the results folder.

    Answers "ready" to that line, and then a line to each job.
    """
    # whatever a library prints must not come between the records
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # of the meshes, which the records tell better
    warnings.simplefilter("ignore")

    # after the lines above, and before the first job, whose time is limited
    import torch

    from meshgpt_pytorch.prepare.options import PrepareOptions
    from meshgpt_pytorch.prepare.results import ResultFolder
    from meshgpt_pytorch.prepare.single import prepare_one
    from meshgpt_pytorch.prepare.sources import MeshSource

    torch.set_num_threads(1)
    setup = json.loads(sys.stdin.readline())
    options = PrepareOptions(**setup["options"])
    results = ResultFolder(Path(setup["results"]))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        source = MeshSource.from_json(json.loads(line))
        answers.write(json.dumps(answer(prepare_one, source, options, results)) + "\n")
        answers.flush()


def answer(prepare: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Do one job; what ends the whole run is told as an error."""
    from meshgpt_pytorch.mesh.simplify import MissingSimplifierError

    try:
        return {"record": asdict(prepare(*arguments))}
    except OSError as error:
        return {"os_error": [error.errno, error.strerror or str(error), str(error.filename or "")]}
    except MissingSimplifierError as error:
        return {"error": str(error)}
