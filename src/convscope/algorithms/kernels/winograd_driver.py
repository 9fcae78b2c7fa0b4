"""The loop nest of one Winograd convolution, run by every thread of the team at once.

The tiles are cut into blocks. Where few channels let V of a block fit a core's own cache, each thread takes
whole blocks and waits for nobody. Otherwise all threads transform a block together, meet at a barrier, and
share out its products by (chunk of output channels, group of tiles), first come, first served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convscope.algorithms.kernels.builder import INTS, Int, Module, Pointer
from convscope.algorithms.kernels.host import Host
from convscope.algorithms.kernels.winograd_layout import LINE, Layout
from convscope.algorithms.kernels.winograd_product import product
from convscope.algorithms.kernels.winograd_transform import InputTransform, Matrix, OutputTransform

TENSORS = ("x", "y", "filters", "bias", "zeros", "scratch")
SIZES = ("height", "width", "top", "left", "out_height", "out_width", "down", "across", "tiles")
ARGUMENTS = (*TENSORS, *SIZES, "next")  # the table that `convolve` is called with; `next` begins at 0


@dataclass(frozen=True)
class Recipe:
    """Everything the machine code depends on.

    Attributes:
        layout: sizes and blocks.
        to_frequencies: B^T, [points, points].
        to_pixels: A^T, [tile, points].
        bias: whether a bias is added.
        relu: whether negative results become 0.
        streaming: whether pixels are written past the caches.
        far: whether pixels come from beyond the caches, and are better asked for early.
    """

    layout: Layout
    to_frequencies: Matrix
    to_pixels: Matrix
    bias: bool
    relu: bool
    streaming: bool
    far: bool


def module(recipe: Recipe, host: Host) -> Module:
    """The kernel `convolve(table)` and the functions it is made of."""
    made = Module(host)
    _Driver(made, recipe).write()
    return made


class _Driver:
    """Writes `convolve`; the attributes are values of the kernel."""

    def __init__(self, made: Module, recipe: Recipe) -> None:
        layout = recipe.layout
        self.layout = layout
        self.streaming, self.far = recipe.streaming, recipe.far
        self.to_frequencies = InputTransform(made, layout, recipe.to_frequencies)
        self.product = product(made, layout)
        self.to_pixels = OutputTransform(
            made,
            layout,
            recipe.to_pixels,
            bias=recipe.bias,
            relu=recipe.relu,
            streaming=recipe.streaming,
        )
        self.f = f = made.function("convolve", table=INTS)
        (table,) = f.arguments
        slot = {name: table + index for index, name in enumerate(ARGUMENTS)}
        self.x, self.y, self.filters, self.bias, self.zeros, scratch = (
            slot[name].load_pointer() for name in TENSORS
        )
        self.size: dict[str, Int] = {name: slot[name].load_int() for name in SIZES}
        self.next = slot["next"]
        self.thread, self.threads = f.thread(), f.threads()
        own = layout.m_size + layout.dump
        self.m = scratch + self.thread * own
        self.dump = self.m + layout.m_size
        blocks = scratch + self.threads * own
        self.v = blocks if layout.shared else blocks + self.thread * layout.v_size
        self.pixel_table = f.array(layout.points**2, "ptr")

    # ------------------------------------------------------------ blocks

    def write(self) -> None:
        """The whole nest."""
        (self._shared if self.layout.shared else self._private)()
        if self.streaming:
            self.f.fence()

    def _private(self) -> None:
        """Each thread takes the next block until there is none."""
        f, layout = self.f, self.layout
        blocks = (self.size["tiles"] + (layout.block - 1)) // layout.block
        chunks = -(-layout.wide // layout.chunk)

        claimed = f.variable(self.next.claim())
        with f.repeat(lambda: claimed.get() < blocks):
            first = claimed.get() * layout.block
            count = f.minimum(self.size["tiles"] - first, layout.block)
            claimed.set(self.next.claim())  # the next one is known early: its pixels are fetched meanwhile
            soon = claimed.get() * layout.block
            self._transform(first, f.integer(0), count)
            with f.loop(0, chunks) as chunk:
                fetched = f.select(chunk.equals(0), f.minimum(self.size["tiles"] - soon, layout.block), 0)
                self._multiply(first, f.integer(0), count, chunk, soon if self.far else None, fetched)

    def _shared(self) -> None:
        """All threads transform a block, then share out its tasks; a task claimed too early waits its turn."""
        f, layout = self.f, self.layout
        tiles = self.size["tiles"]
        chunks = -(-layout.wide // layout.chunk)
        groups = -(-layout.block // layout.group)
        claimed = f.variable(self.next.claim())
        with f.loop(0, tiles, layout.block) as first:
            count = f.minimum(tiles - first, layout.block)
            begin, end = (count * number // self.threads for number in (self.thread, self.thread + 1))
            self._transform(first, begin, end)
            f.barrier()
            done = first // layout.block * (groups * chunks)

            def work(task: Int, first: Int = first, count: Int = count, done: Int = done) -> None:
                number = task - done
                start = number % groups * layout.group
                with f.when(start < count):
                    tiles_here = f.minimum(count - start, layout.group)
                    self._multiply(first, start, tiles_here, number // groups)

            self._first_come(claimed, done + groups * chunks, work)
            with f.when(first + layout.block < tiles):
                f.barrier()

    def _first_come(self, claimed: Any, end: Int, work: Callable[[Int], None]) -> None:
        with self.f.repeat(lambda: claimed.get() < end):
            work(claimed.get())
            claimed.set(self.next.claim())

    def _place(self, tile: Int) -> tuple[Int, Int, Int]:
        """(image, row of tiles, column of tiles)."""
        down, across = self.size["down"], self.size["across"]
        row = tile // across
        return row // down, row % down, tile % across

    # ------------------------------------------------------------ stages

    def _transform(self, first: Int, begin: Int, end: Int) -> None:
        """Tiles begin to end of the block that starts at tile `first`, into V."""
        f, layout, size = self.f, self.layout, self.size
        row_length = size["width"] * layout.inputs
        reach = layout.points - 1
        with f.loop(begin, end) as t:
            image, down, across = self._place(first + t)
            top = down * layout.tile - size["top"]
            left = across * layout.tile - size["left"]
            pixel = self.x + ((image * size["height"] + top) * row_length + left * layout.inputs)
            out = self.v + (t // layout.rows * (layout.rows * layout.deep) + t % layout.rows * layout.width)
            inside = top.inside(size["height"]) & (top + reach).inside(size["height"])
            inside = inside & left.inside(size["width"]) & (left + reach).inside(size["width"])
            with f.either(inside) as (yes, no):
                with yes:
                    f.call(self.to_frequencies.interior, pixel, row_length, out)
                with no:
                    here = [(top + i).inside(size["height"]) for i in range(layout.points)]
                    there = [(left + j).inside(size["width"]) for j in range(layout.points)]
                    self._fill(here, there, pixel, row_length, layout.inputs, self.zeros)
                    f.call(self.to_frequencies.border, self.pixel_table, out)

    def _fill(
        self, rows: list[Any], columns: list[Any], pixel: Pointer, row: Int, column: int, outside: Pointer
    ) -> None:
        """The table of pointers of a tile at the border: pixels inside the image, `outside` for the others."""
        f = self.f
        for i, row_inside in enumerate(rows):
            for j, column_inside in enumerate(columns):
                place = f.select(row_inside & column_inside, pixel + (row * i + j * column), outside)
                (self.pixel_table + (i * len(columns) + j)).store_value(place)

    def _fetch(self, tile: Int) -> None:
        """Ask for the pixels that a tile does not share with the tiles above it and to its left."""
        f, layout, size = self.f, self.layout, self.size
        image, down, across = self._place(tile)
        row_length = size["width"] * layout.inputs
        left = across * layout.tile + (layout.points - layout.tile) - size["left"]
        top = down * layout.tile + (layout.points - layout.tile) - size["top"]
        pixel = self.x + ((image * size["height"] + top) * row_length + left * layout.inputs)
        with f.loop(0, layout.tile) as i, f.loop(0, layout.tile * layout.inputs, LINE) as column:
            (pixel + (row_length * i + column)).prefetch(level=2)

    def _multiply(
        self, first: Int, start: Int, count: Int, chunk: Int, soon: Int | None = None, fetched: Int | int = 0
    ) -> None:
        """Tiles start to start + count of the block: their products with one chunk of filters, and the pixels.

        Meanwhile the input of `fetched` tiles from `soon` on is asked for.
        """
        f, layout = self.f, self.layout
        panels = (count + (layout.rows - 1)) // layout.rows
        per_chunk = layout.chunk // layout.columns
        begin = chunk * per_chunk
        sets = f.minimum(layout.wide // layout.columns - begin, per_chunk)
        panel = layout.deep * layout.columns  # one frequency of one set of columns
        filters = self.filters + begin * (layout.frequencies * panel)
        with f.loop(0, layout.frequencies) as frequency:
            if soon is not None:
                with f.loop(frequency, fetched, layout.frequencies) as t:
                    self._fetch(soon + t)
            tiles = self.v + (frequency * layout.v_frequency + start * layout.deep)
            with f.loop(0, sets) as k:
                u = filters + (k * layout.frequencies + frequency) * panel
                m = self.m + (frequency * layout.m_frequency + k * layout.m_columns)
                turn = filters + (frequency + 1) * panel
                following = f.select(k + 1 < sets, u + layout.frequencies * panel, turn)
                f.call(self.product, tiles, u, m, panels, following)
        self._pixels(first + start, count, begin * layout.columns)

    def _pixels(self, first: Int, count: Int, begin: Int) -> None:
        """Pixels of tiles first to first + count, output channels from `begin` on."""
        f, layout, size = self.f, self.layout, self.size
        row_length = size["out_width"] * layout.outputs
        channels = f.minimum(layout.outputs - begin, layout.chunk)
        with f.loop(0, count) as t:
            image, down, across = self._place(first + t)
            top, left = down * layout.tile, across * layout.tile
            pixel = self.y + ((image * size["out_height"] + top) * row_length + left * layout.outputs + begin)
            m = self.m + t * layout.columns
            bias = self.bias + begin
            inside = (top + layout.tile <= size["out_height"]) & (left + layout.tile <= size["out_width"])
            with f.either(inside) as (yes, no):
                with yes:
                    f.call(self.to_pixels.interior, m, bias, channels, pixel, row_length)
                with no:
                    here = [top + i < size["out_height"] for i in range(layout.tile)]
                    there = [left + j < size["out_width"] for j in range(layout.tile)]
                    self._fill(here, there, pixel, row_length, layout.outputs, self.dump)
                    f.call(self.to_pixels.border, m, bias, channels, self.pixel_table)
