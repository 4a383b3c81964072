"""The documentation keeps up with the code: links, verbs, options, cited tests, and the recipe table of RoMo.

After changing RoMo's options or recipes, renew the table in ``docs/romo.md``:

    python tests/test_docs.py --write
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
WITH_RECIPE = ("cmah", "multi-queue-moco", "ncr", "pc2", "romo")
"""Methods with a recipe NAME-paper, whose pages hold a table of it."""
UPDATE = "python tests/test_docs.py --write"
SOMEWHERE = re.compile(r"^(https?:|mailto:|#)")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if SOMEWHERE.match(target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve()
        assert found.exists(), f"{relative(page)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{relative(page)} links to {target}"


def test_the_navigation_names_every_page() -> None:
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def named(entries: list[Any]) -> list[str]:
        found: list[str] = []
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            found += named(value) if isinstance(value, list) else [value]
        return found

    assert sorted(named(configuration["nav"])) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def test_reference_pages_name_what_exists() -> None:
    for page in sorted((DOCS / "api").glob("*.md")):
        parts = re.split(r"^::: ", page.read_text(), flags=re.M)[1:]
        assert parts
        for part in parts:
            name, _, rest = part.partition("\n")
            assert importlib.util.find_spec(name) is not None, f"{relative(page)}: {name}"
            members = re.search(r"members: \[(.*)\]", rest)
            for member in members[1].split(", ") if members else ():
                module = importlib.import_module(name)
                assert hasattr(module, member), f"{relative(page)}: {name}.{member}"


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every ``consilience`` command line in a fenced block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", page.read_text(), re.M | re.S):
            for line in block.splitlines():
                words = line.split(" #")[0].split()
                if "consilience" in words:
                    found.append((relative(page), words[words.index("consilience") + 1 :]))
    return found


def test_command_lines_use_verbs_and_options_that_exist() -> None:
    from consilience.cli.main import VERBS
    from consilience.methods.registry import methods
    from consilience.training.config import TrainConfig

    seen = set()
    for page, (verb, *words) in commands():
        if verb == "VERB":
            continue
        assert verb in VERBS, f"{page}: consilience {verb}"
        seen.add(verb)
        run = importlib.import_module(f"consilience.cli.{verb}_verb").run
        options = {f"--{name}" for name in inspect.signature(run).parameters} | {"--json", "--quiet", "-o", "-k"}
        options |= {f"--train.{field.name}" for field in dataclasses.fields(TrainConfig)}
        if words and words[0] in methods():
            options |= {f"--method.{name}" for name in flat(methods()[words[0]].cls.Config())}
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("-"):
                spelled = f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
                assert spelled in options, f"{page}: consilience {verb} {name}"
    assert seen == set(VERBS), "docs/cli.md shows every verb"


def test_options_named_in_the_text_exist() -> None:
    from consilience.methods.registry import methods
    from consilience.training.config import TrainConfig

    known = {f"--method.{name}" for info in methods().values() for name in flat(info.cls.Config())}
    known |= {f"--train.{field.name}" for field in dataclasses.fields(TrainConfig)}
    for page in PAGES:
        for option in re.findall(r"--(?:method|train)\.[a-z_]+(?:\.[a-z_]+)*", page.read_text()):
            assert option in known, f"{relative(page)}: {option}"


def test_cited_tests_and_files_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:tests|src|docs)/[\w/.]+?)(?:::\w+)?`", page.read_text()):
            if "NAME" not in name:
                assert (ROOT / name).exists(), f"{relative(page)}: {name}"
        for name, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
            tree = ast.parse((ROOT / name).read_text())
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in names, f"{relative(page)}: {name}::{test}"


def test_every_method_and_every_room_has_its_row() -> None:
    from consilience.methods.registry import methods

    rows = (DOCS / "systems.md").read_text()
    for name in methods():
        assert f"`{name}`" in rows
        assert (DOCS / f"{name}.md").is_file()
    rooms = (DOCS / "architecture.md").read_text()
    for folder in (ROOT / "src" / "consilience").iterdir():
        if folder.is_dir() and any(folder.glob("*.py")):
            assert f"| `{folder.name}` |" in rooms


def test_the_change_log_names_this_version() -> None:
    from consilience import __version__

    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_embedded_data_are_attributed() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for path in (ROOT / "src/consilience/data/embedded").iterdir():
        if path.suffix != ".txt":
            assert path.name in notice
    assert "Yann LeCun" in notice
    assert "ShareAlike" in notice
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_no_placeholder_is_left(page: Path) -> None:
    left = sorted(set(re.findall(r"@@[A-Z0-9_]+@@", page.read_text())))
    assert not left, f"{relative(page)}: figures that were never filled in: {', '.join(left)}"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Fields of a configuration by full name, those of nested ones with dots."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        values |= flat(value, f"{prefix}{field.name}.") if nested else {f"{prefix}{field.name}": value}
    return values


def told(kind: type, prefix: str = "") -> dict[str, str]:
    """What the docstring under each field of a configuration class, or of one it extends, says, by full name."""
    texts: dict[str, str] = {}
    for base in kind.__bases__:
        if base is not object:
            texts |= told(base, prefix)
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, note in pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
            text = " ".join(str(note.value.value).split())
            texts[prefix + ast.unparse(field.target)] = text.replace("``", "`").replace("|", "\\|")
    return texts


def recipe_table(method: str) -> str:
    """A method's options: our value, the paper recipe's, and what the field's docstring says."""
    from consilience.methods.registry import find
    from consilience.training.configure import merge, read_yaml

    own = find(method).cls.Config()
    ours, paper = flat(own), flat(merge(own, read_yaml(f"{method}-paper", "")["method_config"]))
    texts = told(type(own))
    for field in dataclasses.fields(own):
        value = getattr(own, field.name)
        texts |= told(type(value), f"{field.name}.") if dataclasses.is_dataclass(value) else {}
    lines = ["| option | ours | paper's | meaning |", "|---|---|---|---|"]
    for name, value in ours.items():
        if "." in name and value == paper[name]:
            continue
        lines.append(f"| `{name}` | {shown(value)} | {shown(paper[name])} | {texts.get(name, '')} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_table(page: str, method: str) -> str:
    start, end = "<!-- recipe -->\n", "<!-- /recipe -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{recipe_table(method)}\n\n{end}{rest.partition(end)[2]}"


@pytest.mark.parametrize("method", WITH_RECIPE)
def test_the_recipe_table_is_the_code(method: str) -> None:
    page = DOCS / f"{method}.md"
    assert page.read_text() == with_table(page.read_text(), method), f"the table in {relative(page)} is old: {UPDATE}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {UPDATE}")
    for name in WITH_RECIPE:
        page = DOCS / f"{name}.md"
        page.write_text(with_table(page.read_text(), name))
        print(f"wrote {page}")
