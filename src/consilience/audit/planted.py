"""How well an audit did where the truth is known: mismatches and wrong labels planted by
:mod:`consilience.data.corrupt`. Nothing here is read by the audit itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from consilience.audit.baselines import (
    confident_joint,
    label_disagreement,
    pair_cosine,
    pair_self_confidence,
    self_confidence,
)
from consilience.audit.calibration import auroc, average_precision, calibration_error
from consilience.audit.checks.base import Context, Finding
from consilience.audit.checks.label_doubt import features, label_codes
from consilience.audit.labels import out_of_sample, softmax


def pair_figures(context: Context, finding: Finding, pair: tuple[str, str]) -> dict[str, Any]:
    """Figures of the pair check on training rows, by the column ``true_pair``, beside baselines on the same vectors."""
    views = context.need_views()
    right = _truth(context, "true_pair")
    shown = finding.shown["-".join(pair)]
    judged = (shown["samples"] == "train") & ~np.isnan(finding.score)
    trust, wrong = finding.score[judged], ~right[judged]
    error, points = calibration_error(trust, ~wrong)
    info = finding.info[f"{pair[0]}-{pair[1]}, train"]
    n = len(context)
    others = {
        "clip score": pair_cosine(views, *pair, n),
        "cleanlab-style self-confidence": pair_self_confidence(views, *pair, n),
        "loss mixture (the method's own)": views.belief,
    }
    baselines = {}
    for name, values in others.items():
        known = ~np.isnan(values[judged])
        if not known.any():
            continue
        mine, bad = values[judged][known], wrong[known]
        baselines[name] = {"auroc": auroc(mine, bad), "average_precision": average_precision(mine, bad)}
        if values is views.belief:
            baselines[name] |= {
                "noise_ratio": float(1 - mine.mean()),
                "calibration_error": calibration_error(mine, ~bad)[0],
                "rows": int(known.sum()),
            }
    return {
        "auroc": auroc(shown["z"][judged], wrong),
        "average_precision": average_precision(shown["z"][judged], wrong),
        "noise_ratio": info["noise_ratio"],
        "noise_ratio_ci95": info["noise_ratio_ci95"],
        "true_noise_ratio": float(wrong.mean()),
        "calibration_error": error,
        "calibration": points,
        "better_partner": _better(context, finding, pair, right),
        "baselines": baselines,
    }


def _better(context: Context, finding: Finding, pair: tuple[str, str], right: np.ndarray) -> dict[str, Any]:
    """How many of the proposed partners are the ones that were torn away, and of how many that could be found."""
    if "partner" not in context.table.columns:
        return {}
    belongs = context.table.take(context.rows, ["partner"])["partner"].to_numpy()
    first, second = pair
    proposed = finding.columns.get(f"better_{second}")
    if proposed is None:
        return {}
    # row i's own `second` now lies in the row whose column partner names i
    home = dict(zip(belongs.tolist(), context.index.tolist(), strict=True))
    some = np.flatnonzero(proposed >= 0)
    hits = sum(home.get(int(context.index[row])) == int(proposed[row]) for row in some)
    return {"proposed": len(some), "correct": int(hits), "to_find": int((~right).sum()), "for": first}


def label_figures(context: Context, finding: Finding) -> dict[str, Any]:
    """Figures of the label check on labelled training rows, by the column ``label_is_true``, beside confident learning
    and neighbours on the same vectors."""
    right = _truth(context, "label_is_true")
    codes, names = label_codes(context)
    labelled = codes >= 0
    train = context.splits[labelled] == "train"
    train = train if train.any() else np.ones(int(labelled.sum()), dtype=bool)
    x, given = features(context)[labelled], codes[labelled]
    wrong, trust = ~right[labelled][train], finding.score[labelled][train]
    probabilities = softmax(out_of_sample(x, given, len(names), context.seed))
    joint = confident_joint(probabilities[train], given[train])
    error, points = calibration_error(trust, ~wrong)

    def judged(values: np.ndarray) -> dict[str, Any]:
        return {"auroc": auroc(values[train], wrong), "average_precision": average_precision(values[train], wrong)}

    return {
        "auroc": auroc(trust, wrong),
        "average_precision": average_precision(trust, wrong),
        "noise_ratio": float(1 - trust.mean()),
        "true_noise_ratio": float(wrong.mean()),
        "calibration_error": error,
        "calibration": points,
        "baselines": {
            "confident learning": judged(self_confidence(probabilities, given))
            | {"noise_ratio": float(1 - np.trace(joint))},
            "nearest neighbours": judged(label_disagreement(x, given)),
        },
    }


def _truth(context: Context, column: str) -> np.ndarray:
    values = context.table.take(context.rows, [column])[column].to_pylist()
    return np.array([value is None or bool(value) for value in values])
