"""``consilience search``."""

from __future__ import annotations

import re
from typing import Any, Literal

_FLAGS = ("--asymmetric", "--standardise")


def run(
    table: str,
    query: str | None = None,
    text: str | None = None,
    image: str | None = None,
    points: str | None = None,
    mesh: str | None = None,
    ask: str | None = None,
    like: str | None = None,
    batch: str | None = None,
    weights: str | None = None,
    into: str | None = None,
    run: str | None = None,
    modality: str | None = None,
    k: int = 5,
    where: str | None = None,
    by: Literal["vector", "code"] = "vector",
    rerank: int = 0,
    asymmetric: bool = False,
    standardise: bool = False,
    engine: str = "auto",
    name: str = "vector",
    codes: str = "code",
    out: str | None = None,
) -> dict[str, Any]:
    """Find rows of some modalities with a query of others.

    Args:
        table: A Table that index has made searchable.
        query: A file: picture, point cloud or mesh; may be written without --query.
        text: Words to search with.
        image: A picture to search with; several of --text, --image, --points, --mesh and --ask are fused.
        points: A point cloud to search with.
        mesh: A mesh to search with.
        ask: Queries by the modality's own name: photo=FILE,caption=WORDS.
        like: More like this row of the Table: its id, or its index.
        batch: A JSONL file with one query a line, such as {"image": "a.png", "text": "red heart"}.
        weights: Shares of fused queries by modality: image=2,text=1.
        into: Modalities to search, comma-separated; default all that the query is not.
        run: Run folder with the encoders; default the run that filled the Table's vectors.
        modality: Modality of the query; default by the file's format.
        k: Number of results (-k).
        where: SQL filter of the rows to search, for example "split = 'test'".
        by: Compare float vectors, or binary codes.
        rerank: With --by code, put that many of the best in the order of their float vectors.
        asymmetric: With --by code, compare the query's real numbers with the stored codes.
        standardise: Scores in standard deviations from the mean of all stored vectors of their modality.
        engine: exact and ivf in memory, lance and lance-ivf on disk; auto takes the fastest that fits; or the address
            of a store that the Table was pushed to (postgresql://..., http://..., FILE.db, env:VARIABLE).
        name: Beginning of the vector columns' names.
        codes: Beginning of the code columns' names.
        out: Write the answers of --batch to this JSONL file (-o).
    """
    from consilience.cli import asking
    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.search.searcher import Options, Searcher
    from consilience.training.api import load

    opened = Table.open(table)
    loaded = load(asking.run_of(opened, run, (name, codes)))
    searcher = Searcher(loaded, opened, name=name, codes=codes, engine=asking.engine_of(engine))
    given = {"text": text, "image": image, "points": points, "mesh": mesh}
    queries = asking.queries(searcher.run, query, modality, given, ask, weights)
    ways = [what for what, there in (("--like", like), ("--batch", batch), ("a query", queries)) if there]
    if len(ways) != 1:
        raise InputError(
            f"{' and '.join(ways)} do not go together; give one"
            if ways
            else "nothing to search with; give a FILE, --text, --image, --points, --mesh, --like or --batch"
        )
    targets = into.split(",") if into else None
    options = Options(targets, k, where, by, rerank, asymmetric, standardise)
    if batch is not None:
        return asking.batch(searcher, batch, options, out)
    if like is not None:
        return asking.like(searcher, like, modality, options)
    return asking.one(searcher, queries, options)


def parse(words: list[str]) -> dict[str, Any] | None:
    """``search TABLE FILE ...``: the second word that belongs to no option is the query."""
    from consilience.cli.parsing import parse_call

    free, spelled = 0, []
    takes_value = False
    for word in [f"{word}=true" if word in _FLAGS else word for word in words]:
        if takes_value or re.match("--?[A-Za-z]", word):
            takes_value = not takes_value and word not in ("-h", "--help") and "=" not in word
        else:
            free += 1
            if free == 2:
                spelled.append("--query")
        spelled.append(word)
    return parse_call(run, spelled, "consilience search")


def show(result: dict[str, Any]) -> None:
    import json

    if "answers" in result:
        if result["out"] is not None:
            print(f"{len(result['answers'])} answers in {result['out']}")
            return
        for answer in result["answers"]:
            print(json.dumps(answer, ensure_ascii=False))
        return
    print(f"{result['modality']} {result['query']} -> {result['into']}, by {result['by']} similarity")
    if not result["hits"]:
        print("no row passes the filter, or none of those that do has a vector")
    several = "," in result["into"]
    for hit in result["hits"]:
        label = "" if hit["label"] is None else f"  class {hit['label']}"
        modality = f"  {hit['modality']}" if several else ""
        print(f"{hit['rank']:>3}  {hit['score']:.3f}  {hit['id']}{modality}{label}  {hit['origin']}")
