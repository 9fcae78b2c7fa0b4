"""How a layer's output is laid out: which tensor axis is the channel, which are image axes, told from the
graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from convscope.errors import RequestError
from convscope.graph.rules import follow
from convscope.graph.structure import Graph, Shape
from convscope.graph.trace import Axis

Kind = Literal["map", "map_last", "tokens", "vector", "other"]


@dataclass(frozen=True)
class Layout:
    """The axes of a layer's output.

    Attributes:
        kind: "map" [batch, channel, *space], "map_last" [batch, *space, channel], "tokens" [batch, position,
            channel] with all image axes in one, "vector" [batch, channel], or "other": an attention map,
            windows, ...
        channel_axis: tensor axis of the channels, None where there is none.
        spatial_axes: the tensor axis of each image axis; both the same one for tokens; () for vectors.
        shape: of the output, batch included.
        grid: number of positions along each image axis.
        before: tokens that are no position (class token, registers), ahead of the positions.
        after: the same, behind them.
    """

    kind: Kind
    channel_axis: int | None
    spatial_axes: tuple[int, ...]
    shape: Shape
    grid: tuple[int, ...] = ()
    before: int = 0
    after: int = 0

    @property
    def channels(self) -> int:
        """Number of channels.

        Raises:
            RequestError: the output has no channel axis.
        """
        if self.channel_axis is None:
            raise RequestError(
                f"an output of shape {list(self.shape)} has no channel axis; choose another layer"
            )
        return self.shape[self.channel_axis]

    def as_map(self, output: Tensor) -> Tensor:
        """An output of the layer as [batch, channel, *grid]; class tokens are left out, a vector is one
        position.

        Other batch and image sizes than the recorded ones are fine, except for tokens, whose grid must be
        the same.

        Raises:
            RequestError: the kind is "other".

        Example:
            >>> import torch
            >>> tokens = Layout("tokens", 2, (1, 1), (1, 7, 8), grid=(2, 3), before=1)
            >>> tokens.as_map(torch.zeros(5, 7, 8)).shape
            torch.Size([5, 8, 2, 3])
        """
        match self.kind:
            case "map":
                return output
            case "map_last":
                return output.movedim(-1, 1)
            case "vector":
                return output.reshape(*output.shape[:2], *(1 for _ in self.grid))
            case "tokens":
                stop = output.shape[1] - self.after
                tokens: Tensor = output[:, self.before : stop]  # [batch, position, channel]
                return tokens.reshape(len(output), *self.grid, self.channels).movedim(-1, 1)
        raise RequestError(
            f"an output of shape {list(self.shape)} is no map of positions; choose another layer"
        )


def layout(graph: Graph, layer: str) -> Layout:
    """How the first tensor that a layer's last (or `#k`-th) call returned is laid out.

    Read off the operations that made it, where they tell; a tensor that lost its trace on the way is judged
    by its number of axes and the trace of its neighbours.

    Raises:
        UnknownLayer: there is no such layer, or it did not run.
        RequestError: the layer returned no tensor.

    Example:
        >>> from torch import nn
        >>> from convscope.graph import record
        >>> from convscope.models import InputSpec
        >>> graph = record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), spec=InputSpec((3, 9, 9)))
        >>> layout(graph, "0").kind, layout(graph, "0").grid, layout(graph, "1").kind
        ('map', (7, 7), 'other')
    """
    call = graph.call(layer)
    if not call.outputs:
        raise RequestError(f"layer {layer!r} returned no tensor; choose another")
    axes = follow(graph)[call.outputs[0]].axes
    shape = call.out_shapes[0]
    rank = _image_rank(graph)
    places = [_axes_of(axes, number) for number in range(rank)]
    if not any(places):
        return _without_positions(axes, shape, rank)
    # A place in a window and the window's number may have come to lie in several axes.
    if any(len(found) != 1 for found in places):
        return Layout("other", None, (), shape)
    spatial = tuple(found[0] for found in places)
    last = len(shape) - 1
    if spatial == tuple(range(2, 2 + rank)) and last == 1 + rank and _pure(axes, spatial):
        return Layout("map", 1, spatial, shape, tuple(shape[axis] for axis in spatial))
    if spatial == tuple(range(1, 1 + rank)) and last == 1 + rank and _pure(axes, spatial):
        return Layout("map_last", last, spatial, shape, tuple(shape[axis] for axis in spatial))
    if len(shape) == 3 and set(spatial) == {1} and axes[1].labels == tuple(range(rank)):
        grid = tuple(factor.size for factor in axes[1].factors)
        return Layout("tokens", 2, spatial, shape, grid, axes[1].before, axes[1].after)
    return Layout("other", None, (), shape)


def _image_rank(graph: Graph) -> int:
    return max(len(graph.values[graph.inputs[0]].shape) - 2, 1) if graph.inputs else 2


def _axes_of(axes: tuple[Axis, ...], number: int) -> list[int]:
    return [position for position, axis in enumerate(axes) if number in axis.labels]


def _pure(axes: tuple[Axis, ...], spatial: tuple[int, ...]) -> bool:
    """Whether each axis begins with its image axis and has no other; a pixel shuffle's factors may follow."""
    return all(
        axes[position].labels[0] == number
        and {n for n in axes[position].labels if isinstance(n, int)} == {number}
        for number, position in enumerate(spatial)
    )


def _without_positions(axes: tuple[Axis, ...], shape: Shape, rank: int) -> Layout:
    """No image axis is left: a vector, or a map whose only position lost its name on the way."""
    if len(shape) == 2:
        return Layout("vector", 1, (), shape, (1,) * rank)
    if len(shape) == rank + 2 and math.prod(shape[2:]) == 1:
        return Layout("map", 1, tuple(range(2, 2 + rank)), shape, (1,) * rank)
    if len(shape) == rank + 2 and math.prod(shape[1:-1]) == 1:
        return Layout("map_last", rank + 1, tuple(range(1, 1 + rank)), shape, (1,) * rank)
    return Layout("other", None, (), shape)
