"""From words to the keyword arguments of a verb's ``run``: its signature is the usage, the types and the help."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from consilience.errors import InputError, unknown
from consilience.training.configure import parser, readable

_SHORT = {"-o": "--out", "-k": "--k"}
_EVERYWHERE = "Every verb also takes --json (one JSON object on stdout) and --quiet (no progress on stderr)."


def parse_call(
    function: Callable[..., Any], words: Sequence[str], program: str, groups: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Keyword arguments for ``function``: required parameters are positional, the rest options.

    ``groups``: option prefix to a configuration instance whose fields become options with its values as defaults;
    these parameters must be named like the prefixes. Options may be written with hyphens or underscores.
    Returns None when help was printed. Raises InputError with the nearest spelling of an unknown option.
    """
    reader = parser(program)
    groups = groups or {}
    reader.description, reader.epilog = (inspect.getdoc(function) or "").split("\n\n")[0], _EVERYWHERE
    skip = {"quiet", "as_json", *groups}
    reader.add_function_arguments(function, as_group=False, as_positional=True, fail_untyped=True, skip=skip)
    for prefix, config in groups.items():
        reader.add_class_arguments(type(config), prefix, fail_untyped=True)
        reader.set_defaults({f"{prefix}.{name}": value for name, value in _flat(config).items()})
    _tidy(reader, function, skip)
    expanded = [_spelled(word) for word in words]
    if any(word in ("-h", "--help") for word in expanded):
        reader.print_help()
        return None
    _check_options(reader, expanded)
    return _parse(reader, expanded)


def apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that belong to no option, and the others; every option but --help takes one value."""
    free: list[str] = []
    others: list[str] = []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        is_value = before.startswith("-") and "=" not in before and before not in ("-h", "--help")
        (others if is_value or word.startswith("-") else free).append(word)
    return free, others


def _tidy(reader: ArgumentParser, function: Callable[..., Any], skip: set[str]) -> None:
    """A usage of one line, and no ``--method FILE`` beside ``--method.x``: recipes come by --config."""
    required = [
        name.upper()
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and name not in skip
    ]
    reader.usage = " ".join([reader.prog, *required, "[options]"])
    names = {option for action in reader._actions for option in action.option_strings}
    for action in reader._actions:
        if any(name.startswith(f"{option}.") for option in action.option_strings for name in names):
            action.help = SUPPRESS


def _spelled(word: str) -> str:
    """The option as the signature spells it: long for short, underscores for hyphens; values stay as they are."""
    name, equals, value = _SHORT.get(word, word).partition("=")
    if not name.startswith("--") or " " in name:
        return word
    return "--" + name[2:].replace("-", "_") + equals + value


def _check_options(reader: ArgumentParser, words: Sequence[str]) -> None:
    """argparse would report a missing argument before a misspelt option; the misspelling is the cause."""
    shown = (action for action in reader._actions if action.help is not SUPPRESS)
    known = [option for action in shown for option in action.option_strings]
    for word in words:
        name = word.partition("=")[0]
        if not re.match(r"--?[A-Za-z]", name) or " " in name or name in known:
            continue
        known += ["--json", "--quiet"]
        hint = str(unknown("option", name, [option for option in known if option.startswith("--")]))
        raise InputError(hint if "did you mean" in hint else f"unknown option {name!r}; see {reader.prog} --help")


def _parse(reader: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    try:
        found = reader.instantiate(reader.parse_args(list(words)))
    except InputError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        cause = error.__cause__ or error.__context__
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        raise readable(error, reader) from error
    return dict(vars(found))


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if hasattr(value, "__dataclass_fields__"):
            values |= _flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def value_of(option: str, words: Sequence[str]) -> str | None:
    """What follows ``option`` in ``words`` (``--x v`` or ``--x=v``), None when it is not there or nothing follows."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and place + 1 < len(words):
            return words[place + 1]
    return None


def pairs(text: str | None, flag: str) -> dict[str, str] | None:
    """``a=b,c=d`` as a dictionary; InputError naming the flag when it is written otherwise."""
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise InputError(f"{flag} {text!r}: write it as NAME=VALUE,NAME=VALUE")
        found[name] = value
    return found


def command(*words: Any) -> str:
    """A command line to copy: ``consilience`` and the words, quoted where a shell needs it."""
    from shlex import join

    return join(["consilience", *map(str, words)])
