"""The comparison of tokenizers counts bits, and what coincides, as it says."""

import json
import sys
from math import log2
from pathlib import Path

import pytest
import torch
from einops import rearrange

from benchmarks import autoencoder_training, tokenizer_comparison
from benchmarks.tokenizer_comparison import (
    bits_per_face,
    endless_augmented_codes,
    endless_codes,
    main,
    measure_meshes,
    shared_corners_coincide,
    train_transformer,
)
from meshgpt_pytorch import Mesh, MeshAutoencoder, MeshTransformer
from meshgpt_pytorch.recipes import QUICK_MODEL
from tests.helpers import box_mesh
from tests.tokenizers.models import tiny_autoencoder

NUM_BINS = 128


def tiny_transformer() -> MeshTransformer:
    torch.manual_seed(0)
    return MeshTransformer(
        tiny_autoencoder(), dim=16, attn_depth=1, attn_heads=2, attn_dim_head=8, max_seq_len=60
    )


def random_codes(*num_faces: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (3 * each, 2), generator=generator) for each in num_faces]


def row(codes: torch.Tensor) -> tuple[int, ...]:
    """Codes of one mesh, without padding."""
    return tuple(codes[codes >= 0].tolist())


def codes_and_faces(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    """A mesh whose vertices are their codes."""
    return rearrange(mesh.faces, "nf nvf -> (nf nvf) 1"), mesh.vertices[mesh.faces]


def test_bits_of_a_transformer_that_knows_nothing_are_those_of_its_ids() -> None:
    transformer = tiny_transformer()
    with torch.no_grad():
        transformer.to_logits.weight.zero_()
        if transformer.to_logits.bias is not None:
            transformer.to_logits.bias.zero_()
    codes = random_codes(2, 5, 3)
    # six codes a face, and an end for each mesh
    expected = (6 * 10 + 3) * log2(64 + 1) / 10
    assert bits_per_face(transformer, codes) == pytest.approx(expected, rel=1e-5)


def test_bits_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, codes = tiny_transformer(), random_codes(2, 5, 3)
    together = bits_per_face(transformer, codes)
    monkeypatch.setattr(tokenizer_comparison, "BATCH_SIZE", 1)
    assert bits_per_face(transformer, codes) == pytest.approx(together, rel=1e-5)


def test_corners_of_one_vertex_coincide_or_not() -> None:
    codes = torch.tensor([[1, 2], [3, 4], [1, 2]])
    bins = torch.tensor([[5, 5, 5], [6, 6, 6], [5, 5, 5]])
    assert shared_corners_coincide(codes, bins)
    assert not shared_corners_coincide(codes, bins + torch.tensor([[0], [0], [1]]))
    # other codes in the same place are no fault
    assert shared_corners_coincide(codes, torch.full((3, 3), 7))
    assert shared_corners_coincide(codes[:2], bins[:2]) is None


def test_a_closed_box_is_whole() -> None:
    codes, faces = codes_and_faces(box_mesh())
    shares = measure_meshes([codes], [faces], NUM_BINS)
    assert (shares.coincide, shares.edges, shares.valid) == (1, 1, 1)


def test_a_box_that_falls_apart_is_seen() -> None:
    codes, faces = codes_and_faces(box_mesh())
    apart = faces.clone()
    apart[0] += 0.1
    shares = measure_meshes([codes, codes], [faces, apart], NUM_BINS)
    # of 18 edges 3 are cut: 6 more with one face, 3 fewer with two
    assert shares.coincide == 0.5
    assert shares.edges == pytest.approx((18 + 15) / (18 + 21))
    assert shares.valid == 1


def test_meshes_with_faults_are_not_valid() -> None:
    codes, faces = codes_and_faces(box_mesh())
    twice = torch.cat((faces, faces[:1])), torch.cat((codes, codes[:3]))
    flat = faces.clone()
    flat[0, 1] = flat[0, 0]
    # one face more than any mesh has: it never ended
    endless = faces.repeat(9, 1, 1)[: tokenizer_comparison.MAX_FACES + 1]
    for each, its_codes in (twice, (flat, codes), (endless, codes.repeat(9, 1)[:303])):
        assert measure_meshes([its_codes], [each], NUM_BINS).valid == 0
    nothing = measure_meshes([codes[:3]], [flat[:1]], NUM_BINS)
    assert (nothing.edges, nothing.valid) == (None, 0)


def test_training_reads_each_mesh_once_an_epoch() -> None:
    codes = random_codes(*range(1, 9))
    batch = next(endless_codes(codes, seed=0))
    assert batch.shape == (8, 24, 2)
    assert sorted((batch[..., 0] >= 0).sum(dim=1).tolist()) == [3 * n for n in range(1, 9)]


def test_augmented_codes_are_anew_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder_training, "MAX_FACES", 20)
    meshes, _ = autoencoder_training.split(autoencoder_training.PACK, None)
    monkeypatch.setattr(autoencoder_training, "BATCH_SIZE", len(meshes))
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(**QUICK_MODEL).eval()
    own = {row(autoencoder.tokenize(**meshes[index])) for index in range(len(meshes))}
    batches = endless_augmented_codes(autoencoder, meshes, seed=0)
    epochs = [{row(codes) for codes in next(batches)} for _ in range(2)]
    for seen, others in ((epochs[0], own), (epochs[1], own), (epochs[0], epochs[1])):
        assert not seen & others
        assert len(seen) == len(meshes)


def test_evaluations_cost_no_time_and_the_last_one_is_at_the_end() -> None:
    transformer, seconds = tiny_transformer(), iter(range(10**6))

    def evaluate() -> float:
        next(seconds)
        return 0.0

    batches = endless_codes(random_codes(2, 3), seed=0)
    steps, found = train_transformer(
        transformer, batches, 20.0, lambda: float(next(seconds)), evaluate
    )
    # a step takes one second of this clock, an evaluation another one
    assert steps == 20
    assert len(found) == tokenizer_comparison.NUM_EVALUATIONS


def test_a_run_prints_its_row_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    for module in (autoencoder_training, tokenizer_comparison):
        monkeypatch.setattr(module, "MAX_FACES", 30)
    command = "comparison recipe --minutes 1e-5 --transformer-minutes 1e-5 --number 2 --seeds 0"
    command += f" --clock cpu --threads {torch.get_num_threads()} --out {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    main()
    result = json.loads(out.read_text())
    assert (result["tokenizer_steps"], result["steps"]) == (1, 1)
    # the recipe is exact from the start, of which few meshes can only be nearly certain
    for part in ("train", "val"):
        assert 0 < result["whole"][part] - result["bits"][part] < 4
    for way in ("greedy", "sampled"):
        assert result[way]["coincide"] in (1.0, None)
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| meshes", "| recipe"]
    assert len({row.count("|") for row in rows}) == 1
    monkeypatch.setattr(sys, "argv", [*command.split(), "--start-embeddings", "--augment"])
    main()
    assert "| recipe, embeddings started, codes augmented |" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for way in ("start_embeddings", "augment"):
        assert [line[way] for line in lines] == [False, True]
    monkeypatch.setattr(sys, "argv", command.split())
    # what the file has is printed, and not measured again
    main()
    assert capsys.readouterr().out.splitlines()[-1] == rows[-1]
    assert out.read_text().count("\n") == 2
