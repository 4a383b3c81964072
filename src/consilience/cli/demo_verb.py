"""``consilience demo``: the main job end to end on embedded real data."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.data.table import Table
    from consilience.search.search import Hit
    from consilience.training.api import Run

_TEST = "split = 'test'"
REFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "contrastive alone, same budget": ({"warmup_epochs": 13, "annotate_epochs": 0, "robust_epochs": 0}, {}),
    "untrained encoders": ({"warmup_epochs": 0, "annotate_epochs": 0, "robust_epochs": 0}, {}),
    "supervised ceiling (reads labels)": (
        {"warmup_epochs": 5, "annotate_epochs": 0, "robust_epochs": 8, "robust_loss": "ce"},
        {"given": "label"},
    ),
}


def run(out: str = "consilience-demo", seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Train RoMo on mnist3d without labels, compare, fill a Table, answer two queries, write a report.

    Args:
        out: Folder of the demo (-o); what is there is reused.
        seed: Seed of the runs.
    """
    from consilience.training.api import table_of

    began, place = time.monotonic(), Path(out)
    finished = place / "result.json"
    if finished.exists():
        _say(f"{place} is complete: nothing is trained again (remove the folder to start over)", quiet)
        return {**json.loads(finished.read_text()), "reused": True}
    _say(f"importing mnist3d (embedded real digits) into {place / 'table'}", quiet)
    table = table_of("mnist3d", place)
    romo, figures = _one(table, place / "romo", {}, {"seed": seed}, "RoMo, without labels", quiet)
    references = {}
    for name, (method, train) in REFERENCES.items():
        slug = name.split(",")[0].split(" (")[0].replace(" ", "-")
        _, other = _one(table, place / slug, method, {"seed": seed, **train}, name, quiet)
        references[name] = {direction: entry["map"] for direction, entry in other["directions"].items()}
        references[name]["mean"] = other["mean_map"]
    from consilience.data.table import Table
    from consilience.files import write_json
    from consilience.search.search import build_index

    _say("writing the test set's vectors into the table", quiet)
    build_index(romo, Table.open(table.path), where=_TEST, quiet=True)
    table = Table.open(table.path)
    answers = {
        asked: _ask(romo, table, place, asked, into) for asked, into in (("image", "points"), ("points", "image"))
    }
    result: dict[str, Any] = {
        "map": {name: entry["map"] for name, entry in figures["directions"].items()},
        "references": references,
        "pseudo_labels": figures["pseudo_labels"],
        "queries": {
            asked: {"file": str(file), "class": label, "answers": [hit.label for hit in hits]}
            for asked, (file, label, hits) in answers.items()
        },
        "table": str(table.path),
        "run": str(romo.path),
        "report": str(place / "report.html"),
    }
    result["map"]["ci95"] = {name: entry["ci95"] for name, entry in figures["directions"].items()}
    _say("drawing the report", quiet)
    _report(romo, table, result, answers)
    result["seconds"] = round(time.monotonic() - began, 1)
    write_json(finished, result)
    return result


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _one(
    table: Table, place: Path, method: dict[str, Any], options: dict[str, Any], what: str, quiet: bool
) -> tuple[Run, dict[str, Any]]:
    """Train, resume or load one run and evaluate it."""
    from consilience.evaluation.evaluate import evaluate
    from consilience.methods.romo import RoMoConfig
    from consilience.training.api import resume, train
    from consilience.training.config import TrainConfig
    from consilience.training.configure import merge

    started = (place / "config.yaml").exists()
    _say(f"{'going on with' if started else 'training'}: {what}", quiet)
    if started:
        done = resume(place, quiet=quiet)
    else:
        config, train_config = merge(RoMoConfig(), method), merge(TrainConfig(), options)
        done = train("romo", table, place, config=config, train=train_config, quiet=quiet)
    return done, evaluate(done)


def _ask(romo: Run, table: Table, place: Path, asked: str, into: str) -> tuple[Path, str, list[Hit]]:
    """Save the first test sample's file of one modality as a query and search the other one with it."""
    from consilience.files import write_bytes
    from consilience.search.search import search

    row = table.take(table.select(_TEST)[:1], [asked, "label"])
    file = place / ("query.png" if asked == "image" else "query.npy")
    write_bytes(file, row[asked][0].as_py())
    hits = search(romo, file, into=into, table=table, k=8, where=_TEST)
    return file, row["label"][0].as_py(), hits


def _report(romo: Run, table: Table, result: dict[str, Any], answers: dict[str, tuple[Path, str, list[Hit]]]) -> None:
    import numpy as np

    from consilience.cli.run_report import add_quarantine
    from consilience.data.decode import decode
    from consilience.evaluation.figures import common_space, loss_curves, retrieval_grid
    from consilience.evaluation.report import Report

    page = Report("Images and point clouds in one space, learnt without a label")
    page.text(
        "RoMo was trained on pairs of handwritten digits: a picture and a point cloud derived from it. It never saw a "
        "label. Below: how well a test sample of one modality finds its class in the other."
    )
    page.table(*figures_table(result))
    page.text("mAP@all over 1,000 test pairs; 95% intervals by bootstrap over queries.", "soft")
    shown = []
    kinds = romo.method.modalities
    everything = table.select()
    for asked, (file, label, hits) in answers.items():
        into = hits[0].modality
        rows = table.take(everything[[hit.index for hit in hits]], [into])
        found = [
            (
                decode(data, kinds[into], "", romo.method.decode),
                kinds[into],
                hit.label == label,
                f"{hit.label} ({hit.score:.2f})",
            )
            for data, hit in zip(rows[into].to_pylist(), hits, strict=True)
        ]
        shown.append((decode(file.read_bytes(), kinds[asked], str(file), romo.method.decode), kinds[asked], found))
    page.heading("Two queries")
    page.figure(
        retrieval_grid(shown),
        "A picture finds point clouds, a point cloud finds pictures: class and cosine similarity.",
    )
    page.heading("The common space")
    some = table.select(_TEST)[:300]
    codes, names = table.labels(_TEST)
    vectors = {name: np.stack(table.take(some, [f"vector_{name}"])[f"vector_{name}"].to_pylist()) for name in kinds}
    page.figure(
        common_space(vectors, codes[:300], names),
        "t-SNE of 300 test pairs: colour is the true class (not used in training), marker the modality.",
    )
    page.heading("Training")
    page.figure(
        loss_curves(romo.folder.records()),
        "Loss terms by step; agreement of the modalities on held-out pairs.",
    )
    add_quarantine(page, romo)
    page.save(Path(result["report"]))


def figures_table(result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the comparison."""
    names = [name for name in result["map"] if name != "ci95"]
    intervals = result["map"]["ci95"]
    own = [f"{result['map'][n]:.3f} [{intervals[n][0]:.3f}, {intervals[n][1]:.3f}]" for n in names]
    rows = [["RoMo, without labels", *own]]
    rows += [[name, *(f"{entry[n]:.3f}" for n in names)] for name, entry in result["references"].items()]
    return ["", *names], rows


def show(result: dict[str, Any]) -> None:
    header, rows = figures_table(result)
    print(f"\n{header[0]:<36}" + "".join(f"{name:>24}" for name in header[1:]))
    for row in rows:
        print(f"{row[0]:<36}" + "".join(f"{value:>24}" for value in row[1:]))
    for modality, figures in result["pseudo_labels"].items():
        if isinstance(figures, dict):
            print(f"pseudo-labels, {modality}: {figures['accuracy']:.1%} right")
    for asked, query in result["queries"].items():
        print(f"{asked} of class {query['class']} finds: {' '.join(query['answers'])}   ({query['file']})")
    from consilience.cli.parsing import command

    print(f"report  {result['report']}\ntable   {result['table']}")
    print(f"next    {command('search', result['table'], result['queries']['image']['file'], '--into', 'points')}")
    print("reused what was there" if result.get("reused") else f"{result['seconds']} s")
    print(f"page    {command('serve', result['table'])}")
