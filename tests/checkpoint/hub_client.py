"""Push models to a hub and load them from there. Run by test_hub.py, which serves the hub."""

import json
import sys

import torch
from safetensors.torch import load_file

from meshgpt_pytorch import MeshAutoencoder, MeshTransformer
from tests.helpers import GOLDEN
from tests.training.runs import LetterEncoder, make_autoencoder, make_text_transformer

EXPECTED = load_file(GOLDEN / "upstream_files" / "expected.safetensors")


def is_same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Compare all weights."""
    states = one.state_dict(), other.state_dict()
    same_names = states[0].keys() == states[1].keys()
    return same_names and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def main() -> None:
    """Print what came of it."""
    report = {}
    autoencoder, transformer = make_autoencoder(), make_text_transformer()
    text = {"text_encoder": LetterEncoder()}
    report["url"] = autoencoder.push_to_hub("user/shapes", token="hf_secret")
    transformer.push_to_hub("user/writer", token="hf_secret", commit_message="Say more")
    loaded = MeshAutoencoder.from_pretrained("user/shapes")
    report["autoencoder"] = is_same(loaded, autoencoder)
    loaded = MeshTransformer.from_pretrained("user/writer", overrides=text)
    report["transformer"] = is_same(loaded, transformer)
    loaded = MeshTransformer.from_pretrained("user/writer", overrides=text, local_files_only=True)
    report["cached"] = is_same(loaded, transformer)

    upstream = MeshTransformer.from_pretrained("user/upstream", overrides=text)
    codes = EXPECTED["hub_transformer.codes"]
    logits = upstream.eval().forward_on_codes(
        codes, text_embeds=EXPECTED["text_embeds"], return_loss=False, append_eos=False
    )
    report["upstream"] = torch.allclose(logits, EXPECTED["hub_transformer.logits"], atol=1e-5)

    try:
        MeshAutoencoder.from_pretrained("user/nothing")
    except Exception as error:
        report["nothing"] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
