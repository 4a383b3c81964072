"""Labels that the samples speak against."""

from __future__ import annotations

import numpy as np

from consilience.audit.checks.base import Context, Finding, NotApplicable
from consilience.audit.checks.registry import check
from consilience.audit.labels import label_posterior, out_of_sample
from consilience.errors import InputError

LEAST = 50
ROUNDS = 2


@check("label_doubt", suspicion="label doubt", order=4, title="Labels that the samples speak against")
def label_doubt(context: Context) -> Finding:
    """The score is the probability that the label is right: out-of-sample logistic regression on the vectors of all
    modalities, learnt a second time without the labels that the first doubts, and a model of how labels go wrong
    (:func:`consilience.audit.labels.label_posterior`). Column ``label_trust``."""
    views = context.need_views()
    codes, names = label_codes(context)
    known = np.flatnonzero(codes >= 0)
    counts = np.bincount(codes[known], minlength=len(names))
    if len(known) < LEAST or int((counts >= 5).sum()) < 2:
        raise NotApplicable(f"needs {LEAST} labelled rows in two classes of five")
    x, given = features(context)[known], codes[known]
    learn = np.ones(len(known), dtype=bool)
    for _ in range(ROUNDS):
        logits = out_of_sample(x, given, len(names), context.seed, learn)
        posterior, _ = label_posterior(logits, given)
        learn = posterior >= 0.5
    score = np.full(len(context), np.nan)
    score[known] = posterior
    flagged = score < 0.5
    guess = logits.argmax(1)
    reasons = {
        int(row): f"labelled {names[given[place]]}, looks like {names[guess[place]]}"
        for place, row in enumerate(known)
        if flagged[row]
    }
    ratio = float(1 - posterior.mean())
    text = f"{int(flagged.sum())} of {len(known)} labels are probably wrong"
    suggested = np.full(len(context), -1, dtype=np.int64)
    suggested[known] = guess
    shown = {"suggested": suggested, "names": names, "views": views}
    return Finding(score, flagged, text, {"noise_ratio": ratio}, {"label_trust": score}, reasons, shown=shown)


def label_codes(context: Context) -> tuple[np.ndarray, list[str]]:
    """Class codes int64 of the audited rows (-1 without) and their names; NotApplicable without labels."""
    try:
        codes, names = context.table.labels()
    except InputError as error:
        raise NotApplicable("needs labels; the table has none") from error
    everything = np.full(len(context.table), -1, dtype=np.int64)
    everything[context.table.select()] = codes
    return everything[context.rows], names


def features(context: Context) -> np.ndarray:
    """float32 [n, d]: the vectors of all modalities side by side, zeros where one is absent."""
    graph = context.need_views().graph
    parts = [vectors * graph.present[name][:, None] for name, vectors in graph.vectors.items()]
    return np.concatenate([part.numpy() for part in parts], axis=1)
