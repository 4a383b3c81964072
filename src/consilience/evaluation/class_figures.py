"""Pictures for reports on classes: accuracy by number of labels, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64
from matplotlib.figure import Figure

_COLOURS = ("#2b6cb0", "#c05621", "#4a5568", "#2f855a")
_NUMBERED = 20  # classes up to which every cell shows its count


def label_curves(labels: Sequence[int], sides: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Mean and standard deviation of the accuracy (an entry a line) over the number of labels, on a log scale."""
    figure = Figure(figsize=(7, 4))
    axis = figure.subplots()
    for (name, values), colour in zip(sides.items(), _COLOURS):
        means, spreads = zip(*values, strict=True)
        axis.errorbar(labels, means, spreads, fmt="o-", ms=3, lw=1.2, capsize=2, label=name, color=colour)
    axis.set(xscale="log", xlabel="labels", ylabel="accuracy", ylim=(0, 1))
    axis.set_xticks(labels, [str(count) for count in labels])
    axis.minorticks_off()
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(axis="y", lw=0.4)
    return figure


def confusion(truth: Int64[np.ndarray, " n"], answers: Int64[np.ndarray, " n"], names: Sequence[str]) -> Figure:
    """Shares of every class's rows (row) by their answer (column); counts in the cells where there is room."""
    count = len(names)
    table = np.zeros((count, count), dtype=np.int64)
    np.add.at(table, (truth, answers), 1)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(9.0, 2.5 + 0.42 * count)
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(count)
    axis.set_xticks(ticks, names, rotation=90, fontsize=8)
    axis.set_yticks(ticks, names, fontsize=8)
    axis.set(xlabel="answer", ylabel="class")
    if count <= _NUMBERED:
        for row, column in np.argwhere(table > 0):
            colour = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, table[row, column], ha="center", va="center", fontsize=7, color=colour)
    return figure
