"""``consilience audit``."""

from __future__ import annotations

from typing import Any


def run(
    data: str,
    out: str | None = None,
    run: str | None = None,
    train: bool = False,
    method: str | None = None,
    config: str | None = None,
    modalities: str | None = None,
    checks: str | None = None,
    where: str | None = None,
    folds: int = 0,
    corrupt: float = 0.0,
    corrupt_labels: float = 0.0,
    fix: str | None = None,
    fix_labels: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Find pairs that do not belong together, wrong labels, copies, leaks, outliers and unreadable samples.

    Args:
        data: An embedded data set's name, a Table, or any source that import takes.
        out: Folder of the report, and of runs and an imported Table (-o); default audits/NAME.
        run: Judge with this finished run.
        train: Train on the data first; without --run and --train only the checks that need no model are made.
        method: What to train; default pc2.
        config: A recipe for --train: a YAML file or the name of one that ships.
        modalities: Modalities to learn from and whose pairs are judged, comma-separated (image,text).
        checks: Names of checks, comma-separated; all by default.
        where: SQL filter of the rows that are audited (and learnt from).
        folds: Runs of --train, each judging the pairs that it has not learnt; more take longer and judge better.
            0: five below 2,000 pairs, else two. 1: one run, which judges what it learnt.
        corrupt: Share of the training pairs to mismatch on purpose, in a copy, to see how many are found.
        corrupt_labels: The same for labels.
        fix: Where to write a cleaned Table (its decisions go to FIX.csv).
        fix_labels: Replace probably wrong labels in the cleaned Table.
        seed: Seed of everything random.
    """
    from dataclasses import replace
    from pathlib import Path

    from consilience.audit.api import audit
    from consilience.errors import InputError
    from consilience.methods.registry import find
    from consilience.training.config import TrainConfig
    from consilience.training.configure import merge, read_recipe

    options = TrainConfig(validation=0.0, select="last")
    name, settings = method or "pc2", None
    if config is not None:
        if not train:
            raise InputError("--config is a recipe for --train; give both")
        found, values, loop = read_recipe(config, method)
        name = found or name
        settings, options = merge(find(name).cls.Config(), values), merge(options, loop)
    elif method is not None and not train:
        raise InputError("--method says what to train; give --train as well")
    return audit(
        data,
        out or f"audits/{Path(data).stem.replace(':', '-')}",
        run=run,
        train=train,
        method=name,
        config=settings,
        options=replace(options, seed=seed),
        modalities=_names(modalities),
        only=_names(checks),
        where=where,
        folds=folds,
        corrupt=corrupt,
        corrupt_labels=corrupt_labels,
        fix=fix,
        fix_labels=fix_labels,
        seed=seed,
        quiet=quiet,
    )


def parse(words: list[str]) -> dict[str, Any] | None:
    """``--train`` and ``--fix-labels`` stand alone."""
    from consilience.cli.parsing import parse_call

    flags = ("--train", "--fix-labels", "--fix_labels")
    said = [f"{word}=true" if word in flags else word for word in words]
    return parse_call(run, said, "consilience audit")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def show(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    print(f"table   {result['table']} ({result['rows']} rows)")
    if "noise_ratio" in result:
        low, high = result["noise_ratio_ci95"]
        print(f"pairs   {result['noise_ratio']:.1%} wrong, 95% interval {low:.1%} to {high:.1%}")
    if result.get("warning"):
        print(f"        {result['warning']}")
    for title, found in (("planted", result), ("labels", result.get("labels", {}))):
        if "true_noise_ratio" in found:
            print(
                f"{title:<8}{found['true_noise_ratio']:.1%} are wrong; AUROC {found['auroc']:.3f}, average precision "
                f"{found['average_precision']:.3f}, calibration error {found['calibration_error']:.3f}"
            )
            for name, other in found["baselines"].items():
                print(f"        {name}: AUROC {other['auroc']:.3f}, average precision {other['average_precision']:.3f}")
    print()
    for name, found in result["checks"].items():
        print(f"{name:<15} {found['text']}")
    print()
    if "fixed" in result:
        fixed = result["fixed"]
        did = f"{fixed['drop']} rows dropped, {fixed['re-pair']} re-paired, {fixed['relabel']} relabelled"
        print(f"fixed   {fixed['table']} ({fixed['rows']} rows; {did}; {fixed['manifest']})")
    print(f"columns {', '.join(result['columns'])}")
    print(f"report  {result['report']}")
    if "pair_trust" in result["columns"]:
        print(f"next    {command('train', 'pc2', '--data', result['table'], '--train.trust', 'pair_trust')}")
