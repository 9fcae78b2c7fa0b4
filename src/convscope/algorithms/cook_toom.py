"""Cook-Toom: the transform matrices of Winograd's minimal filtering F(m, r), exact, from interpolation points.

m outputs of a filter with r taps are n = m + r - 1 products of transformed numbers,

    y = A^T [(G g) * (B^T d)]        d: n inputs, g: r taps, y: m outputs, * element by element,

in place of m r products. Each finite point p gives one product: the two polynomials with coefficients g and y
evaluated at p; the last point is infinity. Tiles of an image nest the transforms along both axes.

The points decide the rounding error. Those in `POINTS` were chosen for a low one; they are multiples of 1 or of the
square root of 2, and all arithmetic here is exact, in numbers a + b sqrt(2) with fractions a and b.

Winograd, "Arithmetic Complexity of Computations" (1980); Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks" (2015); on points and error Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks" (2018).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from convscope.errors import RequestError


@dataclass(frozen=True)
class Surd:
    """The number `a + b sqrt(2)`, exactly.

    Example:
        >>> half = Surd(Fraction(0), Fraction(1, 2))
        >>> half * half, float(half)
        (1/2, 0.7071067811865476)
    """

    a: Fraction
    b: Fraction = Fraction(0)

    @classmethod
    def of(cls, number: Number) -> Surd:
        """From a whole number, a fraction, or itself; a float is not exact and not taken."""
        if isinstance(number, Surd):
            return number
        if isinstance(number, float):
            raise RequestError(f"the point {number!r} is a float; give a Fraction, an int or a Surd.")
        return cls(Fraction(number))

    def __add__(self, other: Surd) -> Surd:
        return Surd(self.a + other.a, self.b + other.b)

    def __neg__(self) -> Surd:
        return Surd(-self.a, -self.b)

    def __sub__(self, other: Surd) -> Surd:
        return self + -other

    def __mul__(self, other: Surd) -> Surd:
        return Surd(self.a * other.a + 2 * self.b * other.b, self.a * other.b + self.b * other.a)

    def __truediv__(self, other: Surd) -> Surd:
        norm = other.a * other.a - 2 * other.b * other.b  # zero for zero alone: sqrt(2) is no fraction
        return self * Surd(other.a / norm, -other.b / norm)

    def __pow__(self, exponent: int) -> Surd:
        return functools.reduce(Surd.__mul__, [self] * exponent, ONE)

    def __float__(self) -> float:
        if not self.b:
            return float(self.a)
        if not self.a:
            return float(self.b) * math.sqrt(2)
        scaled = math.isqrt(2 << 240)  # sqrt(2) to 120 binary digits: the sum may cancel
        return float(self.a + self.b * Fraction(scaled, 1 << 120))

    def __bool__(self) -> bool:
        return bool(self.a or self.b)

    def __repr__(self) -> str:
        root = {1: "sqrt(2)", -1: "-sqrt(2)"}.get(self.b, f"{self.b}*sqrt(2)")  # type: ignore[call-overload]
        if not self.b:
            return str(self.a)
        return root if not self.a else f"{self.a} + {root}"


Number = int | Fraction | Surd
Matrix = tuple[tuple[Surd, ...], ...]

ZERO, ONE = Surd(Fraction(0)), Surd(Fraction(1))


def _root(factor: Number) -> Surd:
    """So many square roots of 2."""
    return Surd(Fraction(0), Fraction(factor))  # type: ignore[arg-type]


def _pairs(*positive: Number) -> tuple[Surd, ...]:
    """Zero, then each number and its negative."""
    return (ZERO, *(sign for number in map(Surd.of, positive) for sign in (number, -number)))


_HALF_ROOT, _ROOT = _root(Fraction(1, 2)), _root(1)
_F = Fraction

# The n - 1 finite points for n = m + r - 1, by their number: those of lowest expected error among sets of pairs from
# 23 simple numbers, over r = 3, 5, 7; an odd one out is added to the set before. Numbers and their inverses keep the
# powers near 1; sqrt(2) and its inverse are closer to 1 than 2 and 1/2, which saves more than the narrower gaps cost.
POINTS: dict[int, tuple[Surd, ...]] = {
    1: (ZERO,),
    3: _pairs(1),
    5: _pairs(_HALF_ROOT, _ROOT),
    7: _pairs(1, 2, _F(1, 2)),
    9: _pairs(_F(5, 4), _F(4, 5), _F(5, 2), _F(2, 5)),
    11: _pairs(1, _ROOT, _HALF_ROOT, _F(5, 2), _F(2, 5)),
    13: _pairs(_F(3, 2), _F(2, 3), 3, _F(1, 3), _root(_F(3, 4)), _root(_F(2, 3))),
}
for _count, _more in ((1, 1), (3, 2), (5, 1), (7, _F(5, 4)), (9, 1), (11, 5)):
    POINTS[_count + 1] = (*POINTS[_count], Surd.of(_more))


@dataclass(frozen=True)
class Transform:
    """The matrices of F(m, r).

    Attributes:
        m: outputs of a tile along one axis.
        r: taps of the filter along one axis.
        points: the n - 1 finite points; infinity is the n-th.
        output: A^T, `[m, n]`.
        filter: G, `[n, r]`.
        input: B^T, `[n, n]`.
    """

    m: int
    r: int
    points: tuple[Surd, ...]
    output: Matrix
    filter: Matrix
    input: Matrix

    @property
    def n(self) -> int:
        """Inputs of a tile along one axis, and products."""
        return self.m + self.r - 1

    def tensors(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A^T, G and B^T, each entry rounded once."""
        wide = torch.complex128 if dtype.is_complex else torch.float64
        output, filter, input = (
            torch.tensor([[float(entry) for entry in row] for row in matrix], dtype=wide).to(device, dtype)
            for matrix in (self.output, self.filter, self.input)
        )
        return output, filter, input

    @property
    def amplification(self) -> float:
        """How much larger the numbers in between are than the result: the product of the three matrices' norms.

        The worst over outputs of `|A^T| (|G| 1 * |B^T| 1)` in one dimension, divided by the r products a direct
        output sums. Rounding errors grow with it; in two dimensions with its square.
        """
        taps = [sum(abs(float(entry)) for entry in row) for row in self.filter]
        inputs = [sum(abs(float(entry)) for entry in row) for row in self.input]
        sums = (
            sum(abs(float(entry)) * g * d for entry, g, d in zip(row, taps, inputs, strict=True))
            for row in self.output
        )
        return max(sums) / self.r


def points(count: int) -> tuple[Surd, ...]:
    """The finite points for a number of them.

    Raises:
        RequestError: there are none so many: no digit would be sure, even in float64.
    """
    if count not in POINTS:
        raise RequestError(
            f"F(m, r) with m + r - 1 = {count + 1} needs {count} points; 1 to {max(POINTS)} are known, give others."
        )
    return POINTS[count]


@functools.cache
def matrices(m: int, r: int, at: Sequence[Number] | None = None) -> Transform:
    """The transform matrices of F(m, r), exactly.

    Args:
        m: outputs of a tile, at least 1.
        r: taps of the filter, at least 1.
        at: the m + r - 2 different finite points, as a tuple of ints, Fractions or Surds; those of `points` by
            default.

    Returns:
        The matrices. Points p, -p next to each other have columns of A^T that are equal but for the signs of every
        other entry; so have the rows of B^T and G where all points but 0 come in such pairs.

    Raises:
        RequestError: m or r is not positive, or the points are not as many or not different.

    Example:
        >>> for row in matrices(2, 3).input:
        ...     print(row)
        (-1, 0, 1, 0)
        (0, 1, 1, 0)
        (0, -1, 1, 0)
        (0, -1, 0, 1)
    """
    if m < 1 or r < 1:
        raise RequestError(f"F({m}, {r}) needs at least one output and one tap.")
    n = m + r - 1
    chosen = (points(n - 1) if n > 1 else ()) if at is None else tuple(map(Surd.of, at))
    if len(chosen) != n - 1 or len(set(chosen)) != n - 1:
        raise RequestError(f"F({m}, {r}) needs {n - 1} different finite points, got {chosen}.")
    filter: list[tuple[Surd, ...]] = []
    input: list[tuple[Surd, ...]] = []
    for j, p in enumerate(chosen):
        others = chosen[:j] + chosen[j + 1 :]
        scale = functools.reduce(Surd.__mul__, [p - q for q in others], ONE)  # Lagrange's denominator
        filter.append(tuple(p**k / scale for k in range(r)))
        input.append((*_expand(others), ZERO))
    filter.append((*[ZERO] * (r - 1), ONE))
    input.append(_expand(chosen))
    output = [(*[p**i for p in chosen], ONE if i == m - 1 else ZERO) for i in range(m)]
    return Transform(m, r, chosen, tuple(output), tuple(filter), tuple(input))


def _expand(roots: Sequence[Surd]) -> tuple[Surd, ...]:
    """Coefficients, lowest first, of the product of (x - root)."""
    found = [ONE]
    for root in roots:
        found = [low - root * high for low, high in zip([ZERO, *found], [*found, ZERO], strict=True)]
    return tuple(found)
