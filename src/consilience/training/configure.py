"""Configuration: one dataclass is the YAML, the command line, the validation and the help text (jsonargparse)."""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from consilience.errors import InputError, unknown
from consilience.training.config import TrainConfig

T = TypeVar("T")
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parser(program: str) -> ArgumentParser:
    """A strict parser: no abbreviations, errors raised as ArgumentError."""
    return ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False)


def readable(error: Exception, known: ArgumentParser) -> InputError:
    """A parser's error as one line with the nearest known spelling."""
    text = " ".join(str(error).split())
    options = sorted({o for action in known._actions for o in action.option_strings if o.startswith("--")})
    options = [o for o in options if not any(other.startswith(f"{o}.") for other in options)]
    found = re.search(r"unrecognized arguments: (\S+)", text)
    if found and found[1].startswith("-"):
        return unknown("option", found[1].split("=")[0], options)
    if found:
        return InputError(f"unexpected argument {found[1]!r}; see {known.prog} --help")
    found = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if found:
        return unknown("option", f"--{found[1]}.{found[2]}", options)
    found = re.search(r'Parser key "([\w.]+)": (.*)', text)
    if found:
        reason = re.sub(r"<class '(\w+)'>", r"\1", found[2]).replace("typing.Literal", "one of ")
        reason = re.sub(r"Expected an? (.*)\. Got value: (.*)", r"expected \1, got \2", reason)
        return InputError(f"--{found[1]}: {reason}")
    return InputError(f"{text}; see {known.prog} --help")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the dataclass ``cls`` from nested plain values; what is missing keeps its default.

    Raises InputError for unknown keys (with the nearest spelling), wrong types and values out of range.
    """
    reader, group = parser("configuration"), _group(cls)
    reader.add_class_arguments(cls, group, fail_untyped=True)
    try:
        parsed = reader.parse_object({group: dict(values)})
        return cast(T, getattr(reader.instantiate(parsed), group))
    except InputError:
        raise
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise readable(error, reader) from error


def _group(cls: type) -> str:
    """What stands before a field's name on the command line."""
    return "train" if cls is TrainConfig else "method"


def merge(base: T, values: Mapping[str, Any]) -> T:
    """A copy of a configuration dataclass with the nested plain ``values`` put over it."""

    def put(target: dict[str, Any], source: Mapping[str, Any], path: str) -> dict[str, Any]:
        for name, value in source.items():
            inner = target.get(name)
            if isinstance(inner, dict) and not isinstance(value, Mapping):
                raise InputError(f"--{path}.{name}: expected options below it ({', '.join(inner)}), got {value}")
            target[name] = put(inner, value, f"{path}.{name}") if isinstance(inner, dict) else value
        return target

    return build(type(base), put(dataclasses.asdict(cast(Any, base)), values, _group(type(base))))


def read_yaml(name: str | Path, folder: str) -> dict[str, Any]:
    """A YAML file as plain values: a path, or the name of one that ships in ``consilience/recipes``/``folder``."""
    shipped = Path(__file__).parent.parent / "recipes" / folder
    path = Path(name)
    if not path.is_file():
        path = shipped / f"{name}.yaml"
        if not path.is_file():
            raise unknown("recipe (or YAML file)", str(name), [p.stem for p in shipped.glob("*.yaml")])
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no recipe; expected keys such as method, method_config, train")
    return content


def read_recipe(name: str | Path, method: str | None = None) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """(method, its options, the loop's options) of a recipe, a file or one that ships, over which nothing is put yet.

    Raises InputError for unknown keys, options that are none, and a recipe of another method than ``method``.
    """
    content, known = read_yaml(name, ""), ("method", "method_config", "train")
    for key in content:
        if key not in known:
            raise unknown(f"key in {name}", str(key), known)
    if method is not None and content.get("method", method) != method:
        raise InputError(f"{name} is a recipe of {content['method']}, not of {method}; choose another --config")
    for key in known[1:]:
        if not isinstance(content.get(key) or {}, dict):
            raise InputError(f"{name}: {key} holds {content[key]!r}; expected options, one a line as NAME: VALUE")
    return content.get("method", method), content.get("method_config") or {}, content.get("train") or {}


def more_epochs(config: T, factor: int) -> T:
    """A method's configuration with the epochs of every phase multiplied, for small data."""
    fields = vars(config).items()
    return merge(
        config, {name: value * factor for name, value in fields if name == "epochs" or name.endswith("_epochs")}
    )
