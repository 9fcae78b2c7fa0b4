"""Winograd on paper: operations and memory of tiles, and how rounding errors pass through the transforms."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from convscope.algorithms.cook_toom import ONE, Matrix, Surd, Transform, matrices
from convscope.algorithms.cost import Cost, of_complex
from convscope.algorithms.error import ROUNDING, TAIL, ErrorBound, assemble
from convscope.algorithms.problem import Pair, Problem

# ---------------------------------------------------------------- operations


def cost(core: Problem, tile: Pair) -> Cost:
    """Input transform, products and output transform of a core, each over the whole batch.

    Args:
        core: of stride 1 and dilation 1.
        tile: outputs of a tile along height and width.

    Example:
        >>> core = Problem(1, 64, 64, (56, 56), (3, 3), padding=((1, 1), (1, 1)))
        >>> cost(core, (4, 4)).multiplications, 36 * 64 * 64 * 14 * 14  # the products alone
        (30858240, 28901376)
    """
    down, across = (matrices(m, r) for m, r in zip(tile, core.kernel, strict=True))
    tiles = _tiles(core, tile)
    area = down.n * across.n
    each = core.dtype.itemsize if core.dtype.itemsize > 2 else 4  # half types compute in float32
    spectra, products = area * core.in_channels * tiles, area * core.out_channels * tiles
    filters = area * core.out_channels * (core.in_channels // core.groups)
    x, y = math.prod(core.input_shape), math.prod(core.output_shape)
    transforms = _operations(down, across).times(tiles, core.in_channels, core.out_channels)
    depth = core.in_channels // core.groups
    sums = Cost(products * depth, products * max(0, depth - 1), 0, 0, 0)
    if core.dtype.is_complex:  # the matrices are real
        sums, transforms = of_complex(sums), (2 * transforms[0], 2 * transforms[1])
    return Cost(
        sums.multiplications + transforms[0],
        sums.additions + transforms[1],
        bytes_read=x * core.dtype.itemsize + (spectra + filters + products) * each,
        bytes_written=(spectra + products) * each + y * core.dtype.itemsize,
        workspace=(spectra + products) * each,
    )


def _tiles(core: Problem, tile: Pair) -> int:
    (high, wide), (down, across) = core.output_size, tile
    return core.batch * -(-high // down) * -(-wide // across)


@dataclass(frozen=True)
class _Operations:
    """(multiplications, additions) of one channel of one tile."""

    input: Pair
    output: Pair

    def times(self, tiles: int, inputs: int, outputs: int) -> Pair:
        one, two = (
            tiles * (inputs * here + outputs * there)
            for here, there in zip(self.input, self.output, strict=True)
        )
        return one, two


@functools.cache
def _operations(down: Transform, across: Transform) -> _Operations:
    """Columns first, then rows of what they leave."""
    input = zip(rows(down.input, down.points), rows(across.input, across.points), strict=True)
    output = zip(columns(down.output, down.points), columns(across.output, across.points), strict=True)
    return _Operations(
        tuple(across.n * first + down.n * second for first, second in input),  # type: ignore[arg-type]
        tuple(across.n * first + down.m * second for first, second in output),  # type: ignore[arg-type]
    )


def _pairs(points: Sequence[Surd]) -> list[int]:
    """Indices of points that are followed by their negative."""
    found: list[int] = []
    for j in range(len(points) - 1):
        if points[j] and points[j + 1] == -points[j] and j - 1 not in found:
            found.append(j)
    return found


def _mirrored(one: Sequence[Surd], two: Sequence[Surd]) -> bool:
    """Whether two rows agree but for the signs of every other entry."""
    opposite = [(k % 2, a != b) for k, (a, b) in enumerate(zip(one, two, strict=True)) if a or b]
    same_size = all(a in (b, -b) for a, b in zip(one, two, strict=True))
    return same_size and len(set(opposite)) == len({parity for parity, _ in opposite})


def _sum(coefficients: Sequence[Surd]) -> Pair:
    """Multiplications and additions of one sum of products."""
    used = [c for c in coefficients if c]
    return sum(c not in (ONE, -ONE) for c in used), max(0, len(used) - 1)


def rows(matrix: Matrix, points: Sequence[Surd]) -> Pair:
    """Multiplications and additions of B^T times a vector.

    The rows of points p and -p, where all points but 0 come in such pairs, are the sum and the difference of one sum
    over the even places and one over the odd.

    Example:
        >>> rows(matrices(2, 3).input, matrices(2, 3).points)
        (0, 4)
    """
    first = [j for j in _pairs(points) if _mirrored(matrix[j], matrix[j + 1])]
    second = [j + 1 for j in first]
    multiplications = additions = 0
    for j, row in enumerate(matrix):
        parts = [row[0::2], row[1::2]] if j in first else [] if j in second else [row]
        for part in parts:
            more = _sum(part)
            multiplications, additions = multiplications + more[0], additions + more[1]
        if j in first:
            additions += 2 * all(map(any, parts))
    return multiplications, additions


def columns(matrix: Matrix, points: Sequence[Surd]) -> Pair:
    """Multiplications and additions of A^T times a vector.

    The columns of points p and -p are equal in even rows and opposite in odd ones: two numbers, their sum and their
    difference, take the place of the pair.

    Example:
        >>> columns(matrices(2, 3).output, matrices(2, 3).points)
        (0, 4)
    """
    first = _pairs(points)
    kept = [j for j in range(len(matrix[0])) if j - 1 not in first]
    sums = [_sum([row[j] for j in kept]) for row in matrix]
    needed = 2 if len(matrix) > 1 else 1  # the difference is for odd rows
    return sum(s[0] for s in sums), sum(s[1] for s in sums) + needed * len(first)


# ---------------------------------------------------------------- errors


@dataclass(frozen=True)
class _Axis:
    """One axis of a transform, in variances for inputs and taps of variance 1.

    Attributes:
        spectrum: of the transformed input times that of the transformed filters, summed over the pieces that the
            kernel was cut in, for each point.
        noise: of the rounding errors of the input transform, relative to its result, for each point; in u^2.
        weights: squares of A^T, `[m][n]`.
        inexact: whether an entry of A^T is rounded or its product is, `[m][n]`.
        roundings: on the longest way through both transforms.
        amplification: see `Transform.amplification`.
    """

    spectrum: list[float]
    noise: list[float]
    weights: list[list[float]]
    inexact: list[list[bool]]
    roundings: int
    amplification: float


@functools.cache
def _axis(m: int, r: int, pieces: tuple[int, ...]) -> _Axis:
    """For a kernel cut in pieces of so many taps each, padded to r."""
    found = matrices(m, r)
    spectrum, noise = [], []
    for taps, inputs in zip(found.filter, found.input, strict=True):
        squares = [(float(c) ** 2, _exact(c)) for c in inputs if c]
        filters = sum(float(c) ** 2 for count in pieces for c in taps[:count])
        spectrum.append(sum(s for s, _ in squares) * filters)
        noise.append(_chain(squares) / sum(s for s, _ in squares))
    terms = max(sum(map(bool, row)) for row in (*found.input, *found.output))
    return _Axis(
        spectrum,
        noise,
        [[float(c) ** 2 for c in row] for row in found.output],
        [[not _exact(c) for c in row] for row in found.output],
        2 * (terms + 1) if found.n > 1 else 0,
        found.amplification,
    )


def _exact(number: Surd) -> bool:
    """Whether a product with it has no rounding: powers of two."""
    magnitude = abs(number.a)
    if number.b or not magnitude:
        return not number.b
    return (
        magnitude.numerator & (magnitude.numerator - 1)
        == 0
        == magnitude.denominator & (magnitude.denominator - 1)
    )


def _chain(squares: Sequence[tuple[float, bool]]) -> float:
    """Variance of the rounding errors of a sum of independent terms: its partial sums, and inexact products."""
    partial = total = 0.0
    for k, (variance, exact) in enumerate(squares):
        partial += variance
        total += (partial if k else 0.0) + (0.0 if exact else variance)
    return total


def _pieces(taps: int, step: int, r: int) -> tuple[int, ...]:
    """Taps along one axis of each piece of a kernel, dealt out to `step` sub-images and cut in blocks of r.

    Example:
        >>> _pieces(7, 2, 3)
        (3, 1, 3)
    """
    dealt = [len(range(phase, taps, step)) for phase in range(step)]
    return tuple(min(r, count - start) for count in dealt for start in range(0, count, r))


def error(problem: Problem, core: Problem, tile: Pair) -> ErrorBound:
    """The error of a core's tiles as that of the problem it was made from.

    Each transformed number is a sum of independent ones; its rounding error is one of its own. Products sum over the
    channels like a direct convolution does. The worst place in a tile counts.

    Args:
        problem: as it was asked.
        core: what computes it.
        tile: outputs of a tile along height and width.
    """
    cut = [_pieces(*axis) for axis in zip(problem.kernel, problem.stride, core.kernel, strict=True)]
    down, across = (_axis(m, r, pieces) for m, r, pieces in zip(tile, core.kernel, cut, strict=True))
    depth = (
        max(1, problem.in_channels // problem.groups) * len(cut[0]) * len(cut[1])
    )  # products that are summed
    summed = 1 + (depth + 1) / 2  # the filter is rounded once, the sum at each step
    variance = max(
        _at(first, second, down, across, summed) for first in range(tile[0]) for second in range(tile[1])
    )
    roundings = down.roundings + across.roundings + depth + 2
    amplification = down.amplification * across.amplification
    deviation = TAIL * ROUNDING * math.sqrt(variance / math.prod(problem.kernel))
    return assemble(problem, deviation, roundings, amplification)


def _at(i: int, j: int, down: _Axis, across: _Axis, summed: float) -> float:
    """Variance of the error at one place of the tile, in u^2, for products of variance 1 a channel."""
    total = 0.0
    columns: list[tuple[float, bool]] = []  # after the first output transform: variance of each column
    for q, (s, e, w) in enumerate(zip(across.spectrum, across.noise, across.weights[j], strict=True)):
        terms = [
            (weight * here * s, not inexact)
            for weight, here, inexact in zip(down.weights[i], down.spectrum, down.inexact[i], strict=True)
            if weight
        ]
        before = sum(
            weight * here * s * (summed + noise + e)
            for weight, here, noise in zip(down.weights[i], down.spectrum, down.noise, strict=True)
        )
        total += w * (before + _chain(terms))
        if w:
            columns.append((w * sum(variance for variance, _ in terms), not across.inexact[j][q]))
    return total + _chain(columns)
