"""How well an autoencoder rebuilds meshes, seen and unseen, after a given time of training.

    python benchmarks/autoencoder_quality.py --list
    python benchmarks/autoencoder_quality.py recipe --minutes 5 15 30 --seeds 0 1 2
    python benchmarks/autoencoder_quality.py upstream --upstream PYTHON
    python benchmarks/autoencoder_quality.py --table quality.jsonl

All variants have the same sizes, unless their name says otherwise, and see the same split: a tenth
of the meshes, with those that look like one of them, is kept for validation. Batches of 16, AdamW,
a warm-up of 50 steps, then the learning rate falls in a line from 30 % of the time to its end. Each
budget is a training of its own. Upstream runs in its own environment, whose interpreter is
`--upstream`.

A run adds a line to the file `--out` as it ends, and is not repeated if it is there: start again
what was cut off, and it goes on. `--table` turns such a file into a table.

With `--clock cpu` the budget counts time of the processor, so that other processes may run beside.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

ROOT = Path(__file__).resolve().parent.parent
PACK = ROOT / "examples" / "data" / "furniture_adaptive.npz"
BATCH_SIZE = 16
MAX_FACES = 100
# meshes that a quantizer starts from
START_SIZE = 64
LEARNING_RATE = 1e-3
SIZES: Mapping[str, Any] = {
    "encoder_dims_through_depth": (64, 128, 256),
    "decoder_dims_through_depth": (128, 128, 192, 192, 256, 256),
    "dim_codebook": 128,
}
Batch = dict[str, Tensor]
Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Variant:
    """What one row trains.

    Args:
        options: of the autoencoder, besides the sizes.
        is_augmented: train on meshes scaled, mirrored and shifted anew in each epoch.
        warm_up: share of the time without the quantizer.
        is_started: start the quantizer from statistics, see ``MeshAutoencoder.start_quantizer``.
        is_closed: let attention blocks start as identity.
        is_upstream: train upstream's autoencoder.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    is_augmented: bool = True
    warm_up: float = 0.0
    is_started: bool = False
    is_closed: bool = False
    is_upstream: bool = False


FSQ: Mapping[str, Any] = {
    "quantizer": "fsq",
    "fsq_levels": (16, 16, 16),
    "codebook_size": 4096,
}
VARIANTS = {
    "upstream": Variant(is_augmented=False, is_upstream=True),
    "upstream 1024": Variant({"codebook_size": 1024}, is_augmented=False, is_upstream=True),
    "lfq": Variant(is_augmented=False),
    "lfq, augmented": Variant(),
    "lfq, warm-up": Variant(warm_up=0.4),
    "lfq, consistent": Variant({"vertex_consistent": True}),
    "lfq, shortcut": Variant({"vertex_shortcut": True}),
    "lfq, started": Variant(is_started=True),
    "lfq, started, not augmented": Variant(is_augmented=False, is_started=True),
    "lfq, started, consistent": Variant({"vertex_consistent": True}, is_started=True),
    "lfq, started, shortcut": Variant({"vertex_shortcut": True}, is_started=True),
    "lfq, started, wide decoder": Variant(
        {"decoder_dims_through_depth": (256, 256, 384, 384, 512, 512)}, is_started=True
    ),
    "lfq, started, attention": Variant(
        {"attn_encoder_depth": 1, "attn_decoder_depth": 1}, is_started=True
    ),
    "lfq, started, attention as identity": Variant(
        {"attn_encoder_depth": 1, "attn_decoder_depth": 1}, is_started=True, is_closed=True
    ),
    "lfq, together": Variant({"vertex_consistent": True, "vertex_shortcut": True}, is_started=True),
    "rvq": Variant({"quantizer": "rvq", "codebook_size": 1024}),
    "simvq": Variant({"quantizer": "simvq", "codebook_size": 1024}),
    "simvq, shortcut": Variant(
        {"quantizer": "simvq", "codebook_size": 1024, "vertex_shortcut": True}
    ),
    "fsq": Variant(FSQ),
    "fsq, consistent": Variant({**FSQ, "vertex_consistent": True}),
    "fsq, shortcut": Variant({**FSQ, "vertex_shortcut": True}),
    "recipe, not augmented": Variant(
        {**FSQ, "vertex_shortcut": True, "vertex_consistent": True}, is_augmented=False
    ),
    # the model and the augmentation of meshgpt_pytorch.quick_recipe
    "recipe": Variant({**FSQ, "vertex_shortcut": True, "vertex_consistent": True}),
}


@dataclass(frozen=True)
class Accuracy:
    """Share of coordinates, and of faces with all nine, that fall in the right bin."""

    coordinate: float
    triangle: float


def collate(meshes: Sequence[Mapping[str, Tensor]]) -> Batch:
    """Pad meshes to a batch; both sides read it alike."""
    padding = {"vertices": 0.0, "faces": -1, "face_edges": -1}
    return {
        key: pad_sequence([mesh[key] for mesh in meshes], batch_first=True, padding_value=value)
        for key, value in padding.items()
    }


def endless_batches(meshes: Any, generator: torch.Generator) -> Iterator[Batch]:
    """Read shuffled epochs one after another."""
    epoch = 0
    order: list[int] = []
    while True:
        if len(order) < BATCH_SIZE:
            if hasattr(meshes, "set_epoch"):
                meshes.set_epoch(epoch)
            epoch += 1
            order += torch.randperm(len(meshes), generator=generator).tolist()
        yield collate([meshes[index] for index in order[:BATCH_SIZE]])
        order = order[BATCH_SIZE:]


def learning_rate(step: int, share: float) -> float:
    """Warm up over steps, hold, and fall to zero over the time."""
    return LEARNING_RATE * min(1.0, (step + 1) / 50, (1 - share) / 0.7)


def train(model: Any, batches: Iterator[Batch], budget: float, clock: Clock, warm_up: float) -> int:
    """Train for so many seconds, a first share of them unquantised; return the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.99))
    model.train()
    start, step = clock(), 0
    while (share := (clock() - start) / budget) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, share)
        extra = {"skip_quantizer": True} if share < warm_up else {}
        loss = model(**next(batches), **extra)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    return step


@torch.no_grad()
def measure(model: Any, meshes: Sequence[Mapping[str, Tensor]]) -> Accuracy:
    """Compare reconstructions through the codes with the meshes, bin by bin."""
    model.eval()
    right = []
    for start in range(0, len(meshes), BATCH_SIZE):
        batch = collate(meshes[start : start + BATCH_SIZE])
        recon = model(**batch, only_return_recon_faces=True)
        row = torch.arange(len(recon))[:, None, None]
        target = batch["vertices"][row, batch["faces"].clamp(min=0)]
        exists = (batch["faces"] >= 0).all(dim=-1)
        half_bin = 1 / model.num_discrete_coors
        right.append(((recon - target).abs() < half_bin)[exists].flatten(1))
    is_right = torch.cat(right)
    return Accuracy(float(is_right.double().mean()), float(is_right.all(dim=1).double().mean()))


def split(pack: Path, near_duplicates: Path | None) -> tuple[Any, Any]:
    """Keep a tenth of the small meshes, and what looks like one of them, for validation."""
    from meshgpt_pytorch.data import MeshDataset, near_duplicate_groups

    dataset = MeshDataset(pack).filter(max_faces=MAX_FACES).canonicalize()
    dataset.cache_face_edges()
    groups = near_duplicate_groups(near_duplicates or [], list(dataset.labels["key"]))
    order = np.random.default_rng(0).permutation(len(dataset))
    held_out = {groups[index] for index in order[: round(len(dataset) / 10)]}
    is_validation = torch.tensor([group in held_out for group in groups])
    keys = ("vertices", "faces", "face_edges")
    return (
        dataset.select(~is_validation).with_keys(*keys),
        dataset.select(is_validation).with_keys(*keys),
    )


def close_attention(model: Any) -> None:
    """Set the last weights of each part of each attention block to zero."""
    for block in (*model.encoder_attn_blocks, *model.decoder_attn_blocks):
        for part in block:
            linears = [module for module in part.modules() if isinstance(module, nn.Linear)]
            for parameter in linears[-1].parameters():
                nn.init.zeros_(parameter)


def run(
    variant: Variant, data: Mapping[str, Any], seed: int, budget: float, clock: str
) -> tuple[Any, dict]:
    """Train a variant; return the model, and what it reached."""
    from meshgpt_pytorch import MeshAutoencoder

    torch.manual_seed(seed)
    model = MeshAutoencoder(**{**SIZES, **variant.options})
    meshes = data["train"]
    if variant.is_closed:
        close_attention(model)
    if variant.is_started:
        model.start_quantizer(**collate([meshes[index] for index in range(START_SIZE)]))
    if variant.is_augmented:
        from meshgpt_pytorch.data.augment import Compose, Mirror, Scale, Shift

        meshes = meshes.augment(Compose(Scale(), Mirror(), Shift()), seed=seed)
    batches = endless_batches(meshes, torch.Generator().manual_seed(seed))
    steps = train(model, batches, budget, CLOCKS[clock], variant.warm_up)
    reached = {part: asdict(measure(model, as_list(data[part]))) for part in ("train", "val")}
    return model, {"steps": steps, **reached}


def as_list(meshes: Any) -> list[Mapping[str, Tensor]]:
    """Read a data set whole."""
    return [meshes[index] for index in range(len(meshes))]


def run_upstream(
    name: str, data: Mapping[str, Any], python: Path, **options: Any
) -> tuple[Any, dict]:
    """Run a variant of upstream in a process of its own environment.

    Returns:
        an autoencoder of this library with the weights that upstream trained, which gives the same
        codes; and upstream's own result.
    """
    from meshgpt_pytorch import MeshAutoencoder

    with tempfile.TemporaryDirectory() as folder:
        meshes = {part: as_list(data[part]) for part in data}
        torch.save(meshes, Path(folder) / "meshes.pt")
        environment = {key: item for key, item in os.environ.items() if key != "PYTHONPATH"}
        request = json.dumps({"name": name, **options})
        answer = subprocess.run(
            [python, __file__, "--serve", folder, request],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        model = MeshAutoencoder(**SIZES, **VARIANTS[name].options)
        model.load_state_dict(torch.load(Path(folder) / "weights.pt"))
    return model, json.loads(answer.stdout.splitlines()[-1])


def run_by_name(
    name: str, data: Mapping[str, Any], upstream: Path | None, **options: Any
) -> tuple[Any, dict]:
    """Run a variant of either side."""
    if not VARIANTS[name].is_upstream:
        return run(VARIANTS[name], data, **options)
    assert upstream is not None, "the command line asks for it"
    return run_upstream(name, data, upstream, threads=torch.get_num_threads(), **options)


def serve(folder: str, request: str) -> None:
    """Do what `run_upstream` asks for, with upstream's package."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.upstream import VERSION
    from benchmarks.worker import enter, introduce

    # or else this checkout's package would be taken for upstream's
    sys.path.remove(str(ROOT))
    enter("upstream")
    found = introduce()["versions"]["meshgpt-pytorch"]
    if found != VERSION:
        raise RuntimeError(
            f"upstream must be {VERSION}, got {found}; pass --upstream the interpreter of an "
            "environment with that version, such as the one `make bench` makes"
        )
    options = json.loads(request)
    torch.set_num_threads(options.pop("threads"))
    variant = VARIANTS[options.pop("name")]
    model, result = run(variant, torch.load(Path(folder) / "meshes.pt"), **options)
    torch.save(model.state_dict(), Path(folder) / "weights.pt")
    print(json.dumps(result))


def identify(name: str, seed: int, minutes: float, arguments: argparse.Namespace) -> dict:
    """Return what tells a run from others in a file of results."""
    return {
        "variant": name,
        "seed": seed,
        "minutes": minutes,
        "clock": arguments.clock,
        "threads": arguments.threads,
        "pack": arguments.pack.name,
    }


def read_results(path: Path | None) -> list[dict]:
    """Read the lines of a file of results; none without a file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """Print means over seeds, with the least and the greatest value."""
    setting = ("minutes", "clock", "threads", "pack")
    columns = ("variant", *setting, "seeds", "steps", "coordinates: train", "val")
    print("| " + " | ".join((*columns, "triangles: train", "val")) + " |")
    print("|" + "---|" * (len(columns) + 2))
    names = {name: place for place, name in enumerate(dict.fromkeys(r["variant"] for r in results))}

    def row_of(result: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*(result[key] for key in setting), names[result["variant"]])

    for _, group in groupby(sorted(results, key=row_of), row_of):
        runs = list(group)
        shares = [
            spread([run[part][kind] for run in runs])
            for kind in ("coordinate", "triangle")
            for part in ("train", "val")
        ]
        values = (runs[0]["variant"], *(runs[0][key] for key in setting), len(runs))
        steps = round(mean(run["steps"] for run in runs))
        print("| " + " | ".join(map(str, (*values, steps, *shares))) + " |")


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the ends of more than one value."""
    ends = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{ends}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command line that trains autoencoders."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pack", type=Path, default=PACK)
    parser.add_argument("--near-duplicates", type=Path, help="table of look-alikes")
    parser.add_argument("--upstream", type=Path, help="interpreter with meshgpt-pytorch 1.8.1")
    parser.add_argument("--out", type=Path, help="a line of JSON for each run is added")


def require_upstream(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a message if upstream's environment is needed and not given."""
    needed = any(VARIANTS[name].is_upstream for name in arguments.variants)
    if needed and arguments.upstream is None:
        parser.error("variants of upstream need --upstream, the interpreter of its environment")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], help="default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the variants")
    parser.add_argument("--table", type=Path, help="print what this file of results says")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 15.0, 30.0])
    add_options(parser)
    arguments = parser.parse_args()
    arguments.variants = arguments.variants or list(VARIANTS)
    if not (arguments.list or arguments.table):
        require_upstream(parser, arguments)
    return arguments


def main() -> None:
    """Train what the command line asks for, and print and write what it reached."""
    arguments = parse_arguments()
    if arguments.list:
        print("\n".join(VARIANTS))
    elif arguments.table:
        print_table(read_results(arguments.table))
    else:
        train_all(arguments)


def read_data(arguments: argparse.Namespace) -> dict[str, Any]:
    """Heed the threads of the command line, and return the parts of its split."""
    torch.set_num_threads(arguments.threads)
    train_meshes, val_meshes = split(arguments.pack, arguments.near_duplicates)
    print(f"{len(train_meshes)} meshes to train on, {len(val_meshes)} to validate with")
    return {"train": train_meshes, "val": val_meshes}


def train_all(arguments: argparse.Namespace) -> None:
    """Train each variant with each seed for each time, but for what is in the file already."""
    data = read_data(arguments)
    results = read_results(arguments.out)
    # all variants of a seed before the next one: what is cut off early has compared something
    for minutes, seed, name in product(arguments.minutes, arguments.seeds, arguments.variants):
        identity = identify(name, seed, minutes, arguments)
        if any(identity.items() <= result.items() for result in results):
            continue
        options = {"seed": seed, "budget": 60 * minutes, "clock": arguments.clock}
        _, result = run_by_name(name, data, arguments.upstream, **options)
        results.append({**identity, **result})
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
        print(f"{name}, seed {seed}, {minutes:g} minutes", flush=True)
    print_table([result for result in results if result["variant"] in arguments.variants])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:4])
    else:
        main()
