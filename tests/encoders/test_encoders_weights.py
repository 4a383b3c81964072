"""Foreign checkpoints: safety, strictness, and the public layouts of DGCNN, MeshNet and ResNet."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tr
from safetensors.torch import save_file
from torch import Tensor, nn

from consilience.encoders.image import SmallCNN, resnet18
from consilience.encoders.mesh import MeshNet
from consilience.encoders.points import DGCNN
from consilience.encoders.weights import load_dgcnn, load_meshnet, load_resnet, load_weights, read_weights
from consilience.errors import InputError
from tests.encoders.mesh_reference import random_mesh, settled_meshnet

State = dict[str, Tensor]


class PublicEdges(nn.Module):
    """DGCNN up to its pooled features with the public attribute names; ``classes`` None gives RoMo's head."""

    def __init__(self, width: int, k: int, classes: int | None) -> None:
        super().__init__()
        self.k = k
        for n, (i, o) in enumerate([(6, 64), (128, 64), (128, 128), (256, 256)], start=1):
            norm = nn.BatchNorm2d(o)
            setattr(self, f"bn{n}", norm)
            setattr(self, f"conv{n}", nn.Sequential(nn.Conv2d(i, o, 1, bias=False), norm, nn.LeakyReLU(0.2)))
        self.bn5 = nn.BatchNorm1d(width)
        self.conv5 = nn.Sequential(nn.Conv1d(512, width, 1, bias=False), self.bn5, nn.LeakyReLU(0.2))
        if classes is None:
            self.linear1 = nn.Linear(2 * width, width, bias=False)
            self.bn1 = nn.BatchNorm1d(width)
        else:
            self.linear1, self.bn6 = nn.Linear(2 * width, 512, bias=False), nn.BatchNorm1d(512)
            self.linear2, self.bn7 = nn.Linear(512, 256), nn.BatchNorm1d(256)
            self.linear3 = nn.Linear(256, classes)

    def pooled(self, x: Tensor) -> Tensor:
        layers, x = [], x.transpose(1, 2)
        for n in range(1, 5):
            near = torch.cdist(x.transpose(1, 2), x.transpose(1, 2)).topk(self.k, largest=False).indices
            far = torch.stack([cloud[:, index] for cloud, index in zip(x, near, strict=True)])
            here = x[:, :, :, None].expand_as(far)
            x = getattr(self, f"conv{n}")(torch.cat([far - here, here], 1)).max(3).values
            layers.append(x)
        x = self.conv5(torch.cat(layers, 1))
        return torch.cat([x.max(2).values, x.mean(2)], 1)


def _stir(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(part.weight, -0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module.eval()


def test_dgcnn_of_romo(tmp_path: Path) -> None:
    public = _stir(PublicEdges(32, 5, None)).double()
    state = {f"backbone.{name}": value for name, value in public.state_dict().items()}
    torch.save({**state, "classifier.memory": torch.zeros(3)}, tmp_path / "romo.pth")
    ours = DGCNN(32, 5).double().eval()
    report = load_dgcnn(ours, tmp_path / "romo.pth")
    assert not report.missing
    assert not report.unexpected
    x = torch.randn(2, 40, 3, dtype=torch.float64)
    expected = F.leaky_relu(public.bn1(public.linear1(public.pooled(x))), 0.01)
    torch.testing.assert_close(ours(x), expected, rtol=1e-9, atol=1e-9)


def test_dgcnn_classifier(tmp_path: Path) -> None:
    public = _stir(PublicEdges(32, 5, 40)).double()
    state = public.state_dict()
    assert tuple(state["conv1.0.weight"].shape) == (64, 6, 1, 1)
    assert "bn1.weight" in state
    assert "conv1.1.weight" in state
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "model.t7.pth")
    ours = DGCNN(32, 5).double().eval()
    head = ours.head.weight.clone()
    report = load_dgcnn(ours, tmp_path / "model.t7.pth")
    assert {name.split(".")[0] for name in report.missing} == {"head", "head_norm"}
    assert torch.equal(ours.head.weight, head)
    pooled: list[Tensor] = []
    ours.head.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    x = torch.randn(2, 40, 3, dtype=torch.float64)
    ours(x)
    torch.testing.assert_close(pooled[0], public.pooled(x), rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="of another shape"):
        load_dgcnn(DGCNN(64, 5), tmp_path / "model.t7.pth")


def _public_meshnet(net: MeshNet) -> State:
    """``net`` under the names of the public MeshNet, written out by hand."""
    names = {
        "spatial.": "spatial_descriptor.spatial_mlp.",
        "rotate.pair.": "structural_descriptor.FRC.rotate_mlp.",
        "rotate.fuse.": "structural_descriptor.FRC.fusion_mlp.",
        "kernel.alpha": "structural_descriptor.FKC.weight_alpha",
        "kernel.beta": "structural_descriptor.FKC.weight_beta",
        "kernel.norm.": "structural_descriptor.FKC.bn.",
        "structural.": "structural_descriptor.structural_mlp.",
        "fusion.": "fusion_mlp.",
        "concat.": "concat_mlp.",
        "head.": "classifier.",
    }
    for n in (1, 2):
        names[f"conv{n}.combine."] = f"mesh_conv{n}.combination_mlp."
        names[f"conv{n}.concat."] = f"mesh_conv{n}.concat_mlp.0."
        names[f"conv{n}.concat_norm."] = f"mesh_conv{n}.concat_mlp.1."
        names[f"conv{n}.aggregate."] = f"mesh_conv{n}.aggregation_mlp."
    state: State = {}
    for name, value in net.state_dict().items():
        ours = next(n for n in names if name.startswith(n))
        theirs = name.replace(ours, names[ours], 1)
        if ours.startswith("kernel.") and ours != "kernel.norm.":
            value = value[None]
        elif value.dim() == 2 and not ours.startswith("head"):
            value = value[:, :, None, None] if ".concat_mlp.0" in theirs else value[:, :, None]
        state[theirs] = value
    state["classifier.6.weight"], state["classifier.6.bias"] = torch.zeros(40, 256), torch.zeros(40)
    return state


def test_public_meshnet(tmp_path: Path) -> None:
    source = settled_meshnet()
    state = _public_meshnet(source)
    assert tuple(state["structural_descriptor.FKC.weight_alpha"].shape) == (1, 64, 4)
    assert tuple(state["mesh_conv1.concat_mlp.0.weight"].shape) == (131, 262, 1, 1)
    assert tuple(state["fusion_mlp.0.weight"].shape) == (1024, 1024, 1)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "MeshNet.pt")
    ours = MeshNet().double().eval()
    report = load_meshnet(ours, tmp_path / "MeshNet.pt")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    mesh = random_mesh(2, 15)
    assert torch.equal(ours(mesh), source(mesh))


def test_resnet_of_torchvision(tmp_path: Path) -> None:
    source = _stir(resnet18())
    state: State = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    for name, value in source.model.state_dict().items():
        kind = {"convolution": "conv", "normalization": "bn"}[name.split(".")[-2]]
        parts, last = name.split("."), name.split(".")[-1]
        if name.startswith("embedder"):
            state[f"{kind}1.{last}"] = value
        elif "shortcut" in name:
            state[f"layer{int(parts[2]) + 1}.{parts[4]}.downsample.{'01'[kind == 'bn']}.{last}"] = value
        else:
            state[f"layer{int(parts[2]) + 1}.{parts[4]}.{kind}{int(parts[6]) + 1}.{last}"] = value
    torch.save(state, tmp_path / "resnet18.pth")
    ours = resnet18().eval()
    report = load_resnet(ours, tmp_path / "resnet18.pth")
    assert (report.missing, report.unexpected) == ((), ())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(ours(x), source(x))


def test_resnet_of_transformers_and_our_own(tmp_path: Path) -> None:
    source = _stir(resnet18())
    x = torch.rand(1, 3, 64, 64)
    config = source.model.config
    config.num_labels = 3
    labelled = tr.ResNetForImageClassification(config)
    labelled.resnet.load_state_dict(source.model.state_dict())
    save_file(labelled.state_dict(), tmp_path / "hub.safetensors")
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    for name in ("hub", "own"):
        ours = resnet18().eval()
        load_resnet(ours, tmp_path / f"{name}.safetensors")
        assert torch.equal(ours(x), source(x))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_wrappers_and_formats(tmp_path: Path, wrapper: str | None) -> None:
    source, ours = SmallCNN(1), SmallCNN(1)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "a.pt")
    report = load_weights(ours, tmp_path / "a.pt")
    assert set(report.matched) == set(ours.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), source.parameters(), strict=True))
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert load_weights(SmallCNN(1), tmp_path / "a.safetensors").matched == report.matched


def test_strict_names_what_does_not_fit(tmp_path: Path) -> None:
    state = SmallCNN(3).state_dict()
    del state["head.0.weight"]
    del state["features.1.num_batches_tracked"]  # counters are no weights: absence is fine
    state["extra"] = torch.zeros(2)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as error:
        load_weights(SmallCNN(1), tmp_path / "w.safetensors")
    message = str(error.value)
    assert "1 missing (head.0.weight)" in message
    assert "1 unexpected (extra)" in message
    assert "1 of another shape (features.0.weight)" in message
    assert "strict=False" in message
    assert "\n" not in message
    ours = SmallCNN(1)
    before = ours.features[0].weight.clone()
    report = load_weights(ours, tmp_path / "w.safetensors", strict=False)
    assert report.missing == ("head.0.weight",)
    assert report.unexpected == ("extra",)
    assert report.mismatched == ("features.0.weight",)
    assert "features.3.weight" in report.matched
    assert torch.equal(ours.features[0].weight, before)
    assert torch.equal(ours.features[3].weight, state["features.3.weight"])


def test_nothing_matches(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(3)}, tmp_path / "w.safetensors")
    for strict in (True, False):
        with pytest.raises(InputError):
            load_weights(SmallCNN(1), tmp_path / "w.safetensors", strict=strict)


class Trap:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "ran")


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "trap": Trap(tmp_path / "proof")}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="allow_pickle"):
        read_weights(tmp_path / "bad.pth")
    assert not (tmp_path / "proof").exists()
    assert list(read_weights(tmp_path / "bad.pth", allow_pickle=True)) == ["a"]
    assert (tmp_path / "proof").exists()
    torch.save(SmallCNN(1), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="allow_pickle"):
        read_weights(tmp_path / "whole.pt")
    load_weights(SmallCNN(1), tmp_path / "whole.pt", allow_pickle=True)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights at"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="unknown suffix"):
        read_weights(tmp_path / "a.onnx")
    for name in ("a.safetensors", "a.pth"):
        for content in (b"", b"not weights at all", pickle.dumps({"a": 1})):
            (tmp_path / name).write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(InputError):
                    read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(InputError, match="no tensors"):
        read_weights(tmp_path / "empty.pt")
    torch.save({"a": torch.randn(9, 99)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:700])
    with pytest.raises(InputError):
        read_weights(tmp_path / "cut.pt")
