"""The executed graph: which modules and tensor operations one forward pass ran, which tensors went where."""

from convscope.graph.layout import Layout, layout
from convscope.graph.names import resolve
from convscope.graph.record import record
from convscope.graph.structure import Call, Graph, Memory, Op, Value

__all__ = ["Call", "Graph", "Layout", "Memory", "Op", "Value", "layout", "record", "resolve"]
