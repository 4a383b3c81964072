"""Pictures for reports: loss curves, bars with intervals, retrieval grids, maps of the common space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from consilience.data.schema import Kind

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")


def loss_curves(records: Iterable[Mapping[str, Any]]) -> Figure:
    """Loss and its terms over the steps of ``log.jsonl``, phases marked; below it the label-free agreement, if any."""
    lines = list(records)
    epochs = [r for r in lines if "agreement" in r]
    figure = Figure(figsize=(9, 4.6 if epochs else 3.6))
    axes = list(figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))) if epochs else [figure.subplots()]
    above = axes[0]
    steps = [r for r in lines if "loss" in r]
    names = sorted({k for r in steps for k in r} - {"step", "phase", "epoch", "loss"})
    for name, colour in zip(["loss", *names], _COLOURS):
        kept = [r for r in steps if name in r]
        above.plot([r["step"] for r in kept], [r[name] for r in kept], label=name, color=colour, lw=1.2)
    before = None
    for record in steps:
        if record["phase"] != before:
            for axis in axes:
                axis.axvline(record["step"], color="#a0aec0", lw=0.8, ls=":")
            above.text(record["step"], above.get_ylim()[1], f" {record['phase']}", va="top", fontsize=8)
            before = record["phase"]
    above.set_ylabel("loss")
    above.legend(fontsize=8, loc="upper right")
    if epochs:
        axes[1].plot([r["step"] for r in epochs], [r["agreement"] for r in epochs], "o-", ms=3, color=_COLOURS[0])
        axes[1].set_ylabel("agreement")
    axes[-1].set_xlabel("step (one batch each)")
    return figure


def precision_recall(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Precision over recall as the Hamming radius grows, a line an entry; radii that find next to nothing left out."""
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for (name, curve), colour in zip(curves.items(), _COLOURS):
        shown = [place for place, found in enumerate(curve["found"]) if found >= 1]
        axis.plot(
            [curve["recall"][i] for i in shown],
            [curve["precision"][i] for i in shown],
            "o-",
            ms=3,
            label=name,
            color=colour,
        )
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def bars(results: Mapping[str, Sequence[float]], label: str) -> Figure:
    """One horizontal bar an entry: mean of the values, each seed's value as a dot. Shares are shown on 0..1."""
    figure = Figure(figsize=(9, 0.5 * len(results) + 1.1))
    axis = figure.subplots()
    for position, (name, values) in enumerate(results.items()):
        first = name.partition(" at ")[0] == next(iter(results)).partition(" at ")[0]
        axis.barh(position, float(np.mean(values)), color=_COLOURS[first], alpha=0.75)
        axis.plot(values, [position] * len(values), "k.", ms=5)
    axis.set_yticks(range(len(results)), list(results), fontsize=9)
    axis.invert_yaxis()
    largest = max(max(values) for values in results.values())
    axis.set_xlim(0, 1 if largest <= 1 else largest * 1.05)
    axis.set_xlabel(label)
    return figure


def draw_sample(axis: Any, value: np.ndarray, kind: Kind) -> None:
    """Show one decoded sample: a picture as it is, a cloud or mesh as points seen from the front, near ones darker."""
    if kind.is_image:
        axis.imshow(np.moveaxis(value, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        points = value[:, :3]
        axis.scatter(points[:, 0], points[:, 1], c=points[:, 2], s=3, cmap="viridis")
        axis.set_aspect("equal")
        axis.set_xlim(-1.05, 1.05)
        axis.set_ylim(-1.05, 1.05)
    axis.set_xticks([])
    axis.set_yticks([])


def retrieval_grid(
    rows: Sequence[tuple[np.ndarray, Kind, Sequence[tuple[np.ndarray, Kind, bool | None, str]]]],
) -> Figure:
    """One row a query: the query on the left, its answers after it; the frame is green where the class is the query's,
    red where it is not, grey where it is unknown."""
    width = 1 + max(len(answers) for _, _, answers in rows)
    figure = Figure(figsize=(1.15 * width + 0.3, 1.3 * len(rows)))
    grid = figure.subplots(len(rows), width, squeeze=False)
    for line, (query, kind, answers) in zip(grid, rows, strict=True):
        draw_sample(line[0], query, kind)
        line[0].set_ylabel("query", fontsize=8)
        for axis, (value, answer_kind, right, caption) in zip(line[1:], answers):
            draw_sample(axis, value, answer_kind)
            axis.set_title(caption, fontsize=7, pad=2)
            for spine in axis.spines.values():
                spine.set_color({True: "#2f855a", False: "#c53030", None: "#a0aec0"}[right])
                spine.set_linewidth(2)
    return figure


def common_space(vectors: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]) -> Figure:
    """t-SNE of unit vectors [n, d] of two or more modalities together: colour is the class, marker the modality."""
    from sklearn.manifold import TSNE

    everything = np.concatenate(list(vectors.values()))
    place = TSNE(
        n_components=2,
        perplexity=min(30.0, (len(everything) - 1) / 3),
        metric="cosine",
        init="random",
        random_state=0,
    ).fit_transform(everything)
    figure = Figure(figsize=(8, 6.4))
    axis = figure.subplots()
    start = 0
    for (name, part), marker in zip(vectors.items(), ("o", "^", "s", "D")):
        here = place[start : start + len(part)]
        start += len(part)
        for code in np.unique(labels):
            chosen = labels == code
            colour = f"C{code % 10}" if code >= 0 else "#a0aec0"
            text = f"{names[code]}" if marker == "o" and code >= 0 and len(names) <= 12 else None
            axis.scatter(
                here[chosen, 0],
                here[chosen, 1],
                s=16,
                marker=marker,
                color=colour,
                alpha=0.7,
                lw=0,
                label=text,
            )
        axis.scatter([], [], marker=marker, color="#4a5568", label=name)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
