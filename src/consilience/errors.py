"""The errors a user can cause. Each message is one line: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConsilienceError(Exception):
    """Something failed although the request was sound (exit code 1)."""

    exit_code = 1


class InputError(ConsilienceError, ValueError):
    """Bad usage or bad input (exit code 2). The message names the file, row or flag and the remedy."""

    exit_code = 2


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that does not exist, with the nearest known spelling."""
    names = sorted(known)
    begins = [known_name for known_name in names if name and known_name.startswith(name)]
    near = begins or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return InputError(f"unknown {what} {name!r}; {hint}")


def need_positive(config: object, *names: str) -> None:
    """:class:`InputError` for a field of a method's configuration that is not above 0."""
    for name in names:
        if getattr(config, name) <= 0:
            raise InputError(f"--method.{name} {getattr(config, name)}: expected a positive number")


def need_share(config: object, *names: str, whole: bool = True) -> None:
    """:class:`InputError` for a field that is no share from 0 to 1; without ``whole`` 1 itself is none."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or (value == 1 and not whole):
            most = "1" if whole else "below 1"
            raise InputError(f"--method.{name} {value}: expected a share from 0 to {most}")
