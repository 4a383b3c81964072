"""CMAH's parts together: what the options change, what two processes share, what is kept."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.data.importers import import_table
from consilience.data.schema import Batch, Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.losses.contrastive import cross_modal_nce, pair_nce
from consilience.losses.reconstruction import chamfer, patch_error
from consilience.methods.base import Encoded, Measure, Optimiser
from consilience.methods.cmah import CMAH, CMAHConfig, Look
from consilience.training.api import train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.views.geometry import ViewConfig
from consilience.views.masking import take
from tests.methods.small_cmah import KINDS, SMALL, START, batch, method


def looks(model: CMAH, rows: Batch) -> tuple[Look, Look]:
    first, second = (model._look(rows, i, name, (0, 0, 0)) for i, name in enumerate(KINDS))
    return first, second


def test_the_terms_are_the_papers_sum() -> None:
    model, rows = method(points_weight=0.7, image_weight=0.4, masked_weight=0.5), batch()
    a, b = looks(model, rows)
    terms = model.step(rows, START)
    assert a.masked_u is not None
    assert b.masked_u is not None
    torch.testing.assert_close(terms["contrast"], cross_modal_nce(a.u, b.u, 0.2))
    torch.testing.assert_close(terms["masked"], 0.5 * cross_modal_nce(a.masked_u, b.masked_u, 0.2))
    fused = model.fusion(a.seen[:, 1:], b.seen[:, 1:])
    predicted = [
        model.decoders[name](z, take(x.tokens.place, x.visible), take(x.tokens.place, x.hidden))
        for name, z, x in zip(KINDS, fused, (a, b), strict=True)
    ]
    patches = patch_error(predicted[0], take(a.tokens.targets, a.hidden)).mean()
    clouds = chamfer(predicted[1].view(8, -1, 8, 3), take(b.tokens.targets, b.hidden).view(8, -1, 8, 3)).mean()
    torch.testing.assert_close(terms["reconstruct_image"], 0.4 * patches)
    torch.testing.assert_close(terms["reconstruct_points"], 0.7 * clouds)
    assert set(terms) == {"contrast", "masked", "reconstruct_image", "reconstruct_points"}


def test_full_against_masked() -> None:
    model, rows = method(masked_contrast="fm", image_weight=0.0, points_weight=0.0), batch()
    a, b = looks(model, rows)
    assert a.masked_u is not None
    assert b.masked_u is not None
    expected = (cross_modal_nce(a.u, b.masked_u, 0.2) + cross_modal_nce(a.masked_u, b.u, 0.2)) / 2
    torch.testing.assert_close(model.step(rows, START)["masked"], expected)


def test_nested_codes_are_judged_at_every_length() -> None:
    model, rows = method(bits=64, nested=True), batch()
    a, b = looks(model, rows)
    expected = torch.stack([cross_modal_nce(a.u[:, :k], b.u[:, :k], 0.2) for k in (16, 32, 64)]).mean()
    torch.testing.assert_close(model.step(rows, START)["contrast"], expected)


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({"masked_weight": 0.0, "points_weight": 0.0, "image_weight": 0.0}, {"contrast"}),
        ({"points_weight": 0.0, "image_weight": 0.0}, {"contrast", "masked"}),
        ({"masked_weight": 0.0}, {"contrast", "reconstruct_image", "reconstruct_points"}),
        ({"fusion_layers": 0}, {"contrast", "masked", "reconstruct_image", "reconstruct_points"}),
        ({"head": "ste", "head_norm": "layer", "pool": "code_mean"}, None),
        ({"contrast": "ranking", "affinity_weight": 0.5}, None),
        ({"quantisation_weight": 0.1, "imbalance_weight": 0.1, "correlation_weight": 0.1, "debias": 0.1}, None),
        ({"balance": "uncertainty", "norm": "batch", "pos_every_block": True, "drop_path": 0.2}, None),
        ({"points_weight": 0.0}, {"contrast", "masked", "reconstruct_image", "reconstruct_points"}),
        ({"alpha": "sqrt", "head_norm": "none"}, None),
    ],
)
def test_every_option_reaches_all_it_trains(options: dict[str, object], terms: set[str] | None) -> None:
    model = method(**options)
    found = model.step(batch(), START)
    if terms is not None:
        assert set(found) == terms
    assert all(torch.isfinite(value) for value in found.values())
    torch.stack(list(found.values())).sum().backward()
    trained = [p for module in model.trained("train") for p in module.parameters()]
    assert all(p.grad is not None for p in trained)
    assert len(trained) == len(list(model.parameters()))


def test_the_encoders_start_alike_with_and_without_the_other_parts() -> None:
    """Ablations differ in what they leave out, not in their first weights."""
    whole = method().branches.state_dict()
    bare = method(points_weight=0.0, image_weight=0.0, masked_weight=0.0).branches.state_dict()
    assert whole.keys() == bare.keys()
    assert all(torch.equal(whole[name], bare[name]) for name in whole)


def test_views_and_masks_belong_to_the_sample() -> None:
    model, rows = method(drop_path=0.3).eval(), batch()
    whole = looks(model, rows)
    part = looks(model, Batch(rows.index[2:5], {n: v[2:5] for n, v in rows.values.items()}, rows.present))
    for one, two in zip(whole, part, strict=True):
        assert torch.equal(one.visible[2:5], two.visible)
        torch.testing.assert_close(one.u[2:5], two.u, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.masked_u[2:5], two.masked_u, atol=1e-5, rtol=1e-5)
    later = model._look(rows, 0, "image", (0, 0, 1))
    assert not torch.equal(later.visible, whole[0].visible)


def test_masked_inputs_do_not_move_the_running_moments() -> None:
    model, rows = method(), batch()
    model.step(rows, START)
    full, bare = method(), method(masked_weight=0.0, points_weight=0.0, image_weight=0.0)
    for each in (full, bare):
        each.step(rows, START)
    for name in KINDS:
        assert torch.equal(full._branch(name).head.norm.mean, bare._branch(name).head.norm.mean)


def test_two_processes_have_the_gradient_of_one() -> None:
    """Uneven shares, batch norms, nested codes, weights of pairs, affinities, every term."""
    code = """
import torch, torch.distributed as dist
from consilience.data.schema import Batch, Kind
from consilience.distributed import rank, sum_over_ranks, world_size
from consilience.methods.base import Progress
from consilience.methods.cmah import CMAH, CMAHConfig
kinds = {"image": Kind.GREY, "points": Kind.POINTS}
torch.manual_seed(3)
pixels, cloud = torch.randint(0, 255, (11, 1, 28, 28), dtype=torch.uint8), torch.randn(11, 32, 3)
trust = torch.rand(20)
def batch(rows):
    seen = torch.ones(len(rows), dtype=torch.bool)
    return Batch(rows + 5, {"image": pixels[rows], "points": cloud[rows]}, {"image": seen, "points": seen.clone()})
def gradients(options, rows):
    torch.manual_seed(0)
    small = dict(bits=32, width=16, attention_heads=2, groups=8, group_size=8, group_width=8, points_weight=1.0)
    method = CMAH(CMAHConfig(**small, **options), kinds, 20)
    if options.get("pair_weights") == "mixture":
        method.beliefs.clean[0] = trust
    torch.stack(list(method.step(batch(rows), Progress(0, "train", 2, 0.7, 0)).values())).sum().backward()
    moments = {n: b.clone() for n, b in method.named_buffers() if "mean" in n or "variance" in n}
    return {n: p.grad for n, p in method.named_parameters()}, moments
cases = [
    {"drop_path": 0.2, "nested": True, "pair_weights": "mixture", "debias": 0.1},
    {"norm": "batch", "affinity_weight": 1.0, "quantisation_weight": 0.3, "imbalance_weight": 0.2,
     "correlation_weight": 0.2, "masked_contrast": "fm", "balance": "uncertainty"},
    {"contrast": "ranking", "pool": "code_mean", "head_norm": "batch"},
]
alone = [gradients(case, torch.arange(11)) for case in cases]
dist.init_process_group("gloo")
mine = torch.arange(6) if rank() == 0 else torch.arange(6, 11)
for case, (expected, moments) in zip(cases, alone):
    found, own = gradients(case, mine)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        joined = sum_over_ranks(value) / world_size()
        torch.testing.assert_close(joined, expected[name], atol=2e-5, rtol=1e-3, msg=lambda m: f"{case} {name}: {m}")
    for name in moments:
        torch.testing.assert_close(own[name], moments[name], atol=1e-5, rtol=1e-4)
dist.destroy_process_group()
"""
    port = random.Random(os.getpid() + 5).randrange(20_000, 60_000)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "--no-python"]
    done = subprocess.run([*run, sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_pairs_that_do_not_fit_weigh_less(tiny_table: Table, tmp_path: Path) -> None:
    """Trust comes from the loss of each pair; it weighs the contrast and ends as a column."""
    model, rows = method(pair_weights="mixture"), batch()
    a, b = looks(model, rows)
    model.beliefs.clean[0, rows.index] = torch.linspace(0, 1, 8)
    weights = torch.linspace(0, 1, 8)
    torch.testing.assert_close(model.step(rows, START)["contrast"], cross_modal_nce(a.u, b.u, 0.2, weights))
    table = import_table(tiny_table.path, tmp_path / "table")
    content = read_yaml("cmah-tiny", "")
    config = merge(CMAHConfig(), content["method_config"])
    run = train("cmah", table, tmp_path / "run", config=config, train=TrainConfig(threads=1), quiet=True)
    found = run.table.column("clean_probability", "split = 'train'")
    known = found[~np.isnan(found)]
    assert len(known) == 44
    assert ((known >= 0) & (known <= 1)).all()
    assert len(set(known.tolist())) > 1


class Looked:
    """Stands for the training set between epochs: 20 samples, the losses of which rise with their number."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def __call__(self) -> Encoded:
        raise AssertionError("no need of all vectors")

    def scan(self, measure: Measure, batch_size: int) -> dict[str, torch.Tensor]:
        self.seen = dict(measure(batch()))
        return {"loss": torch.arange(20.0)}


def test_the_measured_loss_is_that_of_the_pair_in_its_batch() -> None:
    model, rows, looked = method(pair_weights="mixture").eval(), batch(), Looked()
    with torch.no_grad():
        model.prepare(dataclasses.replace(START, epoch=2), looked)
        assert not looked.seen
        model.prepare(dataclasses.replace(START, epoch=3), looked)
        a, b = (torch.nn.functional.normalize(model.encode(rows, name)) for name in KINDS)
    torch.testing.assert_close(looked.seen["loss"], pair_nce(a @ b.T, 0.2))
    assert model.beliefs.clean[0, 0] > model.beliefs.clean[0, 19]


def test_the_slope_of_tanh_is_kept_with_the_weights() -> None:
    model = method(alpha="sqrt", head_norm="none")
    model.prepare(dataclasses.replace(START, epoch=3), Looked())
    assert model.state_dict()["branches.image.head.alpha"] == 2
    rows = batch()
    steep = model.eval().encode(rows, "image")
    torch.testing.assert_close(
        torch.atanh(steep) / 2, torch.atanh(method(head_norm="none").eval().encode(rows, "image"))
    )


def test_two_pictures_or_two_clouds_will_do() -> None:
    for kinds in ({"a": Kind.GREY, "b": Kind.GREY}, {"a": Kind.POINTS, "b": Kind.POINTS}):
        torch.manual_seed(0)
        model, rows = CMAH(SMALL, kinds, 20), batch()
        value = rows.values["image" if kinds["a"] is Kind.GREY else "points"]
        seen = rows.present["image"]
        pair = Batch(rows.index, {"a": value, "b": value}, {"a": seen, "b": seen})
        assert set(model.step(pair, START)) == {"contrast", "masked", "reconstruct_a", "reconstruct_b"}


def test_other_numbers_of_modalities_are_refused() -> None:
    with pytest.raises(InputError, match="choose two with"):
        CMAH(SMALL, KINDS | {"third": Kind.RGB}, 20)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 12}, "multiple of 8"),
        ({"tau": 0.0}, "positive"),
        ({"width": 30}, "multiple of attention_heads"),
        ({"mask_points": 1.0}, "below 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        dataclasses.replace(SMALL, **options)  # type: ignore[arg-type]


def test_the_papers_recipe() -> None:
    paper = merge(CMAHConfig(), read_yaml("cmah-paper", "")["method_config"])
    assert (paper.width, paper.depth, paper.attention_heads, paper.decoder_depth) == (384, 12, 6, 4)
    assert (paper.groups, paper.group_size, paper.n_points, paper.image_patch) == (64, 32, 1024, 16)
    assert (paper.mask_points, paper.mask_image, paper.points_weight, paper.image_weight) == (0.6, 0.75, 1, 1)
    assert paper.optimiser == Optimiser("adamw", 1e-3, 0.05, schedule="cosine", beta2=0.95, warmup_epochs=10)


def test_adamw_and_the_warm_up_of_the_cosine() -> None:
    optimiser = Optimiser("adamw", 1e-3, 0.05, schedule="cosine", beta2=0.95, warmup_epochs=2)
    built = optimiser.build([torch.nn.Parameter(torch.zeros(1))])
    assert built.defaults["betas"] == (0.9, 0.95)
    factors = [optimiser.factor(step, 40, 10) for step in range(40)]
    assert factors[:8] == pytest.approx([(i + 1) / 8 for i in range(8)])
    assert factors[8] == 1
    expected = [0.5 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(8) for _ in range(4)]
    assert factors[8:] == pytest.approx(expected)
    plain = Optimiser("adam").build([torch.nn.Parameter(torch.zeros(1))])
    assert plain.defaults["betas"] == (0.9, 0.999)


def test_remembered_codes_are_negatives_of_the_other_modality_but_not_an_anchors_own() -> None:
    model, rows = method(memory=12, masked_weight=0.0, points_weight=0.0, image_weight=0.0), batch()
    first = model.step(rows, START)["contrast"]
    torch.testing.assert_close(
        first, method(masked_weight=0.0, points_weight=0.0, image_weight=0.0).step(rows, START)["contrast"]
    )
    assert int(model.queue.fill.sum()) == 0, "nothing is pushed before the step is over"
    model.after_batch(rows, START)
    later = dataclasses.replace(rows, index=torch.tensor([3, 4, 11, 12, 13, 14, 15, 16]))
    terms = model.step(later, START)
    with torch.no_grad():
        a, b = looks(model, later)
    u, v = (torch.nn.functional.normalize(x.u, dim=1) for x in (a, b))
    expected = 0.0
    for z, others, ring in ((u, v, 1), (v, u, 0)):
        kept, ids = model.queue.ring(ring)
        assert len(kept) == 8
        for i in range(8):
            scores = [float(z[i] @ others[j]) / 0.2 for j in range(8)]
            scores += [float(z[i] @ key) / 0.2 for key, of in zip(kept, ids, strict=True) if of != later.index[i]]
            expected += float(torch.logsumexp(torch.tensor(scores), 0)) - float(z[i] @ others[i]) / 0.2
    assert float(terms["contrast"].detach()) == pytest.approx(expected / 16, rel=1e-5)
    with pytest.raises(InputError, match="memory gives negatives to plain InfoNCE"):
        method(memory=4, debias=0.1)


def test_groups_of_the_cloud_are_those_of_an_evenly_moved_view() -> None:
    views = ViewConfig(rotate=40, turn=180, scale=0, shear=0, shift=0.2, jitter=0)
    every, once = (method(views=views, regroup=way, decoder_depth=1) for way in ("view", "cloud"))
    for epoch in range(2):
        progress = dataclasses.replace(START, epoch=epoch)
        one, other = every.step(batch(), progress), once.step(batch(), progress)
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5)
    assert once.groups.known.sum() == 8
    assert not any(name.startswith("groups.") for name in once.state_dict())


def test_feature_vectors_stand_in_for_samples() -> None:
    torch.manual_seed(0)
    kinds = {"clip": Kind.VECTOR, "points": Kind.POINTS}
    model = CMAH(dataclasses.replace(SMALL, vector_width=30, feature_parts=8), kinds, 20)
    old = batch()
    seen = torch.ones(8, dtype=torch.bool)
    values = {"clip": torch.randn(8, 30), "points": old.values["points"]}
    rows = Batch(old.index, values, {"clip": seen, "points": seen})
    terms = model.step(rows, START)
    assert set(terms) == {"contrast", "masked", "reconstruct_clip", "reconstruct_points"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.branches["clip"].tokens.parameters())
    assert model.encode(rows, "clip").shape == (8, 16)
    assert model.decode.vector_width == 30
    with pytest.raises(InputError, match="vectors of 12 numbers, the encoder was built for 30"):
        model.encode(Batch(old.index, {"clip": torch.randn(8, 12)}, {"clip": seen}), "clip")
    with pytest.raises(InputError, match="feature_parts=40 of vectors of 30"):
        CMAH(dataclasses.replace(SMALL, vector_width=30, feature_parts=40), kinds, 20)
