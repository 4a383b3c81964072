"""Figures that must show what they are given."""

from __future__ import annotations

import pytest

from consilience.evaluation.figures import bars, loss_curves


@pytest.mark.parametrize(("values", "high"), [([0.2, 0.4], 1.0), ([20.0, 321.6], 321.6 * 1.05)])
def test_bars_end_inside_the_axis(values, high):
    axis = bars({"a at 20%": values, "b at 20%": [0.1], "a at 40%": [0.3]}, "score").axes[0]
    assert axis.get_xlim() == pytest.approx((0, high))
    colours = [patch.get_facecolor() for patch in axis.patches]
    assert colours[0] == colours[2] != colours[1]


def test_curves_have_a_second_panel_only_where_there_is_agreement() -> None:
    steps = [{"step": i, "phase": "train", "epoch": 0, "loss": 1.0 / i, "contrast": 1.0 / i} for i in (1, 2, 3)]
    assert len(loss_curves(steps).axes) == 1
    both = loss_curves([*steps, {"step": 3, "phase": "train", "epoch": 0, "agreement": 0.5}]).axes
    assert [axis.get_ylabel() for axis in both] == ["loss", "agreement"]
    assert list(both[1].lines[-1].get_ydata()) == [0.5]
