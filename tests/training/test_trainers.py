"""What the two trainers take from a batch, and what they refuse before training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from tests.training.runs import (
    MESHES,
    Samples,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    small_run,
)

# codes and text


def test_cached_codes_train_as_meshes_do(tmp_path: Path, cached: MeshDataset) -> None:
    histories = []
    for dataset in (cached.with_keys("vertices", "faces"), cached.with_keys("codes"), cached):
        trainer = MeshTransformerTrainer(
            make_transformer(), **{**small_run(tmp_path), "dataset": dataset}
        )
        trainer()
        histories.append([record["loss"] for record in trainer.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)
    assert histories[0] == pytest.approx(histories[2], rel=1e-5)


def test_cached_text_encodings_train_as_texts_do(tmp_path: Path, cached: MeshDataset) -> None:
    histories = []
    texts, encodings = (cached.with_keys("codes", key) for key in ("texts", "text_encodings"))
    for dataset in (texts, encodings, cached):
        trainer = MeshTransformerTrainer(
            make_text_transformer(), **{**small_run(tmp_path), "dataset": dataset}
        )
        trainer()
        histories.append([record["loss"] for record in trainer.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
    assert histories[0] == pytest.approx(histories[2], rel=1e-4)


def test_validation_leaves_text_dropout_on(tmp_path: Path, cached: MeshDataset) -> None:
    probabilities = []
    model = make_text_transformer(text_condition_cond_drop_prob=0.5)
    drop = model.conditioner.drop

    def record(mask: Tensor, probability: float | None = None) -> Tensor:
        if torch.is_grad_enabled():
            probabilities.append(model.conditioner.training)
        return drop(mask, probability)

    model.conditioner.drop = record
    options = {**small_run(tmp_path), "dataset": cached, "val_dataset": cached}
    MeshTransformerTrainer(model, **options)()
    assert probabilities == [True] * 4


# errors before the first step


def test_quantizer_trains_after_its_warm_up_alone(tmp_path: Path) -> None:
    model = make_autoencoder()
    before = {name: each.clone() for name, each in model.quantizer.named_parameters()}
    trainer = MeshAutoencoderTrainer(
        model, **{**small_run(tmp_path), "num_train_steps": 2}, quantizer_warmup_steps=2
    )
    trainer()
    assert all(record["commit_loss"] == 0 for record in trainer.history)
    assert all(torch.equal(each, before[name]) for name, each in model.quantizer.named_parameters())

    trainer = MeshAutoencoderTrainer(
        model, **{**small_run(tmp_path / "more"), "num_train_steps": 3}, quantizer_warmup_steps=2
    )
    trainer()
    assert [record["commit_loss"] > 0 for record in trainer.history] == [False, False, True]
    assert not any(
        torch.equal(each, before[name]) for name, each in model.quantizer.named_parameters()
    )


def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    model = make_autoencoder(rlfq_kwargs={"soft_clamp_input_value": torch.tensor(10.0)})
    with pytest.raises(TypeError, match="of type Tensor, which cannot be saved as JSON"):
        MeshAutoencoderTrainer(model, **small_run(tmp_path))


def test_negative_quantizer_warm_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantizer_warmup_steps must be 0 or more, got -1"):
        MeshAutoencoderTrainer(make_autoencoder(), **small_run(tmp_path), quantizer_warmup_steps=-1)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("num_train_steps", 0, "above 0, got 0"),
        ("max_skipped_steps", 0, "above 0, got 0"),
        ("num_workers", -1, "0 or more, got -1"),
        ("batch_size", -1, "above 0, got -1"),
        ("grad_accum_every", 0, "above 0"),
        ("val_every", 0, "above 0"),
        ("checkpoint_every", 0, "above 0"),
        ("val_num_batches", 0, "above 0 or None"),
        ("max_grad_norm", 0.0, "above 0 or None"),
        ("time_limit", 0.0, "above 0 or None"),
        ("learning_rate", -1.0, "0 or more, got -1"),
        ("weight_decay", -1.0, "0 or more"),
        ("warmup_steps", -1, "0 or more"),
    ],
)
def test_option_out_of_range_is_refused(
    make_trainer: Any, name: str, value: float, wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {wanted}"):
        make_trainer(**{name: value})


def test_length_is_given_in_steps_or_epochs(make_trainer: Any) -> None:
    for steps, epochs in ((None, None), (3, 3)):
        with pytest.raises(ValueError, match="exactly one of num_train_steps and num_epochs"):
            make_trainer(num_train_steps=steps, num_epochs=epochs)
    with pytest.raises(ValueError, match="num_epochs must be above 0"):
        make_trainer(num_train_steps=None, num_epochs=0)


def test_scheduler_arguments_need_a_scheduler(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"scheduler_kwargs .* need a scheduler"):
        make_trainer(scheduler_kwargs={"T_max": 3})


def test_unknown_average_option_is_refused(make_trainer: Any) -> None:
    with pytest.raises(TypeError, match="decay"):
        make_trainer(ema_kwargs={"decay": 0.9})


def test_data_set_smaller_than_a_batch_is_refused(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="got 5; pass batch_size=5"):
        make_trainer(batch_size=6)


def test_empty_validation_set_is_refused(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="val_dataset must hold at least one sample"):
        make_trainer(val_dataset=Samples(()))
    with pytest.raises(ValueError, match="validate needs a val_dataset"):
        make_trainer().validate()


def test_missing_mesh_is_named(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"without \['faces'\].*data_kwargs"):
        make_trainer(dataset=Samples(kind=tuple), data_kwargs=("vertices", "names"))
    with pytest.raises(ValueError, match=r"without \['faces'\]"):
        make_trainer(val_dataset=[{"vertices": MESHES[0].vertices}])


def test_text_in_a_tuple_needs_a_name(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="face_edges of a sample must be a tensor, got str"):
        make_trainer(dataset=Samples(kind=tuple, texts="a box"))


def test_missing_text_is_named(tmp_path: Path, cached: MeshDataset) -> None:
    options = small_run(tmp_path)
    for dataset in (Samples(), Samples(texts=None), cached.with_keys("codes")):
        with pytest.raises(ValueError, match=r"every sample must have a text, .* add texts"):
            MeshTransformerTrainer(make_text_transformer(), **{**options, "dataset": dataset})
    texts = ["a box", None, "a box", "a box", "a box"]
    samples = [{**mesh._asdict(), "texts": t} for mesh, t in zip(MESHES, texts, strict=True)]
    trainer = MeshTransformerTrainer(
        make_text_transformer(), **{**options, "dataset": samples, "batch_size": 5}
    )
    with pytest.raises(ValueError, match=r"every sample must have a text.*None"):
        trainer()


def test_codebook_that_was_never_initialised_is_refused(tmp_path: Path) -> None:
    autoencoder = make_autoencoder(use_residual_lfq=False, codebook_size=8)
    options = small_run(tmp_path)
    model = make_transformer(autoencoder=autoencoder)
    with pytest.raises(RuntimeError, match="k-means has not initialised it yet"):
        MeshTransformerTrainer(model, **options)
    assert autoencoder.training
    MeshAutoencoderTrainer(autoencoder.requires_grad_(True), **options)()
    MeshTransformerTrainer(make_transformer(autoencoder=autoencoder), **options)


def test_codes_of_another_form_are_refused(tmp_path: Path) -> None:
    options = small_run(tmp_path)
    for shape, message in (
        ((36, 3), "must have the autoencoder's 2 quantizers, got 3"),
        ((35,), "must be whole faces, 6 each, got 35"),
    ):
        codes = torch.zeros(shape, dtype=torch.long)
        with pytest.raises(ValueError, match=message):
            dataset = Samples(codes=codes)
            MeshTransformerTrainer(make_transformer(), **{**options, "dataset": dataset})


def test_mesh_longer_than_the_transformer_reads_is_named(
    tmp_path: Path, cached: MeshDataset
) -> None:
    options = small_run(tmp_path)
    model = make_transformer(max_seq_len=36)
    message = r"max_seq_len = 36 codes \(6 faces\), got 72 \(12 faces\) in mesh 0 of the data set"
    with pytest.raises(ValueError, match=message):
        MeshTransformerTrainer(model, **{**options, "dataset": cached})
    with pytest.raises(ValueError, match=message):
        short = cached.filter(max_faces=6)
        MeshTransformerTrainer(model, **{**options, "dataset": short, "val_dataset": cached})
    with pytest.raises(ValueError, match=r"got 72 \(12 faces\) in mesh \d of a batch"):
        MeshTransformerTrainer(model, **options)
    codes = make_autoencoder().tokenize(*MESHES[0])
    with pytest.raises(ValueError, match=r"got 72 \(12 faces\) in mesh 0 of a batch"):
        MeshTransformerTrainer(model, **{**options, "dataset": Samples(codes=codes)})
    with pytest.raises(ValueError, match=r"got 72 \(12 faces\) in mesh \d of a batch"):
        MeshTransformerTrainer(model, **{**options, "dataset": Samples(MESHES[1:])})()


def test_codes_of_another_autoencoder_are_refused(tmp_path: Path, cached: MeshDataset) -> None:
    model = make_transformer()
    with torch.no_grad():
        model.autoencoder.project_in.weight.add_(1)
    options = {**small_run(tmp_path), "dataset": cached}
    with pytest.raises(ValueError, match=r"got codes of another one.*cache_codes"):
        MeshTransformerTrainer(model, **options)
    MeshTransformerTrainer(model, **{**options, "dataset": cached.with_keys("vertices", "faces")})


def test_average_is_asked_of_the_main_process_only(tmp_path: Path) -> None:
    trainer = MeshAutoencoderTrainer(make_autoencoder(), **small_run(tmp_path))
    trainer.average = None
    with pytest.raises(RuntimeError, match="lives on the main process"):
        _ = trainer.ema_tokenizer


def test_a_mesh_in_a_tuple_is_checked_where_the_batch_is_built(tmp_path: Path) -> None:
    bad = (torch.rand(4, 3), torch.tensor([[0, 1, 2], [1, 2, 7]]))
    good = (torch.rand(10, 3), torch.tensor([[0, 1, 9]]))
    trainer = MeshAutoencoderTrainer(
        make_autoencoder(), **{**small_run(tmp_path), "dataset": [good, bad]}
    )
    with pytest.raises(ValueError, match="which has 4 vertices, got 7"):
        trainer()


def test_vertices_that_will_be_clamped_are_said_where_the_batch_is_built(tmp_path: Path) -> None:
    mesh = (2 * torch.rand(4, 3) + 1, torch.tensor([[0, 1, 2], [1, 2, 3]]))
    with pytest.warns(UserWarning, match="lie outside coor_continuous_range"):
        MeshAutoencoderTrainer(make_autoencoder(), **{**small_run(tmp_path), "dataset": [mesh] * 2})
