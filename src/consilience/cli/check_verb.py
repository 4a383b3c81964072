"""``consilience check``."""

from __future__ import annotations

from typing import Any

_SHOWN = 10


def run(data: str) -> dict[str, Any]:
    """Read every sample once and report what is wrong.

    Args:
        data: An embedded data set's name, a Table, or any source that import takes.
    """
    from consilience.data.check import check

    report = check(data)
    return {**report.as_json(), "problems": report.problems}


def show(result: dict[str, Any]) -> None:
    splits = ", ".join(f"{count} {split}" for split, count in result["splits"].items())
    labels = f"{len(result['labels'])} classes" if result["labels"] else "no labels"
    some = f", {result['unlabelled']} rows without a label" if result["labels"] and result["unlabelled"] else ""
    print(f"{result['source']}: {result['rows']} rows ({splits}); {labels}{some}\n")
    _table(result)
    print()
    details = {
        "unreadable": [
            f"{bad['id']}, {bad['modality']} from {bad['origin']}: {bad['reason']}" for bad in result["unreadable"]
        ],
        "in several splits": [_copies(group) for group in result["copies_across"]],
        "without one of their modalities": result["incomplete"],
        "copies inside a split": [_copies(group) for group in result["copies_within"]],
    }
    for title, lines in details.items():
        if lines:
            print(f"{title}:")
            print("".join(f"  {line}\n" for line in lines[:_SHOWN]), end="")
            if len(lines) > _SHOWN:
                print(f"  and {len(lines) - _SHOWN} more (--json lists all)")
    print("; ".join(result["problems"]) if result["problems"] else "no problems found")
    _next(result)


def _copies(group: dict[str, Any]) -> str:
    return f"{group['modality']} of {', '.join(group['ids'])} ({', '.join(group['splits'])})"


def _table(result: dict[str, Any]) -> None:
    splits = list(result["splits"])
    rows = [["modality", "kind", *splits, "missing", "unreadable", "size", "formats", "MB"]]
    for name, found in result["modalities"].items():
        present = [str(found["present"].get(split, 0)) for split in splits]
        formats = ", ".join(f"{count} {form}" for form, count in found["formats"].items())
        row = [name, found["kind"], *present, str(found["missing"]), str(found["unreadable"]), _size(found), formats]
        rows.append([*row, f"{found['bytes'] / 1e6:.1f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    words = {0, 1, len(widths) - 2}
    for row in rows:
        cells = (
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _size(found: dict[str, Any]) -> str:
    """Smallest to largest: height x width of pictures, number of points or faces."""
    if not found["smallest"]:
        return "-"
    low, high = (" x ".join(map(str, found[key])) for key in ("smallest", "largest"))
    what = {"points": " points", "mesh": " faces"}.get(found["kind"], "")
    return (low if low == high else f"{low} to {high}") + what


def _next(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    source = result["source"].removeprefix("embedded:")
    bad = ["--on-bad-sample", "quarantine"] if result["unreadable"] else []
    if len(result["modalities"]) > 1:
        print(f"next    {command('train', 'romo', '--data', source, '-o', 'runs/romo', *bad)}")
