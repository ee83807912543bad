"""Laws of the source text: which part may import which, sizes, docstrings, what never appears."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import meshgpt_pytorch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "meshgpt_pytorch"
FILES = sorted(PACKAGE.rglob("*.py"))

# lowest first: a part imports itself and what stands above it here
LAYERS = (
    ("version",),
    ("typing",),
    ("modes",),
    ("recompute",),
    ("mesh",),
    ("checkpoint",),
    ("data",),
    ("recipes",),
    ("tokenizers",),
    ("transformer",),
    ("evaluation",),
    ("prepare",),
    ("training",),
    ("trainer",),
    ("cli",),
    ("__main__",),
    # names of the whole package in one place
    ("meshgpt_pytorch", "__init__"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

MAX_FILE_LINES = 450
# without its signature and docstring: upstream's constructors alone have 37 arguments
MAX_BODY_LINES = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef


def where(path: Path, node: ast.AST | None = None) -> str:
    """Name a place in the source for a failure message."""
    line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
    return f"{path.relative_to(ROOT)}{line}"


def assert_none(offences: list[str]) -> None:
    """Fail with one line for each offence."""
    assert not offences, "\n".join(["", *offences])


def parse(path: Path) -> ast.Module:
    """Read a file as a syntax tree."""
    return ast.parse(path.read_text(), filename=str(path))


def module_name(path: Path) -> str:
    """Name a file as Python imports it, e.g. meshgpt_pytorch.mesh.io."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def part_of(module: str) -> str:
    """Name the part of the package that a module belongs to: mesh for meshgpt_pytorch.mesh.io."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """List all that a file imports, inside functions too, relative imports resolved."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node, submodule if submodule in MODULES else base


def own_imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """List what a file imports from this package."""
    for node, module in imports(path):
        if module.split(".")[0] == "meshgpt_pytorch":
            yield node, module


def functions(path: Path) -> Iterator[Function]:
    """List all functions and methods of a file."""
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def test_every_part_of_the_package_has_a_layer():
    assert_none(sorted({part_of(name) for name in MODULES} - set(LEVEL)))


def test_imports_inside_the_package_point_one_way():
    backward = [
        f"{where(path, node)} imports {module}"
        for name, path in MODULES.items()
        for node, module in own_imports(path)
        if part_of(module) != part_of(name) and LEVEL[part_of(module)] >= LEVEL[part_of(name)]
    ]
    assert_none(backward)


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {name: {module for _, module in own_imports(path)} for name, path in MODULES.items()}
    # take away what imports nothing that is left, until only circles remain
    while free := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in free:
            del graph[name]
    assert_none(sorted(graph))


def test_no_file_is_longer_than_can_be_read():
    lengths = {where(path): len(path.read_text().splitlines()) for path in FILES}
    assert_none([f"{name}: {n} lines" for name, n in lengths.items() if n > MAX_FILE_LINES])


def body_lines(function: Function) -> int:
    """Count the lines of a function behind its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_a_screen():
    lengths = {
        f"{where(path, node)} {node.name}": body_lines(node)
        for path in FILES
        for node in functions(path)
    }
    assert_none([f"{name}: {n} lines" for name, n in lengths.items() if n > MAX_BODY_LINES])


def documented(path: Path) -> Iterator[Function | ast.ClassDef]:
    """List what needs a docstring: public functions, classes, and methods of the public classes."""
    for node in parse(path).body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if node.name in meshgpt_pytorch.__all__ and isinstance(node, ast.ClassDef):
                yield from (
                    member
                    for member in node.body
                    if isinstance(member, Function) and not member.name.startswith("_")
                )


def test_everything_public_has_a_docstring():
    missing = [
        f"{where(path, node)} {node.name}"
        for path in FILES
        for node in documented(path)
        if not ast.get_docstring(node)
    ]
    missing += [where(path) for path in FILES if defines_something(path) and not doc_of(path)]
    assert_none(missing)


def defines_something(path: Path) -> bool:
    """Tell whether a file has more than imports and constants."""
    return any(isinstance(node, Function | ast.ClassDef) for node in parse(path).body)


def doc_of(path: Path) -> str | None:
    """Read the docstring of a file."""
    return ast.get_docstring(parse(path))


def test_docstrings_begin_with_a_sentence():
    first_lines = {
        f"{where(path, node)} {node.name}": (ast.get_docstring(node) or ".").splitlines()[0]
        for path in FILES
        for node in documented(path)
    }
    assert_none([place for place, line in first_lines.items() if not line.endswith((".", ":"))])


def test_no_default_can_be_changed_by_a_caller():
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = {"list", "dict", "set"}
    found = [
        f"{where(path, node)} {node.name}"
        for path in FILES
        for node in functions(path)
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        if isinstance(default, mutable)
        or (isinstance(default, ast.Call) and getattr(default.func, "id", "") in makers)
    ]
    assert_none(found)


def test_every_assert_says_what_it_holds():
    bare = [
        where(path, node)
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert_none(bare)


def test_package_never_prints():
    calls = [
        where(path, node)
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert_none(calls)


def test_annotations_are_not_postponed():
    # beartype and jaxtyping need the annotation itself, not its text
    postponed = [
        where(path, node)
        for path in FILES
        for node, module in imports(path)
        if module == "__future__"
    ]
    assert_none(postponed)


def test_nothing_is_left_for_later():
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b")
    files = [path for folder in ROOT.iterdir() if folder.name in SOURCES for path in texts(folder)]
    left = [
        f"{where(path)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if marks.search(line)
    ]
    assert_none(left)


SOURCES = {"meshgpt_pytorch", "tests", "examples", "benchmarks", "docs", "README.md", "Makefile"}


def texts(path: Path) -> list[Path]:
    """List the source files and documents at a path."""
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.suffix in (".py", ".md")]


def test_no_test_is_skipped_or_expected_to_fail():
    ways = {"skip", "skipif", "xfail", "importorskip"}
    found = [
        f"{where(path, node)} {node.attr}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ways
    ]
    assert_none(found)


def declared(requirements: list[str]) -> set[str]:
    """Read the distribution names out of requirements."""
    return {normalised(re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0]) for line in requirements}


def normalised(name: str) -> str:
    """Spell a distribution name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def third_party_distributions(folder: Path) -> dict[str, str]:
    """Map the distributions whose modules a folder's files import to one such place."""
    distributions = packages_distributions()
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node, module in imports(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("meshgpt_pytorch", "tests", ""):
                continue
            for name in distributions.get(top, [top]):
                found[normalised(name)] = where(path, node)
    return found


def project_table() -> dict:
    """Read the [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_package_that_is_imported_is_declared():
    project = project_table()
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    known = declared(project["dependencies"] + extras)
    used = third_party_distributions(PACKAGE)
    assert_none([f"{name} in {place}" for name, place in used.items() if name not in known])


def loaded_by_name(folder: Path) -> set[str]:
    """List the distributions whose modules are loaded by import_module("...") when needed."""
    calls = (node for path in folder.rglob("*.py") for node in ast.walk(parse(path)))
    modules = {
        str(node.args[0].value)
        for node in calls
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "import_module"
        and isinstance(node.args[0], ast.Constant)
    }
    distributions = packages_distributions()
    return {normalised(name) for module in modules for name in distributions.get(module, [module])}


def test_every_dependency_is_imported_by_the_package():
    used = third_party_distributions(PACKAGE).keys() | loaded_by_name(PACKAGE)
    assert_none(sorted(declared(project_table()["dependencies"]) - used))


def test_every_dependency_is_pinned_by_the_constraints():
    project = project_table()
    extras = project["optional-dependencies"]
    installed = project["dependencies"] + [
        line
        for name in ("test", "pictures", "text", "simplify", "formats")
        for line in extras[name]
    ]
    pinned = declared((ROOT / "constraints.txt").read_text().splitlines())
    assert_none(sorted(declared(installed) - pinned))
