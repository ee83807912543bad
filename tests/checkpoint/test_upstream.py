"""Files of meshgpt-pytorch 1.8.1 load with equal outputs, and nothing in them is executed."""

import builtins
import functools
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.checkpoint.inert_pickle import Record, RefusedPickleError, read_inert
from meshgpt_pytorch.checkpoint.upstream import decoder_options
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.helpers import GOLDEN
from tests.training.runs import LetterEncoder

FILES = GOLDEN / "upstream_files"
EXPECTED = load_file(FILES / "expected.safetensors")
TEXT = {"text_encoder": LetterEncoder()}
AUTOENCODERS = {
    "autoencoder_lfq": "autoencoder_lfq.pt",
    "autoencoder_rvq": "autoencoder_rvq.pt",
    "autoencoder_trainer": "autoencoder_trainer.pt",
    "autoencoder_12_codes": "autoencoder_12_codes.pt",
    "hub_autoencoder": "hub/mesh-autoencoder.bin",
}


def assert_same_logits(model: MeshTransformer, name: str) -> None:
    codes = model.autoencoder.tokenize(EXPECTED["vertices"], EXPECTED["faces"])
    assert torch.equal(codes, EXPECTED[f"{name}.codes"])
    text = {"text_embeds": EXPECTED["text_embeds"]} if model.condition_on_text else {}
    model.eval()
    logits = model.forward_on_codes(codes, return_loss=False, append_eos=False, **text)
    expected = EXPECTED[f"{name}.logits"]
    if expected.shape[-1] > model.codebook_size + 1:
        expected = torch.cat((expected[..., : model.codebook_size], expected[..., -1:]), dim=-1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


# equal outputs


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_of_upstream_gives_equal_outputs(name: str) -> None:
    model = MeshAutoencoder.init_and_load(FILES / AUTOENCODERS[name])
    codes = model.tokenize(EXPECTED["vertices"], EXPECTED["faces"])
    expected = EXPECTED[f"{name}.codes"]
    if name == "autoencoder_rvq":
        # its codebook of 8 vertices has entries that are all but equal, and processors round
        # differently: what codes stand for is the same
        found, wanted = map(model.quantizer.get_output_from_indices, (codes, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(codes, expected)
    faces, _ = model.eval().decode_from_codes_to_faces(codes)
    torch.testing.assert_close(faces, EXPECTED[f"{name}.faces"], rtol=1e-5, atol=1e-6)


def test_transformer_of_upstream_gives_equal_outputs_whatever_heads_it_ignored() -> None:
    model = MeshTransformer.init_and_load(FILES / "transformer.pt")
    assert_same_logits(model, "transformer")


def test_codes_that_upstream_never_made_are_left_out() -> None:
    # asked for 12, its quantizer rounded down, and its transformer did not
    path = FILES / "transformer_12_codes.pt"
    model = MeshTransformer.init_and_load(path)
    assert model.codebook_size == model.eos_token_id == 8
    assert_same_logits(model, "transformer_12_codes")
    with torch.no_grad():
        model.to_logits.weight.zero_()
    model.load(path)
    assert_same_logits(model, "transformer_12_codes")


def test_transformer_in_the_shape_of_the_published_one_gives_equal_outputs() -> None:
    path = FILES / "hub" / "mesh-transformer.bin"
    model = MeshTransformer.init_and_load(path, overrides=TEXT)
    assert model.config["text_condition_model_types"] == ["bge"]
    assert model.fine_cross_attend_text
    assert_same_logits(model, "hub_transformer")


def test_weights_that_upstream_never_trained_are_left_out_with_a_warning() -> None:
    path = FILES / "transformer_post_gateloop.pt"
    with pytest.warns(UserWarning, match=r"coarse_post_gateloop_block.*never trained"):
        model = MeshTransformer.init_and_load(path)
    assert_same_logits(model, "transformer_post_gateloop")
    with pytest.warns(UserWarning, match="never trained"):
        deep = MeshTransformer.init_and_load(path, overrides={"coarse_post_gateloop_depth": 1})
    saved = torch.load(path, weights_only=True)["model"]
    torch.testing.assert_close(deep.state_dict(), saved, rtol=0, atol=0)


def test_trainer_file_without_arguments_loads_into_a_model() -> None:
    path = FILES / "transformer_trainer.pt"
    with pytest.raises(
        CheckpointError, match=r"weights without the arguments.*model\.load\(path\)"
    ):
        MeshTransformer.init_and_load(path)
    autoencoder = MeshTransformer.init_and_load(FILES / "transformer.pt").autoencoder
    model = MeshTransformer(
        autoencoder,
        dim=8,
        max_seq_len=72,
        attn_depth=1,
        attn_dim_head=4,
        attn_heads=2,
        fine_attn_depth=1,
        coarse_pre_gateloop_depth=1,
        fine_pre_gateloop_depth=1,
        attn_kwargs={"ff_glu": True, "attn_num_mem_kv": 4},
    )
    model.load(path)
    assert_same_logits(model, "transformer_trainer")


def test_several_residual_streams_are_refused_by_the_model() -> None:
    with pytest.raises(RuntimeError, match="num_residual_streams=4 needs hyper-connections"):
        MeshTransformer.init_and_load(FILES / "transformer_streams.pt")


def test_file_of_the_other_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds a MeshTransformer, wanted a MeshAutoencoder"):
        MeshAutoencoder.init_and_load(FILES / "transformer.pt")


def test_model_of_upstream_is_saved_and_loaded_as_ours(tmp_path: Path) -> None:
    model = MeshTransformer.init_and_load(FILES / "transformer.pt")
    model.save(tmp_path / "model.safetensors")
    assert_same_logits(MeshTransformer.init_and_load(tmp_path / "model.safetensors"), "transformer")


# arguments


def rewrite(name: str, path: Path, **changes: Any) -> Path:
    """Copy a file of upstream with other entries."""
    torch.save({**torch.load(FILES / name, weights_only=True), **changes}, path)
    return path


def test_defaults_of_decoders_are_read_off_their_weights() -> None:
    state = torch.load(FILES / "transformer_streams.pt", weights_only=True)["model"]
    streams = {"ff_glu": True, "attn_num_mem_kv": 4, "num_residual_streams": 4}
    assert decoder_options(state) == streams
    del streams["num_residual_streams"]
    state = torch.load(FILES / "transformer.pt", weights_only=True)["model"]
    assert decoder_options(state) == streams
    mixed = {"decoder.layers.2.1.to_value_residual_mix.0.weight": torch.zeros(1)}
    values = {"add_value_residual": True, "learned_value_residual_mix": True}
    assert decoder_options(mixed) == values
    assert decoder_options({}) == {}


@pytest.mark.parametrize("attn_kwargs", [None, {"ff_glu": True, "num_mem_kv": 4}])
def test_arguments_of_earlier_versions_give_equal_outputs(
    tmp_path: Path, attn_kwargs: dict[str, Any] | None
) -> None:
    kwargs = saved_arguments()
    for name in ("attn_kwargs", "max_seq_len"):
        del kwargs[name]
    if attn_kwargs is not None:
        kwargs["attn_kwargs"] = attn_kwargs
    config = pickle.dumps(((Holder(),), kwargs))
    path = rewrite("transformer.pt", tmp_path / "model.pt", config=config)
    assert_same_logits(MeshTransformer.init_and_load(path), "transformer")


def test_streams_of_arguments_without_weights_for_them_are_one(tmp_path: Path) -> None:
    args, kwargs = (Holder(),), saved_arguments()
    kwargs["attn_kwargs"]["num_residual_streams"] = 4
    path = rewrite("transformer.pt", tmp_path / "model.pt", config=pickle.dumps((args, kwargs)))
    assert_same_logits(MeshTransformer.init_and_load(path), "transformer")


def test_arguments_that_only_text_would_use_are_dropped_without_text(tmp_path: Path) -> None:
    config = pickle.dumps(((Holder(),), saved_arguments(fine_cross_attend_text=True)))
    path = rewrite("transformer.pt", tmp_path / "model.pt", config=config)
    assert_same_logits(MeshTransformer.init_and_load(path), "transformer")


def test_argument_that_is_gone_is_named(tmp_path: Path) -> None:
    config = pickle.dumps(((32,), {"dim_of_old": 3}))
    path = rewrite("autoencoder_lfq.pt", tmp_path / "model.pt", config=config)
    with pytest.raises(CheckpointError, match=r"does not have: \['dim_of_old'\]"):
        MeshAutoencoder.init_and_load(path)


def test_object_among_the_arguments_is_named(tmp_path: Path) -> None:
    config = pickle.dumps(((32,), {"rq_kwargs": {"deep": [nn.Identity()]}}))
    path = rewrite("autoencoder_lfq.pt", tmp_path / "model.pt", config=config)
    place = r"rq_kwargs\['deep'\]\[0\] of type torch.nn.modules.linear.Identity"
    with pytest.raises(CheckpointError, match=place):
        MeshAutoencoder.init_and_load(path)


def test_arguments_of_another_form_are_refused(tmp_path: Path) -> None:
    path = rewrite("autoencoder_lfq.pt", tmp_path / "model.pt", config=pickle.dumps([1]))
    with pytest.raises(CheckpointError, match=r"must hold \(args, kwargs\)"):
        MeshAutoencoder.init_and_load(path)


@pytest.mark.parametrize("package", [{"model": {}}, {"weights": 1}, [1, 2]])
def test_other_pickles_are_refused_with_a_remedy(tmp_path: Path, package: Any) -> None:
    torch.save(package, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"without a model as .* 1\.x.*load_state_dict"):
        MeshAutoencoder.init_and_load(tmp_path / "model.pt")


# nothing runs


class Holder:
    """Pickled as an autoencoder is: an object of any class, whose state has its arguments."""

    def __init__(self, config: bytes | None = None) -> None:
        package = torch.load(FILES / "transformer.pt", weights_only=True)
        nested = read_inert(package["config"])[0][0].state["_config"]
        self._config = nested if config is None else config


def saved_arguments(**kwargs: Any) -> dict[str, Any]:
    arguments = read_inert(torch.load(FILES / "transformer.pt", weights_only=True)["config"])[1]
    return {**arguments, **kwargs}


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __call__(self) -> None:
        """Stand for what the call returns, where a function is wanted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def touch(path: Path) -> dict[str, Call]:
    """Ways to write a file from within a pickle, by what they call."""
    command = f"touch {path}"
    code = f"open({str(path)!r}, 'w')"
    return {
        "posix.system": Call(os.system, command),
        "builtins.eval": Call(builtins.eval, code),
        "builtins.exec": Call(builtins.exec, code),
        "io.open": Call(open, str(path), "w"),
        "torch.hub.load": Call(torch.hub.load, str(path)),
        "what functools.partial returns": Call(functools.partial(os.system, command)),
        "what builtins.getattr returns": Call(Call(getattr, Call(__import__, "os"), "system")),
    }


PLACES: dict[str, Callable[[Any], bytes]] = {
    "alone": lambda call: pickle.dumps(call),
    "argument": lambda call: pickle.dumps(((32,), {"pad_id": call})),
    "nested": lambda call: pickle.dumps(((), {"rq_kwargs": {"a": [({"b": call},)]}})),
    "key": lambda call: pickle.dumps(((call,), {})),
    "state": lambda call: pickle.dumps(((Holder(call),), {})),
    "state of a mapping": lambda call: pickle.dumps(((), OrderedDict(a=call))),
    "_config": lambda call: pickle.dumps(((Holder(pickle.dumps(call)),), {})),
    "array": lambda call: pickle.dumps(((np.array([call], dtype=object),), {})),
    "old protocol": lambda call: pickle.dumps(((call,), {}), protocol=0),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("called", touch(Path("any")))
def test_nothing_in_the_arguments_is_executed(tmp_path: Path, called: str, place: str) -> None:
    trace = tmp_path / "ran"
    config = PLACES[place](touch(trace)[called])
    # inside an array the array's own rebuilder is the first that is refused; a call to find what
    # is then called comes before it
    refused = {"array": "numpy", "what builtins.getattr returns": "builtins.__import__"}
    name = refused.get(place, refused.get(called, called))
    if place == "old protocol":
        name = name.replace("builtins", "__builtin__")
    for kind, model_class in (
        ("transformer", MeshTransformer),
        ("autoencoder_lfq", MeshAutoencoder),
    ):
        path = rewrite(f"{kind}.pt", tmp_path / "model.pt", config=config)
        with pytest.raises(CheckpointError, match=name):
            model_class.init_and_load(path)
    assert not trace.exists()


@pytest.mark.parametrize("called", touch(Path("any")))
def test_nothing_in_the_outer_file_is_executed(tmp_path: Path, called: str) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "model.pt"
    call = touch(trace)[called]
    for changes in ({"version": call}, {"config": np.array([call], dtype=object)}):
        rewrite("autoencoder_lfq.pt", path, **changes)
        for load in (MeshAutoencoder.init_and_load, LOADED.load):
            with pytest.raises(CheckpointError, match=r"calls .*not executed"):
                load(path)
    assert not trace.exists()


LOADED = MeshAutoencoder.init_and_load(FILES / "autoencoder_lfq.pt")


def test_weights_beside_refused_arguments_load_alone(tmp_path: Path) -> None:
    config = pickle.dumps(Call(os.system, f"touch {tmp_path / 'ran'}"))
    path = rewrite("autoencoder_lfq.pt", tmp_path / "model.pt", config=config)
    LOADED.load(path)
    assert not (tmp_path / "ran").exists()


def test_objects_are_records_of_their_class_and_state() -> None:
    record = read_inert(pickle.dumps(nn.Linear(2, 3)))
    assert isinstance(record, Record)
    assert record.name == "torch.nn.modules.linear.Linear"
    assert record.state["out_features"] == 3
    assert isinstance(record.state["_parameters"]["weight"], Record)


def test_plain_values_are_read_as_they_are() -> None:
    value = {"a": [1, 2.5, (True, None)], "b": b"bytes", "c": {1, 2}, "d": OrderedDict(e="f")}
    assert read_inert(pickle.dumps(value)) == value


def test_a_class_that_is_named_but_not_called_is_never_imported() -> None:
    named = read_inert(b"\x80\x04\x8c\x0cnowhere_here\x8c\x05Thing\x93.")
    assert named.name == "nowhere_here.Thing"


@pytest.mark.parametrize("pickled", [b"", b"\x80\x04", b"\x80\x04}b.", b"\x80\x04K\x01\x85R."])
def test_a_broken_pickle_is_refused(pickled: bytes) -> None:
    with pytest.raises(RefusedPickleError, match="cannot be read as a pickle"):
        read_inert(pickled)


def test_a_reference_out_of_the_pickle_is_refused() -> None:
    with pytest.raises(RefusedPickleError, match="refers to 'abc' outside"):
        read_inert(b"\x80\x04\x8c\x03abcQ.")


def test_tensors_in_the_outer_file_may_be_of_any_type(tmp_path: Path) -> None:
    saved = torch.load(FILES / "autoencoder_lfq.pt", weights_only=True)
    half: dict[str, Tensor] = {
        name: item.half() if item.is_floating_point() else item
        for name, item in saved["model"].items()
    }
    path = rewrite("autoencoder_lfq.pt", tmp_path / "model.pt", model=half)
    assert next(MeshAutoencoder.init_and_load(path).parameters()).dtype == torch.float16
