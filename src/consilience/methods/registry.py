"""The list of methods. A file in this folder that registers a class is a method everywhere: the common test suite,
the command line, the documentation table and the benchmarks read this list and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from consilience.errors import unknown
from consilience.methods.base import Method

_SHARED = {"base", "pairs", "registry"}


@dataclass(frozen=True)
class MethodInfo:
    """One registered method."""

    name: str
    cls: type[Method]
    title: str
    """One line: what it does."""
    paper: str
    """Authors, title, venue, year."""
    kinds: tuple[str, ...]
    """The kinds of modality it accepts."""


_METHODS: dict[str, MethodInfo] = {}


def register(name: str, *, title: str, paper: str, kinds: tuple[str, ...]) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a :class:`Method` known under ``name``."""

    def keep(cls: type[Method]) -> type[Method]:
        _METHODS[name] = MethodInfo(name, cls, title, paper, kinds)
        return cls

    return keep


def methods() -> dict[str, MethodInfo]:
    """All registered methods by name (imports every file in this folder once)."""
    import consilience.methods as folder

    for module in pkgutil.iter_modules(folder.__path__):
        if module.name not in _SHARED:
            importlib.import_module(f"{folder.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def find(name: str) -> MethodInfo:
    """The method called ``name``; an InputError with the nearest spelling when there is none."""
    known = methods()
    if name not in known:
        raise unknown("method", name, known)
    return known[name]
