"""The command line: picks a verb, and turns errors into one line and an exit code. Imports verbs lazily."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from consilience.errors import ConsilienceError, unknown

VERBS = {
    "demo": "the main job end to end on embedded real data",
    "import": "make a Table from folders, manifests, RoMo lists, 3D MNIST files",
    "check": "read a Table or source once: counts, shapes, unreadable, duplicates, leaks",
    "audit": "find pairs that do not belong together, wrong labels, copies, leaks, outliers",
    "methods": "the methods there are",
    "datasets": "the embedded data sets",
    "train": "train a method on data into a run folder, or resume one",
    "reproduce": "a paper's claimed effect against ablations and baselines, with intervals",
    "evaluate": "retrieval figures and pseudo-label accuracy of a run",
    "predict": "scores, classes or counts of pictures, with maps, from a run",
    "embed": "write a run's vectors into columns of a Table",
    "index": "make a Table searchable with a run's encoders",
    "search": "find rows of one modality with a query of another",
    "serve": "search, look around and review over HTTP, with a page",
    "bench": "speed against peers, as ratios in one run",
}
_EPILOGUE = """
consilience VERB --help says more. Every verb takes --json (one JSON object on stdout) and --quiet (no progress).
Exit codes: 0 done, 1 failed, 2 bad usage or input, 130 interrupted (resumable)."""


def usage() -> str:
    """The text of ``consilience --help``."""
    verbs = "\n".join(f"  {name:<10} {what}" for name, what in VERBS.items())
    head = "usage: consilience VERB ...\n\nLearn from multimodal data that nobody has labelled reliably.\n\n"
    return head + verbs + "\n" + _EPILOGUE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except ConsilienceError as error:
        return _fail(str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, as_json)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror or error}", 1, as_json)
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        return _fail(f"failed unexpectedly ({what}); this is a bug, please report it", 1, as_json)


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    print(f"consilience: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line, "exit": code}))
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from consilience import __version__

        print(__version__)
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise unknown("verb", name, VERBS)
    flags = {flag: flag in rest for flag in ("--json", "--quiet")}
    rest = [word for word in rest if word not in flags]
    verb = importlib.import_module(f"consilience.cli.{name}_verb")
    from consilience.cli.parsing import parse_call

    call = verb.parse(rest) if hasattr(verb, "parse") else parse_call(verb.run, rest, f"consilience {name}")
    if call is None:
        return 0  # --help was printed
    for option, flag in (("quiet", "--quiet"), ("as_json", "--json")):
        if option in verb.run.__annotations__:
            call[option] = flags[flag]
    result: dict[str, Any] | None = verb.run(**call)
    if result is None or os.environ.get("RANK", "0") != "0":  # it has said all there is, or another process will
        return 0
    if flags["--json"]:
        print(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False))
    else:
        verb.show(result)
    return 0


def _plain(value: Any) -> Any:
    """The same nested value with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
