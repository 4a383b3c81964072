"""Every encoder by name: shapes, ranks, half precision, gradients, errors."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from consilience.data.schema import Kind
from consilience.encoders.build import EncoderConfig, build_encoder
from consilience.encoders.norm import BatchNorm1d, BatchNorm2d
from consilience.errors import InputError
from tests.encoders.mesh_reference import random_mesh


def _input(kind: Kind, size: int = 32) -> Tensor:
    torch.manual_seed(7)
    if kind is Kind.MESH:
        return random_mesh(3, 40, dtype=torch.float32)
    if kind is Kind.POINTS:
        return torch.randn(3, 64, 3)
    if kind is Kind.TEXT:
        ids = torch.randint(4, 260, (3, 64))
        ids[:, 20:] = -1
        return ids
    if kind is Kind.REGIONS:
        return torch.randn(3, 36, 2048)
    if kind is Kind.VECTOR:
        return torch.randn(3, 128)
    return torch.rand(3, 1 if kind is Kind.GREY else 3, size, size)


CASES = [
    (Kind.RGB, EncoderConfig(), 128),
    (Kind.GREY, EncoderConfig(), 128),
    (Kind.RGB, EncoderConfig(image="resnet18"), 512),
    (Kind.GREY, EncoderConfig(image="resnet18"), 512),
    (Kind.POINTS, EncoderConfig(), 256),
    (Kind.POINTS, EncoderConfig(points="pointnet"), 1024),
    (Kind.POINTS, EncoderConfig(points="dgcnn", points_width=64), 64),
    (Kind.MESH, EncoderConfig(), 256),
    (Kind.RGB, EncoderConfig(image="vit", image_size=32, patch=8), 128),
    (Kind.TEXT, EncoderConfig(), 128),
    (Kind.TEXT, EncoderConfig(text="gru", embed=64), 64),
    (Kind.TEXT, EncoderConfig(text="words"), 256),
    (Kind.REGIONS, EncoderConfig(embed=64), 64),
    (Kind.VECTOR, EncoderConfig(), 256),
]


@pytest.mark.parametrize(("kind", "config", "width"), CASES)
def test_every_encoder_trains_in_half_precision_too(kind: Kind, config: EncoderConfig, width: int) -> None:
    torch.manual_seed(0)
    net = build_encoder(kind, config)
    assert net.width == width
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert isinstance(module, (BatchNorm1d, BatchNorm2d))
    x = _input(kind)
    out = net(x)
    assert out.shape == (3, width)
    assert out.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert half.shape == (3, width)
    half.float().square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.dtype == torch.float32
    for buffer in net.buffers():
        assert buffer.dtype in (torch.float32, torch.int64)
    net.eval()
    with torch.no_grad():
        full = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x).float()
    assert float((half - full).norm() / full.norm()) < 0.05


@pytest.mark.parametrize(("kind", "config", "width"), CASES)
def test_same_seed_same_encoder(kind: Kind, config: EncoderConfig, width: int) -> None:
    torch.manual_seed(3)
    first = build_encoder(kind, config)
    torch.manual_seed(3)
    second = build_encoder(kind, config)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_hub_models_are_synchronised(tmp_path: Path) -> None:
    model = ResNetModel(ResNetConfig(hidden_sizes=[8], depths=[1], layer_type="basic", embedding_size=8))
    model.save_pretrained(tmp_path)
    net = build_encoder(Kind.GREY, EncoderConfig(image=f"hf:{tmp_path}"))
    assert net(_input(Kind.GREY, 64)).shape == (3, 8)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, BatchNorm2d) for m in norms)


@pytest.mark.parametrize(("kind", "field"), [(Kind.RGB, "image"), (Kind.POINTS, "points"), (Kind.MESH, "mesh")])
def test_weights_come_from_the_file(tmp_path: Path, kind: Kind, field: str) -> None:
    source = build_encoder(kind, EncoderConfig())
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = build_encoder(kind, EncoderConfig(**{f"{field}_weights": str(tmp_path / "w.safetensors")}))
    x = _input(kind)
    assert torch.equal(loaded.eval()(x), source.eval()(x))


def test_unknown_names_and_sizes() -> None:
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        build_encoder(Kind.RGB, EncoderConfig(image="resnet-18"))
    with pytest.raises(InputError, match="did you mean 'dgcnn'"):
        build_encoder(Kind.POINTS, EncoderConfig(points="dgcn"))
    with pytest.raises(InputError, match="meshnet"):
        build_encoder(Kind.MESH, EncoderConfig(mesh="meshcnn"))
    with pytest.raises(InputError, match="exceeds n_points"):
        build_encoder(Kind.POINTS, EncoderConfig(points="dgcnn", neighbours=40, n_points=30))
    with pytest.raises(InputError, match="image_weights"):
        build_encoder(Kind.RGB, EncoderConfig(image="hf:x", image_weights="y"))


def test_every_field_is_documented() -> None:
    source = Path(__import__("consilience.encoders.build", fromlist=["x"]).__file__).read_text()
    for field in fields(EncoderConfig):
        line = next(n for n, text in enumerate(source.splitlines()) if text.startswith(f"    {field.name}:"))
        assert source.splitlines()[line + 1].lstrip().startswith('"""'), field.name


def test_word_tokens_get_a_bag_of_words_unless_named(tmp_path):
    import json

    vocabulary = {"word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "cat": 4}, "idx": 5}
    vocabulary["idx2word"] = {str(i): w for w, i in vocabulary["word2idx"].items()}
    file = tmp_path / "v.json"
    file.write_text(json.dumps(vocabulary))
    words = f"words:{file}"
    for tokens, name, expected in (
        (words, "auto", "BagOfWords"),
        (words, "transformer", "TextTransformer"),
        ("bytes", "auto", "TextTransformer"),
    ):
        built = build_encoder(Kind.TEXT, EncoderConfig(tokenizer=tokens, text=name, max_tokens=8))
        assert type(built).__name__ == expected
