"""The two transforms of Winograd's algorithm: a tile of the image to frequencies, and products back to pixels.

Both are nested: along the columns, then along the rows, with 16 (8) channels in the lanes of a vector. Rows
of the matrices that come from interpolation points p and -p share their even and odd halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convscope.algorithms.kernels.builder import FLOATS, INT, POINTERS, Function, Int, Module, Pointer, Vector
from convscope.algorithms.kernels.winograd_layout import Layout

Matrix = Sequence[Sequence[float]]


def pairs(lines: Matrix) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Lines that are each other's mirror image: equal where the index is even, opposite where it is odd.

    Args:
        lines: rows, or columns, of a transform's matrix.

    Returns:
        (i, j, sign) for each pair, where line j is sign * (even part of i - odd part of i); and the lines left.

    Example:
        >>> pairs([[1, 2, 4], [0, 0, 1], [-1, 2, -4]])
        ([(0, 2, -1)], [1])
    """
    found: list[tuple[int, int, int]] = []
    left = list(range(len(lines)))
    for i in range(len(lines)):
        for j in range(i + 1, len(lines)):
            if i not in left or j not in left:
                continue
            for sign in (1, -1):
                mirrored = [sign * (-1) ** k * value for k, value in enumerate(lines[i])]
                if _same(mirrored, lines[j]) and any(lines[i][0::2]) and any(lines[i][1::2]):
                    found.append((i, j, sign))
                    left = [line for line in left if line not in (i, j)]
                    break
    return found, left


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) <= 1e-9 * max(abs(x), abs(y), 1e-9) for x, y in zip(a, b, strict=True))


def by_rows(f: Function, matrix: Matrix, values: Sequence[Vector]) -> list[Vector]:
    """matrix @ values, where mirrored rows share the sums over even and over odd indices."""
    mirrored, left = pairs(matrix)
    result: dict[int, Vector] = {i: f.linear(list(zip(matrix[i], values, strict=True))) for i in left}
    for i, j, sign in mirrored:
        terms = list(zip(matrix[i], values, strict=True))
        even, odd = f.linear(terms[0::2]), f.linear(terms[1::2])
        result[i] = even + odd
        result[j] = even - odd if sign == 1 else odd - even
    return [result[i] for i in range(len(matrix))]


def by_columns(f: Function, matrix: Matrix, values: Sequence[Vector]) -> list[Vector]:
    """matrix @ values, where values at mirrored columns are first added and subtracted."""
    columns = list(zip(*matrix, strict=True))
    mirrored, left = pairs(columns)
    mirrored = [pair for pair in mirrored if pair[2] == 1]
    left = [k for k in range(len(columns)) if all(k not in pair[:2] for pair in mirrored)]
    sums = {i: (values[i] + values[j], values[i] - values[j]) for i, j, _ in mirrored}
    return [
        f.linear([(row[i], sums[i][k % 2]) for i in sums] + [(row[i], values[i]) for i in left])
        for k, row in enumerate(matrix)
    ]


class InputTransform:
    """Writes, for one tile and all channels, B^T d B: one number a frequency and channel.

    `interior` reads the tile at a pointer, `border` through a table of pointers (zeros outside the image).
    """

    def __init__(self, module: Module, layout: Layout, matrix: Matrix) -> None:
        self._layout = layout
        self._matrix = matrix
        self.interior = self._interior(module)
        self.border = self._border(module)

    def _interior(self, module: Module) -> Function:
        layout = self._layout
        f = module.function("input_interior", public=False, tile=FLOATS, row=INT, out=FLOATS)
        tile, row, out = f.arguments
        rows = [tile + row * i for i in range(layout.points)]
        self._channels(f, lambda i, j: rows[i] + j * layout.inputs, out, ahead=True)
        return f

    def _border(self, module: Module) -> Function:
        points = self._layout.points
        f = module.function("input_border", public=False, table=POINTERS, out=FLOATS)
        table, out = f.arguments
        self._channels(f, lambda i, j: (table + (i * points + j)).load_pointer(), out)
        return f

    def _channels(
        self, f: Function, place: Callable[[int, int], Pointer], out: Pointer, *, ahead: bool = False
    ) -> None:
        """Loop over vectors of channels; the last may be partly filled.

        With `ahead`, the pixels that the tile to the right adds are asked for meanwhile.
        """
        layout, width = self._layout, f.module.width
        full = layout.inputs // width * width
        with f.loop(0, full, width) as c:
            if ahead:
                for i in range(layout.points):
                    for j in range(layout.points - layout.tile, layout.points):
                        (place(i, j + layout.tile) + c).prefetch()
            self._tile(f, lambda i, j: (place(i, j) + c).load(), out + c * layout.rows)
        if full < layout.inputs:
            mask = f.lanes(layout.inputs - full)
            self._tile(f, lambda i, j: (place(i, j) + full).load(mask=mask), out + full * layout.rows)

    def _tile(self, f: Function, load: Callable[[int, int], Vector], out: Pointer) -> None:
        layout, points = self._layout, range(self._layout.points)
        columns = [by_rows(f, self._matrix, [load(i, j) for i in points]) for j in points]
        for i in points:
            for j, value in enumerate(by_rows(f, self._matrix, [columns[j][i] for j in points])):
                (out + (i * layout.points + j) * layout.v_frequency).store(value, align=4 * f.module.width)


class OutputTransform:
    """Writes, for one tile and some output channels, A^T m A with bias and rectifier.

    `interior` writes m x m pixels at a pointer, `border` through a table of pointers (a dump outside).
    """

    def __init__(
        self, module: Module, layout: Layout, matrix: Matrix, *, bias: bool, relu: bool, streaming: bool
    ) -> None:
        self._layout = layout
        self._matrix = matrix
        self._bias = bias
        self._relu = relu
        self.interior = self._interior(module, streaming)
        self.border = self._border(module)

    def _interior(self, module: Module, streaming: bool) -> Function:
        layout = self._layout
        f = module.function(
            "output_interior", public=False, m=FLOATS, bias=FLOATS, count=INT, tile=FLOATS, row=INT
        )
        m, bias, count, tile, row = f.arguments
        rows = [tile + row * i for i in range(layout.tile)]
        self._channels(f, m, bias, count, lambda i, j: rows[i] + j * layout.outputs, streaming)
        return f

    def _border(self, module: Module) -> Function:
        tile = self._layout.tile
        f = module.function("output_border", public=False, m=FLOATS, bias=FLOATS, count=INT, table=POINTERS)
        m, bias, count, table = f.arguments
        self._channels(f, m, bias, count, lambda i, j: (table + (i * tile + j)).load_pointer(), False)
        return f

    def _channels(
        self,
        f: Function,
        m: Pointer,
        bias: Pointer,
        count: Int,
        place: Callable[[int, int], Pointer],
        streaming: bool,
    ) -> None:
        """Loop over vectors of output channels; only the last of all may be partly filled."""
        layout, width = self._layout, f.module.width

        def at(k: Int) -> Pointer:
            return m + (k // layout.columns * layout.m_columns + k % layout.columns)

        full = count // width * width
        with f.loop(0, full, width) as k:
            pixels = self._tile(f, at(k), (bias + k).load() if self._bias else None)
            for i, row in enumerate(pixels):
                for j, value in enumerate(row):
                    align = 4 * width if streaming else 4
                    (place(i, j) + k).store(value, align=align, streaming=streaming)
        if layout.outputs % width:
            with f.when(full < count):
                mask = f.lanes(layout.outputs % width)
                pixels = self._tile(f, at(full), (bias + full).load(mask=mask) if self._bias else None)
                for i, row in enumerate(pixels):
                    for j, value in enumerate(row):
                        (place(i, j) + full).store(value, mask=mask)

    def _tile(self, f: Function, m: Pointer, bias: Vector | None) -> list[list[Vector]]:
        layout, points = self._layout, range(self._layout.points)
        columns = []
        for j in points:
            values = [
                (m + (i * layout.points + j) * layout.m_frequency).load(align=4 * f.module.width)
                for i in points
            ]
            columns.append(by_columns(f, self._matrix, values))
        pixels = []
        for i in range(layout.tile):
            row = by_columns(f, self._matrix, [columns[j][i] for j in points])
            if bias is not None:
                row = [value + bias for value in row]
            pixels.append([f.positive(value) for value in row] if self._relu else row)
        return pixels
