"""What a CUDA device computes is what the CPU does; run with ``pytest -m gpu``.

``tests/test_devices.py`` shows without one that no tensor strays to the CPU. What is left for these
tests is what real kernels do: their rounding, their own precision under autocast, assertions that
end a process, and how often the driver says that it waited.
"""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from meshgpt_pytorch.mesh import check_mesh_batch
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.transformer import drawing
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.device_cases import AUTOENCODERS, TEXTS, TRANSFORMERS, gradients, mesh_batch, step
from tests.helpers import ROOT
from tests.training.runs import Samples, make_autoencoder, make_text_transformer, small_run

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Compute float32 as float32; cuDNN's convolutions round to TF32 by default."""
    libraries: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = False
    yield
    for library, allowed in zip(libraries, before, strict=True):
        library.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def new_accelerator() -> Iterator[None]:
    """Let each test choose its precision; accelerate keeps the first of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def watching_waits(mode: str) -> Iterator[None]:
    """Let PyTorch warn, or raise an error, where the CPU waits for the device."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("kind", ["lookup_free", "recomputed", "quads"])
def test_autoencoder_on_a_device_is_that_on_the_cpu(kind: str) -> None:
    def results(place: str) -> dict[str, Any]:
        autoencoder = make_autoencoder(**AUTOENCODERS[kind]).to(place).eval()
        batch = mesh_batch(kind == "quads", place)
        loss = autoencoder(**batch)
        loss.backward()
        codes = autoencoder.tokenize(batch["vertices"], batch["faces"])
        coords, _ = autoencoder.decode_from_codes_to_faces(codes)
        tensors = [each.detach().cpu() for each in (loss, codes, coords)]
        return {"tensors": tensors, **gradients(autoencoder)}

    assert_close(results(DEVICE), results("cpu"))


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformer_on_a_device_is_that_on_the_cpu(kind: str) -> None:
    def results(place: str) -> dict[str, Any]:
        transformer = make_text_transformer(**TRANSFORMERS[kind]).to(place).eval()
        loss = transformer(**mesh_batch(device=place), texts=TEXTS)
        loss.backward()
        codes = transformer.tokenize(**mesh_batch(device=place))
        logits = transformer(codes=codes[:, :6], texts=TEXTS, return_loss=False, cond_scale=3.0)
        tensors = [each.detach().cpu() for each in (loss, codes, logits)]
        return {"tensors": tensors, **gradients(transformer)}

    assert_close(results(DEVICE), results("cpu"))


@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_greedy_codes_of_a_device_are_those_of_the_cpu(cond_scale: float, cache_kv: bool) -> None:
    transformer = make_text_transformer().eval()
    options = {"texts": TEXTS, "temperature": 0.0, "return_codes": True, "max_seq_len": 30}
    options |= {"cond_scale": cond_scale, "cache_kv": cache_kv, "progress": False}
    codes = transformer.generate(**options)
    assert torch.equal(transformer.to(DEVICE).generate(**options).cpu(), codes)


def test_a_generator_of_the_device_decides_what_is_drawn() -> None:
    transformer = make_text_transformer().to(DEVICE)

    def draw_from(seed: int) -> Tensor:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        return transformer.generate(
            texts=TEXTS, generator=generator, return_codes=True, progress=False, max_seq_len=12
        )

    assert torch.equal(draw_from(0), draw_from(0))
    assert not torch.equal(draw_from(0), draw_from(1))


def draw(transformer: MeshTransformer, **options: Any) -> tuple[Tensor, Tensor]:
    """Draw codes from a seed, and what is drawn next, which tells how much was drawn before."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    codes = transformer.generate(
        generator=generator, return_codes=True, progress=False, texts=TEXTS * 3, **options
    )
    return codes, torch.rand(1, generator=generator, device=DEVICE)


def assert_graphs_change_nothing(transformer: MeshTransformer, **options: Any) -> Tensor:
    """Compare codes, which are returned, with those drawn without graphs."""
    expected = draw(transformer, **options)
    found = draw(transformer, cuda_graphs=True, **options)
    assert all(map(torch.equal, found, expected))
    return found[0]


def likely_to_end(by: float, **options: Any) -> MeshTransformer:
    """A model of up to 12 faces, which are fewer the likelier its meshes are to end."""
    transformer = make_text_transformer(**options).to(DEVICE)
    with torch.no_grad():
        transformer.to_logits.bias[transformer.eos_token_id] += by
    return transformer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_cuda_graphs_draw_the_same_codes(kind: str, cond_scale: float, temperature: float) -> None:
    transformer = likely_to_end(-1e4, **TRANSFORMERS[kind])
    options = {"cond_scale": cond_scale, "temperature": temperature}
    codes = assert_graphs_change_nothing(transformer, **options)
    assert (codes != transformer.pad_id).all()


def test_cuda_graphs_go_on_as_meshes_end_and_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FIRST_ROOM", 2)
    assert_graphs_change_nothing(likely_to_end(-1e4))
    # with all codes to choose from, eos is always one of them
    transformer = likely_to_end(0.5)
    codes = assert_graphs_change_nothing(transformer, filter_kwargs={"frac_num_tokens": 1.0})
    lengths = (codes != transformer.pad_id).all(dim=-1).sum(dim=1)
    assert lengths.min() < lengths.max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_graphs_draw_the_same_codes_in_half_precision(dtype: torch.dtype) -> None:
    transformer = likely_to_end(-1e4, **TRANSFORMERS["all_of_text"])
    assert_graphs_change_nothing(transformer, dtype=dtype)
    with torch.autocast(DEVICE, dtype):
        assert_graphs_change_nothing(transformer)
    assert_graphs_change_nothing(transformer.to(dtype))


def test_cuda_graphs_take_the_random_numbers_of_the_device() -> None:
    transformer = likely_to_end(-1e4)
    drawn = []
    for cuda_graphs in (False, True):
        torch.manual_seed(0)
        codes = transformer.generate(
            texts=TEXTS, return_codes=True, progress=False, cuda_graphs=cuda_graphs
        )
        drawn.append((codes, torch.rand(1, device=DEVICE)))
    assert all(map(torch.equal, *drawn))


def test_cuda_graphs_leave_no_memory_behind() -> None:
    transformer = likely_to_end(-1e4)
    # the first time libraries take memory that they keep
    draw(transformer, cuda_graphs=True)
    before = torch.cuda.memory_allocated()
    draw(transformer, cuda_graphs=True)
    assert torch.cuda.memory_allocated() == before


def test_cuda_graphs_wait_once_a_face() -> None:
    transformer = likely_to_end(-1e4)
    draw(transformer, cuda_graphs=True)
    waits = []
    for cuda_graphs in (False, True):
        with watching_waits("warn"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draw(transformer, cuda_graphs=cuda_graphs)
        waits.append(sum("called a synchronizing" in str(each.message) for each in caught))
    # recording may wait once
    assert 11 <= waits[1] <= waits[0] + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_half_precision_trains_an_autoencoder(kind: str, dtype: torch.dtype) -> None:
    autoencoder = make_autoencoder(**AUTOENCODERS[kind]).to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        loss = autoencoder(**mesh_batch(kind == "quads", DEVICE))
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_half_precision_trains_and_generates(kind: str, dtype: torch.dtype) -> None:
    transformer = make_text_transformer(**TRANSFORMERS[kind]).to(DEVICE)
    options: dict[str, Any] = {"texts": TEXTS, "cond_scale": 3.0, "max_seq_len": 12}
    with torch.autocast(DEVICE, dtype):
        loss = transformer(**mesh_batch(device=DEVICE), texts=TEXTS)
        transformer.generate(**options, progress=False)
    loss.backward()
    assert torch.isfinite(loss)
    transformer.to(dtype).generate(**options, progress=False)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_trainers_train_validate_sample_and_go_on(tmp_path: Path, precision: str) -> None:
    dataset = Samples(texts="a box")
    options = {**small_run(tmp_path), "dataset": dataset, "val_dataset": dataset}
    options |= {"accelerator_kwargs": {"mixed_precision": precision}, "val_every": 2}
    options |= {"sample_every": 4, "checkpoint_every": 2}
    for train, model in (
        (MeshAutoencoderTrainer, make_autoencoder),
        (MeshTransformerTrainer, make_text_transformer),
    ):
        trainer = train(model(), **options)
        assert trainer.device.type == DEVICE
        trainer.train()
        resumed = train(model(), **options)
        resumed.load(tmp_path / "checkpoints" / f"{trainer.checkpoint_name}.ckpt.2")
        resumed.train()
        pairs = zip(trainer.history, resumed.history, strict=True)
        # sums of the device come in no fixed order
        assert all(one["loss"] == pytest.approx(two["loss"], rel=0.05) for one, two in pairs)


def test_checks_do_not_wait_for_the_device() -> None:
    batch = mesh_batch(device=DEVICE)
    with watching_waits("error"):
        check_mesh_batch(**batch)


def count_waits(model: nn.Module, **batch: Any) -> int:
    """Count how often the driver says that it waited in a training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer, **batch)
    with watching_waits("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(model, optimizer, **batch)
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def test_steps_wait_no_more_than_on_the_simulated_device() -> None:
    assert count_waits(make_autoencoder().to(DEVICE), **mesh_batch(device=DEVICE)) <= 3
    transformer = make_text_transformer().to(DEVICE)
    codes = transformer.tokenize(**mesh_batch(device=DEVICE))
    encodings, mask = transformer.conditioner.encode(TEXTS)[0]
    text = {"text_encodings": encodings, "text_mask": mask}
    assert count_waits(transformer, codes=codes, **text) <= 1


BAD_BATCH = """
import torch
from meshgpt_pytorch.mesh import check_mesh_batch
faces = torch.tensor([[[0, 1, 9]]], device="cuda")
check_mesh_batch(torch.zeros(1, 3, 3, device="cuda"), faces)
torch.cuda.synchronize()
"""


def test_a_bad_batch_ends_the_process_and_says_why() -> None:
    # in a process of its own: after an assertion of the device nothing runs on it any more
    run = subprocess.run(
        [sys.executable, "-c", BAD_BATCH], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "bad mesh batch: vertex index out of range" in run.stdout + run.stderr
