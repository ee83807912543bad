"""What a transformer makes of the codes of different tokenizers, all trained for the same time.

    python -m benchmarks.tokenizer_comparison --upstream PYTHON
    python -m benchmarks.tokenizer_comparison recipe lfq --minutes 5 --transformer-minutes 10

Tokenizers are variants of `benchmarks/autoencoder_variants.py`, on its split. On the codes of each
the same transformer is trained, only its codebook size differs, in batches of 16 with the same
learning rate. A tokenizer that says nothing about a mesh has cheap codes, so bits are
counted twice:

| column | what it is |
|---|---|
| bits | of the codes and the end of a mesh, over its faces |
| lowest | the same on unseen meshes, where it was lowest: ten times in the training |
| whole | bits, and those of `benchmarks/corrections.py`, which put the reconstruction right |

Meshes are generated, greedily from the first face of an unseen mesh, and freely:

| column | share of |
|---|---|
| coincide | meshes whose corners fall into one bin where their codes are the same |
| edges | edges of all meshes that have two faces, once vertices of one bin are merged |
| valid | meshes that ended by themselves, without a degenerate or duplicate face |

Corners with the same codes are one vertex to the transformer; meshes in which no two have the same
do not count for the first of these, which is of meshes as each side decodes them. All else, and the
corrections, are of meshes decoded with `vertex_consistent`, which either side's codes can be. The
row `meshes` says the same of the unseen meshes themselves.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from math import log
from typing import Any, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.autoencoder_training import (
    BATCH_SIZE,
    CLOCKS,
    MAX_FACES,
    add_options,
    as_list,
    augmentation,
    endless_batches,
    learning_rate,
    read_data,
    require_upstream,
    train_or_read,
    training_of,
)
from benchmarks.autoencoder_variants import VARIANTS, Training
from benchmarks.corrections import Corrections, find_corrections
from benchmarks.result_lines import add_line, read_lines
from meshgpt_pytorch import MeshAutoencoder, MeshTransformer, faces_to_mesh
from meshgpt_pytorch.mesh import Mesh, discretize, inspect_mesh
from meshgpt_pytorch.mesh.sides import face_sides

TOKENIZERS = ("recipe", "lfq", "upstream", "upstream 1024")
TRANSFORMER: Mapping[str, Any] = {
    "dim": 128,
    "attn_depth": 4,
    "attn_heads": 4,
    "attn_dim_head": 32,
    "coarse_pre_gateloop_depth": 1,
    "fine_pre_gateloop_depth": 1,
}
NUM_EVALUATIONS = 10

# codes of a mesh, (nf nvf) q
Codes: TypeAlias = Int[Tensor, "n q"]


@dataclass(frozen=True)
class Shares:
    """Of a set of meshes; None where there is nothing to count.

    Attributes:
        coincide: of meshes with corners of the same codes, those where all of these coincide.
        edges: edges with two faces, of all edges.
        valid: meshes that ended, and have no degenerate or duplicate face.
    """

    coincide: float | None
    edges: float | None
    valid: float


# bits


@torch.no_grad()
def bits_per_face(transformer: MeshTransformer, meshes: Sequence[Codes]) -> float:
    """Return the cross entropy of all codes and ends, in bits, over the number of faces."""
    transformer.eval()
    nats, num_faces = 0.0, 0
    for start in range(0, len(meshes), BATCH_SIZE):
        batch = meshes[start : start + BATCH_SIZE]
        num_ids = sum(codes.numel() + 1 for codes in batch)
        nats += float(transformer(codes=pad_codes(batch))) * num_ids
        num_faces += sum(len(codes) // transformer.num_vertices_per_face for codes in batch)
    return nats / log(2) / num_faces


def pad_codes(meshes: Sequence[Codes]) -> Int[Tensor, "b n q"]:
    """Pad codes to a batch."""
    return pad_sequence(list(meshes), batch_first=True, padding_value=-1)


# meshes


def bins_of_corners(
    face_coords: Float[Tensor, "nf nvf 3"], num_bins: int
) -> Int[Tensor, "(nf nvf) 3"]:
    """Put the corners of faces on the grid."""
    corners = rearrange(face_coords, "nf nvf c -> (nf nvf) c")
    return discretize(corners, continuous_range=(-1.0, 1.0), num_discrete=num_bins)


def shared_corners_coincide(codes: Codes, bins: Int[Tensor, "n 3"]) -> bool | None:
    """Tell whether corners of the same codes are in the same bins; None if no two have them."""
    vertices = codes.unique(dim=0)
    if len(vertices) == len(codes):
        return None
    return len(torch.cat((codes, bins), dim=1).unique(dim=0)) == len(vertices)


def count_edges(mesh: Mesh) -> tuple[int, int]:
    """Count the edges with two faces, and all edges."""
    counts = face_sides(mesh.faces.numpy()).counts
    return int((counts == 2).sum()), len(counts)


def measure_meshes(
    meshes: Sequence[Codes], faces: Sequence[Float[Tensor, "nf nvf 3"]], num_bins: int
) -> Shares:
    """Measure meshes by their codes and by what these were decoded to.

    Args:
        meshes: codes of each.
        faces: coordinates of the faces of each.
        num_bins: of a coordinate.
    """
    coincide, valid, two_faces, edges = [], 0, 0, 0
    for codes, face_coords in zip(meshes, faces, strict=True):
        bins = bins_of_corners(face_coords, num_bins)
        coincide.append(shared_corners_coincide(codes, bins))
        mesh = faces_to_mesh(face_coords, num_discrete_coors=num_bins)
        if len(mesh.faces) == 0:
            continue
        two, all_edges = count_edges(mesh)
        two_faces, edges = two_faces + two, edges + all_edges
        is_whole = len(mesh.faces) == len(face_coords) <= MAX_FACES
        valid += is_whole and inspect_mesh(mesh).num_duplicate_faces == 0
    told = [each for each in coincide if each is not None]
    return Shares(
        coincide=sum(told) / len(told) if told else None,
        edges=two_faces / edges if edges else None,
        valid=valid / len(meshes),
    )


@torch.no_grad()
def decode(
    autoencoder: MeshAutoencoder, codes: Int[Tensor, "b n q"], *, vertex_consistent: bool | None
) -> tuple[list[Codes], list[Float[Tensor, "nf nvf 3"]]]:
    """Return the codes of each mesh, and the faces that they are decoded to, without padding."""
    decoded = autoencoder.decode_from_codes_to_faces(codes, vertex_consistent=vertex_consistent)
    nvf = autoencoder.num_vertices_per_face
    num_faces = decoded.face_mask.sum(dim=1).tolist()
    return (
        [row[: nvf * length] for row, length in zip(codes, num_faces, strict=True)],
        [row[:length] for row, length in zip(decoded.face_coords, num_faces, strict=True)],
    )


def correct_meshes(
    autoencoder: MeshAutoencoder, meshes: Sequence[Mapping[str, Tensor]], codes: Sequence[Codes]
) -> Corrections:
    """Find what the codes of meshes leave open."""
    found, num_bins = [], autoencoder.num_discrete_coors
    for mesh, its_codes in zip(meshes, codes, strict=True):
        _, [decoded] = decode(autoencoder, its_codes[None], vertex_consistent=True)
        own = bins_of_corners(mesh["vertices"][mesh["faces"]], num_bins)
        found.append((its_codes, bins_of_corners(decoded, num_bins), own))
    return find_corrections(found)


def generate(
    transformer: MeshTransformer, unseen: Sequence[Codes], number: int, seed: int
) -> dict[str, Shares]:
    """Generate meshes from first faces, greedily, and freely; measure both."""
    autoencoder, nvf = transformer.autoencoder, transformer.num_vertices_per_face
    ways: dict[str, dict[str, Any]] = {
        "greedy": {
            "prompt": torch.stack([codes[:nvf] for codes in unseen[:number]]),
            "temperature": 0.0,
        },
        "sampled": {
            "batch_size": number,
            "generator": torch.Generator().manual_seed(seed),
        },
    }
    shares = {}
    for name, options in ways.items():
        codes = transformer.generate(**options, return_codes=True, progress=False)
        assert isinstance(codes, Tensor), "codes are asked for"
        consistent, as_set = (
            measure_meshes(
                *decode(autoencoder, codes, vertex_consistent=option),
                autoencoder.num_discrete_coors,
            )
            for option in (True, None)
        )
        shares[name] = replace(consistent, coincide=as_set.coincide)
    return shares


# training


def endless_codes(meshes: Sequence[Codes], seed: int) -> Iterator[Int[Tensor, "b n q"]]:
    """Read shuffled epochs one after another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(meshes), generator=generator)
        # a rest shorter than a batch waits for another epoch
        for chosen in order.split(BATCH_SIZE)[: max(1, len(meshes) // BATCH_SIZE)]:
            yield pad_codes([meshes[index] for index in chosen.tolist()])


def endless_augmented_codes(
    autoencoder: MeshAutoencoder, meshes: Any, seed: int
) -> Iterator[Int[Tensor, "b n q"]]:
    """Tokenize shuffled epochs, each mesh augmented anew, as the autoencoders are trained."""
    generator = torch.Generator().manual_seed(seed)
    for batch in endless_batches(meshes.augment(augmentation(), seed=seed), generator):
        yield autoencoder.tokenize(**batch)


def train_transformer(
    transformer: MeshTransformer,
    batches: Iterator[Tensor],
    budget: float,
    clock: Callable[[], float],
    evaluate: Callable[[], float],
) -> tuple[int, list[float]]:
    """Train for so many seconds, beside which evaluations count nothing.

    Returns:
        the steps, and the evaluations: `NUM_EVALUATIONS`, fewer if steps are longer than the time
        between two of them; the last one at the end.
    """
    optimizer = torch.optim.AdamW(transformer.parameters(), weight_decay=0.0, betas=(0.9, 0.99))
    spent, step, found = 0.0, 0, list[float]()
    while spent < budget:
        start = clock()
        transformer.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, spent / budget)
        loss = transformer(codes=next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        part = int(spent / budget * NUM_EVALUATIONS)
        spent, step = spent + clock() - start, step + 1
        if int(spent / budget * NUM_EVALUATIONS) > part:
            found.append(evaluate())
    return step, found


def compare(
    training: Training, data: Mapping[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train a tokenizer and a transformer on its codes; return what both reached."""
    autoencoder, measured = train_or_read(training, data, arguments)
    tokenizer = measured[-1]
    autoencoder.eval()
    codes = {part: [autoencoder.tokenize(**mesh) for mesh in as_list(data[part])] for part in data}
    torch.manual_seed(training.seed)
    # room for a face more than any mesh has, so that all have room for their end
    length = (MAX_FACES + 1) * 3 * autoencoder.num_quantizers
    transformer = MeshTransformer(
        autoencoder, max_seq_len=length, copy_vertices=arguments.copy_vertices, **TRANSFORMER
    )
    if arguments.start_embeddings:
        transformer.start_embeddings()
    batches = (
        endless_augmented_codes(autoencoder, data["train"], training.seed)
        if arguments.augment
        else endless_codes(codes["train"], training.seed)
    )
    steps, unseen = train_transformer(
        transformer,
        batches,
        60 * arguments.transformer_minutes,
        CLOCKS[training.clock],
        lambda: bits_per_face(transformer, codes["val"]),
    )
    shares = generate(transformer, codes["val"], arguments.number, training.seed)
    bits = {part: bits_per_face(transformer, codes[part]) for part in codes}
    corrections = {
        part: correct_meshes(autoencoder, as_list(data[part]), codes[part]) for part in codes
    }
    whole = {
        part: bits[part]
        + corrections[part].bits_per_face(corrections["train"], autoencoder.num_discrete_coors)
        for part in codes
    }
    return {
        "accuracy": {part: tokenizer[part]["coordinate"] for part in codes},
        "tokenizer_steps": tokenizer["steps"],
        "steps": steps,
        "bits": bits,
        "lowest": min(unseen),
        "whole": whole,
        **{way: asdict(each) for way, each in shares.items()},
    }


def measure_unseen(data: Mapping[str, Any]) -> dict[str, float | None]:
    """Measure the unseen meshes as generated ones: their vertices are their codes."""
    meshes = as_list(data["val"])
    faces = [mesh["vertices"][mesh["faces"]] for mesh in meshes]
    codes = [rearrange(mesh["faces"], "nf nvf -> (nf nvf) 1") for mesh in meshes]
    return asdict(measure_meshes(codes, faces, num_bins=128))


# report

# of training the transformer, and what the table calls them
WAYS = {
    "start_embeddings": "embeddings started",
    "augment": "codes augmented",
    "copy_vertices": "vertices copied",
}
SHARES = [each.name for each in fields(Shares)]
COLUMNS = (
    "tokenizer",
    "seed",
    "steps of both",
    "coordinates right, train / val",
    "bits a face, train / val",
    "lowest, val",
    "whole, train / val",
    "coincide, greedy / sampled",
    "edges",
    "valid",
)


def show(value: float | None, digits: int) -> str:
    """Print a number; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def print_row(result: Mapping[str, Any]) -> None:
    """Print a row of the table."""
    parts, ways = ("train", "val"), ("greedy", "sampled")
    cells = [
        result["variant"] + "".join(f", {way}" for key, way in WAYS.items() if result[key]),
        str(result["seed"]),
        f"{result['tokenizer_steps']}, {result['steps']}",
        " / ".join(show(result["accuracy"][part], 3) for part in parts),
        " / ".join(show(result["bits"][part], 1) for part in parts),
        show(result["lowest"], 1),
        " / ".join(show(result["whole"][part], 1) for part in parts),
        *(" / ".join(show(result[way][of], 2) for way in ways) for of in SHARES),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Compare what the command line asks for; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], help="of tokenizers")
    parser.add_argument("--minutes", type=float, default=15.0, help="of each tokenizer")
    parser.add_argument("--transformer-minutes", type=float, default=15.0)
    parser.add_argument("--number", type=int, default=32, help="of meshes to generate each way")
    parser.add_argument(
        "--start-embeddings", action="store_true", help="see MeshTransformer.start_embeddings"
    )
    parser.add_argument(
        "--augment", action="store_true", help="tokenize meshes anew in each epoch, augmented"
    )
    parser.add_argument("--copy-vertices", action="store_true", help="see MeshTransformer")
    add_options(parser)
    arguments = parser.parse_args()
    arguments.variants = arguments.variants or list(TOKENIZERS)
    require_upstream(parser, arguments)

    data = read_data(arguments)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    unseen = [show(value, 2) for value in measure_unseen(data).values()]
    print(f"| meshes {'| ' * 6}| {' | '.join(unseen)} |", flush=True)
    known = read_lines(arguments.out)
    for seed, name in product(arguments.seeds, arguments.variants):
        training = training_of(arguments, name, seed=seed, minutes=arguments.minutes)
        identity = {
            **asdict(training),
            "transformer_minutes": arguments.transformer_minutes,
            "number": arguments.number,
            **{key: getattr(arguments, key) for key in WAYS},
        }
        result = next((each for each in known if identity.items() <= each.items()), None)
        if result is None:
            result = {**identity, **compare(training, data, arguments)}
            add_line(arguments.out, result)
        print_row(result)


if __name__ == "__main__":
    main()
