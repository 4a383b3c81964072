"""Files that are either whole or absent: everything is written beside its place and renamed into it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consilience.errors import InputError


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically (write beside, flush to disk, rename)."""
    path = Path(path)
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # a temporary file is private; what takes its place is read by others
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Write text (UTF-8) to ``path`` atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON to ``path`` atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents; raise :class:`InputError` naming it when that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose a writable folder") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"cannot write to {path}: no permission; choose a writable folder")
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that becomes ``path`` when the block succeeds, else vanishes.

    An existing ``path`` is replaced only at the end, so a kill at any instant leaves the old or the new one. What a
    killed process of this machine had begun is cleared away by the next that makes the same folder.
    """
    path = Path(path)
    make_folder(path.parent)
    host = platform.node()
    for left in path.parent.glob(f".{path.name}.{host}-*"):
        process = left.name.removeprefix(f".{path.name}.{host}-").partition("-")[0]
        if process.isdecimal() and not _lives(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.{host}-{os.getpid()}-"))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            old = path.with_name(f".{path.name}.old-{os.getpid()}")
            path.replace(old)
            Path(temporary).replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            Path(temporary).replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
