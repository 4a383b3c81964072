"""The rules of the house, checked on the source text: who imports whom, how long files are, what names are promised.

The promised public names are in ``public_names.json``. After adding some, or removing some deliberately, record them:

    python tests/test_architecture.py --write
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "consilience"
NAMES = Path(__file__).with_name("public_names.json")
UPDATE = "python tests/test_architecture.py --write"

ROOMS = (
    "data", "views", "encoders", "heads", "losses", "memory", "noise", "methods", "training", "evaluation",
    "prediction", "audit", "embedding", "search", "synthesis", "serve", "benchmarks", "cli",
)  # fmt: skip
"""In the order data meets them. A room imports itself and rooms before it."""
FOUNDATION = ("errors", "files", "distributed")
"""Single files that every room may import, and that import no room."""
FRONT = ("__init__", "__main__")
"""What a user's first import or command meets: points into the house and is imported by ``cli`` alone."""
PAPERS_SHARE = ("base", "pairs", "registry")
"""The only files of ``methods`` that a paper's file may import."""
LONGEST, LONGEST_PAPER = 400, 350
DISTRIBUTIONS = {
    "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "lance": "pylance", "faiss": "faiss-cpu",
    "prometheus_client": "prometheus-client",
}  # fmt: skip


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, wherever in the file; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from ((node.lineno, f"{dots}{node.module or ''}.{name.name}") for name in node.names)


def forbidden(own: str, tree: ast.Module) -> Iterator[str]:
    """What a file called ``own`` (``consilience.room.file``) imports against the rules, one line each."""
    place = own.split(".")[1]
    for line, name in imported(tree):
        where = f"{own} line {line} imports {name}"
        if name.startswith("."):
            yield f"{where}: write the full name"
        if not name.startswith("consilience."):
            continue
        parts = name.split(".")
        target = parts[1]
        if target in FOUNDATION:
            continue
        if place in FOUNDATION:
            yield f"{where}: the foundation imports no room"
        elif target not in ROOMS:
            if place != "cli":
                yield f"{where}: only cli may import the front door"
        elif place == "methods" == target:
            paper = own.split(".")[-1] not in PAPERS_SHARE
            if paper and len(parts) > 2 and parts[2] not in PAPERS_SHARE:
                yield f"{where}: papers never import each other; move what they share up into a room"
        elif ROOMS.index(target) > ROOMS.index(place):
            yield f"{where}: {place} comes before {target}; imports go to earlier rooms only"


def public_names(tree: ast.Module) -> list[str]:
    """Names without underscore that the module itself defines at top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {leaf.id for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return sorted(name for name in names if not name.startswith("_"))


def all_public_names() -> dict[str, list[str]]:
    found = {module_name(path): public_names(ast.parse(path.read_text())) for path in files()}
    return {module: names for module, names in sorted(found.items()) if names}


def lines_of_names(names: dict[str, list[str]]) -> str:
    return json.dumps(names, indent=2) + "\n"


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Module name to syntax tree, the front door left out."""
    return {
        module_name(path): ast.parse(path.read_text())
        for path in files()
        if not (path.parent == SOURCE and path.stem in FRONT)
    }


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(ROOMS), "name the new room in ROOMS (and in docs/architecture.md), at its place in the order"
    alone = {path.stem for path in SOURCE.glob("*.py")}
    assert alone <= {*FOUNDATION, *FRONT}


def test_imports_go_one_way(trees: dict[str, ast.Module]) -> None:
    wrong = [line for name, tree in trees.items() for line in forbidden(name, tree)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("own", "code", "reason"),
    [
        ("consilience.losses.robust", "from consilience.memory.bank import Bank", "earlier rooms only"),
        ("consilience.data.loader", "def f():\n    import consilience.cli.main", "earlier rooms only"),
        ("consilience.methods.second", "from consilience.methods.romo import RoMo", "never import each other"),
        ("consilience.methods.second", "from consilience.methods import romo", "never import each other"),
        ("consilience.errors", "from consilience.data.table import Table", "imports no room"),
        ("consilience.search.search", "from consilience import train", "front door"),
        ("consilience.search.search", "from .other import name", "full name"),
    ],
)
def test_the_rule_would_notice(own: str, code: str, reason: str) -> None:
    (line,) = forbidden(own, ast.parse(code))
    assert reason in line


def test_the_rule_allows_what_it_should() -> None:
    for own, code in (
        ("consilience.memory.bank", "from consilience.losses.robust import rcll\nimport torch"),
        ("consilience.methods.second", "from consilience.methods.base import Method"),
        ("consilience.methods.registry", "import consilience.methods as folder"),
        ("consilience.data.table", "from consilience.errors import InputError"),
        ("consilience.cli.main", "from consilience import __version__"),
    ):
        assert not list(forbidden(own, ast.parse(code)))


def test_files_stay_short() -> None:
    long = []
    for path in files():
        limit = LONGEST_PAPER if path.parent.name == "methods" else LONGEST
        count = len(path.read_text().splitlines())
        if count >= limit:
            long.append(f"{path.relative_to(ROOT)} has {count} lines; fewer than {limit} are allowed")
    assert not long, "\n".join(long)


def test_no_grab_bags_and_no_options_passed_through(trees: dict[str, ast.Module]) -> None:
    for path in files():
        assert path.stem not in {"utils", "util", "helpers", "common", "misc", "tools"}, path
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.args.kwarg is None, f"{name}.{node.name} takes **{node.args.kwarg and node.args.kwarg.arg}"


def test_nothing_is_left_for_later(trees: dict[str, ast.Module]) -> None:
    for path in files():
        found = re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())
        assert not found, f"{path.relative_to(ROOT)}: {found and found[0]}"
    for name, tree in trees.items():
        if name.endswith(".base"):
            continue  # what is abstract is declared in files of this name
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise):
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                unfinished = isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
                assert not unfinished, f"{name} line {node.lineno} raises NotImplementedError"


def test_public_functions_and_classes_have_docstrings(trees: dict[str, ast.Module]) -> None:
    bare = []
    for name, tree in trees.items():
        if tree.body and not ast.get_docstring(tree):
            bare.append(name)
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            # every verb has a ``show`` that prints what its ``run`` returned: said once, in cli/main.py
            told = node.name.startswith("_") or (node.name == "show" and name.endswith("_verb"))
            told |= any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
            if not told and not ast.get_docstring(node):
                bare.append(f"{name}.{node.name}")
    assert not bare, f"without docstring: {', '.join(bare)}"


def test_what_is_imported_is_declared(trees: dict[str, ast.Module]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in [*project["dependencies"], *extras]}
    missing = set()
    for tree in trees.values():
        for _, name in imported(tree):
            top = name.split(".")[0]
            if top and top != "consilience" and top not in sys.stdlib_module_names:
                distribution = DISTRIBUTIONS.get(top, top)
                if distribution.lower() not in declared:
                    missing.add(distribution)
    assert not missing, f"add to the dependencies in pyproject.toml: {', '.join(sorted(missing))}"


def test_what_is_no_code_is_packed_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["consilience"]
    packed = {path for pattern in patterns for path in SOURCE.glob(pattern)}
    there = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert not there - packed, "add to package-data in pyproject.toml"


def test_public_names_are_frozen() -> None:
    promised: dict[str, list[str]] = json.loads(NAMES.read_text())
    present = all_public_names()
    gone = [f"{m}.{n}" for m, names in promised.items() for n in names if n not in present.get(m, [])]
    new = [f"{m}.{n}" for m, names in present.items() for n in names if n not in promised.get(m, [])]
    assert not gone, f"public names disappeared: {', '.join(gone)}; put them back, or, if it is meant: {UPDATE}"
    assert not new, f"public names were added: {', '.join(new)}; record them: {UPDATE}"
    assert NAMES.read_text() == lines_of_names(present), f"{NAMES.name} is not in its own format: {UPDATE}"


def test_lazy_names_are_where_the_package_says() -> None:
    import consilience

    promised = all_public_names()
    for name, module in consilience._WHERE.items():
        assert name in promised[module], f"consilience.{name} should come from {module}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {UPDATE}")
    NAMES.write_text(lines_of_names(all_public_names()))
    print(f"wrote {NAMES}")
