"""Train on real furniture, then generate it from text: meshes in, new mesh files out.

    python examples/furniture.py                              # 36 small meshes, two CPU cores
    python examples/furniture.py --device cuda --scale full   # all 739 meshes

Steps of both trainings and the number of captions can be given too, to try a scale out.
Everything is written into the folder ``out``: a .glb and .obj file for each generated mesh, the
pictures ``contact_sheet.png`` and ``highlights.png``, ``report.json``, and both models.
"""

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from meshgpt_pytorch import (
    AutoModelEncoder,
    Mesh,
    MeshAutoencoder,
    MeshAutoencoderTrainer,
    MeshDataset,
    MeshTransformer,
    MeshTransformerTrainer,
    contact_sheet,
    custom_collate,
    faces_to_mesh,
    load_mesh,
    matching_faces,
    minilm_path,
    quick_recipe,
    save_mesh,
    triangle_accuracy,
)
from meshgpt_pytorch.evaluation import write_report

PACK = Path(__file__).parent / "data" / "furniture_adaptive.npz"

# drawn once more on a small sheet, those of them that were generated
HIGHLIGHTS = (
    "chair",
    "shelves",
    "table",
    "upper shelves cabinet",
    "bench",
    "open cardboard box",
    "flipper",
    "hood",
)


@dataclass(frozen=True)
class Training:
    """Length and pace of the transformer's training."""

    num_train_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 50
    hold: float = 0.6

    def learning_rate_factor(self, step: int) -> float:
        """Hold the learning rate for a share of the steps, then let it fall to zero in a line."""
        return min(1.0, (1 - step / self.num_train_steps) / (1 - self.hold))

    def lasting(self, num_train_steps: int) -> "Training":
        """Stretch or shorten the training, and its warm-up with it."""
        warmup_steps = self.warmup_steps * num_train_steps // self.num_train_steps
        return replace(self, num_train_steps=num_train_steps, warmup_steps=warmup_steps)


@dataclass(frozen=True)
class Scale:
    """Everything that differs between the demo and a full training."""

    num_meshes: int | None
    max_faces: int
    autoencoder_steps: int
    autoencoder_batch_size: int
    transformer: Mapping[str, Any]
    transformer_training: Training
    num_captions: int
    accelerator: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)

    def lasting(
        self, autoencoder_steps: int | None, transformer_steps: int | None, captions: int | None
    ) -> "Scale":
        """Change the length of the trainings, and the number of generated meshes."""
        scale = self
        if autoencoder_steps is not None:
            scale = replace(scale, autoencoder_steps=autoencoder_steps)
        if transformer_steps is not None:
            training = self.transformer_training.lasting(transformer_steps)
            scale = replace(scale, transformer_training=training)
        return scale if captions is None else replace(scale, num_captions=captions)


SCALES = {
    "demo": Scale(
        num_meshes=36,
        max_faces=100,
        autoencoder_steps=150,
        autoencoder_batch_size=16,
        transformer={
            "dim": 128,
            "attn_depth": 4,
            "attn_heads": 4,
            "attn_dim_head": 32,
            "coarse_pre_gateloop_depth": 1,
            "fine_pre_gateloop_depth": 1,
            "text_condition_cond_drop_prob": 0.1,
        },
        transformer_training=Training(num_train_steps=500, batch_size=8, learning_rate=2e-3),
        num_captions=36,
        targets={"triangle_accuracy": 0.98, "captions_right": 0.9, "files_loaded_again": 1.0},
    ),
    "full": Scale(
        num_meshes=None,
        max_faces=800,
        autoencoder_steps=2_000,
        autoencoder_batch_size=32,
        transformer={"dim": 512, "attn_depth": 12, "attn_heads": 8, "attn_dim_head": 64},
        # 1.3 GB for each mesh of 800 faces
        transformer_training=Training(
            num_train_steps=30_000, batch_size=8, learning_rate=3e-4, warmup_steps=500
        ),
        num_captions=64,
        accelerator={"mixed_precision": "bf16"},
    ),
}


def choose_meshes(dataset: MeshDataset, scale: Scale) -> MeshDataset:
    """Take the smallest meshes of each category in turn, no caption twice."""
    dataset = dataset.filter(max_faces=scale.max_faces)
    if scale.num_meshes is None:
        return dataset
    by_category: dict[str, list[int]] = {}
    captions = set()
    for index in dataset.num_faces.argsort(stable=True).tolist():
        category, caption = dataset.categories[index], dataset.captions[index]
        if category != "misc" and caption not in captions:
            captions.add(caption)
            by_category.setdefault(category, []).append(index)
    longest = max(len(indices) for indices in by_category.values())
    in_turn = [
        indices[turn]
        for turn in range(longest)
        for indices in by_category.values()
        if turn < len(indices)
    ]
    return dataset.select(in_turn[: scale.num_meshes])


def train_autoencoder(
    dataset: MeshDataset, scale: Scale, accelerator: Mapping[str, Any], out: Path
) -> MeshAutoencoder:
    """Train an autoencoder on the meshes, moved and scaled anew in each epoch."""
    recipe = quick_recipe(scale.autoencoder_steps)
    autoencoder = MeshAutoencoder(**recipe.model)
    trainer = MeshAutoencoderTrainer(
        autoencoder,
        dataset.with_keys("vertices", "faces").augment(recipe.augmentation),
        batch_size=scale.autoencoder_batch_size,
        **recipe.trainer,
        **shared_options(scale.autoencoder_steps, accelerator, out),
    )
    trainer()
    return autoencoder.eval()


def train_transformer(
    dataset: MeshDataset,
    autoencoder: MeshAutoencoder,
    encoder: AutoModelEncoder,
    scale: Scale,
    accelerator: Mapping[str, Any],
    out: Path,
) -> MeshTransformer:
    """Train a text-conditioned transformer on the codes of the meshes."""
    codes_a_face = autoencoder.num_vertices_per_face * autoencoder.num_quantizers
    transformer = MeshTransformer(
        autoencoder,
        max_seq_len=int(dataset.num_faces.max()) * codes_a_face,
        condition_on_text=True,
        fine_cross_attend_text=True,
        text_encoder=encoder,
        **scale.transformer,
    )
    training = scale.transformer_training
    trainer = MeshTransformerTrainer(
        transformer,
        dataset.with_keys("codes", "text_encodings"),
        num_train_steps=training.num_train_steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        max_grad_norm=1.0,
        warmup_steps=training.warmup_steps,
        scheduler=LambdaLR,
        scheduler_kwargs={"lr_lambda": training.learning_rate_factor},
        **shared_options(training.num_train_steps, accelerator, out),
    )
    trainer()
    return transformer.eval()


def shared_options(
    num_train_steps: int, accelerator: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Return the options that both trainers share: one checkpoint, at the end."""
    return {
        "ema_kwargs": None,
        "accelerator_kwargs": accelerator,
        "checkpoint_every": num_train_steps,
        "checkpoint_folder": out / "checkpoints",
        "seed": 0,
    }


def reconstruct(
    autoencoder: MeshAutoencoder, dataset: MeshDataset, batch_size: int = 16
) -> tuple[list[Mesh], float, float]:
    """Pass each mesh through its codes; return the results and the shares of right faces, bins."""
    meshes, right_faces, right_coordinates, num_faces = [], 0.0, 0.0, 0
    dataset = dataset.with_keys("vertices", "faces", "face_edges")
    for start in tqdm(range(0, len(dataset), batch_size), desc="reconstruct"):
        items = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        batch = {key: each.to(autoencoder.device) for key, each in custom_collate(items).items()}
        codes = autoencoder.tokenize(**batch)
        decoded = autoencoder.decode_from_codes_to_faces(codes)
        coords, mask = decoded.face_coords, decoded.face_mask
        row = torch.arange(len(items), device=autoencoder.device)[:, None, None]
        target = batch["vertices"][row, batch["faces"].clamp(min=0)]
        accuracy = triangle_accuracy(coords, target, mask)
        right_faces += accuracy.triangle * int(mask.sum())
        right_coordinates += accuracy.coordinate * int(mask.sum())
        num_faces += int(mask.sum())
        meshes += [faces_to_mesh(*each) for each in zip(coords.cpu(), mask.cpu(), strict=True)]
    return meshes, right_faces / num_faces, right_coordinates / num_faces


def generate(
    transformer: MeshTransformer, captions: Sequence[str], batch_size: int = 36
) -> list[Mesh]:
    """Generate a mesh for each caption, the likeliest one."""
    meshes = []
    for start in range(0, len(captions), batch_size):
        coords, mask = transformer.generate(
            texts=captions[start : start + batch_size], temperature=0.0
        )
        meshes += [faces_to_mesh(*each) for each in zip(coords.cpu(), mask.cpu(), strict=True)]
    return meshes


def mesh_of(dataset: MeshDataset, index: int) -> Mesh:
    """Return a mesh of a data set."""
    item = dataset[index]
    return Mesh(item["vertices"], item["faces"])


def judge(captions: Sequence[str], meshes: Sequence[Mesh], dataset: MeshDataset) -> list[dict]:
    """Compare each generated mesh with the meshes of its caption, and find the mesh it is."""
    targets = [mesh_of(dataset, index) for index in range(len(dataset))]
    results = []
    for caption, mesh in zip(captions, meshes, strict=True):
        right = [matching_faces(mesh, target).faces_right for target in targets]
        own = max(
            (share, index)
            for index, share in enumerate(right)
            if dataset.captions[index] == caption
        )
        best = max(range(len(targets)), key=right.__getitem__)
        results.append(
            {
                "caption": caption,
                "faces_right": own[0],
                "nearest_training_mesh": dataset.captions[best],
                "is_right": own[0] >= 0.95,
                "training_mesh": own[1],
            }
        )
    return results


def write_meshes(captions: Sequence[str], meshes: Sequence[Mesh], folder: Path) -> dict[str, int]:
    """Write each mesh as .glb and .obj, read the files again, and count both."""
    written = loaded = 0
    for number, (caption, mesh) in enumerate(zip(captions, meshes, strict=True)):
        if len(mesh.faces) == 0:
            continue
        name = f"{number:03d}_{re.sub(r'[^a-z0-9]+', '_', caption).strip('_')}"
        for suffix in (".glb", ".obj"):
            path = save_mesh(mesh, folder / f"{name}{suffix}")
            written += 1
            loaded += len(load_mesh(path).faces) > 0
    return {"written": written, "loaded_again": loaded, "empty_meshes": 2 * len(meshes) - written}


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a stage took."""
    print(f"\n{stage}", flush=True)
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 1)


def run(scale: Scale, device: str, out: Path) -> dict[str, Any]:
    """Run all stages and return the report, which is also written to ``out``."""
    torch.manual_seed(0)
    seconds: dict[str, float] = {}
    accelerator = {**scale.accelerator, "cpu": device == "cpu"}

    with timed("read meshes", seconds):
        dataset = choose_meshes(MeshDataset(PACK), scale).canonicalize()
        dataset.cache_face_edges()
    with timed("train the autoencoder", seconds):
        autoencoder = train_autoencoder(dataset, scale, accelerator, out)
        autoencoder.save(out / "autoencoder.safetensors")
    with timed("reconstruct", seconds):
        reconstructions, triangles, coordinates = reconstruct(autoencoder, dataset)
    with timed("cache codes and texts", seconds):
        dataset.cache_codes(autoencoder)
        encoder = AutoModelEncoder(minilm_path())
        dataset.cache_text_encodings(encoder)
    with timed("train the transformer", seconds):
        transformer = train_transformer(dataset, autoencoder, encoder, scale, accelerator, out)
        transformer.save(out / "transformer.safetensors")
    captions = list(dict.fromkeys(dataset.captions))[: scale.num_captions]
    with timed("generate", seconds):
        generated = generate(transformer, captions)
    with timed("write files", seconds):
        results = judge(captions, generated, dataset)
        files = write_meshes(captions, generated, out / "meshes")
        draw(results, dataset, reconstructions, generated, out)

    reached = {
        "triangle_accuracy": triangles,
        "captions_right": sum(result["is_right"] for result in results) / len(results),
        "files_loaded_again": files["loaded_again"] / (2 * len(captions)),
    }
    report = {
        "training_meshes": len(dataset),
        "categories": len(set(dataset.categories)),
        "most_faces": int(dataset.num_faces.max()),
        "captions": len(captions),
        "reached": reached,
        "missed": [name for name, least in scale.targets.items() if reached[name] < least],
        "coordinate_accuracy": coordinates,
        "files": files,
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "generated": results,
    }
    write_report(out / "report.json", report)
    return report


def draw(
    results: Sequence[Mapping[str, Any]],
    dataset: MeshDataset,
    reconstructions: Sequence[Mesh],
    generated: Sequence[Mesh],
    folder: Path,
) -> None:
    """Draw each training mesh, its reconstruction and what was generated from its caption."""
    rows = {}
    for result, mesh in zip(results, generated, strict=True):
        index = result["training_mesh"]
        rows[result["caption"]] = [mesh_of(dataset, index), reconstructions[index], mesh]
    highlights = [caption for caption in HIGHLIGHTS if caption in rows] or list(rows)[:8]
    columns = ["training mesh", "reconstruction", "generated"]
    for name, captions, tile, row_groups in (
        ("contact_sheet.png", list(rows), 160, 4),
        ("highlights.png", highlights, 240, 2),
    ):
        contact_sheet(
            [rows[caption] for caption in captions],
            row_labels=captions,
            column_labels=columns,
            row_groups=row_groups,
            tile=tile,
            path=folder / name,
        )


def positive(text: str) -> int:
    """Read a number above 0 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {number}")
    return number


def main() -> int:
    """Read the command line and run; return 1 if less came out than the scale promises."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), default="demo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is made")
    for name, help in (
        ("--autoencoder-steps", "steps of its training, in place of the scale's"),
        ("--transformer-steps", "steps of its training, in place of the scale's"),
        ("--captions", "how many meshes to generate, in place of the scale's"),
    ):
        parser.add_argument(name, type=positive, metavar="N", help=help)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch sees no CUDA device, got --device cuda; use --device cpu")

    scale = SCALES[arguments.scale].lasting(
        arguments.autoencoder_steps, arguments.transformer_steps, arguments.captions
    )
    report = run(scale, arguments.device, arguments.out)
    reached = report["reached"]
    print(
        f"\n{report['training_meshes']} meshes of {report['categories']} categories in "
        f"{report['seconds']['all']:.0f} s: {reached['triangle_accuracy']:.1%} of their faces are "
        f"reconstructed, {reached['captions_right']:.1%} of {report['captions']} captions give "
        f"back their mesh.\nSee {arguments.out / 'contact_sheet.png'} and "
        f"{arguments.out / 'meshes'}."
    )
    for name in report["missed"]:
        wanted = scale.targets[name]
        print(f"missed: {name} {reached[name]:.1%}, wanted {wanted:.0%}")
    return int(bool(report["missed"]))


if __name__ == "__main__":
    raise SystemExit(main())
