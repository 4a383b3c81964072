"""EdgeConv against its definition, neighbours against a sort, DGCNN and PointNet against plain layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consilience.encoders.neighbours import knn
from consilience.encoders.points import DGCNN, DirectEdgeConv, EdgeConv, PointNet, small_pointnet
from consilience.errors import InputError


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 900),
    channels=st.integers(1, 5),
    share=st.floats(0, 1),
    grid=st.booleans(),
    seed=st.integers(0, 99),
)
def test_knn_is_a_sort(n: int, channels: int, share: float, grid: bool, seed: int) -> None:
    torch.manual_seed(seed)
    k = max(1, min(n, round(share * 45)))
    # A grid makes exact ties; its coordinates are exact in float32 and symmetric, so scores are too.
    x = torch.randn(2, n, channels, dtype=torch.float64)
    if grid:
        x = x.mul(2).round()
        x = x - x.mean(1, keepdim=True).round()
    found = knn(x, k)
    assert found.shape == (2, n, k)
    distances = (x[:, :, None] - x[:, None]).square().sum(3)
    expected = distances.clone()
    expected.diagonal(dim1=1, dim2=2).fill_(-1)
    expected = expected.sort(dim=2, stable=True).values[:, :, :k].clamp_min(0)
    torch.testing.assert_close(distances.gather(2, found), expected, rtol=1e-9, atol=1e-9)
    assert (found[:, :, 0] == torch.arange(n)).all()
    assert (found.sort(2).values.diff(dim=2) > 0).all()


def test_knn_ties_go_to_the_lower_row() -> None:
    for n in (8, 600):  # the full sort and the bounded selection
        found = knn(torch.zeros(1, n, 3), 3)
        assert found[0, 0].tolist() == [0, 1, 2]
        assert found[0, 5].tolist() == [5, 0, 1]


def test_knn_of_a_cloud_far_from_the_origin() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 500, 3) + 300
    distances = (x.double()[:, :, None] - x.double()[:, None]).square().sum(3)
    found, exact = (distances.gather(2, knn(y, 10)) for y in (x, x.double()))
    torch.testing.assert_close(found.sort(2).values, exact, rtol=1e-4, atol=1e-5)


def test_knn_rejects_small_clouds() -> None:
    with pytest.raises(InputError, match="20 neighbours asked of clouds of 8 points"):
        knn(torch.zeros(1, 8, 3), 20)


def _pair(inputs: int, outputs: int, k: int) -> tuple[EdgeConv, DirectEdgeConv]:
    direct = DirectEdgeConv(inputs, outputs, k).double()
    with torch.no_grad():
        direct.norm.weight.uniform_(-1, 1)
        direct.norm.bias.uniform_(-1, 1)
        direct.norm.running_mean.normal_()
        direct.norm.running_var.uniform_(0.5, 2)
    factored = EdgeConv(inputs, outputs, k).double()
    factored.load_state_dict(direct.state_dict())
    assert (direct.norm.weight < 0).any()
    assert (direct.norm.weight > 0).any()
    return factored, direct


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "n", "k"), [(3, 16, 40, 5), (8, 12, 300, 20), (2, 7, 6, 1)])
def test_edge_conv_is_its_definition(training: bool, inputs: int, outputs: int, n: int, k: int) -> None:
    torch.manual_seed(0)
    factored, direct = _pair(inputs, outputs, k)
    factored.train(training)
    direct.train(training)
    cloud, aim = torch.randn(3, n, inputs).double(), torch.randn(3, n, outputs).double()
    results = []
    for module in (factored, direct):
        x = cloud.clone().requires_grad_()
        out = module(x)
        (out.pow(3) * aim).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
    for name, value in factored.state_dict().items():
        torch.testing.assert_close(value, direct.state_dict()[name], rtol=1e-9, atol=1e-9)


def test_edge_conv_against_a_loop() -> None:
    torch.manual_seed(1)
    edge = EdgeConv(2, 3, 2).double().eval()
    x = torch.randn(1, 4, 2, dtype=torch.float64)
    around = torch.tensor([[[0, 1], [1, 3], [2, 0], [3, 3]]])
    out = edge(x, around)
    weight = edge.conv.weight[:, :, 0, 0]
    for i in range(4):
        values = []
        for j in around[0, i].tolist():
            e = weight @ torch.cat([x[0, j] - x[0, i], x[0, i]])
            values.append(F.leaky_relu(e / (1 + edge.norm.eps) ** 0.5, 0.2))
        torch.testing.assert_close(out[0, i], torch.stack(values).amax(0), rtol=1e-9, atol=1e-9)


def test_float32_training_agrees_with_float64() -> None:
    torch.manual_seed(0)
    double = _pair(16, 32, 8)[0]
    single = EdgeConv(16, 32, 8)
    single.load_state_dict(double.state_dict())
    x = torch.randn(2, 200, 16) * 3 + 5
    near = knn(x.double(), 8)
    torch.testing.assert_close(single(x, near), double(x.double(), near).float(), rtol=1e-4, atol=1e-4)


def test_no_edge_is_stored() -> None:
    stored: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        stored.append(tensor.numel())
        return tensor

    clouds, n, k, channels = 2, 200, 20, 32
    for kind, edges in ((EdgeConv, False), (DirectEdgeConv, True)):
        stored.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kind(8, channels, k)(torch.randn(clouds, n, 8, requires_grad=True))
        assert (max(stored) >= clouds * n * k * channels) == edges
        assert (sum(stored) >= clouds * n * k * channels) == edges


def test_ties_send_the_gradient_once() -> None:
    edge = EdgeConv(3, 4, 5)
    x = torch.ones(1, 6, 3, requires_grad=True)
    edge.eval()(x).sum().backward()
    direct = DirectEdgeConv(3, 4, 5).eval()
    direct.load_state_dict(edge.state_dict())
    y = torch.ones(1, 6, 3, requires_grad=True)
    direct(y).sum().backward()
    torch.testing.assert_close(x.grad.sum(1), y.grad.sum(1))


def test_edge_conv_follows_the_order_of_points() -> None:
    torch.manual_seed(0)
    edge = _pair(3, 8, 6)[0]
    x, order = torch.randn(2, 50, 3, dtype=torch.float64), torch.randperm(50)
    torch.testing.assert_close(edge(x[:, order]), edge(x)[:, order], rtol=1e-9, atol=1e-9)


def test_not_a_number_stays_an_answer() -> None:
    x = torch.randn(1, 30, 3)
    x[0, 3] = torch.nan
    x.requires_grad_()
    out = EdgeConv(3, 4, 5)(x)
    out.sum().backward()
    assert out.isnan().any()


def _small_dgcnn() -> DGCNN:
    torch.manual_seed(0)
    return DGCNN(32, 6, (8, 8, 16, 16))


def test_same_seed_same_bits() -> None:
    def gradients() -> list[Tensor]:
        net = _small_dgcnn()
        x = torch.randn(4, 600, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
        net(x).square().sum().backward()
        return [x.grad, *(p.grad for p in net.parameters()), *net.state_dict().values()]

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


def test_dgcnn_is_its_plain_form() -> None:
    net = _small_dgcnn().double()
    direct = DGCNN(32, 6, (8, 8, 16, 16), edge=DirectEdgeConv).double()
    direct.load_state_dict(net.state_dict())
    x = torch.randn(5, 64, 3, dtype=torch.float64)
    ours = net(x)
    # the tail once more, written with channels first
    layers, h = [], x
    for edge in direct.edges:
        h = edge(h)
        layers.append(h.transpose(1, 2))
    points = F.conv1d(torch.cat(layers, 1), direct.embed.weight[:, :, None])
    points = F.leaky_relu(direct.embed_norm(points), 0.2)
    pooled = torch.cat([F.adaptive_max_pool1d(points, 1), F.adaptive_avg_pool1d(points, 1)], 1)[:, :, 0]
    plain = F.leaky_relu(direct.head_norm(direct.head(pooled)), 0.01)
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)
    ours.square().sum().backward()
    plain.square().sum().backward()
    for p, q in zip(net.parameters(), direct.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-8 * float(q.grad.abs().max()))


def test_sizes_of_the_paper() -> None:
    net = DGCNN()
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert [shapes[f"edges.{i}.conv.weight"][:2] for i in range(4)] == [
        (64, 6),
        (64, 128),
        (128, 128),
        (256, 256),
    ]
    assert shapes["embed.weight"] == (1024, 512)
    assert shapes["head.weight"] == (1024, 2048)
    assert net.width == 1024
    sizes = [tuple(layer.weight.shape) for layer in PointNet().layers]
    assert sizes == [(64, 3), (64, 64), (64, 64), (128, 64), (1024, 128)]
    assert PointNet().head.bias is None


@pytest.mark.parametrize("net", [_small_dgcnn(), PointNet(32), small_pointnet()])
def test_cloud_encoders_ignore_the_order_of_points(net: torch.nn.Module) -> None:
    net = net.double().eval()
    x = torch.randn(3, 40, 3, dtype=torch.float64)
    out = net(x)
    assert out.shape == (3, net.width)
    torch.testing.assert_close(net(x[:, torch.randperm(40)]), out, rtol=1e-9, atol=1e-9)


def test_pointnet_is_its_plain_form() -> None:
    net = PointNet(16, (8, 8))
    x = torch.randn(4, 30, 3)
    h = x.transpose(1, 2)
    for layer, norm in zip(net.layers, net.norms, strict=True):
        fresh = torch.nn.BatchNorm1d(norm.num_features)
        h = F.relu(fresh(F.conv1d(h, layer.weight[:, :, None])))
    plain = F.linear(h.max(2).values, net.head.weight)
    torch.testing.assert_close(net(x), plain, rtol=1e-5, atol=1e-5)
