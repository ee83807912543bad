"""How far half precision and int8 agree with float32, on a model trained on the furniture.

    make demo                                            # trains the model, into out/
    python -m benchmarks.precision_agreement --model out

Prints a table: for the captions of the demo, the likeliest meshes in each precision against those
in float32. The first codes of a mesh that differ change all behind them, so the logits are
compared too, on the codes of float32: all that a step predicts, and whether its likeliest code is
the same.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meshgpt_pytorch import AutoModelEncoder, MeshTransformer, minilm_path
from meshgpt_pytorch.transformer.prediction import choose_predictor
from meshgpt_pytorch.transformer.step_linear import Precision

PRECISIONS = {
    "float32": Precision(),
    "float16": Precision(torch.float16),
    "bfloat16": Precision(torch.bfloat16),
    "int8": Precision(quantize="int8"),
}
NO_GUIDANCE = {"cond_scale": 1.0}


class Agreement(NamedTuple):
    """Shares of 1, and the error of a logit where that of float32 is known."""

    equal_codes: float
    equal_meshes: float
    equal_likeliest: float
    mean_error: float
    spread: float


def load_demo(folder: Path) -> tuple[MeshTransformer, list[str]]:
    """Load the transformer and the captions of ``make demo``."""
    weights, report = folder / "transformer.safetensors", folder / "report.json"
    for path in (weights, report):
        if not path.exists():
            raise SystemExit(
                f"{path} does not exist; run `make demo` first, or pass --model FOLDER"
            )
    overrides = {"text_encoder": AutoModelEncoder(minilm_path())}
    model = MeshTransformer.init_and_load(weights, overrides=overrides).eval()
    generated = json.loads(report.read_text())["generated"]
    return model, [mesh["caption"] for mesh in generated]


def generate(model: MeshTransformer, captions: Sequence[str], precision: Precision) -> Tensor:
    """Generate the likeliest codes of each caption, ``b n``."""
    codes: Any = model.generate(
        texts=captions,
        temperature=0.0,
        return_codes=True,
        progress=False,
        dtype=precision.dtype,
        quantize=precision.quantize,
    )
    return codes.flatten(start_dim=1)


@torch.no_grad()
def predict(
    model: MeshTransformer, captions: Sequence[str], codes: Tensor, precision: Precision
) -> Tensor:
    """Predict each code from those before it, a step a code, ``b n c``."""
    text = model._read_text(captions, None, None, None)
    predictor = choose_predictor(model, text, NO_GUIDANCE, precision, with_cache=True)
    codes = codes.clamp(min=0)
    logits = [predictor.predict(codes[:, :position]) for position in range(codes.shape[1])]
    return torch.stack(logits, dim=1)


def compare(
    model: MeshTransformer, captions: Sequence[str], precision: Precision, wanted: Tensor
) -> Agreement:
    """Compare a precision with the codes of float32."""
    codes = generate(model, captions, precision)
    length = max(codes.shape[1], wanted.shape[1])
    both = [
        torch.nn.functional.pad(each, (0, length - each.shape[1]), value=model.pad_id)
        for each in (codes, wanted)
    ]
    exists = (both[0] != model.pad_id) | (both[1] != model.pad_id)
    is_equal = both[0] == both[1]
    is_code = wanted != model.pad_id
    exact = predict(model, captions, wanted, Precision())[is_code]
    near = predict(model, captions, wanted, precision)[is_code]
    return Agreement(
        equal_codes=is_equal[exists].float().mean().item(),
        equal_meshes=is_equal.all(dim=1).float().mean().item(),
        equal_likeliest=(near.argmax(-1) == exact.argmax(-1)).float().mean().item(),
        mean_error=(near - exact).abs().mean().item(),
        spread=exact.std().item(),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("out"), help="folder of `make demo`")
    model, captions = load_demo(parser.parse_args().model)
    wanted = generate(model, captions, PRECISIONS["float32"])
    print(f"{len(captions)} captions, {int((wanted != model.pad_id).sum())} codes")
    print("| precision | equal codes | equal meshes | same likeliest code | error of a logit |")
    print("|---|---|---|---|---|")
    for name, precision in PRECISIONS.items():
        agreement = compare(model, captions, precision, wanted)
        print(
            f"| {name} | {agreement.equal_codes:.2%} | {agreement.equal_meshes:.0%} | "
            f"{agreement.equal_likeliest:.3%} | {agreement.mean_error:.2g} of a spread of "
            f"{agreement.spread:.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
