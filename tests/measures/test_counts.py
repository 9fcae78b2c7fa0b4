"""Counts worked out by hand, each case one that some peer gets wrong; the peer's issue stands beside it."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from convscope import measure
from convscope.graph import Op, Value
from convscope.measures.count_rules import Cost, count
from convscope.measures.profile import Profile
from convscope.nn import LocallyConnected2d


def profile(net: nn.Module, *shape: int, backward: bool = False) -> Profile:
    return measure(net, input=torch.rand(shape), fields=False, training=False, backward=backward)


class Function(nn.Module):
    """A network that is one function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)  # type: ignore[operator]


# ---------------------------------------------------------------- wrong in peers


def test_transposed_convolution_counts_from_the_input() -> None:  # fvcore #78, thop #92
    p = profile(nn.ConvTranspose2d(6, 4, 3, stride=2), 1, 6, 5, 7)
    assert p.totals.macs == (5 * 7) * 6 * 4 * 9  # every input element meets every tap of every filter
    assert p.layers[0].out_shape == (1, 4, 11, 15)


def test_depthwise_and_grouped_transposed_convolution() -> None:  # DeepSpeed #8323
    assert profile(nn.ConvTranspose2d(6, 6, 4, stride=2, groups=6), 1, 6, 5, 7).totals.macs == 5 * 7 * 6 * 16
    assert profile(nn.ConvTranspose1d(6, 9, 2, groups=3), 2, 6, 10).totals.macs == 2 * 10 * 6 * 3 * 2


@pytest.mark.parametrize("groups", [1, 2, 32])
def test_backward_of_a_grouped_convolution(groups: int) -> None:  # pytorch #183405
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 32, 3, padding=1, groups=groups))
    p = profile(net, 1, 3, 8, 8, backward=True)
    first, second = 64 * 64 * 3, 64 * 32 * (64 // groups) * 9
    assert [row.macs for row in p.layers] == [first, second]
    assert [row.backward_macs for row in p.layers] == [first, 2 * second]  # the image needs no gradient
    assert p.totals.backward_macs == first + 2 * second


def test_backward_of_a_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv1d(2, 6, 1), nn.ConvTranspose1d(6, 9, 4, stride=3, groups=3))
    p = profile(net, 1, 2, 5, backward=True)
    assert [row.backward_macs for row in p.layers] == [5 * 2 * 6, 2 * (5 * 6 * 3 * 4)]


@pytest.mark.parametrize("need_weights", [False, True])  # the fused and the plain path
def test_attention_counts_once(need_weights: bool) -> None:  # pytorch #134804, torchinfo #226
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=need_weights)[0]

    p = profile(Attention(), 2, 10, 16)
    projections, products = 4 * 2 * 10 * 16 * 16, 2 * (2 * 4 * 10 * 10 * 4)
    assert p.totals.macs == projections + products
    assert p.totals.params == 4 * 16 * 16 + 4 * 16 == sum(row.params for row in p.layers)
    assert not p.uncounted


def test_attention_of_queries_unlike_keys_and_values() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    shapes = ((1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 6))
    net, inputs = Function(attend), tuple(torch.rand(shape) for shape in shapes)
    p = measure(net, input=inputs, backward=True)
    assert p.totals.macs == 2 * 5 * 7 * 8 + 2 * 5 * 7 * 6
    assert p.totals.backward_macs == 0  # nothing in it is trained


class Shared(nn.Module):
    """One convolution called twice, one weight used by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(self.conv(x))))


def test_shared_modules_and_parameters() -> None:  # torchinfo #322
    p = profile(Shared(), 1, 4, 5, 6)
    conv, linear = 30 * 4 * 4 * 9, 4 * 5 * 36
    assert [(row.name, row.params, row.shared_params, row.macs) for row in p.layers] == [
        ("conv#0", 148, 0, conv),
        ("conv#1", 0, 148, conv),
        ("first", 36, 0, linear),
        ("second", 0, 36, linear),
    ]
    assert p.totals.params == 148 + 36
    assert "2 rows use parameters of an earlier row" in str(p)


def test_parameters_belong_to_the_first_call_that_runs_not_the_first_that_ends() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(F.linear(x, self.inner.weight))

    p = profile(Outer(), 1, 3)
    assert [(row.name, row.params) for row in p.layers] == [("inner", 3), ("", 9)]


def test_unbatched_input() -> None:  # thop #212
    p = profile(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 2, 2)), 3, 6, 7)
    assert p.totals.macs == 4 * 5 * 3 * 5 * 9 + 4 * 5 * 5 * 2 * 4
    assert profile(nn.Linear(5, 3), 5).totals.macs == 15


def test_functional_operations() -> None:  # thop #36
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight)  # [batch, 4, 4, 4]
            return torch.einsum("bchw,bdhw->bcd", self.conv(y), y) @ torch.ones(4, 2)

    p = profile(Net(), 2, 3, 6, 6)
    assert [(row.name, row.functional, row.macs, row.params) for row in p.layers] == [
        ("conv", False, 2 * 16 * 16, 20),
        ("", True, 2 * 16 * 4 * 27 + 2 * 4 * 4 * 16 + 2 * 4 * 4 * 2, 108),
    ]


def test_nothing_leaks_from_call_to_call() -> None:  # DeepSpeed #2097
    net = Shared()
    first, other, again = (profile(net, 1, 4, 5, 6), profile(net, 2, 4, 5, 6), profile(net, 1, 4, 5, 6))
    assert first.to_dict() == again.to_dict()
    assert other.totals.macs == 2 * first.totals.macs


def test_pooling() -> None:  # fvcore #148, #42
    p = profile(
        nn.Sequential(
            nn.MaxPool2d(3, 2), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveMaxPool2d(1)
        ),
        *(1, 2, 15, 17),
    )
    # 7x8 windows of 9; 6x7 of 4; rows 0-3, 3-6 (6 read), columns 0-3, 2-5, 4-7 (9 read); 2x3
    assert [row.element_ops for row in p.layers] == [2 * 56 * 9, 2 * 42 * 4, 2 * 6 * 9, 2 * 6]
    assert p.totals.macs == 0


def test_a_mac_is_one_operation_of_the_accumulator() -> None:  # fvcore #69
    assert profile(nn.Linear(7, 5), 1, 7).totals.macs == 35  # and 70 FLOPs
    assert profile(nn.Linear(7, 5), 1, 7).layers[0].intensity == pytest.approx(70 / (4 * (7 + 35 + 5 + 5)))


def test_one_output_channel_is_no_depthwise_convolution() -> None:  # Torch-Pruning #126
    p = profile(
        nn.Sequential(nn.Conv2d(8, 1, 3), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1, groups=8)), 1, 8, 6, 6
    )
    assert [row.macs for row in p.layers] == [16 * 8 * 9, 16 * 8, 16 * 8]
    assert [row.groups for row in p.layers] == [1, 1, 8]


# ---------------------------------------------------------------- multiply-accumulates


@settings(max_examples=40)
@given(
    rank=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    transposed=st.booleans(),
    batch=st.integers(1, 2),
)
def test_convolutions_against_the_positions_they_have(
    rank: int,
    groups: int,
    per_group: tuple[int, int],
    kernel: int,
    stride: int,
    dilation: int,
    padding: int,
    transposed: bool,
    batch: int,
) -> None:
    name = f"Conv{'Transpose' * transposed}{rank}d"
    make = getattr(nn, name)
    channels = per_group[0] * groups, per_group[1] * groups
    padding = min(padding, dilation * (kernel - 1)) if transposed else padding
    conv = make(*channels, kernel, stride, padding=padding, dilation=dilation, groups=groups)
    size = 6
    p = profile(conv, batch, channels[0], *(size,) * rank)
    reach = dilation * (kernel - 1) + 1
    positions = size**rank if transposed else ((size + 2 * padding - reach) // stride + 1) ** rank
    assert p.totals.macs == batch * positions * channels[0] * channels[1] // groups * kernel**rank
    row = p.layers[0]
    assert (row.kernel, row.stride, row.dilation) == ((kernel,) * rank, (stride,) * rank, (dilation,) * rank)
    assert (row.padding, row.groups, row.params) == (
        (padding,) * rank,
        groups,
        sum(parameter.numel() for parameter in conv.parameters()),
    )


M, N, K, B = 3, 4, 5, 2
PRODUCTS = {
    "mm": (lambda a, b: a @ b, [(M, K), (K, N)], M * N * K),
    "bmm": (torch.bmm, [(B, M, K), (B, K, N)], B * M * N * K),
    "matmul": (torch.matmul, [(B, 1, M, K), (N, K, 7)], B * N * M * 7 * K),
    "mv": (torch.mv, [(M, K), (K,)], M * K),
    "dot": (torch.dot, [(K,), (K,)], K),
    "addmm": (torch.addmm, [(N,), (M, K), (K, N)], M * N * K),
    "addmv": (torch.addmv, [(M,), (M, K), (K,)], M * K),
    "baddbmm": (torch.baddbmm, [(B, M, N), (B, M, K), (B, K, N)], B * M * N * K),
    "addbmm": (torch.addbmm, [(M, N), (B, M, K), (B, K, N)], B * M * N * K),
    "linear": (F.linear, [(B, M, K), (N, K), (N,)], B * M * N * K),
    "einsum": (lambda a, b: torch.einsum("bik,kj->bij", a, b), [(B, M, K), (K, N)], B * M * N * K),
    "conv_tbc": (lambda a, b: F.conv1d(a, b), [(B, K, 9), (N, K, 2)], B * 8 * N * K * 2),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    function, shapes, macs = PRODUCTS[name]
    p = measure(Function(function), input=tuple(torch.rand(shape) for shape in shapes))  # type: ignore[arg-type]
    assert p.totals.macs == macs
    assert not p.uncounted


@pytest.mark.parametrize(
    ("kind", "gates", "layers", "both"), [(nn.LSTM, 4, 1, False), (nn.GRU, 3, 2, True), (nn.RNN, 1, 2, False)]
)
def test_recurrent_networks(kind: type[nn.RNNBase], gates: int, layers: int, both: bool) -> None:
    net = kind(6, 5, num_layers=layers, bidirectional=both, batch_first=True)
    p = profile(net, 2, 7, 6)
    ways = 1 + both
    inputs = [6] + [5 * ways] * (layers - 1)
    assert p.totals.macs == sum(2 * 7 * ways * gates * 5 * (size + 5) for size in inputs)
    assert p.totals.params == sum(parameter.numel() for parameter in net.parameters())
    assert p.totals.unused_params == 0
    assert not p.uncounted


def test_torchs_own_counter_agrees_forward_and_backward() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.GELU()),
        *(nn.Flatten(2), nn.Linear(81, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)),
    ).eval()
    x = torch.rand(2, 3, 16, 16)
    p = profile(net, 2, 3, 16, 16, backward=True)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it does not know the fused one
        result = net(x)
        forward = counter.get_total_flops()
        result.sum().backward()
    assert 2 * p.totals.macs == forward
    assert p.totals.backward_macs is not None
    assert 2 * p.totals.backward_macs == counter.get_total_flops() - forward


# ---------------------------------------------------------------- element operations


ELEMENTS = {
    "ReLU": (nn.ReLU(), (1, 2, 4, 4), 32),
    "GELU": (nn.GELU(), (1, 2, 4, 4), 32),
    "Hardswish": (nn.Hardswish(), (1, 2, 4, 4), 32),
    "PReLU": (nn.PReLU(), (1, 2, 4, 4), 32),
    "BatchNorm2d": (nn.BatchNorm2d(2), (1, 2, 4, 4), 2 * 32),
    "BatchNorm2d, its own": (nn.BatchNorm2d(2, track_running_stats=False), (2, 2, 4, 4), 7 * 64),
    "InstanceNorm2d": (nn.InstanceNorm2d(2), (1, 2, 4, 4), 5 * 32),
    "LayerNorm": (nn.LayerNorm(4), (1, 2, 4, 4), 7 * 32),
    "LayerNorm, bare": (nn.LayerNorm(4, elementwise_affine=False), (1, 2, 4, 4), 5 * 32),
    "GroupNorm": (nn.GroupNorm(2, 4), (1, 4, 3), 7 * 12),
    "Softmax": (nn.Softmax(1), (2, 10), 5 * 20),
    "MaxPool1d": (nn.MaxPool1d(2), (1, 2, 8), 2 * 4 * 2),
    "AvgPool3d": (nn.AvgPool3d(2), (1, 2, 4, 4, 4), 2 * 8 * 8),
    "nearest": (nn.Upsample(scale_factor=2), (1, 2, 4, 4), 2 * 64),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 4, 4), 4 * 2 * 64),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 2, 4, 4), 16 * 2 * 64),
    "trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), (1, 1, 2, 2, 2), 8 * 64),
    "ZeroPad2d": (nn.ZeroPad2d(1), (1, 2, 4, 4), 0),
    "Flatten": (nn.Flatten(), (1, 2, 4, 4), 0),
    "PixelShuffle": (nn.PixelShuffle(2), (1, 4, 2, 2), 0),
    "Dropout": (nn.Dropout(), (1, 2, 4, 4), 0),
    "add": (Function(lambda x: x + x), (1, 5), 5),
    "mean": (Function(lambda x: x.mean((2, 3))), (1, 2, 4, 4), 32),
    "norm": (Function(lambda x: x.norm(dim=1)), (3, 7), 2 * 21),
    "var": (Function(lambda x: x.var(1)), (3, 7), 3 * 21),
    "cat": (Function(lambda x: torch.cat([x, x])), (3, 7), 0),
    "max": (Function(lambda x: x.max(1).values), (3, 7), 21),
    "maximum of two": (Function(lambda x: torch.max(x, x)), (3, 7), 21),
    "rfft": (Function(lambda x: torch.fft.rfft2(x).real), (4, 8, 8), 4 * 64 * 5 * 6 // 2),
    "ifft": (Function(lambda x: torch.fft.ifft(torch.complex(x, x)).real), (3, 8), 24 + 3 * 5 * 8 * 3),
    "cdist": (Function(lambda x: torch.cdist(x, x, p=1.0)), (3, 7), 3 * 9 * 7),
    "grid_sample": (
        Function(lambda x: F.grid_sample(x, torch.zeros(1, 3, 3, 2), align_corners=False)),
        (1, 2, 4, 4),
        4 * 18,
    ),
    "fold": (nn.Fold((4, 4), 2, stride=2), (1, 8, 4), 32),
    "unfold": (nn.Unfold(2), (1, 2, 4, 4), 0),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_element_operations(name: str) -> None:
    net, shape, expected = ELEMENTS[name]
    p = profile(net, *shape)
    assert (p.totals.element_ops, p.totals.macs, dict(p.uncounted)) == (expected, 0, {})


def test_attention_beside_its_products() -> None:
    attend = Function(lambda x: F.scaled_dot_product_attention(x, x, x))
    causal = Function(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    scores, scaled = 2 * 5 * 5, 2 * (2 * 5 * 8)
    assert profile(attend, 1, 2, 5, 8).totals.element_ops == 5 * scores + scaled
    assert profile(causal, 1, 2, 5, 8).totals.element_ops == 6 * scores + scaled


def test_the_meta_device_counts_the_same() -> None:
    net = nn.TransformerEncoderLayer(
        64, 4, 128, batch_first=True
    )  # whose attention runs fused here, in parts there
    here = profile(net, 2, 10, 64, backward=True).totals
    there = measure(net.to("meta"), input=torch.rand(2, 10, 64, device="meta"), backward=True).totals
    for figure in ("macs", "element_ops", "backward_macs", "params", "activation_bytes"):
        assert getattr(here, figure) == getattr(there, figure), figure


def test_what_is_not_known_is_listed() -> None:
    def forward(x: Tensor) -> Tensor:
        values, _ = torch.sort(x)
        return torch.linalg.qr(values + values.sort().values)[0]

    p = profile(Function(forward), 4, 4)
    assert p.uncounted == {"aten.linalg_qr": 1, "aten.sort": 2}
    assert p.layers[0].uncounted == p.uncounted
    assert "not counted, because their cost is not known: aten.linalg_qr x 1, aten.sort x 2" in str(p)
    assert p.to_dict()["uncounted"] == [{"op": "aten.linalg_qr", "count": 1}, {"op": "aten.sort", "count": 2}]


def run(name: str, shapes: dict[str, object], out: tuple[int, ...], **attributes: object) -> Cost:
    """The cost of an operator that does not run here, from the shapes of its arguments."""
    values: list[Value] = []

    def add(shape: object) -> int:
        assert isinstance(shape, tuple)
        values.append(Value(len(values), shape, torch.float32, "op"))
        return len(values) - 1

    tensors = {
        key: tuple(map(add, shape)) if isinstance(shape, list) else add(shape)
        for key, shape in shapes.items()
    }
    cost = count(Op(name, "", "", None, tensors, attributes, (add(out),)), values)
    assert cost is not None
    return cost


def test_operators_of_other_machines() -> None:
    """torchvision's compiled ones, and those of CUDA."""
    deform = run(
        "torchvision.deform_conv2d",
        {"input": (1, 4, 9, 9), "weight": (6, 2, 3, 3), "offset": (1, 18, 7, 7), "mask": (1, 9, 7, 7)},
        (1, 6, 7, 7),
        use_mask=True,
    )
    assert (deform.macs, deform.element_ops) == (49 * 6 * 2 * 9, 5 * 49 * 4 * 9)
    weights = [(20, 6), (20, 5), (20,), (20,), (20, 5), (20, 5), (20,), (20,)]
    lstm = run("aten._cudnn_rnn", {"input": (7, 2, 6), "weight": weights}, (7, 2, 5), mode=2, hidden_size=5)
    assert (lstm.macs, lstm.element_ops) == (14 * 20 * (6 + 5 + 5 + 5), 14 * 9 * 2 * 5)
    assert run("aten._thnn_fused_lstm_cell", {"cx": (3, 5)}, (3, 5)).element_ops == 9 * 15
    assert run("aten._thnn_fused_gru_cell", {"hx": (3, 5)}, (3, 5)).element_ops == 8 * 15
    heads = {"query": (2, 4, 5, 8), "key": (2, 4, 7, 8), "value": (2, 4, 7, 6)}
    for name in ("flash_attention", "efficient_attention", "cudnn_attention"):
        assert run(f"aten._scaled_dot_product_{name}", heads, (2, 4, 5, 6)).macs == 8 * 5 * 7 * (8 + 6)
    assert (
        run(
            "aten.cudnn_batch_norm", {"input": (2, 3, 4), "weight": (3,)}, (2, 3, 4), training=False
        ).element_ops
        == 48
    )
    shrink = {"self": (1, 2, 12, 9)}
    assert run("aten._upsample_bilinear2d_aa", shrink, (1, 2, 4, 9)).element_ops == 72 * 6 * 2


def test_bytes_moved() -> None:
    p = profile(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)), 1, 2, 2, 2)
    conv = 8 + 12 + 9  # in, out, weights and bias
    assert [row.moved_bytes for row in p.layers] == [4 * conv, 4 * 24, 0, 4 * (12 + 5 + 65)]
    table = measure(nn.Embedding(1000, 8), input=torch.zeros(1, 3, dtype=torch.long))
    assert table.totals.moved_bytes == 2 * 3 * 8 * 4 + 3 * 8  # only the rows that are picked


@pytest.mark.parametrize("batch", [1, 3])
def test_a_locally_connected_layer_costs_what_its_convolution_does(batch: int) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    local = LocallyConnected2d.from_conv(conv, (7, 9))
    counted = profile(local, batch, 4, 7, 9, backward=True)
    assert not counted.uncounted
    assert counted.totals.macs == batch * local.weight.numel() == profile(conv, batch, 4, 7, 9).totals.macs
    assert counted.totals.backward_macs == counted.totals.macs  # of the weights: the image needs none


# ---------------------------------------------------------------- MobileNet-v1


def mobilenet_v1(separable: bool) -> nn.Module:
    """Howard et al. (2017), table 1."""

    def layer(i: int, o: int, stride: int) -> list[nn.Module]:
        whole = [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        parts = [nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.ReLU()]
        return [*parts, nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()] if separable else whole

    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    width = 32
    for out, stride in plan:
        layers += layer(width, out, stride)
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


@pytest.mark.parametrize(
    ("separable", "macs", "params"), [(True, 568_740_352, 4_231_976), (False, 4_867_293_184, 29_294_088)]
)
def test_mobilenet_v1(separable: bool, macs: int, params: int) -> None:
    with torch.device("meta"):
        net = mobilenet_v1(separable)
    p = measure(net, input="3x224x224", fields=False, training=False)
    assert p.totals.macs == macs
    assert p.totals.params == params == sum(row.params for row in p.layers)


def test_the_full_mobilenet_by_its_formula() -> None:
    """So that the number of parameters above, which the paper rounds to 29.3 M, is not ours alone."""
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    convolutions = 9 * (3 * 32 + sum(i * o for i, o in pairwise(widths)))
    assert convolutions + 2 * sum(widths) + 1000 * 1025 == 29_294_088
