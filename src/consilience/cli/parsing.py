"""From words to the keyword arguments of a verb's ``run``: its signature is the usage, the types and the help."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from consilience.errors import InputError
from consilience.training.configure import parser, readable

_SHORT = {"-o": "--out", "-k": "--k"}


def parse_call(
    function: Callable[..., Any], words: Sequence[str], program: str, groups: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Keyword arguments for ``function``: required parameters are positional, the rest options.

    ``groups``: option prefix to a configuration instance whose fields become options with its values as defaults.
    Returns None when help was printed. Raises InputError with the nearest spelling of an unknown option.
    """
    reader = parser(program)
    skip = {"quiet", *(groups or {})}
    reader.add_function_arguments(function, as_positional=True, fail_untyped=True, skip=skip)
    for prefix, config in (groups or {}).items():
        reader.add_class_arguments(type(config), prefix, fail_untyped=True)
        reader.set_defaults({f"{prefix}.{name}": value for name, value in _flat(config).items()})
    expanded = [_SHORT.get(word, word) for word in words]
    if any(word in ("-h", "--help") for word in expanded):
        reader.print_help()
        return None
    return _parse(reader, expanded)


def _parse(reader: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    try:
        found = reader.instantiate_classes(reader.parse_args(list(words)))
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
