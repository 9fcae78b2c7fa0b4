"""Depthwise Fourier convolution: each vector of channels goes all the way on one core, without a barrier.

The sheet of a tile stays in the core's own cache: rows in, then column by column transform, product with the
kernel's spectrum and inverse transform in place, then rows out. Weights are [vector][column][frequency][re, im].
"""

from __future__ import annotations

from dataclasses import dataclass

from convscope.algorithms.kernels import fourier_columns as columns
from convscope.algorithms.kernels.builder import INTS, Module
from convscope.algorithms.kernels.fourier_passes import values
from convscope.algorithms.kernels.fourier_tiles import Load, Store, Tiles, locate, share, work_of
from convscope.algorithms.kernels.host import Host

ARGUMENTS = ("x", "y", "weight", "bias", "down", "across", "scratch")


@dataclass(frozen=True)
class Depthwise:
    """The kernel's shape."""

    tiles: Tiles

    @property
    def column(self) -> int:
        """Floats of a column of the sheet, which holds inputs first and outputs later."""
        return max(self.tiles.column_in, self.tiles.column_out)

    @property
    def spectrum(self) -> int:
        """Floats of the spectrum of one column."""
        return values(self.tiles.down.length, self.tiles.lanes)

    @property
    def private(self) -> int:
        """Floats of one thread's scratch."""
        return self.tiles.scratch + self.spectrum + self.tiles.half * self.column

    def workspace(self, threads: int) -> int:
        """Bytes of scratch."""
        return 4 * threads * self.private


def text(shape: Depthwise, host: Host) -> str:
    """The kernel `work`, which takes a table of `ARGUMENTS`."""
    module = Module(host)
    tiles = shape.tiles
    load, store = Load(module, tiles, shape.column), Store(module, tiles, shape.column)
    column_in = columns.forward(module, "column_in", tiles.down, 2 * tiles.lanes, tiles.lanes)
    column_out = columns.inverse(module, "column_out", tiles.down, 2 * tiles.lanes, tiles.lanes)
    multiply = columns.multiply(module, "multiply", tiles.down)

    f = module.function("work", arguments=INTS)
    (table,) = f.arguments
    x, y, weight, bias, down, across, scratch = (
        (table + i).as_("ptr").load_pointer() for i, _ in enumerate(ARGUMENTS)
    )
    private = scratch + f.thread() * shape.private
    work = work_of(tiles, down, across, private)
    spectrum = private + tiles.scratch
    sheet = spectrum + shape.spectrum
    with f.loop(*share(f, tiles.vectors(tiles.inputs) * tiles.count)) as task:
        group, place = task // tiles.count, locate(tiles, task % tiles.count)
        load.emit(f, x, place, group, sheet, work)
        with f.loop(0, tiles.half) as column:
            here = sheet + column * shape.column
            kernel = weight + (group * tiles.half + column) * shape.spectrum
            f.call(column_in, here, spectrum, down, work.scratch)
            f.call(multiply, spectrum, kernel)
            f.call(column_out, spectrum, here, down, work.scratch)
        store.emit(f, y, bias, place, group, sheet, work)
    return module.text()
