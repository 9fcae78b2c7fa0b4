"""A pool without its stride: the old positions stay, those between are the maps of the image moved by less than a step."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from convscope import rules
from convscope.rewrites.dense import DilatedMaxPool2d
from convscope.rewrites.recipe import rebuild
from convscope.rewrites.rewrite import rewrite
from convscope.rewrites.text import parse


def test_positions_between_are_those_of_the_moved_image() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.AvgPool2d(3, 2),
    ).eval()  # nothing is padded, so that an image moved is an image cut
    made = rewrite(net, rules.Pool("none", where="1"), input="2x20x22")
    assert made.exactness == "exact"
    assert made.edits[0].grid == (2, 2)
    assert made.edits[0].notes == (
        "2 layers after it are dilated by 2x2",
        "one position in 2x2 of '5' is what it was",
    )
    x = torch.randn(1, 2, 24, 26)
    dense = made.net.module(x)
    for i, j in product(range(2), range(2)):
        expected = net(x[:, :, 2 * i :, 2 * j :])  # of the stride of 4, half
        got = dense[:, :, i::2, j::2][:, :, : expected.shape[2], : expected.shape[3]]
        torch.testing.assert_close(got, expected)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 2, 0), (2, 3, 1), (3, 3, 1)]),
    st.sampled_from([(3, 1, 1), (3, 2, 1), (5, 2, 2), (2, 2, 0), (1, 2, 0), (1, 1, 1)]),
    st.sampled_from(["max", "average", "same"]),
    st.integers(17, 23),
)
def test_old_positions_stay(
    first: tuple[int, int, int], second: tuple[int, int, int], last: str, size: int
) -> None:
    torch.manual_seed(size)
    tail: dict[str, nn.Module] = {
        "max": nn.MaxPool2d(3, 2, 1), "average": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "same": nn.Conv2d(3, 2, 3, padding="same"),
    }  # fmt: skip
    net = nn.Sequential(nn.MaxPool2d(*first), nn.Conv2d(2, 3, *second), tail[last]).eval()
    x = torch.randn(2, 2, size, size + 1)
    assume(min(net(x).shape[2:]) > 1)
    made = rewrite(net, rules.Pool("none", where="0"), input=f"2x{size}x{size + 1}")
    step = first[1]
    torch.testing.assert_close(made.net.module(x)[..., ::step, ::step], net(x))


class Gated(nn.Module):
    """A map scaled by what a sum over it says."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


def test_sums_over_the_map_see_the_finer_one() -> None:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), *head)
    made = rewrite(net, rules.Pool("none", where="0"), input="4x12x12")
    edit = made.edits[0]
    x = torch.randn(1, 4, 12, 12)
    fine = functional.conv2d(functional.max_pool2d(x, 2, 1), net[1].weight, net[1].bias, 1, 2, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(made.net.module(x), net[4](fine.mean((2, 3))))
    assert edit.exactness == "approximate"
    assert edit.error is not None
    assert edit.error > 0
    assert edit.notes[1] == "one position in 2x2 of '1' is what it was"
    gated = rewrite(
        nn.Sequential(nn.MaxPool2d(2), Gated(), *head), rules.Pool("none", where="0"), input="4x12x12"
    )
    assert (
        gated.done[0].notes[1]
        == "mean in '1' sums up all positions of the finer map, also for the layers between"
    )


def test_several_pools_and_the_recipe(tmp_path: object) -> None:
    torch.manual_seed(0)

    def fresh() -> nn.Sequential:
        return nn.Sequential(
            nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 2, 1)
        ).eval()

    net = fresh()
    made = rewrite(net, rules.Pool("none"), input="3x24x24")
    assert isinstance(made.net.module[2], DilatedMaxPool2d)  # type: ignore[index] # padding 2 for a kernel of 3
    assert [edit.layer for edit in made.done] == ["2", "0", "1", "2"]
    assert made.exactness == "exact"
    x = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(made.net.module(x)[..., ::4, ::4], net(x))
    again = rebuild(str(made.save(str(tmp_path))), fresh())
    assert again.sha256 == made.net.sha256
    torch.testing.assert_close(again.module(x), made.net.module(x))


def test_more_padding_than_torch_takes() -> None:
    x = torch.randn(1, 2, 9, 8)
    y = DilatedMaxPool2d(3, 1, 3, 3)(x)
    for i, j in product(range(9), range(8)):
        seen = [
            x[:, :, i + a, j + b] for a in (-3, 0, 3) for b in (-3, 0, 3) if 0 <= i + a < 9 and 0 <= j + b < 8
        ]
        torch.testing.assert_close(y[:, :, i, j], torch.stack(seen).amax(0))


class Beside(nn.Module):
    """A pool beside a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pool(x), self.conv(x)], 1)


class Tokens(nn.Module):
    """Attention over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.pool(x).flatten(2)  # [batch, channel, position]
        return tokens @ (tokens.mT @ tokens).softmax(-1)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.MaxPool2d(3, 1, 1), "it has no stride to take away"),
        (nn.AdaptiveAvgPool2d(1), "it pools the whole map, and has no stride to take away"),
        (Beside(), "cat in '0' joins its map with one that keeps its positions"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 2)), "addmm in '0.2' needs a map of this size"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), "mixes positions outside of a layer"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), "pads by 'reflect'"),
        (Tokens(), "bmm in '0' mixes positions outside of a layer"),
    ],
)  # fmt: skip
def test_refusals(module: nn.Module, reason: str) -> None:
    net = nn.Sequential(module)
    made = rewrite(net, rules.Pool("none"), input="4x12x12")
    assert not made.done
    assert any(reason in str(edit.reason) for edit in made.edits), [edit.reason for edit in made.edits]
    assert str(made.net.module) == str(net)


def test_the_word_none_is_text_where_text_is_wanted() -> None:
    assert parse("pool:none") == rules.Pool("none")
    assert parse(str(rules.Pool("none"))) == rules.Pool("none")
