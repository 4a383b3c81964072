"""The SGRAF benchmark in miniature: both sides compute the same, and the report is complete."""

from __future__ import annotations

import pytest
import torch

from consilience.benchmarks import sgraf


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"PAIRS": 6, "REGIONS": 4, "FEATURES": 20, "SIM": 8, "VOCABULARY": 50, "EVALUATED": (3, 4)}
    for name, value in sizes.items():
        monkeypatch.setattr(sgraf, name, value)


def test_report() -> None:
    threads = torch.get_num_threads()
    report = sgraf.run(repeats=1, embed=16)
    assert torch.get_num_threads() == threads
    assert list(report["ratios"]) == ["score_forward", "step_hard", "step_mean"]
    for name, ratio in report["ratios"].items():
        both = report["seconds"][name]
        assert ratio == both["plain"]["median"] / both["ours"]["median"]
        assert report["pairs_per_second"][name]["ours"] == 36 / both["ours"]["median"]
    assert 0 <= report["memory"]["taken_mb"] < report["memory"]["ceiling_mb"]


def test_memory_is_measured_although_this_process_has_been_larger() -> None:
    large = torch.ones(1 << 27)  # 512 MB
    del large
    assert sgraf.evaluation_memory((40, 200), 64, 64 << 20) > 1


@pytest.mark.parametrize("loss", ["hard", "mean"])
def test_both_sides_do_the_same_work(loss: sgraf.Loss) -> None:
    forward = [sgraf._forward(plain, embed=16, seed=0)() for plain in (True, False)]
    torch.testing.assert_close(*forward, rtol=0, atol=1e-6)
    losses = [sgraf._train(plain, loss, embed=16, seed=0)() for plain in (True, False)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_lengths_are_those_of_captions() -> None:
    lengths = sgraf.caption_lengths(5000, 0).float()
    assert 12 <= float(lengths.mean()) <= 14
    assert (float(lengths.min()), float(lengths.max())) == (8, 30)
