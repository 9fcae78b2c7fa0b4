"""Equivariance of layers: exact where it must be, equal to brute force elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from convscope.errors import RequestError, UnknownLayer
from convscope.graph import record
from convscope.measures.consistency import consistency
from convscope.measures.equivariance import LayerShift, distances, plan, same_content, shift_map, shifts_of
from convscope.measures.figures import mean
from convscope.measures.moves import Frame
from convscope.models import Net


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(a: int, b: int, kernel: int, stride: int = 1, padding: int = 0, mode: str = "circular") -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, stride, padding, padding_mode=mode)


def rows(net: nn.Module, data: Tensor, layers: str | list[str] | None = "*") -> dict[str, LayerShift]:
    return dict(consistency(net.double(), data, moves=(), layers=layers).layers)


def errors(row: LayerShift) -> tuple[float | None, float | None, float]:
    return (
        None if row.equivariance is None else row.equivariance.error.value,
        None if row.one_pixel is None else row.one_pixel.error.value,
        row.invariance.error.value,
    )


# -- exact ---------------------------------------------------------------------------------------------------


def test_circular_convolutions_move_along_and_their_mean_stays() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        conv(2, 6, 3, padding=1), nn.Tanh(), conv(6, 4, 5, padding=2), nn.AdaptiveAvgPool2d(1)
    )
    found = rows(net, noise(4, 2, 12, 10))
    for name in ("0", "1", "2"):
        moved, one, still = errors(found[name])
        assert moved is not None
        assert one == moved < 1e-12  # of stride 1, a pixel is a position
        assert still > 0.1
        assert found[name].equivariance.cosine.value == pytest.approx(1, abs=1e-12)  # type: ignore[union-attr]
        assert found[name].cyclic == (True, True)
    moved, one, still = errors(found["3"])
    assert (moved, one) == (None, None)
    assert still < 1e-12
    assert found["3"].invariance.cosine.value == pytest.approx(1, abs=1e-12)
    assert found["3"].reason == "it has no positions left"


def test_a_stride_moves_along_by_its_multiples_only() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 6, 3, stride=2, padding=1), nn.Tanh(), conv(6, 4, 3, stride=2, padding=1))
    found = rows(net, noise(4, 1, 16, 16))
    for name, stride, shifts in (("0", 2, (2, 4)), ("2", 4, (4,))):
        row = found[name]
        moved, one, _ = errors(row)
        assert moved is not None
        assert one is not None
        assert moved < 1e-12
        assert one > 0.05
        assert (row.stride, row.shifts) == ((Fraction(stride),) * 2, shifts)
        assert row.grid == (16 // stride,) * 2


def test_without_padding_only_the_same_content_is_compared() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 5, 4), nn.ReLU(), conv(5, 3, 3, stride=3))
    found = rows(net, noise(3, 1, 17, 20))
    for name in ("0", "2"):
        assert errors(found[name])[0] == pytest.approx(0, abs=1e-12)
        assert found[name].cyclic == (False, False)


def test_upsampled_maps_move_by_several_positions() -> None:
    net = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv(1, 3, 3, padding=1))
    found = rows(net, noise(2, 1, 8, 8), "1")["1"]
    assert found.stride == (Fraction(1, 2),) * 2
    assert errors(found)[:2] == pytest.approx((0, 0), abs=1e-12)


def test_rows_and_tokens_move_along() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = conv(3, 8, 4, stride=4)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            tokens: Tensor = self.norm(self.embed(x).flatten(2).transpose(1, 2))  # [batch, position, 8]
            return tokens

    found = rows(Patches(), noise(2, 3, 16, 24), "norm")["norm"]
    assert found.grid == (4, 6)
    assert errors(found)[0] == pytest.approx(0, abs=1e-12)
    row = rows(nn.Sequential(nn.Conv1d(2, 3, 3, 2, 1, padding_mode="circular")), noise(2, 2, 12), "0")["0"]
    assert (row.grid, row.stride) == ((6,), (Fraction(2),))
    assert errors(row)[0] == pytest.approx(0, abs=1e-12)


# -- brute force ---------------------------------------------------------------------------------------------


def test_figures_equal_brute_force_where_padding_breaks_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 4, 3, 2, 1, "zeros"), nn.ReLU(), conv(4, 3, 3, 1, 1, "zeros")).double()
    data = noise(3, 1, 12, 12)
    found = rows(net, data, "2")["2"]
    plans = plan(record(net, example=data[:1]), Frame((12, 12), (12, 12)), "2")
    one, two = shifts_of(plans, Frame((12, 12), (12, 12)), 0)
    assert (max(map(abs, one)), max(map(abs, two))) == (1, 2)
    with torch.no_grad():
        still, by_one, by_two = (net(torch.roll(data, s, (2, 3))) for s in ((0, 0), one, two))

    def far(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)

    aligned = far(by_two, torch.roll(still, (two[0] // 2, two[1] // 2), (2, 3)))
    assert found.equivariance is not None
    assert found.equivariance.error == mean(aligned[:, None])
    assert found.equivariance.error.value > 0.01
    assert found.invariance.error == mean(far(by_two, still)[:, None])
    half = still
    for axis, step in zip((2, 3), one, strict=True):  # half a position along each axis
        half = (half + torch.roll(half, step, axis)) / 2
    assert found.one_pixel is not None
    torch.testing.assert_close(
        found.one_pixel.error.value, float(far(by_one, half).mean()), rtol=1e-12, atol=0
    )


def test_maps_shift_between_positions_and_lose_what_came_around() -> None:
    x = torch.arange(5.0).view(1, 1, 5)
    assert shift_map(x, [Fraction(-1)]).flatten().tolist() == [1, 2, 3, 4, 0]
    assert shift_map(x, [Fraction(1, 4)]).flatten().tolist() == [1.0, 0.75, 1.75, 2.75, 3.75]
    assert same_content(x, [Fraction(5, 4)], [False]).flatten().tolist() == [2, 3, 4]
    assert same_content(x, [Fraction(-1)], [False]).flatten().tolist() == [0, 1, 2, 3]
    assert same_content(x, [Fraction(-1)], [True]).flatten().tolist() == [0, 1, 2, 3, 4]


def test_distances_of_nothing() -> None:
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    assert [float(part) for part in distances(zero, zero)] == [0, 1]
    assert [float(part) for part in distances(one, zero)] == [1, 0]
    assert [float(part) for part in distances(zero, one)] == [1, 0]


# -- which layers --------------------------------------------------------------------------------------------


def test_a_spread_of_resolutions_is_the_default(tiny: Net) -> None:
    found = consistency(tiny, limit=1, moves=()).layers
    assert {row.grid for row in found.values()} == {(32, 32), (16, 16), (8, 8), (1, 1)}
    assert {"relu1", "relu2", "relu3", "fc"} <= set(found)
    assert len(found) == 6


def test_maps_resized_outside_of_any_layer_are_looked_at() -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = conv(1, 2, 2, stride=2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": nn.functional.interpolate(self.down(x), scale_factor=2.0)}

    found = consistency(Masks().double(), noise(2, 1, 12, 12), moves=())
    assert list(found.layers) == ["down", ""]
    assert errors(found.layers[""])[0] is not None
    assert found.layers[""].stride == (Fraction(1),) * 2
    assert "(output)" in str(found)
    assert "whether it moves along with the input is told of layers" in found.notes[0]


def test_blocks_are_chosen_before_their_parts() -> None:
    def block(a: int, b: int) -> nn.Module:
        return nn.Sequential(conv(a, b, 3, stride=2, padding=1), nn.ReLU(), conv(b, b, 1), nn.ReLU())

    net = nn.Sequential(block(1, 4), block(4, 4), block(4, 4), nn.AdaptiveAvgPool2d(1))
    assert {"0", "1", "2", "3"} <= set(rows(net, noise(1, 1, 16, 16), None))


def test_a_layer_called_twice_and_one_too_coarse() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(1, 1, 3, stride=3)

        def forward(self, x: Tensor) -> Tensor:
            deep: Tensor = self.conv(self.conv(x))
            return deep

    found = rows(Twice(), noise(2, 1, 18, 18), ["conv#0", "conv"])
    assert list(found) == ["conv#0", "conv#1"]
    assert [row.grid for row in found.values()] == [(6, 6), (2, 2)]
    coarse = rows(conv_of_twelve(), noise(1, 1, 20, 20), "0")["0"]
    assert coarse.equivariance is None
    assert coarse.reason == "no shift within half the input is a multiple of its stride 12x12"
    assert coarse.one_pixel is not None
    assert coarse.to_dict()["stride"] == [12, 12]


def conv_of_twelve() -> nn.Module:
    return nn.Sequential(conv(1, 2, 8, stride=12))


def test_layers_without_channels_are_refused(make_net: Callable[..., Net]) -> None:
    net = nn.Sequential(conv(1, 2, 3), nn.Flatten()).double()
    with pytest.raises(
        RequestError, match="layer '1' has no map of positions or channels to shift .*shape .1, 72"
    ):
        rows(net, noise(1, 1, 8, 8), "1")
    with pytest.raises(UnknownLayer, match="layer '7' matches no layer"):
        rows(net, noise(1, 1, 8, 8), "7")
