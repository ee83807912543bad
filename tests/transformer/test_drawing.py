"""A face as one CUDA graph = its codes one by one, on a device that is simulated.

tests/simulated_graph.py says what a simulated graph shows, and what it cannot.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from meshgpt_pytorch.transformer import drawing
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.transformer.network_step import NetworkStep
from meshgpt_pytorch.transformer.sampling import Sampling
from meshgpt_pytorch.transformer.stepping import DecoderStep, GateLoopStep
from tests.helpers import read_golden
from tests.simulated_device import NAME, SimulatedDevice
from tests.simulated_graph import SimulatedGraph
from tests.transformer.models import (
    TEXTS,
    EndRowsAfter,
    make_text_transformer,
    make_transformer,
    random_codes,
)
from tests.transformer.option_cases import GUIDANCE, MODEL_OPTIONS, TEXT_OPTIONS, parametrize
from tests.transformer.test_golden import CASES, build, text_of
from tests.transformer.test_prediction import STEPPED_ATTN_OPTIONS, STEPPED_TEXT_OPTIONS

# one face warms up, one is recorded, one replayed, and the last is drawn code by code
NUM_FACES = 4


@pytest.fixture(autouse=True)
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        yield device


def generate(model: MeshTransformer, *, seed: int = 0, **options: Any) -> Tensor:
    """Generate 4 faces on the device, random numbers those of a seed."""
    model.to(NAME)
    SimulatedGraph.made.clear()
    options = {"max_seq_len": NUM_FACES * model.num_codes_per_face, **options}
    if "generator" not in options:
        options["generator"] = torch.Generator(NAME).manual_seed(seed)
    return model.generate(return_codes=True, progress=False, **options).cpu()


def assert_graphs_change_nothing(model: MeshTransformer, **options: Any) -> Tensor:
    """Compare codes, which are returned, with those drawn one by one."""
    expected = generate(model, **options)
    codes = generate(model, cuda_graphs=True, **options)
    assert sum(graph.num_replays for graph in SimulatedGraph.made) > 0
    assert torch.equal(codes, expected)
    return codes


def never_end(model: MeshTransformer) -> MeshTransformer:
    """Make all meshes as long as they may be."""
    with torch.no_grad():
        model.to_logits.bias[model.eos_token_id] = -1e4
    return model


def num_faces_of(model: MeshTransformer, codes: Tensor) -> list[int]:
    return ((codes != model.pad_id).all(dim=-1).sum(dim=1) // model.num_vertices_per_face).tolist()


@parametrize("options", MODEL_OPTIONS)
def test_graphs_draw_the_same_codes(options):
    model = never_end(make_transformer(**options))
    codes = assert_graphs_change_nothing(model, batch_size=2)
    assert [graph.num_replays for graph in SimulatedGraph.made] == [NUM_FACES - 2]
    assert num_faces_of(model, codes) == [NUM_FACES] * 2


@parametrize("attn_kwargs", STEPPED_ATTN_OPTIONS)
def test_graphs_draw_the_same_codes_for_options_of_the_decoder(attn_kwargs):
    model = never_end(make_transformer(attn_kwargs=attn_kwargs, num_sos_tokens=2))
    assert_graphs_change_nothing(model, batch_size=2)


@parametrize("options", STEPPED_TEXT_OPTIONS)
def test_graphs_draw_the_same_codes_with_text(options):
    model = never_end(make_text_transformer(**options))
    assert_graphs_change_nothing(model, texts=TEXTS)


@parametrize("guidance", GUIDANCE)
def test_graphs_draw_the_same_codes_with_guidance(guidance):
    model = never_end(make_text_transformer(fine_cross_attend_text=True))
    assert_graphs_change_nothing(model, texts=TEXTS, **guidance)


@pytest.mark.parametrize("name", CASES)
def test_graphs_draw_the_codes_of_upstream(name):
    golden = read_golden(name)
    model = build(golden)
    options = {key: text.to(NAME) for key, text in text_of(golden).items()}
    options |= {"temperature": 0.0, "cuda_graphs": True}
    codes = generate(model, **options)
    assert torch.equal(codes, golden["out.greedy_codes"])
    if "text_embeds" in options:
        codes = generate(model, cond_scale=3.0, **options)
        assert torch.equal(codes, golden["out.greedy_codes_cfg3"])
    prompt = golden["out.codes"][:, : 2 * model.num_vertices_per_face]
    codes = generate(model, prompt=prompt, **options)
    assert torch.equal(codes, golden["out.prompted_codes"])


@pytest.mark.parametrize("num_codes", [1, 5, 6, 7, 12, 13])
def test_graphs_go_on_from_a_prompt_of_any_length(num_codes):
    model = never_end(make_transformer(coarse_post_gateloop_depth=1))
    prompt = random_codes(model, 3)[:, :num_codes]
    # three faces are left at least
    max_seq_len = (num_codes // model.num_codes_per_face + 4) * model.num_codes_per_face
    assert_graphs_change_nothing(model, prompt=prompt, max_seq_len=max_seq_len)


@pytest.mark.parametrize("guidance", [{}, {"cond_scale": 2.0}])
def test_meshes_that_end_leave_the_graph(guidance):
    options = {"text_cond_with_film": True, "coarse_adaptive_rmsnorm": True}
    model = make_text_transformer(fine_cross_attend_text=True, **options)
    with torch.no_grad():
        model.to_logits.bias[model.eos_token_id] += 1.5
    texts = TEXTS * 4
    codes = assert_graphs_change_nothing(model, texts=texts, max_seq_len=72, seed=1, **guidance)
    lengths = num_faces_of(model, codes)
    assert min(lengths) < 4 and max(lengths) > 4
    # fewer meshes are another graph
    assert len(SimulatedGraph.made) > 1


def test_all_meshes_may_end_at_once():
    model = make_transformer()
    with torch.no_grad():
        model.to_logits.bias[model.eos_token_id] = 1e4
    codes = generate(model, batch_size=2, cuda_graphs=True)
    assert num_faces_of(model, codes) == [1, 1]


@pytest.mark.parametrize("room", [1, 2])
def test_keys_and_values_grow(monkeypatch, room):
    monkeypatch.setattr(drawing, "FIRST_ROOM", room)
    model = never_end(make_transformer())
    assert_graphs_change_nothing(model, batch_size=2, max_seq_len=72)
    num_replays = [graph.num_replays for graph in SimulatedGraph.made]
    # room for so many faces, one of them for warming up, then for as many as there are
    assert num_replays == {1: [1, 3, 2], 2: [1, 1, 3, 2]}[room]


def test_random_numbers_of_the_device_are_used_alike():
    model = make_transformer()
    codes = []
    for cuda_graphs in (False, True):
        torch.manual_seed(0)
        codes.append(generate(model, cuda_graphs=cuda_graphs, batch_size=2, generator=None))
    assert torch.equal(*codes)
    assert not torch.equal(codes[1], generate(model, cuda_graphs=True, batch_size=2, seed=1))


def test_faces_are_handed_on_alike():
    model = make_transformer()
    with torch.no_grad():
        model.to_logits.bias[model.eos_token_id] += 1.5
    seen = []
    for cuda_graphs in (False, True):
        faces: list[Any] = []
        generate(model, batch_size=4, on_face=faces.append, cuda_graphs=cuda_graphs)
        seen.append([(face.row, face.face, face.mesh_codes.tolist()) for face in faces])
    assert seen[0] == seen[1] and len(seen[0]) > 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graphs_draw_the_same_codes_in_half_precision(dtype):
    model = never_end(make_text_transformer(**TEXT_OPTIONS["all, unequal widths, quads"]))
    options = {"texts": TEXTS, "cond_scale": 2.0}
    assert_graphs_change_nothing(model, dtype=dtype, **options)
    with torch.autocast(NAME, dtype):
        assert_graphs_change_nothing(model, **options)
    assert_graphs_change_nothing(model.to(dtype), **options)


def test_graphs_draw_the_same_codes_in_double_precision():
    assert_graphs_change_nothing(never_end(make_transformer().double()), batch_size=2)


def test_graphs_wait_no_more_than_once_a_face(device):
    model = never_end(make_transformer())
    generate(model)
    device.waits.clear()
    generate(model, cuda_graphs=True)
    del device.waits["tests/transformer/test_drawing.py generate _to_copy"]
    place = "meshgpt_pytorch/transformer/generation.py MeshGeneration._sample nonzero"
    assert dict(device.waits) == {place: NUM_FACES - 1}


# what cannot be recorded


def test_graphs_need_a_device_that_has_them():
    with pytest.raises(ValueError, match=r"cuda_graphs=True works on CUDA, got a model on cpu"):
        make_transformer().generate(cuda_graphs=True, progress=False)


@parametrize(
    "options",
    {"no cache": {"cache_kv": False}, "option": {"attn_kwargs": {"rotary_pos_emb": True}}},
)
def test_graphs_need_steps(options):
    model = make_transformer(attn_kwargs=options.pop("attn_kwargs", {}))
    with pytest.raises(ValueError, match=r"cuda_graphs=True needs cache_kv=True and decoder opt"):
        generate(model, cuda_graphs=True, **options)


def test_graphs_are_not_for_filters_of_the_caller():
    model = make_transformer()
    with pytest.raises(ValueError, match=r"cuda_graphs=True records the default filter_logits_fn"):
        generate(model, cuda_graphs=True, filter_logits_fn=EndRowsAfter(model, [1]))


# faults that the simulation finds


def embed_positions_as_python_counts(self: NetworkStep, place: int) -> Tensor:
    start = self.num_codes - place
    return self.position_embed[start : start + self.per_face]


def step_gate_loops_into_new_memory(self: GateLoopStep, x: Tensor) -> Tensor:
    for index, (norm, project) in enumerate(self.layers):
        query, key_value, gate = project(norm(x)).chunk(3, dim=-1)
        self.states[index] = torch.addcmul(key_value, gate.sigmoid(), self.states[index])
        x = torch.addcmul(x, query, self.states[index])
    return x


FAULTS = {
    "a count of Python": (NetworkStep, "_embed_positions", embed_positions_as_python_counts),
    "new memory": (GateLoopStep, "__call__", step_gate_loops_into_new_memory),
    "a position that stays": (DecoderStep, "make_static", lambda self, num_tokens: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_graphs_bring_is_found(monkeypatch, fault):
    model = never_end(make_transformer())
    options = {"batch_size": 2, "max_seq_len": 48}
    expected = assert_graphs_change_nothing(model, **options)
    monkeypatch.setattr(*FAULTS[fault])
    assert not torch.equal(generate(model, cuda_graphs=True, **options), expected)


def test_a_wait_inside_a_face_is_found(monkeypatch):
    draw = Sampling.draw

    def look_and_draw(self: Sampling, logits: Tensor) -> Tensor:
        assert logits.isfinite().all().item()
        return draw(self, logits)

    monkeypatch.setattr(Sampling, "draw", look_and_draw)
    model = never_end(make_transformer())
    generate(model)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        generate(model, cuda_graphs=True)
