"""Which axis is the channel, which are positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.graph import layout, record
from convscope.models import InputSpec


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# 6 channels and a map of 4 rows, 6 columns: sizes alone do not tell which is which
CASES: dict[str, tuple[Callable[[Tensor], Tensor], str, tuple[int, ...], int | None]] = {
    "map": (lambda x: x, "map", (4, 6), 1),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), "map_last", (4, 6), 3),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), "tokens", (4, 6), 2),
    "global pool": (lambda x: x.mean((2, 3), keepdim=True), "map", (1, 1), 1),
    "vector": (lambda x: x.mean((2, 3)), "vector", (1, 1), 1),
    "flattened": (lambda x: x.flatten(1), "other", (), None),
    "channels first tokens": (lambda x: x.flatten(2), "other", (), None),
    "pixel shuffle": (lambda x: torch.pixel_shuffle(torch.cat([x, x], 1), 2), "map", (8, 12), 1),
    "windows": (
        lambda x: x.reshape(1, 6, 2, 2, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(4, 6, 6),
        "other",
        (),
        None,
    ),
    "windows and back": (
        lambda x: (
            x.reshape(1, 6, 2, 2, 2, 3)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(4, 2, 3, 6)
            .reshape(1, 2, 2, 2, 3, 6)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(1, 4, 6, 6)
        ),
        "map_last",
        (4, 6),
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kinds(name: str) -> None:
    function, kind, grid, channel = CASES[name]
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Lambda(function))
    found = layout(record(net, spec=InputSpec((3, 4, 6))), "1")
    assert (found.kind, found.grid, found.channel_axis) == (kind, grid, channel)


def test_as_map_undoes_the_layout() -> None:
    x = torch.rand(2, 6, 4, 6)
    for name in ("map", "channels last", "tokens"):
        function = CASES[name][0]
        net = nn.Sequential(nn.Conv2d(3, 6, 1), Lambda(function))
        found = layout(record(net, spec=InputSpec((3, 4, 6))), "1")
        assert torch.equal(found.as_map(function(x)), x), name
        assert found.channels == 6


def test_no_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten())
    found = layout(record(net, spec=InputSpec((3, 4, 6))), "1")
    with pytest.raises(RequestError, match=r"an output of shape \[1, 144\] is no map of positions"):
        found.as_map(torch.zeros(1, 144))
    with pytest.raises(RequestError, match=r"an output of shape \[1, 144\] has no channel axis"):
        _ = found.channels
