"""``consilience train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal


def run(
    name: str,
    method: Any,
    train: Any,
    data: str | None = None,
    out: str | None = None,
    config: str | None = None,
    kinds: str | None = None,
    trust: str | None = None,
    on_bad_sample: Literal["stop", "quarantine"] = "stop",
    resume: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a method, or go on with a run.

    Args:
        name: The method (see consilience methods).
        data: An embedded data set's name, a Table, or a source that import takes.
        out: The run folder (-o); default runs/METHOD.
        config: A recipe: a YAML file or the name of one that ships (romo, romo-paper).
        kinds: What modalities are, where the files do not tell: image=grey,shape=mesh.
        trust: Column with the trust in each training row, such as audit's pair_trust; short for --train.trust.
        on_bad_sample: stop at the first unreadable sample, or quarantine such samples and go on.
        resume: A run folder to go on with; its own configuration is used.
    """
    from consilience.cli.parsing import pairs
    from consilience.errors import InputError
    from consilience.training import api

    if resume is not None:
        done = api.resume(resume, quiet=quiet)
    else:
        if data is None:
            raise InputError("consilience train needs --data: an embedded data set's name, a Table or a source")
        if trust is not None:
            if train.trust not in (None, trust):
                raise InputError(f"--trust {trust} and --train.trust {train.trust} name two columns; give one of them")
            train = replace(train, trust=trust)
        done = api.train(
            name,
            data,
            out or f"runs/{name}",
            config=method,
            train=train,
            kinds=pairs(kinds, "--kinds"),
            on_bad_sample=on_bad_sample,
            quiet=quiet,
        )
    return summary(done)


def summary(done: Any) -> dict[str, Any]:
    """What a finished run says of itself (also its report)."""
    from consilience.cli.run_report import quarantined, write_run_report

    records = list(done.folder.records())
    losses = [record["loss"] for record in records if "loss" in record]
    judged = [record for record in records if "agreement" in record]
    last = [record["agreement"] for record in judged if record["phase"] == judged[-1]["phase"]]
    kept = max if done.folder.config()["train"]["select"] == "best" else (lambda values: values[-1])
    return {
        "run": str(done.path),
        "table": str(done.table.path),
        "steps": max((record["step"] for record in records), default=0),
        "loss": losses[-1] if losses else None,
        "agreement": kept(last) if last else None,
        "task": str(done.method.task),
        "quarantined": len(quarantined(done)),
        "report": str(write_run_report(done)),
    }


def parse(words: list[str]) -> dict[str, Any] | None:
    """``train METHOD ...`` with the method's own options; ``train --resume RUN`` needs no method."""
    from consilience.cli.parsing import parse_call, value_of
    from consilience.errors import InputError
    from consilience.methods.registry import find, methods
    from consilience.training.config import TrainConfig
    from consilience.training.configure import merge, read_recipe

    if any(word.partition("=")[0] == "--resume" for word in words):
        words = _resuming(words)
    if not words or words[0] in ("-h", "--help"):
        words = [next(iter(methods())), "--help"]
    elif words[0].startswith("-"):
        raise InputError(f"name the method first: consilience train METHOD ...; known: {', '.join(methods())}")
    base, options = find(words[0]).cls.Config(), TrainConfig()
    recipe = value_of("--config", words)
    if recipe is not None:
        _, method, train = read_recipe(recipe, words[0])
        base, options = merge(base, method), merge(options, train)
    return parse_call(run, words, "consilience train", {"method": base, "train": options})


def _resuming(words: list[str]) -> list[str]:
    """The words with the run's method in front; a run goes on as it was started, so nothing else is taken."""
    from consilience.cli.parsing import value_of
    from consilience.errors import InputError
    from consilience.training.run import RunFolder

    place = value_of("--resume", words)
    if not place:
        raise InputError("--resume needs a run folder: consilience train --resume RUN")
    method = str(RunFolder.open(Path(place)).config()["method"])
    if not words[0].startswith("-") and words[0] != method:
        raise InputError(f"{place} is a run of {method}, not of {words[0]}; give: consilience train --resume {place}")
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and option not in ("--resume", "-h", "--help"):
            raise InputError(f"{option} does not go with --resume: {place} goes on with its own config.yaml; drop it")
    return words if words[0] == method else [method, *words]


def show(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    agreement = "" if result["agreement"] is None else f", modalities agree {result['agreement']:.3f} on held-out pairs"
    loss = "" if result["loss"] is None else f", last loss {result['loss']:.3f}"
    print(f"run     {result['run']} ({result['steps']} steps{loss}{agreement})")
    print(f"table   {result['table']}")
    if result["quarantined"]:
        print(
            f"        {result['quarantined']} unreadable samples set aside, listed in quarantine.jsonl and the report"
        )
    print(f"report  {result['report']}")
    print(f"next    {command('evaluate', result['run'])}")
    if result["task"] == "retrieval":
        print(f"        {command('index', result['table'], '--run', result['run'])}")
    else:
        print(f"        {command('predict', result['run'], 'PICTURE')}")
