"""What ``consilience search`` asks: words and files of a command line or a JSONL file as queries, answers as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from consilience.cli.parsing import command, pairs
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.embedding.job import column_of
from consilience.errors import InputError, unknown
from consilience.files import write_text
from consilience.search.hits import Hit
from consilience.search.query import Query, fuse, modality_of
from consilience.search.searcher import Options, Searcher
from consilience.search.stores.base import Opener
from consilience.search.stores.choose import ENGINES
from consilience.training.api import Run

_KINDS = {
    "text": (Kind.TEXT,),
    "image": (Kind.RGB, Kind.GREY),
    "points": (Kind.POINTS,),
    "mesh": (Kind.MESH,),
}


def run_of(table: Table, run: str | None, names: Sequence[str]) -> str:
    """The run folder to search with: the one given, or the one that filled the Table's columns."""
    if run is not None:
        return run
    columns = [column_of(m, name) for name in names for m in table.modalities]
    found = [table.provenance(column) for column in columns if column in table.columns]
    owners = [owner["run"] for owner in found if owner is not None]
    if not owners:
        raise InputError(f"{table.path} holds no vectors; fill it: {command('index', table.path)} --run RUN")
    if not Path(owners[0]).is_dir():
        raise InputError(f"{owners[0]}, the run that filled {table.path}, is gone; say where it is with --run RUN")
    return str(owners[0])


def engine_of(engine: str) -> str | Opener:
    """The engine of that name, or what opens the store at that address."""
    if engine in ENGINES or not re.search(r":|\.db(#|$)", engine):
        return engine
    from consilience.search.stores.open import open_store

    return lambda table, space: open_store(engine, space, table)


def queries(
    run: Run,
    query: str | None,
    modality: str | None,
    given: Mapping[str, str | None],
    ask: str | None,
    weights: str | None,
) -> list[Query]:
    """The queries of a command line, in the order positional, --text, --image, --points, --mesh, --ask."""
    shares = _weights(pairs(weights, "--weights") or {}, "--weights")
    found: list[tuple[str, str | Path]] = []
    if query is not None:
        name = modality or modality_of(run, Path(query))
        found.append((name, _as_value(run, name, query)))
    for option, value in given.items():
        if value is not None:
            name = _named(run, option)
            found.append((name, value if option == "text" else Path(value)))
    found += [(name, _as_value(run, name, value)) for name, value in (pairs(ask, "--ask") or {}).items()]
    _check_weights(shares, {name for name, _ in found}, "--weights")
    return [Query(name, value, shares.get(name, 1.0)) for name, value in found]


def one(searcher: Searcher, asked: Sequence[Query], options: Options) -> dict[str, Any]:
    """One answer to all of ``asked`` together."""
    modalities = list(dict.fromkeys(query.modality for query in asked))
    into = _into(searcher, modalities, options)
    options = replace(options, into=into)
    searcher.check(options)
    hits = searcher.answer(searcher.fuse(asked)[None], options)[0]
    what = " + ".join(str(query.value) for query in asked)
    return _answer(what, modalities, into, options, hits)


def like(searcher: Searcher, row: str, modality: str | None, options: Options) -> dict[str, Any]:
    """Rows like a stored one, given by its id or its index."""
    index = find_row(searcher.table, row)
    held = [m for m in searcher.modalities if _has(searcher, index, m)]
    if modality is None and not held:
        raise InputError(f"row {row} of {searcher.table.path} has no vectors; run: consilience index")
    name = modality or held[0]
    into = _into(searcher, [name], options)
    if options.by != "vector":
        raise InputError("--like compares stored vectors; leave out --by code")
    hits = searcher.similar(index, name, into=into, k=options.k, where=options.where, standardise=options.standardise)
    return _answer(f"like {row}", [name], into, options, hits)


def batch(searcher: Searcher, file: str, options: Options, out: str | None) -> dict[str, Any]:
    """One answer for each line of a JSONL file: its modalities fused, all encoded together."""
    lines = _lines(Path(file), searcher.run)
    flat = [query for asked in lines for query in asked]
    vectors = searcher.encode(flat)
    ends = np.cumsum([len(asked) for asked in lines])
    fused = np.stack(
        [
            fuse(vectors[end - len(asked) : end], [query.weight for query in asked])
            for asked, end in zip(lines, ends, strict=True)
        ]
    )
    targets = [tuple(_into(searcher, [query.modality for query in asked], options)) for asked in lines]
    hits: dict[int, list[Hit]] = {}
    for into in dict.fromkeys(targets):
        places = [place for place, target in enumerate(targets) if target == into]
        found = searcher.answer(fused[places], replace(options, into=into))
        hits |= dict(zip(places, found, strict=True))
    answers = [
        _answer(
            " + ".join(str(query.value) for query in asked),
            list(dict.fromkeys(query.modality for query in asked)),
            targets[place],
            options,
            hits[place],
        )
        for place, asked in enumerate(lines)
    ]
    if out is not None:
        write_text(Path(out), "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
    return {"answers": answers, "out": out}


def find_row(table: Table, row: str) -> int:
    """The index of the row with the id ``row``, else with that index; InputError when there is neither."""
    quoted = row.replace("'", "''")
    found = table.select(f"id = '{quoted}'")
    if not len(found) and row.isdigit():
        found = table.select(f"index = {row}")
    if not len(found):
        raise InputError(f"{table.path} has no row with id or index {row!r}; give one that search has shown")
    return int(table.indices()[found[0]])


def _answer(
    what: str, modalities: Sequence[str], into: Sequence[str], options: Options, hits: Sequence[Hit]
) -> dict[str, Any]:
    return {
        "query": what,
        "modality": ",".join(modalities),
        "into": ",".join(into),
        "by": "cosine" if options.by == "vector" else "code, reranked by cosine" if options.rerank else "code",
        "hits": [asdict(hit) for hit in hits],
    }


def _into(searcher: Searcher, asked: Sequence[str], options: Options) -> list[str]:
    """The modalities to search: those given, else all searchable ones that are not asked with (or all)."""
    if options.into is not None:
        return list(options.into)
    there = searcher.modalities if options.by == "vector" else searcher.coded
    others = [name for name in there if name not in asked]
    return others or list(there) or [m for m in searcher.table.modalities if m not in asked][:1] or list(asked)[:1]


def _has(searcher: Searcher, index: int, modality: str) -> bool:
    column = column_of(modality, searcher.name)
    row = searcher.table.take(searcher.table.offsets_of(np.array([index])), [column])
    return bool(row[column][0].is_valid)


def _named(run: Run, option: str) -> str:
    """The run's modality that ``--text`` and its like mean: the one of that name, or the only one of that kind."""
    kinds = run.method.modalities
    if option in kinds:
        return option
    fitting = [name for name, kind in kinds.items() if kind in _KINDS[option]]
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"--{option} fits {' and '.join(fitting) or 'no modality'} of this run; name one with --ask NAME=VALUE "
        f"({', '.join(kinds)})"
    )


def _as_value(run: Run, name: str, value: str) -> str | Path:
    """A value of the command line: words for a text modality unless they name a file, a path for the others."""
    if name not in run.method.modalities:
        raise unknown("modality of the run", name, run.method.modalities)
    is_words = run.method.modalities[name] is Kind.TEXT and not Path(value).is_file()
    return value if is_words else Path(value)


def _weights(found: Mapping[str, Any], flag: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in found.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"{flag}: weights are numbers above 0, such as image=2,text=1") from error


def _check_weights(shares: Mapping[str, float], asked: set[str], flag: str) -> None:
    for name in shares:
        if name not in asked:
            raise InputError(f"{flag} weighs {name}, which is not asked with; leave it out")


def _lines(file: Path, run: Run) -> list[list[Query]]:
    """The queries of each line; paths count from the file's folder. InputError naming the line."""
    if not file.is_file():
        raise InputError(f"--batch {file} does not exist; give a JSONL file")
    found: list[list[Query]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not JSON ({error.msg}); write one object a line") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("weights", {}), dict):
            raise InputError(f'{where}: write an object such as {{"image": "a.png", "weights": {{"image": 2}}}}')
        shares = _weights(entry.pop("weights", {}), where)
        asked = {name: value for name, value in entry.items() if value is not None}
        for name, value in asked.items():
            if name not in run.method.modalities:
                raise InputError(f"{where}: {unknown('modality of the run', name, run.method.modalities)}")
            if not isinstance(value, str):
                raise InputError(f"{where}: {name} is {value!r}; give a file's name, or words for a text")
        if not asked:
            raise InputError(f"{where} asks with nothing; give at least one modality")
        _check_weights(shares, set(asked), where)
        kinds = run.method.modalities
        found.append(
            [
                Query(name, value if kinds[name] is Kind.TEXT else file.parent / value, shares.get(name, 1.0))
                for name, value in asked.items()
            ]
        )
    if not found:
        raise InputError(f"{file} holds no queries; write one a line")
    return found
