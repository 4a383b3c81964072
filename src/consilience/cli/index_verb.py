"""``consilience index``: make a Table searchable, and look after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from consilience.cli import index_actions

ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": index_actions.build,
    "stats": index_actions.stats,
    "append": index_actions.append,
    "upsert": index_actions.upsert,
    "delete": index_actions.delete,
    "versions": index_actions.versions,
    "optimise": index_actions.optimise,
    "hash": index_actions.hash_vectors,
    "thumbnails": index_actions.thumbnails,
    "map": index_actions.make_map,
    "push": index_actions.push,
}
_FLAGS = ("--recall", "--replace")


def run(
    action: str,
    table: str,
    source: str | None = None,
    run: str | None = None,
    where: str | None = None,
    name: str | None = None,
    codes: str | None = None,
    engine: Literal["auto", "exact", "ivf", "lance-ivf"] | None = None,
    recall: bool | None = None,
    bits: int | None = None,
    by: Literal["itq", "sign", "lsh", "learned"] | None = None,
    modalities: str | None = None,
    on_bad_sample: Literal["stop", "quarantine"] | None = None,
    last: int | None = None,
    keep_days: float | None = None,
    to: str | None = None,
    columns: str | None = None,
    attributes: str | None = None,
    index: Literal["auto", "exact", "ivf", "hnsw"] | None = None,
    replace: bool | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make a Table searchable, and look after it."""
    said = {
        "table": table, "source": source, "run": run, "where": where, "name": name, "codes": codes, "engine": engine,
        "recall": recall, "bits": bits, "by": by, "modalities": modalities, "on_bad_sample": on_bad_sample,
        "last": last, "keep_days": keep_days, "to": to, "columns": columns, "attributes": attributes, "index": index,
        "replace": replace, "quiet": quiet,
    }  # fmt: skip
    function = ACTIONS[action]
    known = inspect.signature(function).parameters
    result: dict[str, Any] = function(
        **{key: value for key, value in said.items() if value is not None and key in known}
    )
    return {"action": action, **result}


def parse(words: list[str]) -> dict[str, Any] | None:
    """``index ACTION TABLE ...``; without an action it is ``build``."""
    from consilience.cli.parsing import parse_call

    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return None
    action = words[0] if words[0] in ACTIONS else "build"
    said = [f"{word}=true" if word in _FLAGS else word for word in words[words[0] in ACTIONS :]]
    call = parse_call(ACTIONS[action], said, f"consilience index {action}")
    return None if call is None else {"action": action, **call}


def _usage() -> str:
    lines = [f"  {name:<11} {(inspect.getdoc(what) or '').splitlines()[0]}" for name, what in ACTIONS.items()]
    return (
        "usage: consilience index [ACTION] TABLE [options]\n\n"
        + "\n".join(lines)
        + "\n\nWithout an action: build. consilience index ACTION --help says more. Each takes --json and --quiet."
    )


def show(result: dict[str, Any]) -> None:
    index_actions.SHOWN[result["action"]](result)
