"""What upstream 1.8.1 computed: losses, gradients, logits, generated codes, and its state."""

import ast
import re
from functools import cache

import pytest
import torch

from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.helpers import GOLDEN, Golden, read_golden
from tests.transformer.models import LetterEncoder

CASES = ["tr_default", "tr_plain", "tr_quads", "tr_text"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
HYPER_CONNECTION = re.compile(r"\.stream_emb|\.layers\.\d+\.2\.")


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


@pytest.fixture
def model(golden):
    return build(golden)


def build(golden):
    options = dict(golden.config["transformer"])
    if options.get("condition_on_text"):
        options["text_encoder"] = LetterEncoder(golden.config["text_dim"])
    model = MeshTransformer(MeshAutoencoder(**golden.config["autoencoder"]), **options)
    model.load_state_dict(golden.with_prefix("state"), strict=True)
    return model.eval()


def text_of(golden):
    return {"text_embeds": golden["in.text_embeds"]} if "text_dim" in golden.config else {}


def even_batch(golden):
    return {"vertices": golden["in.vertices"], "faces": golden["in.faces"], **text_of(golden)}


def generate(model, golden, **options):
    four_faces = 4 * model.num_codes_per_face
    return model.generate(
        temperature=0.0,
        return_codes=True,
        max_seq_len=four_faces,
        progress=False,
        **text_of(golden),
        **options,
    )


def test_train_loss_and_gradients(golden, model):
    model.train()
    loss = model(**even_batch(golden), cond_drop_prob=0.0)
    torch.testing.assert_close(loss.detach(), golden["out.train_loss"], **CLOSE)
    loss.backward()
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    assert len(norms) > 30
    torch.testing.assert_close(norms, golden.with_prefix("grad_norm"), **CLOSE)


def test_eval_loss(golden, model):
    torch.testing.assert_close(
        model(**even_batch(golden)).detach(), golden["out.eval_loss"], **CLOSE
    )


def test_codes(golden, model):
    codes = model.autoencoder.tokenize(golden["in.ragged_vertices"], golden["in.ragged_faces"])
    assert torch.equal(codes, golden["out.codes"])


@torch.no_grad()
def test_logits(golden, model):
    logits = model.forward_on_codes(
        golden["out.codes"], return_loss=False, append_eos=False, **text_of(golden)
    )
    torch.testing.assert_close(logits, golden["out.logits"], **CLOSE)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_generated_codes(golden, model, cache_kv):
    codes = generate(model, golden, cache_kv=cache_kv)
    reference = "out.greedy_codes" if cache_kv else "out.greedy_codes_uncached"
    assert torch.equal(codes, golden[reference])


@pytest.mark.parametrize("cache_kv", [True, False])
def test_codes_generated_from_a_prompt(golden, model, cache_kv):
    prompt = golden["out.codes"][:, : 2 * model.num_vertices_per_face]
    codes = generate(model, golden, prompt=prompt, cache_kv=cache_kv)
    assert torch.equal(codes, golden["out.prompted_codes"])


@torch.no_grad()
def test_guided_logits():
    golden = read_golden("tr_text")
    logits = build(golden).forward_on_codes(
        golden["out.codes"], return_loss=False, append_eos=False, cond_scale=3.0, **text_of(golden)
    )
    torch.testing.assert_close(logits, golden["out.logits_cfg3"], **CLOSE)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_codes_generated_under_guidance(cache_kv):
    golden = read_golden("tr_text")
    codes = generate(build(golden), golden, cond_scale=3.0, cache_kv=cache_kv)
    assert torch.equal(codes, golden["out.greedy_codes_cfg3"])


# names and shapes of upstream's state, see tests/golden/README.md


@cache
def read_listing():
    """Read the listing: a title -> its lines, and what the lines say of it."""
    sections = (GOLDEN / "upstream_state_dict.txt").read_text().split("## ")[1:]
    return {section.split("\n", 1)[0]: section.split("\n")[1:] for section in sections}


def small_transformer():
    """Options of the listed transformer and its autoencoder, and its names and shapes."""
    (title,) = (title for title in read_listing() if title.startswith("MeshTransformer small"))
    options, autoencoder = re.match(r".*?small: ({.*?}) .*?AE=({.*}) \(", title).groups()
    lines = [line.split("\t") for line in read_listing()[title] if "\t" in line]
    shapes = {name: ast.literal_eval(shape) for name, shape, _ in lines}
    return ast.literal_eval(options), ast.literal_eval(autoencoder), without_streams(shapes)


def without_streams(shapes):
    return {name: shape for name, shape in shapes.items() if not HYPER_CONNECTION.search(name)}


def apply_difference(shapes, lines):
    """Change names and shapes as the lines of a difference say."""
    shapes = dict(shapes)
    for line in filter(None, lines):
        kind, name, *shape = re.split(r"\s", line, maxsplit=2)
        if kind == "-":
            shapes.pop(name, None)
        else:
            shapes[name] = ast.literal_eval(re.findall(r"\[[\d, ]*\]", shape[0])[-1])
    return without_streams(shapes)


DIFFERENCES = [title for title in read_listing() if title.startswith("DIFF vs small")]


@pytest.mark.parametrize("title", ["coarse_post_gateloop_depth=1", *DIFFERENCES])
def test_state_has_the_names_and_shapes_of_upstream(title):
    options, autoencoder, shapes = small_transformer()
    if title in DIFFERENCES:
        shapes = {name: shape for name, shape in shapes.items() if "coarse_post" not in name}
        shapes = apply_difference(shapes, read_listing()[title])
        options |= ast.literal_eval(title.split(": ", 1)[1])
    else:
        options["coarse_post_gateloop_depth"] = 1
    if options.get("condition_on_text"):
        options["text_encoder"] = LetterEncoder(24)
    model = MeshTransformer(MeshAutoencoder(**autoencoder), **options)
    assert {name: [*tensor.shape] for name, tensor in model.state_dict().items()} == shapes
