"""All that is measured: the rows of the tables in docs/performance.md, in their order."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from benchmarks.row import Row, Variant
from benchmarks.workloads.decoding import Generate
from benchmarks.workloads.geometry import DeriveFaceEdges, Tokenize
from benchmarks.workloads.importing import Import
from benchmarks.workloads.meshes import ragged_sizes
from benchmarks.workloads.models import SMALL_AUTOENCODER, SMALL_SIZE, TINY_SIZE
from benchmarks.workloads.training import TrainAutoencoder, TrainTransformer

# sizes at which the entropy of the codebook takes most of an autoencoder's step
NARROW_AUTOENCODER = MappingProxyType(
    {
        "encoder_dims_through_depth": (64, 128, 256),
        "decoder_dims_through_depth": (128, 128, 192, 192, 256, 256),
        "dim_codebook": 128,
        "codebook_size": 16384,
    }
)
QUICK_GENERATE = Generate(tokens=18, size=TINY_SIZE)
QUICK_GENERATE_PROMPTED = Generate(tokens=12, start=24, size=TINY_SIZE)
TRAIN_IN_BFLOAT16 = {"in_bfloat16": True}
CHECKPOINTED = {"checkpoint_activations": True}
QUICK_TRANSFORMER = TrainTransformer((4, 2), size=TINY_SIZE)
QUICK_AUTOENCODER = TrainAutoencoder(8, 1, SMALL_AUTOENCODER, on_grids=True)

# what was tried where a row falls short
MOSTLY_PRODUCTS = (
    "about nine tenths of our step are matrix products that both sides do; gate loops, attention "
    "without masks and aligned logits took most of the rest"
)
TOKENIZING = (
    "three fifths of our time are matrix products that both sides do; neighbouring faces are "
    "summed where they lie, and whole rows are taken"
)
AUTOENCODER = (
    "upstream asks the system for memory anew in each step; where that costs nothing its step "
    "takes 1.7 s, and the ratio is 1.8x"
)
NARROW = (
    "encoder (64, 128, 256), decoder (128, 128, 192, 192, 256, 256), dim_codebook 128, codebook "
    "16384; upstream asks the system for 3.3 GB anew in each step; where that costs nothing its "
    "step takes 1.0 s, and the ratio is 3.3x; three quarters of our step are convolutions and "
    "matrix products that both sides do, and a matrix product for each tap was no faster"
)
KEPT_FOR_BACKWARD = (
    "logits, masks and what gate loops pass through are not kept; what is left are the inputs of "
    "matrix products, which only `checkpoint_activations` does without"
)
HALF_AGAINST_FLOAT = "ours under autocast, upstream in float32"

IN_BFLOAT16 = {"options": {"dtype": torch.bfloat16}, "bytes_per_weight": 2}
IN_INT8 = {"options": {"quantize": "int8"}, "bytes_per_weight": 1}
IN_GRAPHS = {"options": {"cuda_graphs": True}}
IN_GRAPHS_AND_BFLOAT16 = {
    "options": {"cuda_graphs": True, "dtype": torch.bfloat16},
    "bytes_per_weight": 2,
}

MESHES = {
    "edges": Row(
        "`derive_face_edges_from_faces`, 6,400 faces",
        DeriveFaceEdges(6_400),
        DeriveFaceEdges(80),
        {"float32": Variant(goal=500)},
    ),
    "edges-110000": Row(
        "`derive_face_edges_from_faces`, 110,000 faces",
        DeriveFaceEdges(110_000),
        DeriveFaceEdges(80),
        {"float32": Variant(note="upstream would need 110,000 x 110,000 comparisons")},
        has_upstream=False,
    ),
    "tokenize": Row(
        "tokenize 100 furniture meshes",
        Tokenize(100),
        Tokenize(2, SMALL_AUTOENCODER),
        {"float32": Variant(goal=2, note=TOKENIZING)},
    ),
}

DECODING = {
    "generate": Row(
        "generate, batch 1, first 600 tokens",
        Generate(600),
        QUICK_GENERATE,
        {
            "float32": Variant(goal=2.0),
            "bfloat16": Variant(goal=2.5, changes=IN_BFLOAT16),
            "int8": Variant(goal=4.0, changes=IN_INT8),
        },
        repeats=2,
    ),
    "generate-long": Row(
        "generate, batch 1, tokens 4,200 to 4,800",
        Generate(600, start=4_200),
        QUICK_GENERATE_PROMPTED,
        {"float32": Variant(goal=3.5)},
        repeats=2,
    ),
    "generate-batch": Row(
        "generate, batch 16, 600 tokens",
        Generate(600, batch=16),
        Generate(18, batch=2, size=TINY_SIZE),
        {
            "float32": Variant(goal=2.0),
            "bfloat16": Variant(goal=3.5, changes=IN_BFLOAT16),
        },
        repeats=2,
    ),
    "generate-text": Row(
        "generate, text, cond_scale 3, batch 1, 300 tokens",
        Generate(300, cond_scale=3.0),
        Generate(18, cond_scale=3.0, size=TINY_SIZE),
        {"float32": Variant(goal=2.5)},
        repeats=2,
    ),
}

TRAINING = {
    "train-200": Row(
        "transformer train step, 200 faces, batch 1",
        TrainTransformer((200,)),
        QUICK_TRANSFORMER,
        {
            "float32": Variant(goal=1.75, note=MOSTLY_PRODUCTS),
            "bfloat16": Variant(goal=1.75, changes=TRAIN_IN_BFLOAT16, note=HALF_AGAINST_FLOAT),
        },
    ),
    "train-800": Row(
        "transformer train step, 800 faces, batch 1",
        TrainTransformer((800,)),
        QUICK_TRANSFORMER,
        {
            "float32": Variant(goal=1.75, note=MOSTLY_PRODUCTS),
            "bfloat16": Variant(goal=1.75, changes=TRAIN_IN_BFLOAT16, note=HALF_AGAINST_FLOAT),
        },
        repeats=2,
    ),
    "train-ragged": Row(
        "transformer train step, ragged batch of 8",
        TrainTransformer(ragged_sizes(8, share=0.25)),
        QUICK_TRANSFORMER,
        {
            "float32": Variant(
                goal=2.5,
                note="sizes are quantiles of the furniture's, a quarter of each: "
                + ", ".join(map(str, ragged_sizes(8, share=0.25)))
                + " faces; "
                + MOSTLY_PRODUCTS,
            ),
            "bfloat16": Variant(goal=2.5, changes=TRAIN_IN_BFLOAT16, note=HALF_AGAINST_FLOAT),
        },
        repeats=2,
    ),
    "autoencoder": Row(
        "autoencoder train step, 2 x 800 faces",
        TrainAutoencoder(800, 2),
        QUICK_AUTOENCODER,
        {"float32": Variant(goal=1.5, note=AUTOENCODER)},
    ),
    "autoencoder-narrow": Row(
        "autoencoder train step, 16 x 100 faces, narrow",
        TrainAutoencoder(100, 16, NARROW_AUTOENCODER),
        QUICK_AUTOENCODER,
        {"float32": Variant(goal=6, note=NARROW)},
    ),
}

IMPORTS = {
    "import": Row(
        "`import meshgpt_pytorch`, on top of torch",
        Import("import meshgpt_pytorch"),
        Import("import meshgpt_pytorch"),
        {"float32": Variant(goal=7, note="names are loaded on first use")},
        by_wall_clock=False,
    ),
    "import-models": Row(
        "`from meshgpt_pytorch import MeshAutoencoder, MeshTransformer`",
        Import("from meshgpt_pytorch import MeshAutoencoder, MeshTransformer"),
        Import("from meshgpt_pytorch import MeshAutoencoder, MeshTransformer"),
        {"float32": Variant(note="most of it is torch-geometric")},
        by_wall_clock=False,
    ),
    "import-meshes": Row(
        "`from meshgpt_pytorch import load_mesh, canonicalize_mesh, save_mesh`",
        Import("from meshgpt_pytorch import load_mesh, canonicalize_mesh, save_mesh"),
        Import("from meshgpt_pytorch import load_mesh, canonicalize_mesh, save_mesh"),
        {"float32": Variant()},
        by_wall_clock=False,
        has_upstream=False,
    ),
}

TRANSFORMER_MEMORY = {
    "float32": Variant(goal=3, note=KEPT_FOR_BACKWARD),
    "checkpointed": Variant(goal=3, changes=CHECKPOINTED),
}

MEMORY = {
    "edges-memory": Row(
        "`derive_face_edges_from_faces`, 6,400 faces",
        DeriveFaceEdges(6_400),
        DeriveFaceEdges(80),
        {"float32": Variant(goal=50)},
        table="memory",
    ),
    "edges-110000-memory": Row(
        "`derive_face_edges_from_faces`, 110,000 faces",
        DeriveFaceEdges(110_000),
        DeriveFaceEdges(80),
        {"float32": Variant()},
        table="memory",
        has_upstream=False,
    ),
    "train-200-memory": Row(
        "transformer train step, 200 faces, batch 1",
        TrainTransformer((200,)),
        QUICK_TRANSFORMER,
        TRANSFORMER_MEMORY,
        table="memory",
    ),
    "train-800-memory": Row(
        "transformer train step, 800 faces, batch 1",
        TrainTransformer((800,)),
        QUICK_TRANSFORMER,
        TRANSFORMER_MEMORY,
        table="memory",
    ),
    "train-ragged-memory": Row(
        "transformer train step, ragged batch of 8",
        TrainTransformer(ragged_sizes(8, share=0.25)),
        QUICK_TRANSFORMER,
        TRANSFORMER_MEMORY,
        table="memory",
    ),
    "autoencoder-memory": Row(
        "autoencoder train step, 16 x 800 faces",
        TrainAutoencoder(800, 16),
        QUICK_AUTOENCODER,
        {"float32": Variant(goal=3), "checkpointed": Variant(goal=3, changes=CHECKPOINTED)},
        table="memory",
    ),
}


def decode_on_gpu(batch: int, goal: float) -> Row:
    """Time of a token on a GPU, its operations started one by one or a face at once."""
    return Row(
        f"GPU: generate, batch {batch}, 600 tokens",
        Generate(600, batch=batch),
        # four faces: one warms up, one is recorded, one replayed, the last drawn code by code
        Generate(24, batch=2, size=TINY_SIZE),
        {
            "float32": Variant(goal=goal),
            "CUDA graphs": Variant(goal=goal, changes=IN_GRAPHS),
            "CUDA graphs, bfloat16": Variant(goal=goal, changes=IN_GRAPHS_AND_BFLOAT16),
        },
        device="cuda",
    )


GPU = {
    "gpu-generate": decode_on_gpu(1, goal=15),
    "gpu-generate-batch": decode_on_gpu(64, goal=4),
    "gpu-train": Row(
        "GPU: transformer train step, bfloat16, 200 faces, batch 1",
        TrainTransformer((200,), in_bfloat16=True),
        QUICK_TRANSFORMER,
        {"compiled": Variant(goal=3, changes={"is_compiled": True})},
        device="cuda",
    ),
}


def decode_after(tokens: int) -> Row:
    """Time of a token behind a prompt of so many."""
    return Row(
        f"decode, ms a token after {tokens:,}",
        Generate(60, start=tokens),
        QUICK_GENERATE_PROMPTED,
        {"float32": Variant()},
        table="growth of time",
        repeats=1,
        by_wall_clock=False,
    )


def generate_from_nothing(num_faces: int) -> Row:
    """Memory of generating a mesh of so many faces from its first code on, small width."""
    return Row(
        f"generate all {num_faces:,} faces",
        Generate(6 * num_faces, size=SMALL_SIZE),
        QUICK_GENERATE,
        {"float32": Variant(note=f"{6 * num_faces:,} codes, one after another")},
        table="growth of memory",
        has_upstream=False,
    )


def memory_at(num_faces: int) -> dict[str, Row]:
    """Memory of training and of generating at so many faces, small width."""
    train = Row(
        f"transformer train step, {num_faces:,} faces",
        TrainTransformer((num_faces,), size=SMALL_SIZE),
        QUICK_TRANSFORMER,
        {"float32": Variant(), "checkpointed": Variant(changes=CHECKPOINTED)},
        table="growth of memory",
    )
    generate = Row(
        f"generate 10 faces behind {num_faces - 10:,}",
        Generate(54, start=6 * num_faces - 60, size=SMALL_SIZE),
        QUICK_GENERATE_PROMPTED,
        {"float32": Variant()},
        table="growth of memory",
    )
    autoencoder = Row(
        f"autoencoder train step, {num_faces:,} faces",
        TrainAutoencoder(num_faces, 1, NARROW_AUTOENCODER, on_grids=True),
        QUICK_AUTOENCODER,
        {"float32": Variant(), "checkpointed": Variant(changes=CHECKPOINTED)},
        table="growth of memory",
    )
    return {
        f"train-memory-{num_faces}": train,
        f"generate-memory-{num_faces}": generate,
        f"autoencoder-memory-{num_faces}": autoencoder,
    }


GROWTH = {f"decode-{tokens}": decode_after(tokens) for tokens in (102, 1_002, 5_004, 20_004)}
for _num_faces in (800, 3_200, 10_000):
    GROWTH |= memory_at(_num_faces)
GROWTH["generate-all-10000"] = generate_from_nothing(10_000)

ROWS: Mapping[str, Row] = {
    **MESHES,
    **DECODING,
    **TRAINING,
    **IMPORTS,
    **MEMORY,
    **GROWTH,
    **GPU,
}
