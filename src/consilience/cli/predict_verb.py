"""``consilience predict``."""

from __future__ import annotations

from typing import Any


def run(
    run: str,
    files: list[str] | None = None,
    data: str | None = None,
    where: str | None = None,
    readout: str | None = None,
    out: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """What a run says of pictures: their complexity, their class, or how many things they show and where.

    Args:
        run: A run folder.
        files: Pictures; may be written without --files.
        data: A Table instead: the answers become a column of it.
        where: With --data, SQL filter of the rows to judge; the others' answers are empty.
        readout: Which of the run's read-outs answers; default the method's own choice (its page says which).
        out: Folder for the pictures that show the answers: heat maps, density maps, overlays (-o).
    """
    from pathlib import Path

    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.prediction.predict import predict_files, predict_rows
    from consilience.training.api import load

    if bool(files) == (data is not None):
        raise InputError("give picture files or --data TABLE" + (", not both" if files else ""))
    if files and where is not None:
        raise InputError("--where chooses rows of a Table; give --data")
    loaded, folder = load(run), None if out is None else Path(out)
    if data is not None:
        table = Table.open(data)
        found = predict_rows(loaded, table, where=where, readout=readout, out=folder, quiet=quiet)
        return {"run": run, "table": str(table.path), **found}
    places = [Path(file) for file in files or ()]
    return {"run": run, "predictions": predict_files(loaded, places, readout=readout, out=folder, quiet=quiet)}


def parse(words: list[str]) -> dict[str, Any] | None:
    """``predict RUN FILE ...``: what belongs to no option is the run, then pictures."""
    from consilience.cli.parsing import apart, parse_call

    free, others = apart(words)
    call = parse_call(run, [*free[:1], *others], "consilience predict")
    if call is not None and len(free) > 1:
        call["files"] = [*free[1:], *(call["files"] or [])]
    return call


def show(result: dict[str, Any]) -> None:
    if "predictions" not in result:
        rest = {key: value for key, value in result.items() if key not in ("run", "table", "column", "rows")}
        told = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in rest.items()
        )
        print(f"{result['rows']} rows of {result['table']}: column {result['column']} ({told})")
        return
    for answer in result["predictions"]:
        value = answer["value"]
        print(f"{value if isinstance(value, str) else format(value, '.4g'):<12} {answer['file']}")
        for name, file in answer.get("pictures", {}).items():
            print(f"{'':<12} {name}: {file}")
