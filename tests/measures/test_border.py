"""Border effect: hand-worked nets, and NaN in place of padding as the oracle of what touches it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convscope.errors import BadInput, RequestError, UnknownLayer
from convscope.measures.border import border_effect
from convscope.measures.border_table import Border, BorderLayer
from convscope.models import InputSpec, Net
from nan_oracle import build

SPEC = InputSpec((2, 12, 16))


def conv(k: int = 3, stride: int = 1, padding: Any = 0, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, k, stride, padding, **options)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """x + body(x), or body(x) beside x."""

    def __init__(self, body: nn.Module, beside: bool = False) -> None:
        super().__init__()
        self.body, self.beside = body, beside

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1) if self.beside else self.body(x) + x


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()


# -- which positions touch padding ---------------------------------------------------------------------------


class _Poison(TorchDispatchMode):
    """Every padded value is NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        args = list(args)
        if name == "aten::convolution" and not args[6] and any(args[4]):
            args[0] = F.pad(args[0], self._amounts(args[4]), value=torch.nan)
            args[4] = [0] * len(args[4])
        if "pool2d" in name and "adaptive" not in name and len(args) > 3 and any(args[3]):
            args[0] = F.pad(args[0], self._amounts(args[3]), value=torch.nan)
            args[3] = [0] * len(args[3])
        if name == "aten::constant_pad_nd":
            # beyond the rows and columns only: channels may be padded too, and no picture is missing there
            args[2:] = [0.0 if any(args[1][4:]) else torch.nan]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _amounts(padding: list[int]) -> list[int]:
        padding = padding * 2 if len(padding) == 1 else padding
        return [amount for side in reversed(padding) for amount in (side, side)]


def poisoned(module: nn.Module, layers: list[str], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensor [*grid] of bool for each layer: where NaN arrives."""
    private = copy.deepcopy(module).eval().double()
    for parameter in private.parameters():  # timm starts some of them at zero
        parameter.data.uniform_(0.1, 0.2)
    found: dict[str, Tensor] = {}
    for name in layers:
        private.get_submodule(name).register_forward_hook(
            lambda _m, _a, out, name=name: found.update({name: out.isnan().any(1)[0]})
        )
    with torch.no_grad(), _Poison(), suppress(ZeroDivisionError):
        private(torch.rand(1, *shape, dtype=torch.double))
    return found


def agree(module: nn.Module, shape: tuple[int, ...], layers: list[str]) -> None:
    found = border_effect(module, input=InputSpec(shape), layers=layers, change=False).layers
    for name, expected in poisoned(module, layers, shape).items():
        row = found[name]
        assert row.share == pytest.approx(expected.double().mean().item()), name
        if row.local_share is None:
            assert torch.equal(row.touched, expected), name


SMALL: dict[str, nn.Module] = {
    "convolution": chain(conv(5, 2, 2)),
    "valid after same": chain(conv(3, 1, 1), conv(3), conv(3)),
    "stride cuts the far side": chain(conv(3, 3, 1), conv(3, 2, 1)),
    "dilation leaves holes": chain(conv(3, 1, 1), conv(3, 1, 2, dilation=2)),
    "grouped, one branch bare": chain(
        Residual(conv(3, 1, 1), beside=True),
        nn.Conv2d(4, 4, 3, padding=0, groups=2),
        Lambda(lambda x: x[:, :2]),
    ),
    "max pool with padding": chain(nn.MaxPool2d(3, 2, 1), conv(3)),
    "average pool with padding": chain(nn.AvgPool2d(3, 2, 1), nn.ReLU6(), conv(3)),
    "one-sided": chain(nn.ZeroPad2d((0, 1, 0, 3)), conv(3, 2)),
    "padding cut off again": chain(nn.ZeroPad2d(3), nn.ZeroPad2d(-3), conv(3)),
    "channels padded": chain(Lambda(lambda x: F.pad(x, (0, 0, 0, 0, 0, 2))), nn.Conv2d(4, 2, 3, padding=1)),
    "residual": chain(Residual(chain(conv(3, 1, 1), nn.SiLU(), conv(3, 1, 1)))),
    "gate": chain(conv(3, 1, 1), Gate(), conv(3, 1, 1)),
    "a gate without padding": chain(conv(3), Gate(), conv(3)),
    "global pooling": chain(conv(3, 1, 1), nn.AdaptiveAvgPool2d(1)),
    "group norm": chain(conv(3, 1, 1), nn.GroupNorm(1, 2)),
    "channels last": chain(
        conv(3, 1, 1), Lambda(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (2,)).permute(0, 3, 1, 2))
    ),
    "pixel shuffle": chain(nn.Conv2d(2, 8, 3, padding=1), nn.PixelShuffle(2), conv(3)),
    "patches": chain(nn.Conv2d(2, 4, 3, padding=1), chain(nn.PixelUnshuffle(4), nn.Conv2d(64, 2, 1))),
    "nearest upsampling": chain(conv(3, 2, 1), nn.Upsample(scale_factor=2), conv(3)),
    "slices": chain(conv(3, 1, 1), Lambda(lambda x: x[:, :, 2:-1, ::2]), conv(3)),
    "in place": chain(conv(3, 1, 1), nn.ReLU(inplace=True), Lambda(lambda x: x.add_(1)), conv(3, 1, 1)),
    "rolled": chain(conv(3, 1, 1), Lambda(lambda x: x.roll(3, 3))),
    "flipped": chain(nn.ZeroPad2d((2, 0, 0, 0)), Lambda(lambda x: x.flip(3))),
    "split and shuffled": chain(
        conv(3, 1, 1),
        Lambda(lambda x: torch.cat([c.relu() for c in x.chunk(2, 1)], 1)),
        nn.ChannelShuffle(2),
        conv(3, 1, 1, groups=2),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_padding_is_touched_where_nan_arrives(name: str) -> None:
    module = SMALL[name]
    layers = [key for key, _ in module.named_children()]
    agree(module, SPEC.shape, layers)


@pytest.mark.parametrize(
    ("source", "options", "shape", "layers"),
    [
        (
            "torchvision:resnet18",
            {},
            (3, 96, 128),
            ["maxpool", "layer1", "layer2", "layer3.0.downsample", "layer4"],
        ),
        ("torchvision:shufflenet_v2_x0_5", {}, (3, 64, 96), ["maxpool", "stage2", "stage3"]),
        ("torchvision:densenet121", {}, (3, 64, 64), ["features.denseblock1", "features.transition2"]),
        ("timm:tf_efficientnet_lite0", {}, (3, 90, 128), ["conv_stem", "blocks.1", "blocks.3", "blocks.6"]),
        ("timm:efficientnet_b0", {}, (3, 64, 64), ["conv_stem", "blocks.0", "blocks.2"]),
    ],
)
def test_padding_is_touched_where_nan_arrives_in_real_networks(
    source: str, options: dict[str, object], shape: tuple[int, ...], layers: list[str]
) -> None:
    agree(build(source, **options), shape, layers)


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "pool", "pad"]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_chains_agree_with_nan(plan: list[tuple[str, int, int, int]]) -> None:
    make = {
        "conv": lambda k, s, p: conv(k, s, p),
        "pool": lambda k, s, p: nn.MaxPool2d(k, s, min(p, k // 2)),
        "pad": lambda k, s, p: nn.ZeroPad2d((p, k - 1, s - 1, p)),
    }
    net = chain(*(make[kind](k, s, p) for kind, k, s, p in plan))
    agree(net, (2, 60, 72), [str(len(plan) - 1)])


def test_a_layer_of_three_touches_one_more_position_each_time() -> None:
    net = chain(*(conv(3, 1, 1) for _ in range(4)))
    rows = border_effect(net, input=SPEC, change=False).layers
    for depth, row in enumerate(rows.values(), start=1):
        assert row.reach == ((depth, depth), (depth, depth))
        assert row.reach_pixels == ((depth, depth), (depth, depth))
        inner = (12 - 2 * depth) * (16 - 2 * depth)
        assert row.share == pytest.approx(1 - inner / (12 * 16))
        assert not row.is_global


def test_a_gate_spreads_padding_over_all_and_keeps_the_local_share() -> None:
    row = border_effect(SMALL["gate"], input=SPEC, change=False).layers["2"]
    assert row.is_global
    assert (row.share, row.local_share, row.reach) == (1.0, 1 - 8 * 12 / (12 * 16), ((2, 2), (2, 2)))


def test_reflected_and_repeated_borders_are_padding_and_circular_ones_are_not() -> None:
    for mode, share in (("reflect", 1 - 10 * 14 / 192), ("replicate", 1 - 10 * 14 / 192), ("circular", 0)):
        row = border_effect(chain(conv(3, 1, 1, padding_mode=mode)), input=SPEC, change=False).layers["0"]
        assert row.share == pytest.approx(share), mode


def test_a_constant_frame_is_padding() -> None:
    def frame(x: Tensor) -> Tensor:
        wide = x.new_zeros(1, 2, 14, 16)
        wide[:, :, 1:-1] = x
        return torch.cat([wide, x.new_zeros(1, 2, 14, 3)], 3)

    row = border_effect(chain(Lambda(frame), conv(1)), input=SPEC, change=False).layers["1"]
    assert row.reach == ((1, 1), (0, 3))


def test_interpolation_and_transposed_convolution_miss_neighbours_at_the_border() -> None:
    smooth = chain(nn.Upsample(scale_factor=2, mode="bilinear"))
    assert border_effect(smooth, input=SPEC, change=False).layers["0"].reach == ((1, 1), (1, 1))
    # 4x4, stride 2, padding 1: the outermost position misses one of its two neighbours
    up = chain(nn.ConvTranspose2d(2, 2, 4, 2, 1))
    assert border_effect(up, input=SPEC, change=False).layers["0"].reach == ((1, 1), (1, 1))
    assert (
        border_effect(chain(nn.ConvTranspose2d(2, 2, 2, 2)), input=SPEC, change=False).layers["0"].share == 0
    )


def test_an_unknown_operation_is_named_and_the_worst_assumed() -> None:
    net = chain(conv(3, 1, 1), Lambda(lambda x: x.sort(3).values), conv(1), nn.Flatten(), nn.Linear(384, 4))
    found = border_effect(net, input=SPEC, change=False)
    assert (found.layers["2"].share, found.layers["2"].note) == (
        1,
        "assumed to touch all after aten.sort in 1",
    )
    assert found.left_out == {
        "3": "its output is no map of positions",
        "4": "its output has no positions left",
    }


# -- what it changes -----------------------------------------------------------------------------------------


def data(*shape: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_a_convolution_worked_by_hand() -> None:
    net = chain(nn.Conv1d(1, 1, 3, padding=1, bias=False))
    nn.init.ones_(net[0].weight)
    pictures = torch.tensor([[[9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 9.0]]])
    found = border_effect(net, pictures, input=torch.zeros(1, 1, 5), margin=2)
    row = found.layers["0"]
    # with content around: 12 6 9 12 18; with zeros: 3 6 9 12 9
    level = ((12**2 + 6**2 + 9**2 + 12**2 + 18**2) / 5) ** 0.5
    assert row.change_map is not None
    assert row.change_map.tolist() == pytest.approx([9 / level, 0, 0, 0, 9 / level])
    assert row.touched.tolist() == [True, False, False, False, True]
    assert row.strength == pytest.approx(((3**2 + 9**2) / (12**2 + 18**2)) ** 0.5)
    assert (row.border_change, row.interior_change) == (pytest.approx(9 / level), 0)
    assert row.change == pytest.approx(2 * 9 / level / 5)
    assert row.profile == (pytest.approx(9 / level), 0, 0)
    assert (found.margin, found.content, found.fill, row.covered) == ((2,), 1.0, "none", True)
    short = border_effect(net, pictures[:, :, 1:-1], input=torch.zeros(1, 1, 5), margin=4)
    # 7 of 13 pixels are its own, and all of the 7 that the layer sees
    assert (short.content, short.layers["0"].content, short.fill) == (7 / 13, 1, "reflect")
    assert torch.equal(short.layers["0"].change_map, row.change_map)  # type: ignore[arg-type]


def test_without_padding_nothing_is_touched_and_nothing_changes() -> None:
    net = chain(conv(3), nn.ReLU(), nn.MaxPool2d(2), conv(3)).double()
    found = border_effect(net, data(2, 2, 40, 40), input=InputSpec((2, 20, 20), dtype=torch.double))
    for row in found.layers.values():
        assert (row.share, row.reach, row.border_change) == (0, ((0, 0), (0, 0)), None)
        assert row.change == pytest.approx(0, abs=1e-15)
        assert row.strength is None


def test_the_interior_is_exactly_equal_in_float64() -> None:
    net = chain(conv(3, 2, 1), nn.ReLU(), conv(3, 1, 1), nn.MaxPool2d(3, 2, 1), conv(5, 1, 2)).double()
    spec = InputSpec((2, 64, 48), dtype=torch.double)
    found = border_effect(net, data(2, 2, 120, 120), input=spec)
    assert found.margin == (16, 16)  # the field reaches 13 pixels out: up to the next multiple of the stride
    for row in found.layers.values():
        assert row.interior_change == pytest.approx(0, abs=1e-14)
        assert row.border_change is not None
        assert row.border_change > 0.05
        assert row.covered
        assert row.note == ""


def test_positions_line_up_under_padding_that_depends_on_the_size() -> None:
    net = build("timm:tf_efficientnet_lite0")
    for size in (64, 70):  # "same" pads one side at 64 and, in some layers, both at 70
        rows = border_effect(
            net,
            layers=["conv_stem", "blocks.1.0.conv_dw", "blocks.2.0"],
            input=InputSpec((3, size, size)),
            samples=1,
        ).layers
        for row in rows.values():
            assert row.interior_change == pytest.approx(0, abs=1e-5)
            assert row.border_change is not None
            assert row.border_change > 0.01


def test_a_picture_too_small_goes_on_by_reflection_or_as_asked() -> None:
    net, spec = chain(conv(3, 1, 1)), InputSpec((2, 12, 12))
    pictures = data(1, 2, 13, 12, dtype=torch.float)
    seen = {}
    for fill in ("reflect", "circular", "replicate"):
        found = border_effect(net, pictures, input=spec, fill=fill, margin=1)  # type: ignore[arg-type]
        assert found.fill == fill
        assert found.content == pytest.approx(13 / 14 * 12 / 14)
        assert found.layers["0"].content == found.content
        seen[fill] = found.layers["0"].change
    assert len(set(seen.values())) == 3
    assert border_effect(net, data(1, 2, 14, 14), input=spec, margin=1).fill == "none"


def test_a_gate_changes_the_inside_and_says_so() -> None:
    row = border_effect(SMALL["gate"], data(1, 2, 40, 40), input=SPEC).layers["2"]
    assert row.interior_change is not None
    assert row.interior_change > 1e-4
    assert row.note == "a path sees the whole image, so everything may change"


def test_what_depends_on_the_place_is_told() -> None:
    ramp = chain(conv(3, 1, 1), Lambda(lambda x: x + torch.linspace(0, 1, x.shape[3])))
    row = border_effect(ramp, data(1, 2, 40, 40, dtype=torch.float), input=SPEC).layers["1"]
    assert row.note == "changes where no padding is read: what it does depends on the place or the size"


def test_layers_that_cannot_be_compared_say_why() -> None:
    net = chain(
        conv(3, 1, 1),
        nn.AdaptiveAvgPool2d((3, 4)),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Unflatten(1, (5, 1, 1)),
    )
    rows = border_effect(
        net, data(1, 2, 40, 40, dtype=torch.float), input=SPEC, layers=["0", "1", "4"]
    ).layers
    assert rows["0"].change is not None
    assert (rows["1"].change, rows["1"].note) == (None, "its positions do not line up in a larger picture")
    assert (rows["4"].change, rows["4"].note) == (None, "sees the whole image: nothing to compare with")
    fixed = chain(conv(3, 1, 1), Lambda(lambda x: x * torch.ones(12, 16)), conv(3, 1, 1))
    rows = border_effect(fixed, data(1, 2, 40, 40, dtype=torch.float), input=SPEC, layers=["0", "2"]).layers
    assert rows["0"].change is not None
    assert (rows["2"].share > 0, rows["2"].note) == (True, "does not run at 16 x 20")
    for scale, note in ((0, "all features are 0"), (torch.inf, "its features are not finite")):
        odd = chain(conv(3, 1, 1), Lambda(lambda x, scale=scale: x * scale))
        row = border_effect(odd, data(1, 2, 40, 40, dtype=torch.float), input=SPEC).layers["1"]
        assert (row.change, row.note) == (None, note)


def test_an_extension_short_of_the_field_is_told() -> None:
    net = chain(*(conv(3, 1, 1) for _ in range(3)))
    rows = border_effect(net, data(1, 2, 40, 40, dtype=torch.float), input=SPEC, margin=2).layers
    assert [row.covered for row in rows.values()] == [True, True, False]
    assert rows["2"].note == "sees 3 pixels past the border, beyond the extension"


def test_repeated_calls_and_memory_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = conv(3, 1, 1)
    net = nn.Sequential(OrderedDict(first=shared, act=nn.ReLU(inplace=True), second=shared))
    pictures = data(2, 2, 40, 40, dtype=torch.float)
    whole = border_effect(net, pictures, input=SPEC)
    assert list(whole.layers) == ["first#0", "act", "first#1"]
    assert whole.layers["first#1"].reach == ((2, 2), (2, 2))
    monkeypatch.setattr("convscope.measures.border_change._MOST_BYTES", 1)
    assert border_effect(net, pictures, input=SPEC).to_dict(maps=True) == whole.to_dict(maps=True)


def test_photographs_noise_and_files(tmp_path: Path, tiny: Net) -> None:
    found = border_effect(tiny, samples=3)
    assert (found.data, found.samples, found.fill) == ("photographs", 3, "none")
    assert list(found.layers) == [
        "conv1",
        "bn1",
        "relu1",
        "pool",
        "conv2",
        "bn2",
        "relu2",
        "conv3",
        "bn3",
        "relu3",
    ]
    assert found.layers["relu3"].interior_change == pytest.approx(0, abs=1e-5)
    assert border_effect(chain(conv(3, 1, 1)), input=SPEC, samples=2).data == "noise"
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    small = border_effect(tiny, tmp_path, layers="conv1")
    assert (small.data, small.samples, small.fill) == (str(tmp_path), 1, "reflect")


def test_text_and_signals() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 3, 5, padding=2)

        def forward(self, words: Tensor) -> Tensor:
            return self.conv(self.embed(words).transpose(1, 2)).amax(2)  # type: ignore[no-any-return]

    words = torch.arange(24).view(1, 24) % 9
    row = border_effect(Text(), words, input=torch.zeros(1, 16, dtype=torch.long), layers="conv").layers[
        "conv"
    ]
    assert (row.grid, row.reach) == ((16,), ((2, 2),))
    assert row.interior_change == pytest.approx(0, abs=1e-6)
    assert row.border_change is not None
    assert row.border_change > 0.05
    assert border_effect(Text(), input=words, layers="conv", margin=2).data == "the example"


def test_the_result_prints_and_serializes(tiny: Net) -> None:
    found = border_effect(tiny, samples=1, layers=["conv1", "relu3"])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found)
    console.file.close()
    text = console.export_text()
    assert "what padding does at 32 x 32: 1 of photographs, extended by" in text
    assert "relu3" in text
    values = found.to_dict()
    assert "touched" not in values["layers"]["conv1"]
    full = found.to_dict(maps=True)["layers"]["conv1"]
    assert (len(full["touched"]), len(full["change_map"][0])) == (32, 32)
    assert isinstance(found, Border)
    assert isinstance(found.layers["conv1"], BorderLayer)


def test_requests_are_refused_with_reasons() -> None:
    net = chain(conv(3, 2, 1), conv(3, 2, 1), nn.Flatten())
    with pytest.raises(RequestError, match=r"fill='wrap' must be one of 'reflect', 'circular', 'replicate'"):
        border_effect(net, input=SPEC, fill="wrap")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="samples=0 must be at least 1"):
        border_effect(net, input=SPEC, samples=0)
    with pytest.raises(RequestError, match="margin=0 must be at least 1"):
        border_effect(net, input=SPEC, margin=0)
    with pytest.raises(
        RequestError, match="margin=6 must be a multiple of the network's total stride, 4; .* 8"
    ):
        border_effect(net, input=SPEC, margin=6)
    with pytest.raises(UnknownLayer, match="layer 'conv' matches no layer"):
        border_effect(net, input=SPEC, layers="conv")
    with pytest.raises(
        RequestError, match=r"layer '2' gives an output of shape \[1, 24\], no map of positions"
    ):
        border_effect(net, input=SPEC, layers="2")
    with pytest.raises(RequestError, match="no layer of the network gives a map of positions"):
        border_effect(chain(nn.Flatten(), nn.Linear(384, 3)), input=SPEC)
    constant = chain(Lambda(torch.zeros_like), nn.Flatten(), nn.Linear(384, 2), nn.ReLU())
    with pytest.raises(RequestError, match="layer '3' does not depend on the input"):
        border_effect(constant, input=SPEC, layers="3")
    with pytest.raises(BadInput, match=r"data of shape \[1, 3, 9, 9\] must be \[count, 2, any, any\]"):
        border_effect(net, torch.zeros(1, 3, 9, 9), input=SPEC)
    with pytest.raises(BadInput, match="data must be a tensor for a network known by an example alone"):
        border_effect(net, "photographs", input=torch.zeros(1, 2, 12, 16))
    with pytest.raises(RequestError, match="net is on the meta device"):
        border_effect(nn.Sequential(nn.Conv2d(2, 2, 3, device="meta")), input=SPEC)
