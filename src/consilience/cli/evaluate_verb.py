"""``consilience evaluate``."""

from __future__ import annotations

from typing import Any


def run(run: str, where: str = "split = 'test'", data: str | None = None) -> dict[str, Any]:
    """Judge a run against labels: retrieval between modalities, and the pseudo-labels it left.

    Args:
        run: A run folder.
        where: SQL filter of the rows to judge.
        data: Another Table with the same modalities; default the run's own.
    """
    from dataclasses import replace

    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.evaluation.evaluate import evaluate
    from consilience.training.api import load

    loaded = load(run)
    if data is not None:
        loaded = replace(loaded, table=Table.open(data))
        for name, kind in loaded.table.modalities.items():
            if loaded.method.modalities.get(name, kind) is not kind:
                raise InputError(
                    f"{name} is {kind} in {data}, but {run} was trained on {loaded.method.modalities[name]}; "
                    f"import it with --kinds {name}={loaded.method.modalities[name]}"
                )
    return {"run": run, "table": str(loaded.table.path), **evaluate(loaded, where=where)}


def show(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    print(f"{result['rows']} rows of {result['table']} where {result['where']}")
    for name, figures in result["directions"].items():
        low, high = figures["ci95"]
        print(f"{name:<18} mAP@all {figures['map']:.3f} [{low:.3f}, {high:.3f}]  mAP@R {figures['map_at_r']:.3f}")
        for label, key in (("mAP@k", "map_at_k"), ("P@k", "precision_at_k"), ("recall@k", "recall_at_k")):
            print(f"{'':<18} {label:<8} " + "  ".join(f"{cut}: {value:.3f}" for cut, value in figures[key].items()))
    print(f"mean mAP@all {result['mean_map']:.3f}")
    for name, figures in result["pseudo_labels"].items():
        if isinstance(figures, dict):
            print(f"pseudo-labels of {name}: {figures['accuracy']:.1%} right, NMI {figures['nmi']:.3f}")
        elif name == "note":
            print(figures)
    print(f"next    {command('index', result['table'], '--run', result['run'])}")
