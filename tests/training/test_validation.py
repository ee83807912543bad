"""Validation and averages."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.mesh import Mesh, discretize
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training import validation
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.training.runs import (
    MESHES,
    QUANTIZERS,
    LetterEncoder,
    Samples,
    make_autoencoder,
    make_transformer,
    small_run,
)

# validation


def test_validation_restores_every_mode(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=1)
    trainer.unwrapped_model.train()
    frozen = next(iter(trainer.unwrapped_model.children()))
    frozen.eval()
    modes = [module.training for module in trainer.unwrapped_model.modules()]
    trainer.validate()
    assert [module.training for module in trainer.unwrapped_model.modules()] == modes
    trainer()
    assert [module.training for module in trainer.unwrapped_model.modules()] == modes


def test_validation_happens_when_due(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=2)
    trainer()
    assert [record["step"] for record in trainer.history if "val_loss" in record] == [2, 4]


def test_validation_takes_meshes_with_padding_between_faces(tmp_path: Path) -> None:
    padding = torch.full((2, 3), -1)
    spread = tuple(
        Mesh(mesh.vertices, torch.cat((mesh.faces[:1], padding, mesh.faces[1:]))) for mesh in MESHES
    )
    model = make_transformer(max_seq_len=144)
    losses = [
        MeshTransformerTrainer(
            model=model,
            val_dataset=Samples(meshes),
            **small_run(tmp_path / name),
        ).validate()["val_loss"]
        for name, meshes in {"plain": MESHES, "spread": spread}.items()
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_validation_covers_the_whole_set_whatever_the_batch(
    make_trainer: Any, batch_size: int
) -> None:
    trainer = make_trainer(val_dataset=Samples(), batch_size=batch_size, val_num_batches=None)
    model = trainer.unwrapped_model.eval()
    sums, counts = [], []
    for mesh in MESHES:
        loss = model(vertices=mesh.vertices[None], faces=mesh.faces[None])
        is_autoencoder = isinstance(model, MeshAutoencoder)
        counts.append(len(mesh.faces) if is_autoencoder else len(mesh.faces) * 6 + 1)
        sums.append(loss.item() * counts[-1])
    assert trainer.validate()["val_loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-4)


def test_validation_set_may_be_smaller_than_a_batch(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(MESHES[:1]))
    assert trainer.validate()["val_loss"] > 0


def test_some_batches_are_the_same_each_time(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_num_batches=1)
    assert trainer.validate() == trainer.validate()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_autoencoder_reports_right_faces_and_the_use_of_each_codebook(
    tmp_path: Path, quantizer: str
) -> None:
    model = make_autoencoder(**QUANTIZERS[quantizer])
    options = {**small_run(tmp_path), "val_dataset": Samples(), "val_num_batches": None}
    trainer = MeshAutoencoderTrainer(model, **options)
    trainer()
    record = trainer.validate()

    averaged = trainer.ema_tokenizer.eval()
    right, codes = [], []
    for mesh in MESHES:
        arguments = {"vertices": mesh.vertices[None], "faces": mesh.faces[None]}
        coords = averaged(**arguments, only_return_recon_faces=True)[0]
        wanted = discretize(mesh.vertices[mesh.faces], continuous_range=(-1, 1))
        right += (discretize(coords, continuous_range=(-1, 1)) == wanted).flatten(1).tolist()
        codes += averaged.tokenize(**arguments)[0].tolist()
    assert record["val_triangle_accuracy"] == pytest.approx(sum(map(all, right)) / len(right))
    assert record["val_coordinate_accuracy"] == pytest.approx(sum(map(sum, right)) / len(right) / 9)
    for place in range(2):
        counts = Counter(code[place] for code in codes)
        assert record[f"val_codebook_usage_{place}"] == pytest.approx(len(counts) / 16)
        shares = [count / len(codes) for count in counts.values()]
        perplexity = math.exp(-sum(share * math.log(share) for share in shares))
        assert record[f"val_codebook_perplexity_{place}"] == pytest.approx(perplexity)


def test_codebooks_are_not_judged_before_they_train(tmp_path: Path) -> None:
    model = make_autoencoder(use_residual_lfq=False, codebook_size=8)
    options = {**small_run(tmp_path), "val_dataset": Samples(), "val_every": 1}
    trainer = MeshAutoencoderTrainer(model, **options, quantizer_warmup_steps=2)
    trainer()
    judged = ["val_codebook_usage_0" in record for record in trainer.history]
    assert judged == [False, False, True, True]
    assert all("val_triangle_accuracy" in record for record in trainer.history)


@pytest.mark.parametrize("keys", [("codes",), ("vertices", "faces")])
def test_transformer_reports_loss_and_accuracy_by_place(
    tmp_path: Path, cached: MeshDataset, keys: tuple[str, ...]
) -> None:
    model = make_transformer()
    dataset = cached.with_keys(*keys)
    options = {"dataset": dataset, "val_dataset": dataset, "val_num_batches": None}
    trainer = MeshTransformerTrainer(model, **{**small_run(tmp_path), **options})
    trainer()
    record = trainer.validate()

    model.eval()
    numbers: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for item in cached.with_keys("codes"):
        codes = item["codes"].flatten().tolist()
        logits = model.forward_on_codes(
            item["codes"][None], return_loss=False, append_eos=False
        ).log_softmax(dim=-1)[0]
        for place, code in enumerate([*codes, model.eos_token_id]):
            name = f"first_face_{place}" if place < 6 else f"later_faces_{place % 6}"
            name = "end" if place == len(codes) else name
            number = (-logits[place, code].item(), logits[place].argmax().item() == code)
            numbers[name].append(number)
            numbers["all"].append(number)
    assert len(numbers) == 14
    for name, pairs in numbers.items():
        suffix = "" if name == "all" else f"_{name}"
        losses, hits = zip(*pairs, strict=True)
        assert record[f"val_loss{suffix}"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert record[f"val_accuracy{suffix}"] == pytest.approx(sum(hits) / len(hits))


def test_validation_is_the_same_however_many_logits_have_room(
    cached: MeshDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_transformer(condition_on_text=True, text_encoder=LetterEncoder()).eval()
    meshes = [cached.with_keys("codes")[index] for index in range(3)]
    texts = ["a chair", "table", "b"]
    [encoded] = model.conditioner.encode(texts)
    codes = pad_sequence([mesh["codes"] for mesh in meshes], batch_first=True, padding_value=-1)
    sizes: list[int] = []
    predict = MeshTransformer.forward_on_codes

    def count_logits(self: MeshTransformer, *arguments: Any, **options: Any) -> Any:
        logits = predict(self, *arguments, **options)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(MeshTransformer, "forward_on_codes", count_logits)
    records = []
    for text in (
        {"texts": texts},
        {"text_encodings": encoded.embeddings, "text_mask": encoded.mask},
    ):
        for room in (10**9, 1):
            monkeypatch.setattr(validation, "NUM_LOGITS_AT_ONCE", room)
            meter = validation.TransformerMeter()
            meter.add(model, {"codes": codes, **text})
            records.append(meter.result())
    for record in records[1:]:
        assert record == pytest.approx(records[0], rel=1e-5)
    # three meshes together, then each by itself
    assert sizes == 2 * [sizes[0], *3 * [sizes[0] // 3]]


def test_places_that_do_not_occur_have_no_number(tmp_path: Path) -> None:
    one_face = Mesh(MESHES[0].vertices, MESHES[0].faces[:1])
    options = {**small_run(tmp_path), "val_dataset": Samples((one_face,))}
    record = MeshTransformerTrainer(make_transformer(), **options).validate()
    assert "val_accuracy_first_face_0" in record and "val_accuracy_end" in record
    assert not any("later_faces" in name for name in record)


# averages


def test_average_follows_its_formula(make_trainer: Any) -> None:
    expected: dict[str, Tensor] = {}

    def average(record: Mapping[str, float]) -> None:
        # the first update copies; later ones keep beta of what was there
        kept = 0.0 if record["step"] == 1 else 0.75
        for name, weight in trainer.unwrapped_model.named_parameters():
            expected[name] = kept * expected.get(name, 0.0) + (1 - kept) * weight.detach()

    trainer = make_trainer(
        ema_kwargs={"beta": 0.75, "update_every": 1, "update_after_step": 0, "power": 10.0},
        on_step=average,
    )
    trainer()
    averaged = {name: t.detach() for name, t in trainer.average.model.named_parameters()}
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


def test_average_keeps_a_codebook_that_was_initialised(tmp_path: Path) -> None:
    model = make_autoencoder(use_residual_lfq=False, codebook_size=8)
    trainer = MeshAutoencoderTrainer(model, **small_run(tmp_path))
    trainer()
    codebook = trainer.ema_tokenizer.quantizer.layers[0]._codebook
    assert codebook.initted.item()
    before = codebook.embed.clone()
    vertices, faces = MESHES[0]
    codes = trainer.tokenize(vertices, faces)
    assert torch.equal(codebook.embed, before)
    assert codes.shape == (36, 2)
    assert torch.equal(codes, trainer.ema_tokenizer.tokenize(vertices, faces))


def test_average_takes_a_codebook_over_when_it_is_initialised(tmp_path: Path) -> None:
    model = make_autoencoder(use_residual_lfq=False, codebook_size=8)
    options = {**small_run(tmp_path), "num_train_steps": 3, "ema_kwargs": {"update_every": 1000}}
    codebooks = []

    def keep(record: Mapping[str, float]) -> None:
        codebooks.append(model.quantizer.layers[0]._codebook.embed.clone())

    trainer = MeshAutoencoderTrainer(model, **options, quantizer_warmup_steps=1, on_step=keep)
    trainer()
    averaged = trainer.ema_tokenizer.quantizer.layers[0]._codebook
    # the second step initialised it; the third is left to the average, which is not due
    assert torch.equal(averaged.embed, codebooks[1])
    assert not torch.equal(averaged.embed, codebooks[2])


def test_transformer_is_averaged_only_if_asked_for(tmp_path: Path) -> None:
    assert MeshTransformerTrainer(make_transformer(), **small_run(tmp_path)).average is None
    trainer = MeshTransformerTrainer(make_transformer(), **small_run(tmp_path), ema_kwargs={})
    assert trainer.average is not None


def test_validation_reads_the_average(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=4, ema_kwargs={"update_every": 1000})
    before = trainer.validate()
    trainer()
    # the average has only seen the first step
    assert trainer.history[-1]["val_loss"] == pytest.approx(before["val_loss"], abs=0.5)
    with torch.no_grad():
        for weight in trainer.unwrapped_model.parameters():
            weight.fill_(torch.nan)
    assert trainer.validate()["val_loss"] == trainer.history[-1]["val_loss"]
