"""Views: keyed by sample, identity at zero strength, conventions pinned."""

import pytest
import torch

from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.views.geometry import ViewConfig, image_view, mesh_view, points_view, view
from consilience.views.keyed import KeyedRandom

STILL = ViewConfig(rotate=0, turn=0, scale=0, shear=0, shift=0, contrast=0, jitter=0, mask=0)


def test_draws_belong_to_the_sample_not_to_the_batch():
    index = torch.tensor([5, 9, 2, 7])
    together = KeyedRandom.of(index, 1, 2).uniform(3, -1, 1, 4)
    for position in range(4):
        alone = KeyedRandom.of(index[position : position + 1], 1, 2).uniform(3, -1, 1, 4)
        assert torch.equal(together[position : position + 1], alone)


def test_draws_are_uniform_normal_and_independent():
    random = KeyedRandom.of(torch.arange(20_000), 7)
    u = random.uniform(0, 0, 1, 2)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.01)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.002)
    n = random.normal(1)
    assert n.mean().item() == pytest.approx(0, abs=0.03)
    assert n.std().item() == pytest.approx(1, abs=0.02)
    others = [
        random.uniform(1, 0, 1)[:, 0],
        KeyedRandom.of(torch.arange(20_000), 8).uniform(0, 0, 1)[:, 0],
        u[:, 1],
    ]
    for other in [*others, u[:, 0].roll(1)]:
        assert abs(torch.corrcoef(torch.stack([u[:, 0], other]))[0, 1].item()) < 0.03


@pytest.mark.parametrize("kind", list(Kind))
def test_zero_strength_is_the_sample_itself(kind):
    torch.manual_seed(0)
    shapes = {Kind.RGB: (2, 3, 8, 8), Kind.GREY: (2, 1, 8, 8), Kind.POINTS: (2, 9, 3), Kind.MESH: (2, 5, 18)}
    shapes |= {Kind.REGIONS: (2, 4, 6), Kind.VECTOR: (2, 7)}
    value = torch.tensor([[1, 8, 2, -1], [1, 9, 9, 2]]) if kind is Kind.TEXT else torch.rand(shapes[kind])
    torch.testing.assert_close(view(value, kind, torch.arange(2), (0,), STILL), value, atol=1e-5, rtol=1e-5)


def test_images_are_scaled_to_one():
    pixels = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    assert view(pixels, Kind.GREY, torch.arange(1), (0,), STILL).max().item() == pytest.approx(1)


def test_flip_mirrors_left_and_right_of_about_half():
    picture = torch.zeros(200, 1, 4, 4)
    picture[:, :, :, 0] = 1
    moved = image_view(picture, KeyedRandom.of(torch.arange(200), 0), ViewConfig(0, 0, 0, 0, 0, True, 0, 0))
    mirrored = moved[:, 0, 0, 3] > 0.5
    assert 60 < int(mirrored.sum()) < 140
    torch.testing.assert_close(moved[~mirrored], picture[~mirrored], atol=1e-5, rtol=0)


def test_clouds_turn_about_the_vertical_axis_and_keep_lengths():
    cloud = torch.randn(3, 10, 3)
    config = ViewConfig(0, 180, 0, 0, 0, False, 0, 0)
    moved = points_view(cloud, KeyedRandom.of(torch.arange(3), 1), config)
    torch.testing.assert_close(moved[..., 1], cloud[..., 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.norm(dim=2), cloud.norm(dim=2), atol=1e-5, rtol=1e-5)
    assert (moved - cloud).abs().max() > 0.1


def test_meshes_keep_unit_normals_and_neighbours():
    mesh = torch.randn(2, 6, 18)
    mesh[..., 12:15] = torch.nn.functional.normalize(mesh[..., 12:15], dim=-1)
    mesh[..., 15:] = torch.randint(6, (2, 6, 3)).float()
    moved = mesh_view(mesh, KeyedRandom.of(torch.arange(2), 1), ViewConfig(turn=90))
    torch.testing.assert_close(moved[..., 12:15].norm(dim=-1), torch.ones(2, 6))
    assert torch.equal(moved[..., 15:], mesh[..., 15:])


def test_strength_out_of_range_names_the_option():
    with pytest.raises(InputError, match=r"views.scale=1.5"):
        ViewConfig(scale=1.5)
