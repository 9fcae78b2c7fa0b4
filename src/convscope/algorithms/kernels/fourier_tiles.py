"""The parts of a Fourier kernel that walk over tiles: image to sheet, sheet to image.

Shared by the dense kernel (`fourier_dense`), whose sheets of all channels meet in the product, and the depthwise
one (`fourier_depthwise`), which takes one sheet all the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from convscope.algorithms.kernels import fourier_rows as rows
from convscope.algorithms.kernels.builder import Function, Int, Module, Pointer
from convscope.algorithms.kernels.fourier_cut import Cut
from convscope.algorithms.kernels.fourier_passes import values


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of a batch lie.

    Attributes:
        batch: images.
        inputs, outputs: channels.
        down, across: the cut of the height and of the width.
        lanes: numbers of a vector.
        bias, relu: what is done to the outputs on the way.
    """

    batch: int
    inputs: int
    outputs: int
    down: Cut
    across: Cut
    lanes: int
    bias: bool
    relu: bool

    @property
    def count(self) -> int:
        """Tiles of the whole batch."""
        return self.batch * self.down.tiles * self.across.tiles

    @property
    def half(self) -> int:
        """Columns of a half spectrum."""
        return rows.half(self.across)

    @property
    def column_in(self) -> int:
        """Floats of a column of an input sheet."""
        return rows.column(self.down.inputs, self.lanes)

    @property
    def column_out(self) -> int:
        """Floats of a column of an output sheet."""
        return rows.column(self.down.step, self.lanes)

    @property
    def scratch(self) -> int:
        """Floats of scratch for one thread's transforms: two areas and one for tiles at the edge."""
        return 3 * values(max(self.down.length, self.across.length), self.lanes)

    def vectors(self, channels: int) -> int:
        """Vectors that hold so many channels."""
        return -(-channels // self.lanes)


@dataclass
class Place:
    """A tile: its image, and its place in the grid of tiles."""

    image: Int
    down: Int | int
    across: Int | int


def locate(tiles: Tiles, tile: Int) -> Place:
    """The tile of a number."""
    across, down = tiles.across.tiles, tiles.down.tiles
    if across * down == 1:
        return Place(tile, 0, 0)
    return Place(tile // (across * down), tile // across % down, tile % across)


@dataclass
class Load:
    """From an image to the row spectra of a tile.

    Args:
        module: to emit into.
        tiles: the geometry.
        column: floats of a column of the sheet, `tiles.column_in` or more.
    """

    module: Module
    tiles: Tiles
    column: int
    _straight: Function = field(init=False)

    def __post_init__(self) -> None:
        t = self.tiles
        self._image = rows.Image(t.across.size, t.inputs, t.lanes)
        self._straight = rows.forward(self.module, "rows_in", t.across, self._image, self.column)
        if not self._never_over():
            self._over = rows.forward(self.module, "rows_in_area", t.across, None, self.column)
            self._gather = rows.gather(self.module, "rows_gather", t.across, self._image)
            self._clear = rows.clear(self.module, "rows_clear", t.across, self.column)

    def _never_over(self) -> bool:
        """Whether no tile reaches over an edge of the image."""
        return all(
            cut.first >= 0 and (cut.tiles - 1) * cut.step + cut.first + cut.inputs <= cut.size
            for cut in (self.tiles.down, self.tiles.across)
        )

    def emit(self, f: Function, x: Pointer, place: Place, group: Int, sheet: Pointer, work: Work) -> None:
        """One tile, the channels of one vector.

        Args:
            f: the function that does it.
            x: the batch.
            place: the tile.
            group: number of the vector of channels.
            sheet: where to.
            work: tables and scratch.
        """
        t = self.tiles
        pixel, line = t.inputs, t.inputs * t.across.size
        top, left = (
            index * cut.step + cut.first for index, cut in ((place.down, t.down), (place.across, t.across))
        )
        channel = group * t.lanes
        lanes = f.integer(t.inputs) - channel
        corner = x + (place.image * t.down.size + top) * line + left * pixel + channel
        pairs, single = divmod(t.down.inputs, 2)

        def pair(r: Int | int, following: int) -> None:
            a = corner + r * line
            rows_here = a, a + following * line
            out = sheet + r * (2 * t.lanes)
            if self._never_over():
                f.call(self._straight, *rows_here, lanes, out, work.across, work.scratch)
                return
            has = [(top + (r + next_)).inside(t.down.size) for next_ in (f.integer(0), f.integer(following))]
            wide = (f.integer(0) <= left) & (left + f.integer(t.across.inputs) <= t.across.size)
            with f.either(has[0] & has[1] & wide) as (yes, no):
                with yes:
                    f.call(self._straight, *rows_here, lanes, out, work.across, work.scratch)
                with no, f.either(has[0] | has[1]) as (some, none):
                    with some:
                        start = x + (place.image * t.down.size + top + r) * line + channel
                        flags = [f.select(flag, f.integer(1), f.integer(0)) for flag in has]
                        edge = f.integer(0) + left
                        f.call(self._gather, start, start + following * line, *flags, edge, lanes, work.edge)
                        f.call(self._over, work.edge, work.edge, lanes, out, work.across, work.scratch)
                    with none:
                        f.call(self._clear, out)

        if pairs:
            with f.loop(0, 2 * pairs, 2) as r:
                pair(r, 1)
        if single:  # the last row twice: its double is never read
            pair(2 * pairs, 0)


@dataclass
class Store:
    """From the row spectra of a tile to the output."""

    module: Module
    tiles: Tiles
    column: int

    def __post_init__(self) -> None:
        t = self.tiles
        self._image = rows.Image(t.across.output, t.outputs, t.lanes)

        def function(name: str, image: rows.Image | None) -> Function:
            return rows.inverse(self.module, name, t.across, image, self.column, bias=t.bias, relu=t.relu)

        self._straight = function("rows_out", self._image)
        if not self._always_full():
            self._partly = function("rows_out_area", None)
            self._scatter = rows.scatter(self.module, "rows_scatter", self._image)

    def _always_full(self) -> bool:
        """Whether no tile has rows or columns beyond the output, and rows come in pairs."""
        return self.tiles.down.step % 2 == 0 and all(
            cut.output % cut.step == 0 for cut in (self.tiles.down, self.tiles.across)
        )

    def emit(
        self, f: Function, y: Pointer, bias: Pointer, place: Place, group: Int, sheet: Pointer, work: Work
    ) -> None:
        """One tile, the channels of one vector; arguments as in `Load.emit`."""
        t = self.tiles
        pixel, line = t.outputs, t.outputs * t.across.output
        top, left = f.integer(0) + place.down * t.down.step, f.integer(0) + place.across * t.across.step
        channel = group * t.lanes
        lanes = f.integer(t.outputs) - channel
        corner = y + (place.image * t.down.output + top) * line + left * pixel + channel
        with f.loop(0, f.minimum(t.down.step, f.integer(t.down.output) - top), 2) as r:
            a, source = corner + r * line, sheet + r * (2 * t.lanes)
            b = a + line
            after = lanes, bias + channel, work.across, work.scratch
            has_b = (top + r + 1 < t.down.output) & (r + 1 < t.down.step)
            count = f.minimum(t.across.step, f.integer(t.across.output) - left)
            whole = has_b & count.equals(t.across.step)
            with f.when(whole):
                f.call(self._straight, source, a, b, *after)
            if not self._always_full():
                with f.when(~whole):
                    f.call(self._partly, source, work.edge, work.edge, *after)
                    flag = f.select(has_b, f.integer(1), f.integer(0))
                    f.call(self._scatter, work.edge, a, b, flag, count, lanes)


@dataclass
class Work:
    """What a thread's transforms use: twiddle tables of both axes, scratch, and an area for tiles at the edge."""

    down: Pointer
    across: Pointer
    scratch: Pointer
    edge: Pointer


def work_of(tiles: Tiles, down: Pointer, across: Pointer, scratch: Pointer) -> Work:
    """The parts of a thread's scratch."""
    longest = max(tiles.down.length, tiles.across.length)
    return Work(down, across, scratch, scratch + 2 * values(longest, tiles.lanes))


def share(f: Function, total: Int | int) -> tuple[Int, Int]:
    """The numbers below `total` that are this thread's: a range."""
    thread, threads = f.thread(), f.threads()
    return thread * total // threads, (thread + 1) * total // threads
