"""The text libraries come on first use, and come also with a torchvision that misses operators."""

import subprocess
import sys

import pytest

from meshgpt_pytorch.transformer import text_libraries

HEAVY = ("transformers", "classifier_free_guidance_pytorch", "open_clip", "torchvision")


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize("module", ["text", "guidance"])
def test_importing_a_text_module_imports_no_text_library(module):
    loaded = run_python(
        f"import sys, meshgpt_pytorch.transformer.{module}\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded == []


def test_libraries_are_imported_after_someone_else_failed_to():
    # with an unfit torchvision the first import fails; with a fit one it already works
    last = run_python(
        "try:\n"
        "    import classifier_free_guidance_pytorch\n"
        "except ImportError:\n"
        "    pass\n"
        "from meshgpt_pytorch.transformer.text_libraries import import_guidance_library\n"
        "print(import_guidance_library().T5Adapter.__name__)\n"
        "from transformers import BertModel, T5EncoderModel\n"
        "print(BertModel.__name__)"
    )
    assert last == ["T5Adapter", "BertModel"]


def test_operators_are_declared_once_and_torchvision_stays_one_module():
    torchvision = text_libraries.import_torchvision()
    assert text_libraries.declare_torchvision_operators() == []
    assert text_libraries.import_torchvision() is torchvision is sys.modules["torchvision"]


def test_operators_that_exist_are_left_alone():
    missing = run_python(
        "import torch\n"
        "torch.library.define('torchvision::nms', '(Tensor boxes) -> Tensor')\n"
        "from meshgpt_pytorch.transformer.text_libraries import declare_torchvision_operators\n"
        "print(*declare_torchvision_operators())\n"
        "print(torch.ops.torchvision.nms.default._schema)"
    )
    assert missing[0] == "qnms"
    assert "boxes)" in missing[2]


def test_another_fault_of_torchvision_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('different CUDA major versions')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="got different CUDA major versions; install the torchv"):
        text_libraries.import_torchvision.__wrapped__()


def test_transformers_does_without_torchvision(monkeypatch):
    monkeypatch.setattr(text_libraries, "find_spec", lambda name: None)
    assert text_libraries.import_torchvision.__wrapped__() is None
