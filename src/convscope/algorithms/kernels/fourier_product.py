"""The product of spectra: for each frequency a small complex matrix product over channels.

    Y[t, k] = sum over c of X[t, c] W[c, k]        t: tiles of the block, c: input channels, k: output channels

in registers of `rows` tiles times `panel` vectors of output channels, real and imaginary parts apart; each weight
is read once for `rows` tiles. Weights are packed [frequency][panel][c][re, im][k of the panel].

With groups a panel of output channels sees the input channels from its own start on; where a panel spans several
groups it sees all of theirs, with zeros as weights in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from convscope.algorithms.kernels.builder import FLOATS, INTS, Function, Module, Pointer, Variable, Vector

AHEAD = 4096  # floats between the weight at work and the one asked for


@dataclass(frozen=True)
class Product:
    """The shape of the product.

    Attributes:
        frequencies: of one column of the spectrum.
        tiles: in a block.
        inputs, outputs: channels of X and Y, rounded up to whole vectors.
        panel: vectors of output channels in a panel.
        seen: input channels that a panel sees.
        rows: tiles in registers at a time.
        lanes: of a vector.
    """

    frequencies: int
    tiles: int
    inputs: int
    outputs: int
    panel: int
    seen: int
    rows: int
    lanes: int

    @property
    def panels(self) -> int:
        return self.outputs // (self.panel * self.lanes)

    @property
    def panel_floats(self) -> int:
        return self.seen * 2 * self.panel * self.lanes

    @property
    def input_stride(self) -> int:
        """Floats from one frequency of X to the next; not a power of two, which would crowd the cache's sets."""
        return self.tiles * 2 * self.inputs + self.lanes

    @property
    def output_stride(self) -> int:
        return self.tiles * 2 * self.outputs + self.lanes


def registers(tiles: int, vectors: int, available: int) -> tuple[int, int]:
    """(rows, panel): tiles and output vectors held in registers.

    Args:
        tiles: in a block.
        vectors: of output channels; the panel's divide them.
        available: vector registers of the host.

    Example:
        >>> registers(1, 4, 32), registers(12, 4, 32), registers(12, 3, 32), registers(12, 4, 16)
        ((1, 4), (4, 2), (12, 1), (4, 1))
    """
    best = (1, 1)
    shortest = float("inf")
    for panel in (2, 4, 1):
        if vectors % panel:
            continue
        # the weights' real and imaginary vectors, and six for the broadcast numbers, which come ahead of their use
        most = (available - 2 * panel - 6) // (2 * panel)
        for rows in range(1, min(most, tiles) + 1):
            blocks, rest = divmod(tiles, rows)
            time = (blocks * _clocks(rows, panel) + (_clocks(rest, panel) + 0.1 if rest else 0)) / panel
            if time < shortest:
                best, shortest = (rows, panel), time
    return best


def _clocks(rows: int, panel: int) -> float:
    """Of a block, for each input channel: multiplications, at least a sum's own two in a row, and some for loads."""
    return max(4 * panel * rows, 8) + 0.2 * (panel + rows)


def product(module: Module, name: str, shape: Product) -> Function:
    """All frequencies of a column; takes (X, W of the column, Y, starts of the panels' input channels)."""
    f = module.function(name, public=False, x=FLOATS, w=FLOATS, y=FLOATS, starts=INTS)
    x, w, y, starts = f.arguments
    with f.loop(0, shape.frequencies) as u, f.loop(0, shape.panels) as number:
        weights = w + (u * shape.panels + number) * shape.panel_floats
        source = x + u * shape.input_stride + (starts + number).load_int()
        target = y + u * shape.output_stride + number * (shape.panel * shape.lanes)
        blocks, rest = divmod(shape.tiles, shape.rows)
        with f.loop(0, blocks) as block:
            first = block * shape.rows
            _block(
                f,
                shape,
                shape.rows,
                source + first * 2 * shape.inputs,
                weights,
                target + first * 2 * shape.outputs,
            )
        if rest:
            first_left = blocks * shape.rows
            _block(
                f,
                shape,
                rest,
                source + first_left * 2 * shape.inputs,
                weights,
                target + first_left * 2 * shape.outputs,
            )
    return f


def _block(f: Function, shape: Product, rows: int, x: Pointer, w: Pointer, y: Pointer) -> None:
    """`rows` tiles times one panel."""
    lanes, panel = shape.lanes, shape.panel
    sums = [[f.variable(f.zero()) for _ in range(2 * panel)] for _ in range(rows)]
    unroll = 2 if shape.seen % 2 == 0 else 1
    with f.loop(0, shape.seen, unroll) as c:
        for step in range(unroll):
            _multiply(f, shape, sums, x + c + step, w + (c + step) * (2 * panel * lanes))
    for row, of_row in enumerate(sums):
        place = y + row * 2 * shape.outputs
        for v in range(panel):
            (place + v * lanes).store(of_row[v].get(), align=4 * lanes)
            (place + shape.outputs + v * lanes).store(of_row[panel + v].get(), align=4 * lanes)


def _multiply(f: Function, shape: Product, sums: list[list[Variable]], x: Pointer, w: Pointer) -> None:
    """One input channel: sums += x w, complex."""
    lanes, panel = shape.lanes, shape.panel
    # weights come from far away, once a block: further than the processor looks ahead by itself
    for v in range(2 * panel):
        (w + AHEAD + v * lanes).prefetch(level=2)
    real = [(w + v * lanes).load(align=4 * lanes) for v in range(panel)]
    imaginary = [(w + (panel + v) * lanes).load(align=4 * lanes) for v in range(panel)]
    for row, of_row in enumerate(sums):
        place = x + row * 2 * shape.inputs
        a: Vector = place.splat()
        for v in range(panel):
            of_row[v].set(f.fma(a, real[v], of_row[v].get()))
            of_row[panel + v].set(f.fma(a, imaginary[v], of_row[panel + v].get()))
        b: Vector = (place + shape.inputs).splat()
        minus = -b
        for v in range(panel):
            of_row[v].set(f.fma(minus, imaginary[v], of_row[v].get()))
            of_row[panel + v].set(f.fma(b, real[v], of_row[panel + v].get()))


def starts_of(shape: Product, channels: int, outputs: int, groups: int) -> list[int]:
    """For each panel the first input channel that it sees."""
    per_in, per_out, span = channels // groups, outputs // groups, shape.panel * shape.lanes
    wanted = [min(number * span, outputs - 1) // per_out * per_in for number in range(shape.panels)]
    return [min(start, shape.inputs - shape.seen) for start in wanted]


def seen_by(channels: int, outputs: int, groups: int, span: int) -> int:
    """The most input channels that a panel of `span` output channels sees.

    Example:
        >>> seen_by(64, 64, 1, 32), seen_by(64, 64, 4, 16), seen_by(64, 64, 16, 16), seen_by(12, 24, 3, 16)
        (64, 16, 16, 8)
    """
    per_in, per_out, most = channels // groups, outputs // groups, 0
    for first in range(0, outputs, span):
        last = min(first + span, outputs) - 1
        most = max(most, (last // per_out - first // per_out + 1) * per_in)
    return most
