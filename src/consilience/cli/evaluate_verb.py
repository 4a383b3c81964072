"""``consilience evaluate``."""

from __future__ import annotations

from typing import Any, Literal


def run(
    run: str | list[str],
    where: str = "split = 'test'",
    data: str | None = None,
    folds: int = 1,
    ties: Literal["expected", "pessimistic"] = "expected",
    relevance: Literal["pair", "group"] = "pair",
    bits: int | None = None,
    by: Literal["itq", "sign", "lsh", "learned"] = "itq",
    database: str = "split = 'train'",
    finetune: str | None = None,
    draws: int = 3,
    quiet: bool = False,
) -> dict[str, Any]:
    """Judge a run: retrieval of pairs, and where there are labels by class; the pseudo-labels and beliefs it left.

    Args:
        run: A run folder. Several, one after the other, are judged as an ensemble (the mean of their scores).
        where: SQL filter of the rows to judge.
        data: Another Table with the same modalities; default the run's own.
        folds: Judge pairs within consecutive parts of the images and average (COCO 1K: 5).
        ties: What equal scores count for pairs: the mean over their orders, or the worst of them.
        relevance: pair, or group: whatever has the same caption as the true partner counts too.
        bits: Judge binary codes of this length too, ranked by Hamming distance; methods that learn codes need none.
        by: How vectors are hashed into --bits.
        database: SQL filter of the rows that codes are searched in (and that a hasher is fitted on, without labels).
        finetune: Of a run for few labels: also fine-tune its network, and one from random weights, on that many
            labels, such as 1/32 or "1 a class", in RUN/finetuned.
        draws: How many draws of labels --finetune takes.
    """
    from dataclasses import replace

    from consilience.cli.run_report import write_run_report
    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.evaluation.coding import CodeOptions
    from consilience.evaluation.evaluate import evaluate
    from consilience.training.api import load

    places = [run] if isinstance(run, str) else run
    loaded = [load(place) for place in places]
    if data is not None:
        table = Table.open(data)
        loaded = [replace(one, table=table) for one in loaded]
        for one in loaded:
            for name, kind in table.modalities.items():
                if one.method.modalities.get(name, kind) is not kind:
                    raise InputError(
                        f"{name} is {kind} in {data}, but {one.path} was trained on {one.method.modalities[name]}; "
                        f"import it with --kinds {name}={one.method.modalities[name]}"
                    )
    codes = CodeOptions(bits, by, database)
    figures = evaluate(loaded, where=where, folds=folds, ties=ties, relevance=relevance, codes=codes)
    if finetune is not None:
        from consilience.evaluation.few_labels import fine_tuned

        out = loaded[0].path / "finetuned"
        found = fine_tuned(loaded[0], out, where=where, setting=finetune, draws=draws, quiet=quiet)
        figures["few_labels"]["fine_tuned"] = found
    result: dict[str, Any] = {"run": places[0], "table": str(loaded[0].table.path), **figures}
    if len(places) > 1:
        result["ensemble"] = places
    elif data is None:
        try:
            result["report"] = str(write_run_report(loaded[0], figures))
        except PermissionError:  # somebody else's run can be judged too
            result["report"] = None
    return result


def parse(words: list[str]) -> dict[str, Any] | None:
    """One or more run folders, and options."""
    from consilience.cli.parsing import apart, parse_call

    places, others = apart(words)
    call = parse_call(run, [*places[:1], *others], "consilience evaluate")
    if call is not None:
        call["run"] = places if len(places) > 1 else places[0]
    return call


def show(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    print(f"{result['rows']} rows of {result['table']} where {result['where']}")
    if "task" in result:
        from consilience.evaluation.tasks import JUDGES
        from consilience.methods.base import Task

        print("\n".join(JUDGES[Task(result["task"])].lines(result)))
        print(f"next    {command('predict', result['run'], 'PICTURE')}")
        return
    if "ensemble" in result:
        print(f"ensemble of {', '.join(result['ensemble'])}")
    _show_pairs(result.get("pairs", {}))
    for name, figures in result.get("directions", {}).items():
        low, high = figures["ci95"]
        print(f"{name:<18} mAP@all {figures['map']:.3f} [{low:.3f}, {high:.3f}]  mAP@R {figures['map_at_r']:.3f}")
        for label, key in (("mAP@k", "map_at_k"), ("P@k", "precision_at_k"), ("recall@k", "recall_at_k")):
            print(f"{'':<18} {label:<8} " + "  ".join(f"{cut}: {value:.3f}" for cut, value in figures[key].items()))
    if "mean_map" in result:
        print(f"mean mAP@all {result['mean_map']:.3f}")
    _show_codes(result.get("hamming"))
    for name, figures in result.get("pseudo_labels", {}).items():
        if isinstance(figures, dict):
            print(f"pseudo-labels of {name}: {figures['accuracy']:.1%} right, NMI {figures['nmi']:.3f}")
        elif name == "note":
            print(figures)
    if "noise" in result:
        noise = result["noise"]
        found = f", AUROC {noise['auroc']:.3f} of finding them" if "auroc" in noise else ""
        print(f"mismatched pairs: {noise['true_noise_ratio']:.1%}, believed {noise['noise_ratio']:.1%}{found}")
    print(f"next    {command('index', result['table'], '--run', result['run'])}")


def _show_codes(found: dict[str, Any] | None) -> None:
    if not found:
        return
    print(f"codes of {found['bits']} bits by {found['by']}, {found['database_rows']} rows where {found['database']}")
    for name, way in found["directions"].items():
        cuts = "  ".join(f"@{cut}: {value:.3f}" for cut, value in way["map_at_k"].items())
        print(
            f"{name:<18} Hamming mAP {way['map']:.3f} [{way['ci95'][0]:.3f}, {way['ci95'][1]:.3f}]  {cuts}  "
            f"real query {way['asymmetric_map']:.3f}  real vectors {way['real_map']:.3f}"
        )
    print(f"mean Hamming mAP {found['mean_map']:.3f}")


def _show_pairs(pairs: dict[str, Any]) -> None:
    for name, figures in pairs.items():
        if "->" in name:
            recalls = "  ".join(f"R@{key[1:]} {figures[key]:.1f}" for key in figures["ci95"])
            print(f"{name:<18} {recalls}  median rank {figures['median_rank']:g}  mean rank {figures['mean_rank']:.1f}")
    if pairs:
        low, high = pairs.get("ci95", (None, None))
        print(f"rsum {pairs['rsum']:.1f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]"))
    if "ceiling" in pairs:
        limits = ", ".join(f"{value:.1f} for R@{key[1:]}" for key, value in pairs["ceiling"].items())
        print(
            f"captions repeat: no more than {limits} can be expected in a direction (--relevance group counts copies)"
        )
