"""Trains a variant of upstream, in upstream's environment.

    PYTHON benchmarks/train_upstream.py FOLDER REQUEST

The folder has the meshes, and gets the weights; the answer is a line of JSON on standard output.
`benchmarks/autoencoder_training.py` starts it.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def serve(folder: Path, request: str) -> None:
    """Train what the request says; write the weights, print the measurements."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.worker import enter, introduce

    # or else this checkout's package would be taken for upstream's
    sys.path.remove(str(ROOT))
    enter("upstream")
    import torch

    from benchmarks.autoencoder_training import run
    from benchmarks.autoencoder_variants import Training
    from benchmarks.upstream import VERSION

    found = introduce()["versions"]["meshgpt-pytorch"]
    if found != VERSION:
        raise RuntimeError(
            f"upstream must be {VERSION}, got {found}; pass --upstream the interpreter of an "
            "environment with that version, such as the one `make bench` makes"
        )
    fields, moments = json.loads(request)
    training = Training(**fields)
    torch.set_num_threads(training.threads)
    model, results = run(training, torch.load(folder / "meshes.pt"), moments)
    torch.save(model.state_dict(), folder / "weights.pt")
    print(json.dumps(results))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
