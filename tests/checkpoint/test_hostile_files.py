"""Files that are made up or damaged give a clear error, and take no more memory than their size."""

import io
import json
import pickle
import resource
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from meshgpt_pytorch.checkpoint import CheckpointError, load_training_state
from meshgpt_pytorch.checkpoint.inert_pickle import RefusedPickleError, read_inert
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.helpers import GOLDEN
from tests.training.runs import make_autoencoder

UPSTREAM = GOLDEN / "upstream_files" / "autoencoder_lfq.pt"
READERS: dict[str, Callable[[Path], Any]] = {
    "model": MeshAutoencoder.init_and_load,
    "trainer state": load_training_state,
}
MEGABYTE = 1 << 20


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Let the process take no more than so much memory beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# files of torch.save


def compressed(path: Path, record: str) -> Path:
    """Copy a file of 1.x, with one record blown up to a hundred times the size of the file."""
    with zipfile.ZipFile(UPSTREAM) as source:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for each in source.infolist():
                more = bytes(64 * MEGABYTE) if each.filename.endswith(record) else b""
                target.writestr(each.filename, source.read(each) + more)
    assert path.stat().st_size < MEGABYTE
    return path


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
@pytest.mark.parametrize("reader", READERS)
def test_a_zip_file_that_unpacks_to_much_more_is_refused(
    tmp_path: Path, reader: str, record: str
) -> None:
    path = compressed(tmp_path / "model.pt", record)
    with little_memory(32 * MEGABYTE), pytest.raises(CheckpointError, match="not compressed, got"):
        READERS[reader](path)


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(UPSTREAM) as source, zipfile.ZipFile(path, "w") as target:
        for each in source.infolist():
            data = source.read(each)
            if each.filename.endswith("data.pkl"):
                # the number of elements, one byte, behind the device of the first tensor
                place = data.index(b"K", data.index(b"cpu"))
                data = data[:place] + b"J\xff\xff\xff\x7f" + data[place + 2 :]
            target.writestr(each.filename, data)
    with pytest.raises(CheckpointError, match="does not match expected size"):
        MeshAutoencoder.init_and_load(path)


@pytest.mark.parametrize("reader", READERS)
def test_a_tensor_that_repeats_its_bytes_is_refused(tmp_path: Path, reader: str) -> None:
    package = {"model": {"weight": torch.zeros(1).expand(10**13)}, "config": None}
    torch.save(package, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"must be stored whole, got one .* \(10{13},\)"):
        READERS[reader](tmp_path / "model.pt")


def test_a_code_of_very_many_bits_is_refused(tmp_path: Path) -> None:
    package = torch.load(UPSTREAM, weights_only=True)
    package["model"]["quantizer.layers.0.mask"] = torch.zeros(31)
    torch.save(package, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"mask must have at most 30 bits, got 31"):
        MeshAutoencoder.init_and_load(tmp_path / "model.pt")


def tar_file(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(1)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "write",
    [
        tar_file,
        lambda path: torch.jit.script(nn.Identity()).save(str(path)),
        lambda path: torch.save({"model": nn.Identity()}, path),
        lambda path: torch.save(
            {"model": nn.Identity()}, path, _use_new_zipfile_serialization=False
        ),
    ],
    ids=["tar", "script", "object", "legacy object"],
)
def test_other_formats_of_torch_are_refused(
    tmp_path: Path, reader: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt is not a"):
        READERS[reader](tmp_path / "model.pt")


class Trace:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("reader", READERS)
def test_nothing_in_a_legacy_file_is_executed(tmp_path: Path, reader: str) -> None:
    trace = tmp_path / "ran"
    package = {"model": {"weight": torch.zeros(1)}, "config": Trace(trace)}
    torch.save(package, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError):
        READERS[reader](tmp_path / "model.pt")
    assert not trace.exists()


# pickled arguments


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # a memory of two thousand million values
        b"Np99999999999\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00N.",  # 64 GiB of bytes
        b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00N.",
        b"\x80\x02\x8b\xff\xff\xff\x7fN.",  # a number of 2 GiB
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\x00\x00N.",
        b"I" + b"9" * 10**5 + b"\n.",
    ],
)
def test_a_pickle_that_asks_for_memory_is_refused(pickled: bytes) -> None:
    with little_memory(32 * MEGABYTE), pytest.raises(RefusedPickleError):
        read_inert(pickled)


def test_arguments_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    depth = 10 * sys.getrecursionlimit()
    nested = b"\x80\x04)}\x8c\x09rq_kwargsK\x01" + b"\x85" * depth + b"s\x86."
    package = torch.load(UPSTREAM, weights_only=True)
    torch.save({**package, "config": nested}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="nested too deeply"):
        MeshAutoencoder.init_and_load(tmp_path / "model.pt")


def test_arguments_that_repeat_each_other_are_refused(tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value, value]
    package = torch.load(UPSTREAM, weights_only=True)
    package["config"] = pickle.dumps(((), {"rq_kwargs": value}))
    torch.save(package, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="got values that repeat each other"):
        MeshAutoencoder.init_and_load(tmp_path / "model.pt")


# safetensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    make_autoencoder().save(path)
    return path


@pytest.mark.parametrize("length", [1 << 63, 99 << 20])
def test_a_header_longer_than_its_file_is_refused(saved: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "model"
    path.write_bytes(struct.pack("<Q", length) + saved.read_bytes()[8:])
    with (
        little_memory(32 * MEGABYTE),
        pytest.raises(CheckpointError, match="not a whole safetensors file"),
    ):
        MeshAutoencoder.init_and_load(path)


def test_a_tensor_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}
    header = json.dumps({"weight": tensor}).encode()
    path = tmp_path / "model"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        MeshAutoencoder.init_and_load(path)


def with_header(saved: Path, path: Path, **changes: str | None) -> Path:
    """Copy a file with other entries in its header, or without some (None)."""
    with safe_open(saved, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"class": None},
        {"config": None},
        {"aliases": None},
        {"format_version": "new"},
        {"config": "{"},
        {"config": "[]"},
        {"config": '{"class": "MeshAutoencoder", "config": [1], "not_saved": []}'},
        {"config": "[" * 10**5 + "]" * 10**5},
        {"aliases": '{"weight": "nothing"}'},
        {"aliases": "[1]"},
        {"transient_facts": "[1]"},
    ],
)
def test_a_header_that_is_made_up_is_refused(
    saved: Path, tmp_path: Path, changes: dict[str, str | None]
) -> None:
    path = with_header(saved, tmp_path / "model", **changes)
    with pytest.raises(CheckpointError, match="is not one that meshgpt-pytorch writes"):
        MeshAutoencoder.init_and_load(path)


def with_argument(saved: Path, path: Path, name: str, value: Any) -> Path:
    """Copy a file with another constructor argument."""
    with safe_open(saved, framework="pt") as file:
        description = json.loads(file.metadata()["config"])
    description["config"][name] = value
    return with_header(saved, path, config=json.dumps(description))


@pytest.mark.parametrize("value", [10**9, [8, 1 << 40], {"deep": [10**9]}])
def test_sizes_that_no_model_has_are_refused_before_memory_is_asked_for(
    saved: Path, tmp_path: Path, value: Any
) -> None:
    path = with_argument(saved, tmp_path / "model", "dim_codebook", value)
    with (
        little_memory(256 * MEGABYTE),
        pytest.raises(CheckpointError, match=r"asks for a model with a size of 1\d+"),
    ):
        MeshAutoencoder.init_and_load(path)


@pytest.mark.parametrize(("name", "value"), [("option_of_3", 1), ("dim_codebook", "wide")])
def test_arguments_that_the_class_cannot_take_are_named(
    saved: Path, tmp_path: Path, name: str, value: Any
) -> None:
    path = with_argument(saved, tmp_path / "model", name, value)
    with pytest.raises(CheckpointError, match=r"cannot be built from the arguments in .*model"):
        MeshAutoencoder.init_and_load(path)


def test_a_whole_transformer_is_read_in_as_much_memory_as_it_needs() -> None:
    # the limits above are not what refuses them
    path = GOLDEN / "upstream_files" / "transformer.pt"
    with little_memory(256 * MEGABYTE):
        MeshTransformer.init_and_load(path)
