"""Visit counts: hand-worked nets, and a brute-force count by networks of ones."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from convscope.errors import BadInput, RequestError, UnknownLayer
from convscope.graph import record
from convscope.measures.receptive_field import receptive_field
from convscope.measures.visits import visits
from convscope.models import InputSpec
from nan_oracle import build

SPEC = InputSpec((1, 7, 9))


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sum(nn.Module):
    """Branches added up, or side by side."""

    def __init__(self, *branches: nn.Module, beside: bool = False) -> None:
        super().__init__()
        self.branches, self.beside = nn.ModuleList(branches), beside

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        return torch.cat(parts, 1) if self.beside else torch.stack(parts).sum(0)


def body(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers)))


def conv(k: int = 3, stride: int = 1, padding: int = 0, **options: int) -> nn.Conv2d:
    return nn.Conv2d(1, 1, k, stride, padding, **options)


def brute_force(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """What each pixel alone gives in all, where every kernel holds ones and every pooling adds up."""
    private = module.double().eval()
    for parameter in private.parameters():
        parameter.data.fill_(1)
    for name, _ in private.named_parameters():
        if name.endswith("bias"):
            private.get_parameter(name).data.zero_()
    found = torch.zeros(shape[1:], dtype=torch.double)
    for pixel in itertools.product(*map(range, shape[1:])):
        x = torch.zeros(1, *shape, dtype=torch.double)
        x[(0, slice(None), *pixel)] = 1
        with torch.no_grad():
            found[pixel] = private(x).sum()
    return found


class SumPool(nn.AvgPool2d):
    """Adds up what an average pooling averages, without its own operation."""

    def forward(self, x: Tensor) -> Tensor:
        size = (self.kernel_size,) * 2
        return F.avg_pool2d(x, size, self.stride, self.padding, divisor_override=1)


LINEAR: dict[str, nn.Module] = {
    "bare": body(conv(3)),
    "padded twice": body(conv(3, 1, 1), conv(3, 1, 1)),
    "strided": body(conv(4, 3, 1), conv(2)),
    "dilated": body(conv(3, 1, 2, dilation=2)),
    "residual": body(Sum(nn.Identity(), conv(3, 1, 1)), conv(3)),
    "pooled": body(conv(3), SumPool(3, 2, 1)),
    "transposed": body(nn.ConvTranspose2d(1, 1, 3, 2, 1), conv(2)),
    "transposed, dilated": body(conv(2, 2), nn.ConvTranspose2d(1, 1, 2, 3, 0, 1, dilation=2)),
    "upsampled": body(nn.Upsample(scale_factor=2), conv(3)),
    "padded by hand": body(
        nn.ZeroPad2d((0, 2, 1, 0)), nn.ReflectionPad2d(1), nn.ReplicationPad2d(2), conv(3)
    ),
    "cut": body(Lambda(lambda x: x[:, :, 1:-1, ::2]), conv(2)),
    "turned": body(Lambda(lambda x: x.flip(3).transpose(2, 3)), conv(3, 2)),
    "tokens": body(conv(2, 2), Lambda(lambda x: x.flatten(2).transpose(1, 2)), nn.Linear(1, 1)),
    "unfolded": body(nn.Unfold(3, padding=1), Lambda(lambda x: x.transpose(1, 2)), nn.Linear(9, 1)),
    "windows as views": body(Lambda(lambda x: x.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)), nn.Linear(9, 1)),
    "unshuffled": body(nn.ZeroPad2d((0, 1, 0, 1)), nn.PixelUnshuffle(2), nn.Conv2d(4, 1, 2)),
    "in place": body(Lambda(lambda x: x.clone().add_(x)), conv(3)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_counts_equal_brute_force(name: str) -> None:
    found = visits(LINEAR[name], "body", input=SPEC)
    assert found.exact
    assert torch.equal(found.counts, brute_force(LINEAR[name], SPEC.shape))


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "pool", "up"]), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_chains_equal_brute_force(plan: list[tuple[str, int, int, int]]) -> None:
    make = {
        "conv": lambda k, s, p: conv((1, k), (1, s), (0, p)),  # type: ignore[arg-type]
        "pool": lambda k, s, p: Lambda(
            lambda x: F.avg_pool2d(x, (1, k), (1, s), (0, min(p, k // 2)), divisor_override=1)
        ),
        "up": lambda k, s, p: nn.ConvTranspose2d(1, 1, (1, k), (1, s)),
    }
    net = body(*(make[kind](k, s, p) for kind, k, s, p in plan))
    spec = InputSpec((1, 1, 24))
    found = visits(net, "body", input=spec)
    assert torch.equal(found.counts, brute_force(net, spec.shape))


def test_padding_evens_out_what_a_convolution_reads() -> None:
    bare = visits(body(conv(3)), "body", input=SPEC)
    assert (bare.corner, bare.edge, bare.centre) == (1, (4 * 1 + 8 * 2 + 16 * 3) / 28, 9)
    padded = visits(body(conv(3, 1, 1)), "body", input=SPEC)
    assert (padded.corner, padded.edge, padded.centre) == (4, (4 * 4 + 24 * 6) / 28, 9)
    assert padded.profile == (padded.edge, 9, 9, 9)
    assert padded.relative.max() == 1


def test_channels_are_averaged_and_branches_added() -> None:
    one, nine = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 15, 3, padding=1, groups=3)
    spec = InputSpec((3, 7, 9))
    beside = visits(body(Sum(one, nine, beside=True), nn.Conv2d(20, 4, 1)), "body", input=spec)
    assert beside.centre == pytest.approx((5 * 1 + 15 * 9) / 20)
    mean = nn.Conv2d(3, 5, 3, padding=1)
    added = visits(body(Sum(nn.Conv2d(3, 5, 1), mean), nn.BatchNorm2d(5), nn.SiLU()), "body", input=spec)
    assert (added.centre, added.corner, added.exact) == (10, 5, True)


def test_gates_and_products_do_not_multiply_the_readings() -> None:
    gate = Lambda(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid())
    swish = Lambda(lambda x: x * torch.sigmoid(x))
    found = visits(body(conv(3, 1, 1), gate, swish, nn.Hardswish()), "body", input=SPEC)
    assert (found.centre, found.corner) == (9, 4)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_reads_what_its_query_reads(fused: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.qkv = nn.Conv2d(1, 4, 3, 2), nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([x.new_zeros(1, 1, 4), x], 1)  # a class token
            q, k, v = self.qkv(x)[:, None].chunk(3, 3)
            if fused:
                return F.scaled_dot_product_attention(q, k, v)[:, 0, 1:]
            weights = (q @ k.transpose(2, 3)).softmax(3)
            return (weights @ v)[:, 0, 1:]

    net = nn.Sequential(OrderedDict(body=Attention()))
    assert torch.equal(visits(net, "body", input=SPEC).counts, visits(net, "body.patch", input=SPEC).counts)


def test_global_pooling_and_classifiers_are_one_window() -> None:
    net = nn.Sequential(conv(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4))
    for layer in ("1", "3"):
        found = visits(net, layer, input=SPEC)
        assert torch.equal(found.counts, visits(net, "0", input=SPEC).counts)
        assert found.positions == 1
    flat = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3 * 63, 4))
    assert visits(flat, "2", input=SPEC).counts.unique().tolist() == [1]


def test_a_layer_alone_on_its_own_input() -> None:
    net = nn.Sequential(
        OrderedDict(stem=conv(3, 2, 1), block=Sum(nn.Identity(), conv(3)), pool=nn.MaxPool2d(2))
    )
    net.block.branches[1].padding = (1, 1)
    stem = visits(net, "block.branches.1", own=True, input=SPEC)
    assert stem.own
    assert stem.counts.tolist()[:2] == [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6]]
    assert visits(net, "block", own=True, input=SPEC).centre == 10
    assert visits(net, "pool", own=True, input=SPEC).counts[:2].tolist() == [[1, 1, 1, 1, 0]] * 2


def test_a_pixel_is_visited_where_a_field_holds_it() -> None:
    net = build("torchvision:googlenet", init_weights=False)
    graph = record(net, spec=InputSpec((3, 64, 96)))
    found = visits(net, "inception4a", graph=graph)
    field = receptive_field(net, "inception4a", graph=graph)
    assert found.positions == 4 * 6
    reached = torch.zeros(64, 96, dtype=torch.bool)
    for position in itertools.product(range(4), range(6)):
        (top, bottom), (left, right) = field.box(position)
        reached[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    assert torch.equal(found.counts > 0, reached)


def test_deep_networks_are_counted_in_rounded_numbers() -> None:
    net = build("timm:tf_efficientnet_lite0")
    found = visits(net, "blocks.6", input=InputSpec())
    assert not found.exact
    assert 1e17 < found.centre < 1e18
    assert found.corner < found.edge < found.centre


def test_text_and_signals() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 3, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.conv(self.embed(words).transpose(1, 2)).amax(2)  # type: ignore[no-any-return]

    found = visits(Text(), "conv", input=torch.zeros(2, 6, dtype=torch.long))
    assert found.counts.tolist() == [1, 2, 3, 3, 2, 1]
    assert (found.corner, found.edge, found.profile) == (1, 1, (1, 2, 3))
    line = nn.Sequential(nn.Conv1d(2, 4, 5, padding=2), nn.AvgPool1d(2))
    assert visits(line, "1", input=torch.zeros(1, 2, 6)).counts.tolist() == [3, 4, 5, 5, 4, 3]


def test_the_result_prints_and_serializes() -> None:
    found = visits(body(conv(3)), "body", input=SPEC)
    console = Console(width=100)
    with console.capture() as text:
        console.print(found)
    assert "windows of body that read a pixel of the image" in " ".join(text.get().split())
    assert "11.1%" in text.get()
    values = found.to_dict()
    assert values["size"] == [7, 9]
    assert (values["corner"], values["most"], values["least"], "counts" in values) == (1, 9, 1, False)
    assert found.to_dict(maps=True)["counts"][0] == [1, 2, 3, 3, 3, 3, 3, 2, 1]


def test_requests_are_refused_with_reasons() -> None:
    net = nn.Sequential(OrderedDict(conv=conv(3), sort=Lambda(lambda x: x.sort(3).values), last=conv(1)))
    with pytest.raises(
        RequestError, match=r"what aten\.sort in sort reads cannot be counted; choose a layer before it"
    ):
        visits(net, "last", input=SPEC)
    with pytest.raises(UnknownLayer, match="did you mean 'last'"):
        visits(net, "lasst", input=SPEC)
    with pytest.raises(
        RequestError, match="layer '1' gives no tensor that depends on the input, so it visits no pixel"
    ):
        visits(nn.Sequential(Lambda(torch.zeros_like), conv(3)), "1", input=SPEC)
    with pytest.raises(BadInput, match=r"input='big' must be SIZE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH"):
        visits(net, "conv", input="big")

    class Aside(nn.Module):
        """A layer whose result is not made of what it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.store: list[Tensor] = []  # shared with copies of the function
            self.keep = Lambda(lambda _, store=self.store: store[-1] * 1)  # type: ignore[misc]

        def forward(self, x: Tensor) -> Tensor:
            self.keep.function.__defaults__[0][:] = [x + 1]
            return self.keep(x * 2)  # type: ignore[no-any-return]

    with pytest.raises(
        RequestError, match=r"layer 'keep' makes no result out of its own input, .* without own=True"
    ):
        visits(Aside(), "keep", own=True, input=SPEC)
    deep = nn.Sequential(*(nn.Sequential(*(conv(9, 1, 4) for _ in range(90))) for _ in range(2)))
    with pytest.raises(
        RequestError, match="layer '1' has more than 1e308 paths to a pixel, too many to count"
    ):
        visits(deep, "1", input=InputSpec((1, 16, 16)))
