"""Encoders that keep their maps: shapes, strides, public names, and loading of one part of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from consilience.data.schema import Kind, single
from consilience.encoders.image import ResNet
from consilience.encoders.maps import VGG19, ConvMaps, map_encoder
from consilience.encoders.weights import load_part
from consilience.errors import InputError


@pytest.mark.parametrize("name", ["small", "resnet18", "vgg19"])
@pytest.mark.parametrize("kind", [Kind.RGB, Kind.GREY])
def test_maps_have_the_told_channels_and_strides(name: str, kind: Kind) -> None:
    torch.manual_seed(0)
    encoder = map_encoder(name, kind).eval()
    x = torch.rand(2, 1 if kind is Kind.GREY else 3, 64, 96)
    with torch.no_grad():
        maps, features = encoder.maps(x), encoder(x)
    assert [m.shape[1] for m in maps] == list(encoder.channels)
    assert [(64 // s, 96 // s) for s in encoder.strides] == [tuple(m.shape[2:]) for m in maps]
    assert all(float(m.min()) >= 0 for m in maps), "after the non-linearity"
    torch.testing.assert_close(features, maps[-1].mean((2, 3)), atol=1e-5, rtol=1e-5)
    assert features.shape == (2, encoder.width)


@pytest.mark.parametrize("pools", [3, 4, 5])
def test_pools_of_vgg(pools: int) -> None:
    encoder = VGG19(pools).eval()
    with torch.no_grad():
        maps = encoder.maps(torch.rand(1, 3, 64, 64))
    assert [64 // s for s in encoder.strides] == [m.shape[2] for m in maps]
    assert encoder.strides[-1] == 2**pools


def test_vgg_has_torchvisions_names(tmp_path: Path) -> None:
    convolutions = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    names = {f"features.{n}.{part}" for n in convolutions for part in ("weight", "bias")}
    encoder = VGG19(5)
    assert set(encoder.state_dict()) == names
    assert sum(p.numel() for p in encoder.parameters()) == 20_024_384
    public = {**encoder.state_dict(), "classifier.0.weight": torch.zeros(2, 2)}
    save_file(public, tmp_path / "vgg19.safetensors")
    again = map_encoder("vgg19", Kind.GREY, str(tmp_path / "vgg19.safetensors"))
    assert torch.equal(again.state_dict()["features.28.weight"], public["features.28.weight"])
    assert again.maps(torch.rand(1, 1, 32, 32))[-1].shape == (1, 512, 2, 2), "grey is shown as three channels"


def test_a_resnet_reads_one_channel_natively() -> None:
    grey, colour = ResNet(18, 1), ResNet(18)
    first = "model.embedder.embedder.convolution.weight"
    assert grey.state_dict()[first].shape == (64, 1, 7, 7)
    assert colour.state_dict()[first].shape == (64, 3, 7, 7)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="picture encoder"):
        map_encoder("resnet19", Kind.RGB)
    with pytest.raises(InputError, match="pictures have 3 channels, the encoder was built for 1"):
        ConvMaps(1).maps(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match="1 widths and 2 strides"):
        ConvMaps(1, (4,), (1, 2))
    with pytest.raises(InputError, match="6 pools"):
        VGG19(6)
    assert single({"chip": Kind.GREY}) == ("chip", Kind.GREY)
    for kinds in ({"a": Kind.GREY, "b": Kind.RGB}, {"a": Kind.TEXT}):
        with pytest.raises(InputError, match="one picture modality is needed"):
            single(kinds)


def test_one_part_of_a_run_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = nn.ModuleDict({"encoder": nn.Linear(3, 2), "head": nn.Linear(2, 1)})
    save_file(method.state_dict(), tmp_path / "model.safetensors")
    other = nn.Linear(3, 2)
    report = load_part(other, tmp_path)
    assert set(report.matched) == {"weight", "bias"}
    assert torch.equal(other.weight, method["encoder"].weight)
    before = nn.Linear(4, 2)
    kept = before.weight.clone()
    with pytest.raises(InputError, match=r"of another shape .weight"):
        load_part(before, tmp_path)
    assert torch.equal(before.weight, kept)
    with pytest.raises(InputError, match="missing"):
        load_part(nn.Sequential(nn.Linear(3, 2)), tmp_path)
    with pytest.raises(InputError, match=r"no part 'query'; it holds encoder, head"):
        load_part(other, tmp_path, "query")
