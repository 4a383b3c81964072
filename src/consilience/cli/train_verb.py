"""``consilience train``."""

from __future__ import annotations

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
            raise InputError(
                "consilience train needs --data: an embedded data set's name, a Table or a source"
            )
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
    from consilience.cli.run_report import write_run_report

    records = list(done.folder.records())
    losses = [record for record in records if "loss" in record]
    chosen = [record["agreement"] for record in records if "agreement" in record]
    return {
        "run": str(done.path),
        "table": str(done.table.path),
        "steps": records[-1]["step"] if records else 0,
        "loss": losses[-1]["loss"] if losses else None,
        "agreement": max(chosen[-1:], default=None),
        "report": str(write_run_report(done)),
    }


def parse(words: list[str]) -> dict[str, Any] | None:
    """``train METHOD ...`` with the method's own options; ``train --resume RUN`` needs no method."""
    from consilience.cli.parsing import parse_call
    from consilience.errors import InputError
    from consilience.methods.registry import find, methods
    from consilience.training.config import TrainConfig
    from consilience.training.configure import merge, read_yaml
    from consilience.training.run import RunFolder

    if "--resume" in words and (not words or words[0].startswith("-")):
        place = words.index("--resume")
        if place + 1 == len(words):
            raise InputError("--resume needs a run folder: consilience train --resume RUN")
        words = [str(RunFolder.open(Path(words[place + 1])).config()["method"]), *words]
    asks = not words or words[0] in ("-h", "--help")
    if asks:
        words = [next(iter(methods())), "--help"]
    elif words[0].startswith("-"):
        raise InputError(
            f"name the method first: consilience train METHOD ...; known: {', '.join(methods())}"
        )
    info = find(words[0])
    base, options = info.cls.Config(), TrainConfig()
    recipe = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"), None)
    if recipe is not None:
        content = read_yaml(recipe, "")
        unexpected = set(content) - {"method", "method_config", "train"}
        if unexpected or content.get("method", words[0]) != words[0]:
            raise InputError(
                f"{recipe} is no recipe of {words[0]}; expected method: {words[0]}, method_config and train"
            )
        base = merge(base, content.get("method_config") or {})
        options = merge(options, content.get("train") or {})
    return parse_call(run, words, "consilience train", {"method": base, "train": options})


def show(result: dict[str, Any]) -> None:
    print(f"run: {result['run']} ({result['steps']} steps, last loss {result['loss']})")
    print(f"table: {result['table']}\nreport: {result['report']}")
    print(f"next: consilience evaluate {result['run']}")
