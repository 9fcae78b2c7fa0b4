"""Visit counts: how many windows of a layer read each pixel.

Without padding a 3x3 convolution reads a corner pixel once and an inner pixel nine times; zero padding evens that out:
four times and nine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope.errors import RequestError
from convscope.graph import Call, Graph, Op
from convscope.graph.rules import follow
from convscope.graph.trace import Trace
from convscope.measures.readings import Counting
from convscope.measures.receptive_field import Example, recorded
from convscope.measures.replay import replay, thin
from convscope.models import Net

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False)
class Visits:
    """How often each pixel is read.

    Attributes:
        layer: the layer that reads.
        own: whether the pixels are those of the layer's own input, rather than the image's.
        counts: Tensor [height, width] of float64 (one axis for signals): the number of paths from the pixel to any
            position of the layer, each path a choice of one window a layer, on average over channels.
        positions: number of positions the layer has.
        exact: whether all counts are whole numbers below 2^53; else they are right to 12 digits.
    """

    layer: str
    own: bool
    counts: Tensor
    positions: int
    exact: bool

    @property
    def relative(self) -> Tensor:
        """Counts over those of the most read pixel: Tensor [height, width] in [0, 1]."""
        return self.counts / self.counts.max()

    @property
    def centre(self) -> float:
        """Count of the middle pixel."""
        return float(self.counts[tuple(size // 2 for size in self.counts.shape)])

    @property
    def corner(self) -> float:
        """Mean count of the corner pixels."""
        ends = [[0, size - 1] for size in self.counts.shape]
        return float(self.counts[torch.meshgrid(*map(torch.tensor, ends), indexing="ij")].mean())

    @property
    def edge(self) -> float:
        """Mean count of the outermost pixels."""
        return _frame(self.counts, 0)

    @property
    def profile(self) -> tuple[float, ...]:
        """Mean count of the pixels at each distance from the nearest border, from the outermost inwards."""
        return tuple(_frame(self.counts, depth) for depth in range((min(self.counts.shape) + 1) // 2))

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain values; `maps` adds the counts of all pixels as nested lists."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "own": self.own,
            "size": list(self.counts.shape),
            "positions": self.positions,
            "exact": self.exact,
            "corner": self.corner,
            "edge": self.edge,
            "centre": self.centre,
            "most": float(self.counts.max()),
            "least": float(self.counts.min()),
        }
        if maps:
            found["counts"] = self.counts.tolist()
        return found

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        of = "its own input" if self.own else "the image"
        table = Table(title=Text(f"windows of {self.layer} that read a pixel of {of}"), title_justify="left")
        for name in ("corner", "edge", "centre", "most"):
            table.add_column(name, justify="right")
        most = float(self.counts.max())
        table.add_row(*(f"{value:,.6g}" for value in (self.corner, self.edge, self.centre, most)))
        table.add_row(*(f"{value / most:.1%}" for value in (self.corner, self.edge, self.centre, most)))
        return table


def _frame(counts: Tensor, depth: int) -> float:
    """Mean over the pixels exactly `depth` from the nearest border."""
    return float(counts[border_distance(counts.shape) == depth].mean())


def border_distance(shape: Sequence[int]) -> Tensor:
    """Tensor of this shape: steps from each position to the nearest end of any axis, 0 at the border.

    Example:
        >>> border_distance((3, 4)).tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    found = torch.full(tuple(shape), max(shape, default=0))
    for axis, size in enumerate(shape):
        line = torch.arange(size)
        line = torch.minimum(line, size - 1 - line)
        found = torch.minimum(found, line.view([-1 if a == axis else 1 for a in range(len(shape))]))
    return found


def visits(
    net: Net | nn.Module,
    layer: str,
    *,
    own: bool = False,
    input: Example | None = None,
    graph: Graph | None = None,
) -> Visits:
    """How many windows of a layer read each pixel, along all paths of the executed graph.

    A window is what a convolution or pooling reads for one position, whatever its weights; interpolation reads the
    positions it has weights for. What is added counts as often as all terms, what is multiplied as the mean of its factors.
    Paths that see the whole image (gates, attention) are left out wherever there is a local path beside them, as in
    `ReceptiveField.local`.

    Args:
        net: the network.
        layer: a dotted module name; `name#k` is its k-th call, the last by default.
        own: count the windows of this layer alone, on its own input.
        input: what to feed a plain module, or instead of the Net's own specification: an `InputSpec` or an example.
        graph: a recording of the same network, which saves running it again.

    Raises:
        UnknownLayer: there is no such layer, or it did not run.
        RequestError: the layer does not depend on the input, or what an operation on the way reads cannot be counted.
        ModelError: the network failed on its example input.

    Example:
        >>> from convscope.models import InputSpec
        >>> bare, padded = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, padding=1)
        >>> found = [visits(nn.Sequential(conv), "0", input=InputSpec((1, 8, 8))) for conv in (bare, padded)]
        >>> [(each.corner, each.centre) for each in found]
        [(1.0, 9.0), (4.0, 9.0)]
    """
    if graph is None:
        graph = recorded(net, input)
    call = graph.call(layer)
    source = call.inputs[0] if own and call.inputs else graph.inputs[0]
    traces = follow(graph)
    if not call.outputs or not traces[call.outputs[0]].depends or not traces[source].depends:
        raise RequestError(
            f"layer {layer!r} gives no tensor that depends on the input, so it visits no pixel; choose another"
        )
    target = call.outputs[0]
    start = _pixels(traces[source])
    with torch.enable_grad():
        pixels = torch.zeros(start, dtype=torch.float64, requires_grad=True)
        reads = replay(
            graph, Counting(), pixels, [target], source=source, ops=_inside(graph, call) if own else None
        ).get(target)
        if reads is None or not reads.requires_grad:
            raise RequestError(
                f"layer {layer!r} makes no result out of its own input, so it visits no pixel; ask without own=True"
            )
        positions = _positions(traces[target])
        keep = [axis for axis, part in enumerate(traces[target].axes) if part.is_spatial]
        reads = thin(reads, keep)
        # counting is linear, so its gradient is the count
        (gradient,) = torch.autograd.grad(reads, pixels, torch.ones_like(reads) * (positions / reads.numel()))
    counts = gradient.reshape(_places(traces[source]))
    if not bool(counts.isfinite().all()):
        raise RequestError(
            f"layer {layer!r} has more than 1e308 paths to a pixel, too many to count; choose an earlier layer"
        )
    exact = bool((counts == counts.round()).all()) and float(counts.max()) < 2**53
    return Visits(layer, own, counts, positions, exact)


def _inside(graph: Graph, call: Call) -> list[Op]:
    """The operations that ran within a module call."""
    within = {call.order}
    for other in reversed(graph.calls):  # callers complete after what they call
        if other.parent in within:
            within.add(other.order)
    return [op for op in graph.ops if op.call in within]


def _pixels(trace: Trace) -> list[int]:
    """The tensor's shape with all but its positions reduced to one."""
    return [axis.size if axis.is_spatial else 1 for axis in trace.axes]


def _places(trace: Trace) -> list[int]:
    """The positions of a tensor as a grid, an axis for each factor that runs along the image."""
    sizes = [f.size for axis in trace.axes for f in axis.factors if isinstance(f.label, int)]
    shape = _pixels(trace)
    return sizes if math.prod(sizes) == math.prod(shape) else shape


def _positions(trace: Trace) -> int:
    return math.prod(f.size for axis in trace.axes for f in axis.factors if isinstance(f.label, int))
