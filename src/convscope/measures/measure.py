"""`measure`: the profile of a network, from one recorded pass and the optional measures."""

from __future__ import annotations

from torch import nn

from convscope.graph import Graph, record
from convscope.measures.profile import LayerRow, Profile, Totals
from convscope.models import InputSpec, Net, as_net


def measure(net: Net | nn.Module, *, input: InputSpec | None = None, graph: Graph | None = None) -> Profile:
    """What every layer of a network costs and sees."""
    named = as_net(net, input)
    graph = graph or record(named)
    rows = tuple(
        LayerRow(graph.address(call), call.kind, False, call.in_shapes, call.out_shapes)
        for call in graph.calls
        if call.is_leaf
    )
    totals = Totals(named.parameters_count, 0, 0, None, 0, 0, 0, 0, "", None)
    inputs = tuple(graph.values[index].shape for index in graph.inputs)
    return Profile(named.name, named.source, inputs, "float32", "cpu", rows, totals, graph=graph)
