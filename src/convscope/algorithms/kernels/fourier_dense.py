"""The whole Fourier convolution over channels as one parallel region: rows, columns with their product, rows.

    1. for each tile and vector of input channels: the rows' real transforms, into a sheet
    2. for each column of the half spectrum and block of tiles: the column's transforms over all input channels,
       the complex product with the kernel's spectrum, the inverse transforms; what is between stays in the core's
       own cache, and each weight is read once for a block
    3. for each tile and vector of output channels: the rows back into pixels, with bias and rectifier

with a barrier after 1 and 2. Tiles are taken in batches whose sheets stay in the shared cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from convscope.algorithms.kernels import fourier_columns as columns
from convscope.algorithms.kernels.builder import INTS, Module
from convscope.algorithms.kernels.fourier_product import Product, product
from convscope.algorithms.kernels.fourier_tiles import Load, Store, Tiles, locate, share, work_of
from convscope.algorithms.kernels.host import Host

ARGUMENTS = ("x", "y", "weight", "bias", "starts", "down", "across", "sheets", "scratch")


@dataclass(frozen=True)
class Dense:
    """The kernel's shape.

    Attributes:
        tiles: the geometry.
        product: the product of one block of tiles.
        batch: tiles whose sheets are held at a time.
    """

    tiles: Tiles
    product: Product
    batch: int

    @property
    def sheet_in(self) -> int:
        """Floats of the input sheets of one tile."""
        return self.tiles.vectors(self.tiles.inputs) * self.tiles.half * self.tiles.column_in

    @property
    def sheet_out(self) -> int:
        """Floats of the output sheets of one tile."""
        return self.product.outputs // self.tiles.lanes * self.tiles.half * self.tiles.column_out

    @property
    def spectra(self) -> int:
        """Floats of one thread's spectra."""
        return self.product.frequencies * (self.product.input_stride + self.product.output_stride)

    @property
    def private(self) -> int:
        """Floats of one thread's scratch."""
        return self.tiles.scratch + self.spectra

    def workspace(self, threads: int) -> int:
        """Bytes of scratch."""
        return 4 * (self.batch * (self.sheet_in + self.sheet_out) + threads * self.private)


def text(shape: Dense, host: Host) -> str:
    """The kernel `work`, which takes a table of `ARGUMENTS`."""
    module = Module(host)
    tiles, p = shape.tiles, shape.product
    load, store = Load(module, tiles, tiles.column_in), Store(module, tiles, tiles.column_out)
    column_in = columns.forward(module, "column_in", tiles.down, p.input_stride, p.inputs)
    column_out = columns.inverse(module, "column_out", tiles.down, p.output_stride, p.outputs)
    multiply = product(module, "product", p)

    f = module.function("work", arguments=INTS)
    (table,) = f.arguments
    x, y, weight, bias, starts, down, across, sheets, scratch = (
        (table + i).as_("ptr").load_pointer("i64" if name == "starts" else "float")
        for i, name in enumerate(ARGUMENTS)
    )
    private = scratch + f.thread() * shape.private
    work = work_of(tiles, down, across, private)
    spectra_in = private + tiles.scratch
    spectra_out = spectra_in + p.frequencies * p.input_stride
    sheets_out = sheets + shape.batch * shape.sheet_in
    vectors_in, vectors_out = tiles.vectors(tiles.inputs), tiles.vectors(tiles.outputs)
    stored = p.outputs // tiles.lanes

    with f.loop(0, tiles.count, shape.batch) as first:
        here = f.minimum(f.integer(tiles.count) - first, shape.batch)
        with f.loop(*share(f, here * vectors_in)) as task:
            tile, group = task // vectors_in, task % vectors_in
            sheet = sheets + task * (tiles.half * tiles.column_in)
            load.emit(f, x, locate(tiles, first + tile), group, sheet, work)
        f.barrier()

        blocks = (here + (p.tiles - 1)) // p.tiles
        with f.loop(*share(f, blocks * tiles.half)) as task:
            column, start = task // blocks, task % blocks * p.tiles
            count = f.minimum(here - start, p.tiles)
            with f.loop(0, count) as t, f.loop(0, vectors_in) as group:
                place = ((start + t) * vectors_in + group) * tiles.half + column
                target = spectra_in + t * (2 * p.inputs) + group * tiles.lanes
                f.call(column_in, sheets + place * tiles.column_in, target, down, work.scratch)
            f.call(
                multiply,
                spectra_in,
                weight + column * (p.frequencies * p.panels * p.panel_floats),
                spectra_out,
                starts,
            )
            with f.loop(0, count) as t, f.loop(0, vectors_out) as group:
                place = ((start + t) * stored + group) * tiles.half + column
                source = spectra_out + t * (2 * p.outputs) + group * tiles.lanes
                f.call(column_out, source, sheets_out + place * tiles.column_out, down, work.scratch)
        f.barrier()

        with f.loop(*share(f, here * vectors_out)) as task:
            tile, group = task // vectors_out, task % vectors_out
            sheet = sheets_out + (tile * stored + group) * (tiles.half * tiles.column_out)
            store.emit(f, y, bias, locate(tiles, first + tile), group, sheet, work)
    return module.text()
