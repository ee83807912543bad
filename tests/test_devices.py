"""The models and trainers on a device that is as strict as CUDA: nothing stays on the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.device_cases import AUTOENCODERS, TEXTS, TRANSFORMERS, gradients, mesh_batch, step
from tests.simulated_device import SimulatedDevice
from tests.test_examples import load_example, small_scale
from tests.training.runs import (
    Samples,
    make_autoencoder,
    make_text_transformer,
    small_run,
)


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        yield device


def assert_close(found: Any, expected: Any) -> None:
    """Compare numbers that are equal but for the order of sums."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True)


def assert_alike_in_both_places(results: Callable[[str], Any]) -> Any:
    """Compare results on the CPU, which are returned, with those on the device."""
    expected = results("cpu")
    with SimulatedDevice() as device:
        assert_close(results(device.name), expected)
    return expected


# the device itself


FAULTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda here, there: here + there,
    "cat": lambda here, there: torch.cat((there, here)),
    "mask": lambda here, there: here.masked_fill(there > 0, 0.0),
    "condition": lambda here, there: torch.where(there > 0, here, here),
    "single_mask": lambda here, there: here.masked_fill(there[0] > 0, 0.0),
    "matrix": lambda here, there: nn.functional.linear(here[None], there[None]),
    "ids": lambda here, there: nn.functional.embedding(torch.arange(2), here[:, None]),
    "gather": lambda here, there: here.gather(0, torch.arange(2)),
    "indices": lambda here, there: there[torch.arange(2, device=here.device)],
    "values": lambda here, there: here.index_put((torch.arange(3),), there),
    "in_place": lambda here, there: there[0].add_(here[0]),
    "written_to": lambda here, there: torch.add(here, here, out=there),
    "numpy": lambda here, there: here.numpy(),
    "array": lambda here, there: np.asarray(here),
    "normal": lambda here, there: here.normal_(generator=torch.Generator()),
    "draws": lambda here, there: torch.rand(2, device=here.device, generator=torch.Generator()),
    "drawn_on_cpu": lambda here, there: torch.rand(2, generator=torch.Generator(here.device)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_device_refuses_what_cuda_refuses(device: SimulatedDevice, fault: str) -> None:
    here, there = torch.ones(3, device=device.name), torch.ones(3)
    message = (
        r"same device|either on cpu or on the same|device type (tensor to numpy|for generator)"
    )
    with pytest.raises((RuntimeError, TypeError), match=message):
        FAULTS[fault](here, there)


def test_the_device_takes_what_cuda_takes(device: SimulatedDevice) -> None:
    here, there = torch.arange(3.0, device=device.name), torch.arange(3.0)
    results = [
        here + there[1],
        here.lerp(here + 1, there[1]),
        here[torch.tensor([1, 2])],
        here.index_put((here > 0,), there[1]),
        here.masked_fill(here > 0, there[0]),
        torch.tensor([1.0, 2.0], device=device.name),
        torch.rand(2, device=device.name, generator=torch.Generator(device.name)),
        there.to(device.name),
    ]
    assert all(result.device.type == device.name for result in results)
    assert here.tolist() == [0.0, 1.0, 2.0] and here.cpu().numpy()[1] == 1 and here[2].item() == 2


def test_the_device_notes_what_the_cpu_waits_for(device: SimulatedDevice) -> None:
    here = torch.arange(3.0, device=device.name)
    free = [
        lambda: here.sum() * 2,
        lambda: torch.where(here > 0, here, 0.0),
        lambda: here[here.long()],
    ]
    for each in free:
        each()
    assert not device.waits
    waiting = [
        lambda: bool(here.any()),
        lambda: here.sum().item(),
        lambda: here.cpu(),
        lambda: torch.tensor([1.0], device=here.device),
        lambda: here[here > 0],
        lambda: (here > 0).nonzero(),
        lambda: here.unique(),
        lambda: here.repeat_interleave(here.long()),
        lambda: here[torch.tensor([0])],
    ]
    for number, each in enumerate(waiting, start=1):
        each()
        assert device.waits.total() == number


def test_autocast_on_the_device_is_that_of_cuda(device: SimulatedDevice) -> None:
    here = torch.ones(3, 3, device=device.name)
    with torch.autocast(device.name, torch.bfloat16):
        assert (here @ here).dtype == nn.functional.linear(here, here).dtype == torch.bfloat16
        assert (here @ here).sum().dtype == (here @ here).softmax(dim=-1).dtype == torch.float32
        assert (here @ here).relu().dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert (here @ here).dtype == torch.float32


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("maker", [make_autoencoder, make_text_transformer])
def test_a_tensor_that_a_model_makes_on_the_cpu_is_caught(
    monkeypatch: pytest.MonkeyPatch, maker: Callable[[], Any]
) -> None:
    model = maker().to(SimulatedDevice.name)
    batch = mesh_batch(device=SimulatedDevice.name)
    text = {} if isinstance(model, MeshAutoencoder) else {"texts": TEXTS}
    model(**batch, **text)
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *sizes, device=None: arange(*sizes))
    with pytest.raises(RuntimeError, match="same device"):
        model(**batch, **text)


# the models


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_autoencoder_on_a_device_is_that_on_the_cpu(kind: str) -> None:
    def results(place: str) -> dict[str, Any]:
        autoencoder = make_autoencoder(**AUTOENCODERS[kind]).to(place)
        batch = mesh_batch(kind == "quads", place)
        torch.manual_seed(0)
        output = autoencoder(**batch, return_recon_faces=True, return_loss_breakdown=True)
        output.loss.backward()
        codes = autoencoder.tokenize(batch["vertices"], batch["faces"])
        decoded = autoencoder.decode_from_codes_to_faces(codes, return_discrete_codes=True)
        tensors = (output.recon_faces, output.loss, *output.breakdown, codes, *decoded)
        assert {tensor.device.type for tensor in tensors} == {place}
        # gradients of the codebook's kind reach ten thousand: rounding goes by the largest
        in_units = {
            name: gradient / gradient.abs().amax().clamp(min=1)
            for name, gradient in gradients(autoencoder).items()
        }
        return {"tensors": [each.detach().cpu() for each in tensors], **in_units}

    assert_alike_in_both_places(results)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformer_on_a_device_is_that_on_the_cpu(kind: str) -> None:
    def results(place: str) -> dict[str, Any]:
        transformer = make_text_transformer(**TRANSFORMERS[kind]).to(place)
        batch = mesh_batch(device=place)
        torch.manual_seed(0)
        loss = transformer(**batch, texts=TEXTS)
        loss.backward()
        codes = transformer.tokenize(**batch)
        embeds = transformer.embed_texts(TEXTS)
        of_codes = transformer(codes=codes, text_embeds=embeds, text_mask=(embeds != -1).any(-1))
        encodings = transformer.conditioner.encode(TEXTS)[0]
        transformer.eval()
        logits, cache = transformer(
            codes=codes[:, :4],
            text_encodings=encodings.embeddings,
            append_eos=False,
            return_loss=False,
            return_cache=True,
            cond_scale=3.0,
        )
        more = transformer(
            codes=codes[:, :5],
            texts=TEXTS,
            append_eos=False,
            return_loss=False,
            return_cache=True,
            cond_scale=3.0,
            cache=cache,
        ).logits
        tensors = (loss, codes, embeds, of_codes, logits, more)
        assert {tensor.device.type for tensor in tensors} == {place}
        return {"tensors": [each.detach().cpu() for each in tensors], **gradients(transformer)}

    assert_alike_in_both_places(results)


GENERATIONS: dict[str, dict[str, Any]] = {
    "cached": {"texts": TEXTS},
    "uncached": {"texts": TEXTS, "cache_kv": False, "temperature": 0.0},
    "guided": {"texts": TEXTS, "cond_scale": 3.0, "rescale_phi": 0.5},
    "guided_uncached": {
        "texts": TEXTS,
        "cond_scale": 3.0,
        "remove_parallel_component": True,
        "cache_kv": False,
    },
    "prompted": {"texts": ["a box"], "prompt": torch.tensor([[0, 1], [2, 3], [4, 5]])},
    "repeated": {"texts": ["a box"], "batch_size": 3, "temperature": 0.5},
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("options", GENERATIONS)
def test_generation_on_a_device_is_that_on_the_cpu(options: str, kind: str) -> None:
    def generate(place: str) -> list[Tensor]:
        transformer = make_text_transformer(**TRANSFORMERS[kind]).to(place)
        # eos is likely, so that rows end at different places
        with torch.no_grad():
            transformer.to_logits.bias[transformer.eos_token_id] += 1.0
        generator = torch.Generator(place).manual_seed(0)
        coords, mask = transformer.generate(
            **GENERATIONS[options], generator=generator, max_seq_len=18, progress=False
        )
        assert coords.device.type == mask.device.type == place
        return [coords.cpu(), mask.cpu()]

    assert_alike_in_both_places(generate)


def test_a_generator_of_another_place_is_refused(device: SimulatedDevice) -> None:
    transformer = make_text_transformer().to(device.name)
    with pytest.raises(RuntimeError, match="device type for generator"):
        transformer.generate(texts=TEXTS, generator=torch.Generator(), progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_on_a_device(device: SimulatedDevice, dtype: torch.dtype) -> None:
    transformer = make_text_transformer(**TRANSFORMERS["all_of_text"]).to(device.name)
    autoencoder = make_autoencoder(**AUTOENCODERS["lookup_free"]).to(device.name)
    batch = mesh_batch(device=device.name)
    with torch.autocast(device.name, dtype):
        loss = transformer(**batch, texts=TEXTS) + autoencoder(**batch)
        transformer.generate(texts=TEXTS, cond_scale=3.0, max_seq_len=12, progress=False)
    loss.backward()
    assert loss.isfinite() and all(
        each.isfinite().all() for each in gradients(transformer).values()
    )
    transformer.to(dtype).generate(texts=TEXTS, cond_scale=3.0, max_seq_len=12, progress=False)


# training


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make accelerate find the device, once it is there."""
    device = property(lambda state: torch.device(SimulatedDevice.name))
    monkeypatch.setattr(PartialState, "default_device", device)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run_options(folder: Path, place: str, **more: Any) -> dict[str, Any]:
    """Options of a run of 4 steps that validates, samples, and writes checkpoints."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return {
        **small_run(folder / place),
        "accelerator_kwargs": {"cpu": place == "cpu"},
        "val_dataset": Samples(),
        "val_every": 2,
        "checkpoint_every": 2,
        "sample_every": 4,
        "num_samples": 2,
        **more,
    }


def losses(trainer: Any) -> Tensor:
    """The losses of all steps, and of all validations."""
    names = ("loss", "val_loss")
    return torch.tensor([record[n] for record in trainer.history for n in names if n in record])


@pytest.mark.usefixtures("accelerated")
def test_autoencoder_trains_on_a_device_as_on_the_cpu(tmp_path: Path) -> None:
    def train(place: str, start: Path | None = None) -> Tensor:
        trainer = MeshAutoencoderTrainer(make_autoencoder(), **run_options(tmp_path, place))
        assert trainer.device.type == place
        if start is not None:
            trainer.load(start)
        trainer.train()
        assert {each.device.type for each in trainer.averaged_model.parameters()} == {place}
        return losses(trainer)

    without_pause = assert_alike_in_both_places(train)
    folder = tmp_path / SimulatedDevice.name / "checkpoints"
    assert (folder / "mesh-autoencoder.samples.4" / "samples.png").is_file()
    # a checkpoint of either place is gone on from in the other, as if there had been no pause
    starts = {"cpu": folder, SimulatedDevice.name: tmp_path / "cpu" / "checkpoints"}
    resumed = assert_alike_in_both_places(
        lambda place: train(place, starts[place] / "mesh-autoencoder.ckpt.2")
    )
    assert_close(resumed, without_pause)


@pytest.mark.usefixtures("accelerated")
def test_transformer_trains_on_a_device_as_on_the_cpu(tmp_path: Path) -> None:
    def train(place: str) -> Tensor:
        dataset = Samples(texts="a box")
        options = run_options(tmp_path, place, dataset=dataset, val_dataset=dataset)
        trainer = MeshTransformerTrainer(make_text_transformer(), **options)
        assert trainer.device.type == place
        trainer.train()
        return losses(trainer)

    assert_alike_in_both_places(train)
    folder = tmp_path / SimulatedDevice.name / "checkpoints"
    assert (folder / "mesh-transformer.samples.4" / "samples.png").is_file()


@pytest.mark.usefixtures("accelerated")
def test_the_example_runs_on_a_device(tmp_path: Path) -> None:
    furniture = load_example("furniture")
    AcceleratorState._reset_state(reset_partial_state=True)
    scale = replace(small_scale(furniture).lasting(2, 2, 2), num_meshes=3)
    with SimulatedDevice():
        report = furniture.run(scale, "cuda", tmp_path)
    files = report["files"]
    assert files["written"] == files["loaded_again"] == 4 - files["empty_meshes"]
    assert (tmp_path / "contact_sheet.png").is_file()


# what a step waits for


def waits_of_a_step(device: SimulatedDevice, model: nn.Module, **batch: Any) -> dict[str, int]:
    """Count what a step waits for, after a first one that sets things up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer, **batch)
    device.waits.clear()
    step(model, optimizer, **batch)
    return dict(device.waits)


def test_an_autoencoder_step_waits_only_where_it_must(device: SimulatedDevice) -> None:
    autoencoder = make_autoencoder().to(device.name)
    batch = mesh_batch(device=device.name)
    quantize = "meshgpt_pytorch/tokenizers/quantizer.py quantize_vertices"
    assert waits_of_a_step(device, autoencoder, **batch) == {
        # how many vertices are in use
        f"{quantize} nonzero": 1,
        # in ResidualLFQ: the seed of quantize dropout, and a zero made on the CPU
        f"{quantize}.<locals>.run _local_scalar_dense": 1,
        f"{quantize}.<locals>.run _to_copy": 1,
    }


def test_edges_that_are_not_given_are_derived_with_few_waits(device: SimulatedDevice) -> None:
    faces = mesh_batch(device=device.name)["faces"]
    device.waits.clear()
    derive_face_edges_from_faces(faces)
    assert device.waits.total() == 8


def test_a_transformer_step_waits_only_where_it_must(device: SimulatedDevice) -> None:
    transformer: MeshTransformer = make_text_transformer().to(device.name)
    codes = transformer.tokenize(**mesh_batch(device=device.name))
    encodings, mask = transformer.conditioner.encode(TEXTS)[0]
    waits = waits_of_a_step(
        device, transformer, codes=codes, text_encodings=encodings, text_mask=mask
    )
    # how many faces are not padding
    assert waits == {
        "meshgpt_pytorch/transformer/network.py TwoStageNetwork._loss_of_all nonzero": 1
    }


def test_generation_waits_once_a_face(device: SimulatedDevice) -> None:
    transformer = make_text_transformer().to(device.name)
    encodings = transformer.conditioner.encode(TEXTS)[0].embeddings
    with torch.no_grad():
        transformer.to_logits.bias[transformer.eos_token_id] = -1e4  # no mesh ends early
    device.waits.clear()
    transformer.generate(
        text_encodings=encodings, max_seq_len=30, progress=False, cond_scale=2.0, return_codes=True
    )
    # has every mesh ended? looked at where a face ends, after the first
    place = "meshgpt_pytorch/transformer/generation.py MeshGeneration._sample nonzero"
    assert dict(device.waits) == {place: 4}
