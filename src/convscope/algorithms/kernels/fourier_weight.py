"""The kernel's spectrum in machine code, written where the product reads it.

Filters are transformed as images are, a vector of output channels at a time, from [input][height][width][output].
Where the kernel's taps lie in the transform (`Cut.shift`), the conjugate and all scales are one complex factor for
each frequency, applied on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convscope.algorithms.kernels import fourier_columns as columns
from convscope.algorithms.kernels.builder import FLOATS, INTS, Function, Module
from convscope.algorithms.kernels.fourier_cut import Cut
from convscope.algorithms.kernels.fourier_passes import in_area, values
from convscope.algorithms.kernels.fourier_tiles import Load, Tiles, locate, share, work_of
from convscope.algorithms.kernels.host import Host

ARGUMENTS = ("filters", "out", "factors", "down", "across", "scratch")


@dataclass(frozen=True)
class Spectrum:
    """What is transformed, and where to.

    Attributes:
        inputs: filters of one output channel.
        outputs: channels.
        down, across: the layer's cuts.
        lanes: of a vector.
        panel: vectors of output channels side by side.
        panel_stride, input_stride, column_stride, frequency_stride: floats from one to the next.
    """

    inputs: int
    outputs: int
    down: Cut
    across: Cut
    lanes: int
    panel: int
    panel_stride: int
    input_stride: int
    column_stride: int
    frequency_stride: int

    @property
    def tiles(self) -> Tiles:
        """The filters as images."""
        down, across = (
            Cut(cut.kernel, 1, 0, 0, cut.length, cut.kernel, True) for cut in (self.down, self.across)
        )
        return Tiles(self.inputs, self.outputs, self.outputs, down, across, self.lanes, False, False)

    @property
    def private(self) -> int:
        """Floats of one thread's scratch."""
        tiles = self.tiles
        return tiles.scratch + values(tiles.down.length, self.lanes) + tiles.half * tiles.column_in


def factors(down: Cut, across: Cut) -> Tensor:
    """(cos, sin) of the turn of each frequency times the scale, [column, frequency, 2]."""
    scale = 0.25 / (
        down.length * across.length
    )  # rows come in pairs, here and for images: 0.5 each; the inverse
    turns = [torch.arange(cut.length).double() * cut.shift / cut.length for cut in (down, across)]
    turn = (turns[1][: across.length // 2 + 1, None] + turns[0]) * (2 * torch.pi)
    return (torch.stack([turn.cos(), turn.sin()], -1) * scale).float()


def text(shape: Spectrum, host: Host) -> str:
    """The kernel `work`, which takes a table of `ARGUMENTS`."""
    module = Module(host)
    tiles = shape.tiles
    load = Load(module, tiles, tiles.column_in)
    column_in = columns.forward(module, "column_in", tiles.down, 2 * tiles.lanes, tiles.lanes)
    put = _put(module, shape)

    f = module.function("work", arguments=INTS)
    (table,) = f.arguments
    filters, out, factor, down, across, scratch = (
        (table + i).as_("ptr").load_pointer() for i, _ in enumerate(ARGUMENTS)
    )
    private = scratch + f.thread() * shape.private
    work = work_of(tiles, down, across, private)
    spectrum = private + tiles.scratch
    sheet = spectrum + values(tiles.down.length, tiles.lanes)
    with f.loop(*share(f, tiles.vectors(shape.outputs) * tiles.count)) as task:
        group, place = task // tiles.count, locate(tiles, task % tiles.count)
        load.emit(f, filters, place, group, sheet, work)
        target = (
            out
            + group // shape.panel * shape.panel_stride
            + group % shape.panel * shape.lanes
            + place.image * shape.input_stride
        )
        with f.loop(0, tiles.half) as column:
            f.call(column_in, sheet + column * tiles.column_in, spectrum, down, work.scratch)
            turns = factor + column * (2 * shape.down.length)
            f.call(put, spectrum, turns, target + column * shape.column_stride)
    return module.text()


def _put(module: Module, shape: Spectrum) -> Function:
    """The conjugate of a column's spectrum times its factors; takes (spectrum, factors, first frequency)."""
    f = module.function("put", public=False, spectrum=FLOATS, factors=FLOATS, out=FLOATS)
    spectrum, turns, out = f.arguments
    read = in_area(spectrum, shape.lanes)[0]
    with f.loop(0, shape.down.length) as u:
        a, b = read(u, 0)
        c, s = (turns + u * 2).splat(), (turns + u * 2 + 1).splat()
        place = out + u * shape.frequency_stride
        place.store(f.fma(-b, s, a * c), align=4 * shape.lanes)
        (place + shape.panel * shape.lanes).store(-f.fma(a, s, b * c), align=4 * shape.lanes)
    return f
