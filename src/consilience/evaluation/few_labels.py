"""Judge features by how few labels a classifier on them needs, and classifiers by their answers.

The encoder is frozen and its features are standardised over the training rows, whose pictures are known; labels are
drawn from the training rows, the same ones for the features and for the baselines, and a logistic regression
(scikit-learn's penalty, C = 1) is judged on all other rows. Nothing is chosen by what it scores there. Baselines,
always: the pixels themselves, and the run's network as it was before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64

from consilience.data.loader import read
from consilience.data.schema import single
from consilience.data.targets import class_names
from consilience.errors import InputError, unknown
from consilience.evaluation.class_figures import confusion, label_curves
from consilience.evaluation.report import Report
from consilience.evaluation.stats import bootstrap_mean, t_interval
from consilience.methods.base import Method, Task
from consilience.methods.finetune import Finetune, FinetuneConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.training.configure import build
from consilience.training.passes import encode_rows
from consilience.training.readouts import features_of, fit_logistic
from consilience.training.selection import select_rows

DRAWS = 10
"""Draws of labels, seeds 0 to 9; a setting that takes all of them needs one."""
PER_CLASS = (1, 5)
SHARES = (32, 16, 8, 4, 2, 1)
"""One label in so many training rows."""
READOUT = "label"
"""Name of the read-out that evaluation leaves with the run: fitted on all labels of the training rows."""
_PIXELS = 32
_NAMES = {"linear": "features", "pixels": "pixels", "untrained": "network before training"}


@dataclass(frozen=True)
class Labelled:
    """Rows of a Table with their classes."""

    train: Int64[np.ndarray, " n"]
    """Offsets of the training rows with a label."""
    train_codes: Int64[np.ndarray, " n"]
    test: Int64[np.ndarray, " m"]
    test_codes: Int64[np.ndarray, " m"]
    names: list[str]
    """Of the codes."""


def figures(run: Run, where: str) -> dict[str, Any]:
    """``few_labels``: of features, accuracy with spread for every number of labels beside the baselines (and the
    read-out ``label`` is left with the run); of a classifier, its own accuracy.

    Raises InputError for rows without labels, training rows among those that are judged, and classes that are on one
    side only.
    """
    if isinstance(run.method, Finetune):
        return {"few_labels": _classifier(run, run.method, where)}
    rows = labelled(run, where)
    own = features_of(run, rows.train)[1], features_of(run, rows.test)[1]
    _leave_readout(run, own[0], rows)
    listed, skipped = settings(rows.train_codes)
    found: dict[str, Any] = {
        "classes": rows.names,
        "train_rows": len(rows.train),
        "test_rows": len(rows.test),
        "seeds": list(range(DRAWS)),
        "labels": [[name, int(quota.sum())] for name, quota in listed.items()],
        "skipped": skipped,
        "headline": _headline(listed),
        "cosine": cosines(own[1], rows.test_codes),
        "linear": _settings(own, rows, listed),
        "baselines": {
            "pixels": _settings((pixels(run, rows.train), pixels(run, rows.test)), rows, listed),
            "untrained": _settings(_untrained(run, rows), rows, listed),
        },
    }
    found["accuracy"] = found["linear"][found["headline"]]["accuracy"]
    found["ci95"] = found["linear"][found["headline"]]["ci95"]
    return {"few_labels": found}


def labelled(run: Run, where: str) -> Labelled:
    """Labelled training rows of a run (held-out ones included), and the labelled rows that pass ``where``."""
    table = run.table
    config = build(TrainConfig, run.folder.config()["train"])
    everything = replace(config, validation=0.0, trust=None, corrupt=0.0, noise_index=None, review=False)
    trained = select_rows(table, everything, run.method.modalities, True).rows
    name, _ = single(run.method.modalities)
    known = table.select("label is not null")
    trained = trained[np.isin(trained, known)]
    judged = table.select(f"({where}) and label is not null and {name} is not null")
    both = np.intersect1d(trained, judged)
    if len(both):
        raise InputError(f"{len(both)} of the rows where {where} are training rows; judge on rows that gave no labels")
    if not len(judged) or not len(trained):
        which = f"row where {where}" if not len(judged) else "training row"
        raise InputError(f"no {which} of {table.path} has a label and a picture; few-label figures need both sides")
    names = class_names(table, "label")
    code = {label: place for place, label in enumerate(names)}
    sides = [
        np.array([code[str(v)] for v in table.take(rows, ["label"])["label"].to_pylist()]) for rows in (trained, judged)
    ]
    for place, (here, there) in enumerate(((sides[0], sides[1]), (sides[1], sides[0]))):
        missing = [names[k] for k in np.setdiff1d(here, there)]
        if missing:
            what = f"row where {where}" if place == 0 else "labelled training row"
            raise InputError(f"class {missing[0]!r} has no {what}; judge classes that both sides have, by --where")
    return Labelled(trained, sides[0], judged, sides[1], names)


def settings(codes: Int64[np.ndarray, " n"]) -> tuple[dict[str, Int64[np.ndarray, " k"]], list[str]]:
    """Name of every number of labels to how many of each class, fewest first; and those that the rows do not allow."""
    counts = np.bincount(codes)
    listed: dict[str, np.ndarray] = {}
    skipped = []
    for each in PER_CLASS:
        if (counts[counts > 0] >= each).all():
            listed[f"per_class_{each}"] = np.minimum(counts, each)
        else:
            skipped.append(f"per_class_{each}: a class has fewer training rows")
    for share in SHARES:
        labels = round(len(codes) / share)
        if labels >= (counts > 0).sum():
            listed[f"share_1_{share}"] = quotas(codes, labels)
        else:
            skipped.append(f"share_1_{share}: {labels} labels for {int((counts > 0).sum())} classes")
    return dict(sorted(listed.items(), key=lambda item: int(item[1].sum()))), skipped


def quotas(codes: Int64[np.ndarray, " n"], labels: int) -> Int64[np.ndarray, " k"]:
    """How many of ``labels`` each class gets: at least one, in proportion to its rows, by largest remainders.

    InputError for fewer labels than classes, and more than rows.
    """
    counts = np.bincount(codes)
    classes = int((counts > 0).sum())
    if not classes <= labels <= len(codes):
        raise InputError(
            f"{labels} labels for {classes} classes and {len(codes)} rows: give from {classes} to {len(codes)}"
        )
    ideal = labels * counts / len(codes)
    out = np.where(counts > 0, np.maximum(1, np.floor(ideal)), 0).astype(np.int64)
    while out.sum() != labels:
        step = 1 if out.sum() < labels else -1
        able = (out < counts) if step > 0 else (out > 1)
        out[np.argmax(np.where(able, step * (ideal - out), -np.inf))] += step
    return out


def draw(codes: Int64[np.ndarray, " n"], quota: Int64[np.ndarray, " k"], seed: int) -> Int64[np.ndarray, " m"]:
    """Positions of a stratified draw without replacement, ascending: ``quota[c]`` rows of every class c. Draws of one
    seed are nested: a larger quota adds rows."""
    chosen = []
    for code, count in enumerate(quota.tolist()):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, code], dtype=np.uint64)))
        chosen.append(rng.permutation(np.flatnonzero(codes == code))[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def pixels(run: Run, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
    """The decoded pictures in [0, 1] as vectors, averaged down to at most 32 pixels along a side."""
    name, _ = single(run.method.modalities)
    parts = []
    for batch in read(run.table, rows, run.method.decode, 256, modalities=(name,)):
        x = batch.values[name].float() / 255
        side = min(_PIXELS, x.shape[2])
        parts.append(F.adaptive_avg_pool2d(x, side).flatten(1))
    return torch.cat(parts).numpy()


def cosines(features: Float[np.ndarray, "n d"], codes: Int64[np.ndarray, " n"]) -> dict[str, float]:
    """Mean cosine of two different rows of one class, and of two classes: what the temperature adjusts. Classes of one
    row, and a single class, have none: left out."""
    x = features.astype(np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    sums = np.zeros((int(codes.max()) + 1, unit.shape[1]))
    np.add.at(sums, codes, unit)
    counts = np.bincount(codes).astype(np.float64)
    within, own = np.square(sums).sum(), np.square(unit).sum()
    pairs = (np.square(counts).sum() - len(codes), len(codes) ** 2 - np.square(counts).sum())
    totals = (within - own, np.square(unit.sum(0)).sum() - within)
    names = ("same_class", "other_class")
    return {name: float(total / n) for name, total, n in zip(names, totals, pairs, strict=True) if n}


def fine_tuned(
    run: Run, out: Path, *, where: str = "split = 'test'", setting: str = "", draws: int = 3, quiet: bool = True
) -> dict[str, Any]:
    """Accuracy of networks fine-tuned from a run, and from random weights, on the labels of one setting (the headline's
    by default), with seeds 0 to ``draws`` - 1: the same rows as the linear figures'. Runs stay in ``out``.

    ``setting``: a key of :func:`settings` or what :func:`words` calls it (``1/32``). InputError for one that the rows
    do not allow, and for runs that are not for few labels.
    """
    if run.method.task is not Task.CLASSES or isinstance(run.method, Finetune):
        raise InputError(f"{run.path} is no run that learnt features for few labels; fine-tune one that did")
    rows = labelled(run, where)
    listed, _ = settings(rows.train_codes)
    setting = {words(name): name for name in listed}.get(setting, setting) or _headline(listed)
    if setting not in listed:
        raise unknown("setting", setting, listed)
    own = vars(run.method.config)
    shared = {key: own[key] for key in ("encoder", "image_size", "image_fit", "shrink") if key in own}
    part = "twin.network" if own.get("ema") else "encoder"
    config = FinetuneConfig(classes=len(rows.names), part=part, **shared)
    found: dict[str, Any] = {"setting": setting, "seeds": list(range(draws))}
    for name, start in (("fine_tuned", str(run.path)), ("from_scratch", None)):
        values = []
        for seed in range(draws):
            keys = run.table.indices()[rows.train[draw(rows.train_codes, listed[setting], seed)]]
            options = TrainConfig(
                seed=seed,
                validation=0.0,
                start=start,
                modalities=",".join(run.method.modalities),
                where=f"index in ({', '.join(map(str, keys.tolist()))})",
            )
            place = out / f"{name}-{setting}-{seed}"
            made = train("finetune", run.table, place, config=config, train=options, quiet=quiet)
            assert isinstance(made.method, Finetune)
            values.append(float(_right(made, made.method, rows).mean()))
        found[name] = _spread(values)
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """A line a setting: accuracy and 95% interval over the draws, baselines beside it."""
    judged = found["few_labels"]
    if "linear" not in judged:
        low, high = judged["ci95"]
        return [f"accuracy {judged['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {judged['test_rows']} rows"]
    out = [f"logistic regression on {len(judged['classes'])} classes, mean over {len(judged['seeds'])} draws of labels"]
    for name, labels in judged["labels"]:
        mine = judged["linear"][name]
        bounds = "" if mine["ci95"][0] is None else " [{:.3f}, {:.3f}]".format(*mine["ci95"])
        others = "  ".join(f"{key} {judged['baselines'][key][name]['accuracy']:.3f}" for key in judged["baselines"])
        out.append(f"{words(name):<16} {labels:>5} labels  {mine['accuracy']:.3f}{bounds}  {others}")
    tuned = judged.get("fine_tuned")
    if tuned:
        own, scratch = (tuned[key]["accuracy"] for key in ("fine_tuned", "from_scratch"))
        draws = f"({len(tuned['seeds'])} draws)"
        out.append(f"{words(tuned['setting']):<16} fine tuned {own:.3f}  from scratch {scratch:.3f}  {draws}")
    return out + [f"left out: {reason}" for reason in judged["skipped"]]


def report(page: Report, found: Mapping[str, Any], run: Run, where: str) -> None:
    """A table of all settings, accuracy by number of labels, and which classes are taken for which."""
    judged = found["few_labels"]
    if "linear" in judged:
        sides = {"linear": judged["linear"], **judged["baselines"]}
        page.text(
            "Logistic regression on frozen features; labels are drawn from training rows, the same for all columns. "
            f"Mean and standard deviation over {len(judged['seeds'])} draws."
        )
        page.table(
            ("labels", "number", *_NAMES.values()),
            [
                (
                    words(name),
                    labels,
                    *(f"{side[name]['accuracy']:.3f} ± {side[name]['sd']:.3f}" for side in sides.values()),
                )
                for name, labels in judged["labels"]
            ],
        )
        count = [labels for _, labels in judged["labels"]]
        drawn = {
            _NAMES[key]: [(side[name]["accuracy"], side[name]["sd"]) for name, _ in judged["labels"]]
            for key, side in sides.items()
        }
        page.figure(
            label_curves(count, drawn),
            "Accuracy on the judged rows by number of labels; bars are standard deviations over draws.",
        )
        for reason in judged["skipped"]:
            page.text(f"Left out: {reason}.", "soft")
    rows = labelled(run, where)
    if isinstance(run.method, Finetune):
        answers = _probabilities(run, run.method, rows.test).argmax(1)
        what = "Answers of the classifier."
    else:
        model = fit_logistic(features_of(run, rows.train)[1], np.asarray(rows.names)[rows.train_codes])
        code = {name: place for place, name in enumerate(rows.names)}
        answers = np.array([code[name] for name in model.predict(features_of(run, rows.test)[1])])
        what = "Answers of logistic regression with all labels."
    page.figure(confusion(rows.test_codes, answers, rows.names), f"{what} Rows: the true class, columns: the answer.")


def words(setting: str) -> str:
    """A setting's name for people."""
    kind, _, number = setting.rpartition("_")
    if kind == "per_class":
        return f"{number} a class"
    return "all" if number == "1" else f"1/{number}"


def _headline(listed: Mapping[str, np.ndarray]) -> str:
    """1/32 of the labels where that is enough for every class, else one a class."""
    return next((name for name in (f"share_1_{SHARES[0]}", "per_class_1") if name in listed), next(iter(listed)))


def _settings(
    features: tuple[np.ndarray, np.ndarray], rows: Labelled, listed: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    known, asked = features
    mean, scale = known.mean(0, dtype=np.float64), known.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-12, scale, 1.0)
    known, asked = (known - mean) / scale, (asked - mean) / scale
    found = {}
    for name, quota in listed.items():
        draws = DRAWS if quota.sum() < len(rows.train) else 1
        values = []
        for seed in range(draws):
            chosen = draw(rows.train_codes, quota, seed)
            values.append(_linear(known[chosen], rows.train_codes[chosen], asked, rows.test_codes))
        found[name] = _spread(values)
    return found


def _linear(known: np.ndarray, codes: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(codes)) < 2:
        raise InputError("a classifier needs labels of two or more classes")
    model = LogisticRegression(max_iter=2000).fit(known, codes)
    return float((model.predict(asked) == truth).mean())


def _spread(values: list[float]) -> dict[str, Any]:
    interval = t_interval(values)
    bounds = [None, None] if len(values) < 2 else [interval.low, interval.high]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"accuracy": interval.mean, "sd": sd, "ci95": bounds, "values": values}


def _untrained(run: Run, rows: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Features of the run's network with the weights that its seed gave it."""
    name, _ = single(run.method.modalities)
    device = next(run.method.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(int(run.folder.config()["train"]["seed"]))
        method: Method = type(run.method)(run.method.config, run.method.modalities, run.method.samples)
    method.to(device).eval()
    found = [
        encode_rows(method, run.table, part, device).vectors[name].cpu().numpy() for part in (rows.train, rows.test)
    ]
    return found[0], found[1]


def _leave_readout(run: Run, features: np.ndarray, rows: Labelled) -> None:
    try:
        fit_logistic(features, np.asarray(rows.names)[rows.train_codes]).save(run.path, READOUT)
    except PermissionError:  # somebody else's run can be judged too
        return


def _classifier(run: Run, method: Finetune, where: str) -> dict[str, Any]:
    rows = labelled(run, where)
    right = _right(run, method, rows)
    interval = bootstrap_mean(right)
    return {
        "classes": rows.names,
        "train_rows": len(rows.train),
        "test_rows": len(rows.test),
        "accuracy": interval.mean,
        "ci95": [interval.low, interval.high],
    }


def _right(run: Run, method: Finetune, rows: Labelled) -> np.ndarray:
    answers = _probabilities(run, method, rows.test).argmax(1)
    return np.asarray(answers == rows.test_codes, dtype=np.float64)


@torch.no_grad()
def _probabilities(run: Run, method: Finetune, rows: np.ndarray) -> np.ndarray:
    method.eval()
    device = next(method.parameters()).device
    batches = read(run.table, rows, method.decode, 256, modalities=(method.name,))
    return torch.cat([method.classify(batch.to(device)).cpu() for batch in batches]).numpy()
