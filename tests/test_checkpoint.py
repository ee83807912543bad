"""Weights and constructor arguments survive a file; what is wrong with a file is said."""

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from meshgpt_pytorch.checkpoint import (
    CheckpointError,
    SavedModule,
    atomic_path,
    load_training_state,
    save_training_state,
)
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.typing import typecheck
from tests.helpers import box_mesh
from tests.training.runs import (
    QUANTIZERS,
    LetterEncoder,
    make_autoencoder,
    make_text_transformer,
)


class Codebook(SavedModule):
    """One tensor that the state dict lists twice, a view, a flag and an empty buffer."""

    @typecheck
    def __init__(
        self,
        dim: int = 4,
        *,
        widths: tuple[int, ...] = (1, 2),
        options: Mapping[str, Any] = MappingProxyType({"beta": 0.5}),
        function: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        shared = nn.Linear(dim, dim)
        self.layers = nn.ModuleList([shared, shared])
        self.options = options
        self.widths = widths
        self.register_buffer("view", torch.randn(3, dim).t())
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("empty", torch.empty(0))


class Reader(SavedModule):
    """A module with another one and an object of the user's among its arguments."""

    transient_arguments: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(self, codebook: Codebook, *, size: int = 2, encoder: object = None) -> None:
        super().__init__()
        self.codebook = codebook
        self.head = nn.Linear(size, size)
        self.encoder = [encoder]


class SmallReader(Reader):
    """A user's own variant."""


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "model.pt"


# round trips


def test_file_gives_back_weights_and_arguments(path: Path) -> None:
    model = Codebook(3, widths=(5, 6), options={"a": (1, {"b": None}), "rate": 0.1})
    model.initted.fill_(True)
    model.save(path)
    loaded = Codebook.init_and_load(path)
    assert_same_state(model, loaded)
    assert loaded.config == model.config
    assert loaded.widths == (5, 6)
    assert loaded.options == {"a": (1, {"b": None}), "rate": 0.1}


def test_file_can_be_read_by_those_whom_the_umask_lets(path: Path) -> None:
    before = os.umask(0o022)
    try:
        Codebook().save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_file_loads_whatever_the_length_of_its_header(path: Path) -> None:
    model = Codebook()
    model.save(path)
    lengths = set()
    # a header is filled up to a multiple of eight bytes; a length in it may look like a pickle
    for size in range(0, 256 + 8, 8):
        rewrite_header(path, note="a" * size)
        lengths.add(path.read_bytes()[0])
        assert_same_state(Codebook.init_and_load(path), model)
    assert 0x80 in lengths


def test_shared_tensor_is_stored_once_and_stays_shared(path: Path) -> None:
    model = Codebook()
    model.save(path)
    with safe_open(path, framework="pt") as file:
        assert [name for name in file.keys() if name.endswith("weight")] == ["layers.0.weight"]
    loaded = Codebook.init_and_load(path)
    assert loaded.layers[0].weight is loaded.layers[1].weight
    assert_same_state(model, loaded)


def test_models_among_the_arguments_are_rebuilt(path: Path) -> None:
    model = Reader(Codebook(3), size=3)
    model.save(path)
    loaded = Reader.init_and_load(path)
    assert_same_state(model, loaded)
    assert loaded.codebook.config == model.codebook.config


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_autoencoder_gives_equal_codes_and_faces_after_a_round_trip(
    path: Path, quantizer: str
) -> None:
    model = make_autoencoder(**QUANTIZERS[quantizer])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    vertices, faces = box_mesh()
    # what a learned codebook is initialised with, and no weight as it was drawn
    model(vertices=vertices[None], faces=faces[None]).backward()
    optimizer.step()
    model.save(path)
    loaded = MeshAutoencoder.init_and_load(path)
    assert_same_state(model, loaded)
    codes = model.tokenize(vertices, faces)
    assert torch.equal(loaded.tokenize(vertices, faces), codes)
    one, other = (
        each.decode_from_codes_to_faces(codes[None]).face_coords for each in (model, loaded)
    )
    assert torch.equal(one, other)


def test_transformer_gives_equal_losses_after_a_round_trip(path: Path) -> None:
    model = make_text_transformer()
    model.save(path)
    overrides = {"text_encoder": LetterEncoder()}
    loaded = MeshTransformer.init_and_load(path, overrides=overrides)
    assert_same_state(model, loaded)
    vertices, faces = box_mesh()
    mesh = {"vertices": vertices[None], "faces": faces[None], "texts": ["a box"]}
    assert torch.equal(loaded.eval()(**mesh), model.eval()(**mesh))


def test_file_records_format_library_and_class(path: Path) -> None:
    Codebook(3).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "meshgpt-pytorch"
    assert metadata["class"] == "Codebook"
    assert metadata["library_version"]
    assert json.loads(metadata["config"])["config"]["dim"] == 3


def test_config_is_what_was_passed_and_the_defaults() -> None:
    options = {"beta": 1.0}
    model = Codebook(options=options)
    options["beta"] = 2.0
    assert model.config == {"dim": 4, "widths": [1, 2], "options": {"beta": 1.0}}
    assert copy.deepcopy(model).config == model.config


def test_numpy_numbers_are_saved_as_plain_ones(path: Path) -> None:
    options = {"beta": np.float32(0.5), "sizes": (np.int64(1), np.array(2)), "on": np.bool_(True)}
    Reader(Codebook(options=options), size=np.int64(3)).save(path)
    loaded = Reader.init_and_load(path)
    assert loaded.config["size"] == 3
    assert loaded.codebook.config["options"] == {"beta": 0.5, "sizes": [1, 2], "on": True}
    with pytest.raises(TypeError, match=r"options\['many'\] of type ndarray"):
        Codebook(options={"many": np.zeros(2)}).save(path)


def test_half_a_model_loads_as_half(path: Path) -> None:
    Reader(Codebook()).half().save(path)
    loaded = Reader.init_and_load(path)
    assert loaded.head.weight.dtype == loaded.codebook.view.dtype == torch.float16
    assert loaded.codebook.initted.dtype == torch.bool


def test_mixed_dtypes_are_kept_for_each_tensor(path: Path) -> None:
    model = Reader(Codebook())
    model.head.bfloat16()
    model.save(path)
    loaded = Reader.init_and_load(path)
    assert loaded.head.weight.dtype == torch.bfloat16
    assert loaded.codebook.view.dtype == torch.float32
    assert_same_state(model, loaded)


def test_load_keeps_the_dtype_of_the_model(path: Path) -> None:
    model = Codebook()
    model.save(path)
    other = Codebook().double()
    other.load(path)
    assert other.view.dtype == torch.float64
    torch.testing.assert_close(other.view, model.view.double())


# arguments that a file cannot hold


def test_transient_argument_is_given_again_on_load(path: Path) -> None:
    Reader(Codebook(), encoder=object()).save(path)
    encoder = object()
    assert Reader.init_and_load(path, overrides={"encoder": encoder}).encoder == [encoder]
    with pytest.raises(CheckpointError, match=r"built with encoder.*overrides=\{'encoder'"):
        Reader.init_and_load(path)


def test_override_replaces_an_argument_of_the_file(path: Path) -> None:
    Codebook(widths=(7,)).save(path)
    assert Codebook.init_and_load(path, overrides={"widths": (9,)}).widths == (9,)


def test_argument_that_json_cannot_hold_is_refused_on_save(path: Path) -> None:
    model = Codebook(options={"deep": [1, {"odd": torch.relu}]})
    place = r"options\['deep'\]\[1\]\['odd'\] of type builtin_function"
    with pytest.raises(TypeError, match=f"{place}.*transient_arguments"):
        model.save(path)
    with pytest.raises(TypeError, match="cannot be saved as JSON"):
        _ = model.config
    assert not path.exists()


def test_wrong_arguments_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="heads"):
        Reader(Codebook(), heads=3)


# strictness


def test_keys_that_differ_are_listed(path: Path) -> None:
    Reader(Codebook(), size=3).save(path)
    other = Reader(Codebook())
    del other.codebook.view
    other.extra = nn.Linear(1, 1, bias=False)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError) as caught:
        other.load(path)
    assert "missing ['extra.weight']" in str(caught.value)
    assert "unexpected ['codebook.view']" in str(caught.value)
    assert "misshapen ['head.weight (3, 3) for (2, 2)', 'head.bias (3,) for (2,)']" in str(
        caught.value
    )
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)

    with pytest.warns(UserWarning, match="does not fit this Reader.*loaded the rest"):
        report = other.load(path, strict=False)
    assert report.missing == ("extra.weight",)
    assert report.unexpected == ("codebook.view",)
    assert report.misshapen == ("head.weight", "head.bias")
    with safe_open(path, framework="pt") as file:
        assert torch.equal(
            other.codebook.layers[0].weight, file.get_tensor("codebook.layers.0.weight")
        )


def test_file_of_another_class_is_refused(path: Path) -> None:
    Codebook().save(path)
    with pytest.raises(CheckpointError, match="holds a Codebook, wanted a Reader"):
        Reader(Codebook()).load(path)
    with pytest.raises(CheckpointError, match="holds a Codebook, wanted a Reader"):
        Reader.init_and_load(path)


def test_subclass_and_its_base_read_each_others_files(path: Path) -> None:
    model = SmallReader(Codebook())
    model.save(path)
    assert type(Reader.init_and_load(path)) is SmallReader
    base = Reader(Codebook())
    base.load(path)
    assert_same_state(base, model)
    base.save(path)
    model.load(path)


# files that are not ours


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*model\.pt"):
        Codebook().load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_refused_with_a_remedy(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "upstream.pt"
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"upstream\.pt is a pickle.*weights_only=True"):
        Codebook().load(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_refused(path: Path, share: float) -> None:
    model = Codebook()
    model.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"model\.pt is not a whole safetensors file"):
        model.load(path)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="lacks the header of a meshgpt-pytorch model"):
        Codebook().load(path)


def rewrite_header(path: Path, **changes: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, path, metadata={**metadata, **changes})


def test_newer_format_is_refused(path: Path) -> None:
    Codebook().save(path)
    rewrite_header(path, format_version="99", library_version="9.9")
    with pytest.raises(CheckpointError, match=r"format version 99, written by .* 9\.9.*upgrade"):
        Codebook().load(path)


def test_unknown_class_is_refused_and_never_imported(path: Path) -> None:
    Codebook().save(path)
    rewrite_header(path, **{"class": "os.system"})
    with pytest.raises(CheckpointError, match=r"holds a os\.system, wanted one of"):
        Codebook.init_and_load(path)


# writing in one step


def test_existing_file_is_kept_unless_it_may_be_replaced(path: Path) -> None:
    model = Codebook()
    model.save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        Codebook().save(path, overwrite=False)
    assert path.read_bytes() == before
    Codebook().save(path)
    assert path.read_bytes() != before


def test_interrupted_write_leaves_the_old_file(path: Path) -> None:
    model = Codebook()
    model.save(path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_bytes(b"half a file")
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for text in ("old", "new"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / "state").write_text(text)
    with pytest.raises(RuntimeError, match="disk"), atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "state").write_text("half")
        raise RuntimeError("disk full")
    assert (folder / "state").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_folder_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_text("file")
    with atomic_path(path) as temporary:
        temporary.mkdir()
    assert path.is_dir()
    assert list(tmp_path.iterdir()) == [path]


# training state


def test_training_state_survives_a_file(tmp_path: Path) -> None:
    state = {"step": 3, "rates": [0.1], "nested": {0: torch.arange(3)}, "none": None}
    save_training_state(tmp_path / "state.pt", state)
    loaded = load_training_state(tmp_path / "state.pt")
    assert torch.equal(loaded["nested"].pop(0), state["nested"].pop(0))
    assert loaded == state


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def test_nothing_in_a_training_state_is_executed(tmp_path: Path) -> None:
    torch.save({"step": Harmful(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt is not a readable training state"):
        load_training_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut"])
def test_damaged_training_state_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt is not a readable training state"):
        load_training_state(path)
