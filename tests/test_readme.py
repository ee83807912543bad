"""What the documents promise: their Python blocks run, their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshgpt_pytorch import Mesh, canonicalize_mesh, load_mesh, save_mesh
from tests.helpers import ROOT, save_small_t5

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

# the quick start samples whole meshes from models that know nothing: six faces are enough here
CUT_SHORT = {"transformer.generate(": "transformer.generate(max_seq_len=36, "}
CUT_SHORT_IN = "Quick start"

# run by a test of its own
FILE_TO_FILE = "From a mesh file to a mesh file"
MAX_LINES_FILE_TO_FILE = 25


def blocks_by_section(document: Path) -> dict[str, str]:
    """Join the Python blocks under each heading of level 2; they share their names."""
    sections: dict[str, str] = {}
    for section in re.split(r"^## ", document.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        if blocks:
            sections[section.splitlines()[0]] = "\n".join(blocks)
    return sections


PROGRAMS = [
    pytest.param(heading, program, id=f"{document.name}: {heading}")
    for document in DOCUMENTS
    for heading, program in blocks_by_section(document).items()
    if heading != FILE_TO_FILE
]


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub that holds a small random model under the name of the default T5."""
    folder = tmp_path_factory.mktemp("hub")
    model, revision = folder / "hub" / "models--google--t5-v1_1-base", "0" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(revision)
    save_small_t5(model / "snapshots" / revision, "a high chair small teapot long table".split())
    return folder


@pytest.fixture
def work_folder(tmp_path: Path, furniture: list[Mesh]) -> Path:
    """A folder to run in, with the bundled meshes and a chair in a file."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    chair = min(
        (mesh for mesh in furniture if len(mesh.faces) > 90), key=lambda mesh: len(mesh.faces)
    )
    save_mesh(chair, tmp_path / "chair.obj")
    return tmp_path


def run(program: str, folder: Path, hub: Path) -> None:
    """Run a program in a fresh interpreter, offline, with type checks on."""
    settings = {
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TYPECHECK": "True",
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **settings},
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize(("heading", "program"), PROGRAMS)
def test_python_blocks_run(heading: str, program: str, work_folder: Path, hub_folder: Path):
    if heading == CUT_SHORT_IN:
        for whole, short in CUT_SHORT.items():
            program = program.replace(whole, short)
    run(program, work_folder, hub_folder)


def test_readme_goes_from_file_to_file_in_few_lines(work_folder: Path, hub_folder: Path):
    program = blocks_by_section(ROOT / "README.md")[FILE_TO_FILE]
    assert len([line for line in program.splitlines() if line]) < MAX_LINES_FILE_TO_FILE
    run(program, work_folder, hub_folder)
    wanted = canonicalize_mesh(load_mesh(work_folder / "chair.obj"))
    written = canonicalize_mesh(load_mesh(work_folder / "generated.glb"))
    assert written.faces.equal(wanted.faces)
    assert written.vertices.equal(wanted.vertices)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document: Path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_tests_that_the_documents_name_are_there():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", sources, flags=re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"`(test_\w+)`", path.read_text())}
    assert sorted(named - there) == []


def test_readme_names_every_stage_of_the_flow():
    rows = re.findall(r"^\| (\d) (\w+) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    stages = "read canonical batch tokenize model sample decode write".split()
    assert [name for _, name in rows] == stages
    assert [int(number) for number, _ in rows] == list(range(1, len(stages) + 1))


def test_files_that_the_readme_names_are_there():
    names = re.findall(r"`((?:mesh|data|tokenizers|transformer)/[\w.]*)`", DOCUMENTS[0].read_text())
    assert names
    assert [name for name in names if not (ROOT / "meshgpt_pytorch" / name).exists()] == []
