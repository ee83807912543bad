"""Autoencoders of both sides, trained for a given time on one split of small furniture.

All variants have the same sizes, unless their name says otherwise, and see the same split: a tenth
of the meshes, with those that look like one of them, is kept for validation. Batches of 16, AdamW,
a warm-up of 50 steps, then the learning rate falls in a line from 30 % of the time to its end.
Upstream runs in its own environment, see `benchmarks/train_upstream.py`.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.autoencoder_variants import LEARNING_RATE, SIZES, VARIANTS, Training

ROOT = Path(__file__).resolve().parent.parent
PACK = ROOT / "examples" / "data" / "furniture_adaptive.npz"
LOOK_ALIKES = PACK.with_name("near_duplicates.tsv")
BATCH_SIZE = 16
MAX_FACES = 100
# meshes that a quantizer starts from
START_SIZE = 64
Batch = dict[str, Tensor]
Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"cpu": time.process_time, "wall": time.perf_counter}


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


def learning_rate(step: int, share: float, highest: float = LEARNING_RATE) -> float:
    """Warm up over steps, hold, and fall to zero over the time."""
    return highest * min(1.0, (step + 1) / 50, (1 - share) / 0.7)


def train(
    model: Any,
    batches: Iterator[Batch],
    training: Training,
    moments: Sequence[float],
    measure_parts: Callable[[], dict],
) -> list[dict]:
    """Train for the given time, beside which measurements count nothing.

    Args:
        model: of either side.
        batches: endless.
        training: its time, and the variant's share of it without the quantizer.
        moments: minutes after which to measure; the last ones are the training's whole time.
        measure_parts: measures the model.

    Returns:
        for each moment its minutes, the steps until then, and what was measured.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.99))
    clock, variant = CLOCKS[training.clock], VARIANTS[training.variant]
    spent, step, found = 0.0, 0, list[dict]()
    while len(found) < len(moments):
        start, share = clock(), spent / (60 * training.minutes)
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, share, variant.learning_rate)
        extra = {"skip_quantizer": True} if share < variant.warm_up else {}
        loss = model(**next(batches), **extra)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent, step = spent + clock() - start, step + 1
        for minutes in moments[len(found) :]:
            if spent >= 60 * minutes:
                found.append({"minutes": minutes, "steps": step, **measure_parts()})
    return found


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


def augmentation() -> Any:
    """Return what meshes are augmented with: scale, mirror and shift, those of the recipe."""
    from meshgpt_pytorch import quick_recipe

    return quick_recipe(num_train_steps=1).augmentation


def close_attention(model: Any) -> None:
    """Set the last weights of each part of each attention block to zero."""
    for block in (*model.encoder_attn_blocks, *model.decoder_attn_blocks):
        for part in block:
            linears = [module for module in part.modules() if isinstance(module, nn.Linear)]
            for parameter in linears[-1].parameters():
                nn.init.zeros_(parameter)


def run(
    training: Training, data: Mapping[str, Any], moments: Sequence[float]
) -> tuple[Any, list[dict]]:
    """Train a variant in this process, see `train`; return the model, and what it reached."""
    from meshgpt_pytorch import MeshAutoencoder

    variant, seed = VARIANTS[training.variant], training.seed
    torch.manual_seed(seed)
    model = MeshAutoencoder(**{**SIZES, **variant.options})
    meshes = data["train"]
    if variant.is_closed:
        close_attention(model)
    if variant.is_started:
        model.start_quantizer(**collate([meshes[index] for index in range(START_SIZE)]))
    if variant.is_augmented:
        meshes = meshes.augment(augmentation(), seed=seed)
    batches = endless_batches(meshes, torch.Generator().manual_seed(seed))
    parts = {part: as_list(data[part]) for part in ("train", "val")}

    def measure_parts() -> dict:
        return {part: asdict(measure(model, parts[part])) for part in parts}

    return model, train(model, batches, training, moments, measure_parts)


def as_list(meshes: Any) -> list[Mapping[str, Tensor]]:
    """Read a data set whole."""
    return [meshes[index] for index in range(len(meshes))]


def run_upstream(
    training: Training, data: Mapping[str, Any], moments: Sequence[float], python: Path
) -> tuple[Any, list[dict]]:
    """Run a variant of upstream in a process of its own environment.

    Returns:
        an autoencoder of this library with the weights that upstream trained, which gives the same
        codes; and upstream's own results.
    """
    with tempfile.TemporaryDirectory() as folder:
        meshes = {part: as_list(data[part]) for part in data}
        torch.save(meshes, Path(folder) / "meshes.pt")
        environment = {key: item for key, item in os.environ.items() if key != "PYTHONPATH"}
        request = json.dumps([asdict(training), list(moments)])
        answer = subprocess.run(
            [python, ROOT / "benchmarks" / "train_upstream.py", folder, request],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        model = load_model(training, torch.load(Path(folder) / "weights.pt"))
    return model, json.loads(answer.stdout.splitlines()[-1])


def load_model(training: Training, weights: Mapping[str, Tensor]) -> Any:
    """Build a variant, of either side, as an autoencoder of this library."""
    from meshgpt_pytorch import MeshAutoencoder

    model = MeshAutoencoder(**{**SIZES, **VARIANTS[training.variant].options})
    model.load_state_dict(weights)
    return model


def path_of(training: Training, folder: Path) -> Path:
    """Return where the trained weights of a training are kept."""
    name = " ".join(str(value) for value in asdict(training).values())
    return folder / f"{name.replace(',', '').replace(' ', '-')}.pt"


def train_or_read(
    training: Training,
    data: Mapping[str, Any],
    arguments: argparse.Namespace,
    moments: Sequence[float] = (),
) -> tuple[Any, list[dict]]:
    """Run a training of either side, or read what it left in the folder `--models`.

    Args:
        training: which.
        data: the parts of the split.
        arguments: the options of `add_options`.
        moments: minutes after which to measure, besides the end.

    Returns:
        the trained autoencoder, and its measurements in the order of time.
    """
    moments = sorted({*moments, training.minutes})
    kept = None if arguments.models is None else path_of(training, arguments.models)
    if kept is not None and kept.exists():
        found = torch.load(kept)
        if {result["minutes"] for result in found["results"]} >= set(moments):
            return load_model(training, found["weights"]), found["results"]
    if VARIANTS[training.variant].is_upstream:
        model, results = run_upstream(training, data, moments, arguments.upstream)
    else:
        model, results = run(training, data, moments)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # under another name until it is whole
        whole = kept.with_suffix(".new")
        torch.save({"weights": model.state_dict(), "results": results}, whole)
        whole.replace(kept)
    return model, results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command line that trains autoencoders."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pack", type=Path, default=PACK)
    parser.add_argument(
        "--near-duplicates",
        type=Path,
        help="table of look-alikes; by default that of the bundled pack",
    )
    parser.add_argument("--upstream", type=Path, help="interpreter with meshgpt-pytorch 1.8.1")
    parser.add_argument("--models", type=Path, help="folder that keeps what was trained")
    parser.add_argument("--out", type=Path, help="a line of JSON for each run is added")


def require_upstream(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a message if upstream's environment is needed and not given."""
    needed = any(VARIANTS[name].is_upstream for name in arguments.variants)
    if needed and arguments.upstream is None:
        parser.error("variants of upstream need --upstream, the interpreter of its environment")


def look_alikes(arguments: argparse.Namespace) -> Path | None:
    """Return the table of look-alikes: what was asked for, or that of the bundled pack."""
    if arguments.near_duplicates is None and arguments.pack == PACK:
        return LOOK_ALIKES
    table: Path | None = arguments.near_duplicates
    return table


def training_of(
    arguments: argparse.Namespace, variant: str, *, seed: int, minutes: float
) -> Training:
    """Return one of the trainings that a command line asks for."""
    table = look_alikes(arguments)
    return Training(
        variant=variant,
        seed=seed,
        minutes=minutes,
        clock=arguments.clock,
        threads=arguments.threads,
        pack=arguments.pack.name,
        near_duplicates="" if table is None else table.name,
    )


def read_data(arguments: argparse.Namespace) -> dict[str, Any]:
    """Heed the threads of the command line, and return the parts of its split."""
    torch.set_num_threads(arguments.threads)
    train_meshes, val_meshes = split(arguments.pack, look_alikes(arguments))
    print(f"{len(train_meshes)} meshes to train on, {len(val_meshes)} to validate with")
    return {"train": train_meshes, "val": val_meshes}
