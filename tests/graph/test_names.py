"""Layer names and globs."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn

from convscope.errors import UnknownLayer
from convscope.graph import record, resolve
from convscope.models import InputSpec, Net


def stage() -> nn.Module:
    return nn.Sequential(OrderedDict(conv_dw=nn.Conv2d(2, 2, 1), act=nn.ReLU()))


NET = nn.Sequential(OrderedDict(stem=nn.Conv2d(2, 2, 1), blocks=nn.Sequential(stage(), stage())))


def test_globs() -> None:
    assert resolve(NET, "blocks.*.conv_dw") == ["blocks.0.conv_dw", "blocks.1.conv_dw"]
    assert resolve(NET, ["*act", "stem", "blocks.0.act"]) == ["blocks.0.act", "blocks.1.act", "stem"]
    assert resolve(NET, "blocks.[1]") == ["blocks.1"]
    assert resolve(Net(NET, InputSpec((2, 4, 4))), "st?m") == ["stem"]


def test_graph_names_come_as_executed() -> None:
    graph = record(NET, spec=InputSpec((2, 4, 4)))
    assert resolve(graph, "blocks*")[0] == "blocks.0.conv_dw"
    assert resolve(graph, "stem#0") == ["stem#0"]
    with pytest.raises(UnknownLayer, match="asks for call 1 but 'stem' was called 1 times"):
        resolve(graph, "stem#1")


def test_near_matches() -> None:
    with pytest.raises(
        UnknownLayer, match="layer 'blocks.0.conv_dv' matches no layer of the network; did you mean"
    ):
        resolve(NET, "blocks.0.conv_dv")
    with pytest.raises(
        UnknownLayer, match=r"pattern 'zz\*' matches no layer .*; its layers are 'stem', .* and 3 more"
    ):
        resolve(NET, "zz*")
    with pytest.raises(UnknownLayer, match="the network has no submodule"):
        resolve(nn.ReLU(), "x")
