"""Small discrete Fourier transforms as straight-line code, written once and read three ways.

`dft` is a recipe over an *arithmetic*: something with `constant` and `fma` whose values add, subtract and
multiply. Given a kernel's `Function` it emits machine code, given `Count` it counts operations exactly, given
`Numbers` it computes, for tests. Lengths are products of 2, 3 and 5: primes by their own formulas, coprime
factors by Good and Thomas's index map (no twiddle factors), the rest by Cooley and Tukey.

An input may be None: it is known to be zero, and nothing is spent on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Complex = tuple[Any, Any]  # real and imaginary part, values of an arithmetic


class Arithmetic(Protocol):
    """What `dft` needs beside the values' own + - *."""

    def constant(self, value: float, /) -> Any: ...

    def fma(self, a: Any, b: Any, c: Any, /) -> Any: ...


# ---------------------------------------------------------------- three ways to read it


class Numbers:
    """Arithmetic on plain numbers."""

    def constant(self, value: float) -> float:
        return value

    def fma(self, a: float, b: float, c: float) -> float:
        return a * b + c


@dataclass
class Count:
    """Counts operations; its values are all alike. A fused multiply-add is one of each."""

    multiplications: int = 0
    additions: int = 0

    def constant(self, value: float) -> _Counted:
        return _Counted(self)

    def fma(self, a: _Counted, b: _Counted, c: _Counted) -> _Counted:
        self.multiplications += 1
        self.additions += 1
        return a


@dataclass(frozen=True)
class _Counted:
    count: Count

    def __add__(self, other: _Counted) -> _Counted:
        self.count.additions += 1
        return self

    __sub__ = __add__

    def __mul__(self, other: _Counted) -> _Counted:
        self.count.multiplications += 1
        return self

    def __neg__(self) -> _Counted:
        return self


# ---------------------------------------------------------------- sums where zeros are free


def add(a: Complex | None, b: Complex | None) -> Complex | None:
    """a + b."""
    if a is None or b is None:
        return b if a is None else a
    return a[0] + b[0], a[1] + b[1]


def subtract(a: Complex | None, b: Complex | None) -> Complex | None:
    """a - b."""
    if b is None:
        return a
    return (-b[0], -b[1]) if a is None else (a[0] - b[0], a[1] - b[1])


def quarter(a: Complex | None) -> Complex | None:
    """-i a."""
    return None if a is None else (a[1], -a[0])


def scaled_sum(f: Arithmetic, c: float, a: Complex | None, b: Complex | None) -> Complex | None:
    """c a + b, c a real number."""
    if a is None:
        return b
    k = f.constant(c)
    if b is None:
        return a[0] * k, a[1] * k
    return f.fma(a[0], k, b[0]), f.fma(a[1], k, b[1])


def turned_sum(f: Arithmetic, c: float, a: Complex | None, b: Complex | None) -> Complex | None:
    """-i c a + b, c a real number."""
    if a is None:
        return b
    plus, minus = f.constant(c), f.constant(-c)
    if b is None:
        return a[1] * plus, a[0] * minus
    return f.fma(a[1], plus, b[0]), f.fma(a[0], minus, b[1])


def rotated(f: Arithmetic, a: Complex | None, turn: int, n: int) -> Complex | None:
    """a times exp(-2 pi i turn / n)."""
    turn %= n
    if a is None or turn == 0:
        return a
    if 8 * turn % n == 0:
        eighths = 8 * turn // n
        for _ in range(eighths // 2):
            a = quarter(a)
        if eighths % 2 == 0 or a is None:
            return a
        k = f.constant(math.sqrt(0.5))
        return (a[0] + a[1]) * k, (a[1] - a[0]) * k
    c, s = math.cos(2 * math.pi * turn / n), math.sin(2 * math.pi * turn / n)
    return times(f, a, (f.constant(c), f.constant(s), f.constant(-s)))


def times(f: Arithmetic, a: Complex, factor: tuple[Any, Any, Any]) -> Complex:
    """a times (c - i s), given (c, s, -s)."""
    c, s, minus = factor
    return f.fma(a[1], s, a[0] * c), f.fma(a[0], minus, a[1] * c)


# ---------------------------------------------------------------- transforms


def dft(f: Arithmetic, x: Sequence[Complex | None]) -> list[Complex | None]:
    """X[k] = sum over j of x[j] exp(-2 pi i j k / n).

    Args:
        f: the arithmetic.
        x: the values; None is a zero known beforehand.

    Raises:
        ValueError: the length has a prime factor above 5.

    Example:
        >>> dft(Numbers(), [(1.0, 0.0), (0.0, 0.0), None, (1.0, 0.0)])
        [(2.0, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0, -1.0)]
    """
    n = len(x)
    if n in _PRIMES:
        return _PRIMES[n](f, x)
    a, b = _split(n)
    if math.gcd(a, b) == 1:
        return _good_thomas(f, x, a, b)
    return _cooley_tukey(f, x, a, b)


def _split(n: int) -> tuple[int, int]:
    """Two factors: coprime ones where n has any, otherwise the first as large as has a formula of its own."""
    for prime in (2, 3, 5):
        power = 1
        while n % (power * prime) == 0:
            power *= prime
        if power not in (1, n):
            return power, n // power
    for first in (4, 2, 3, 5):
        if n % first == 0:
            return first, n // first
    raise ValueError(f"no transform of length {n}: it has a prime factor above 5")


def _good_thomas(f: Arithmetic, x: Sequence[Complex | None], a: int, b: int) -> list[Complex | None]:
    n = a * b
    rows = [dft(f, [x[(b * i + a * j) % n] for j in range(b)]) for i in range(a)]
    out: list[Complex | None] = [None] * n
    to_a, to_b = b * pow(b, -1, a), a * pow(a, -1, b)
    for k in range(b):
        for i, value in enumerate(dft(f, [row[k] for row in rows])):
            out[(to_a * i + to_b * k) % n] = value
    return out


def _cooley_tukey(f: Arithmetic, x: Sequence[Complex | None], a: int, b: int) -> list[Complex | None]:
    n = a * b
    rows = [dft(f, x[i::a]) for i in range(a)]
    out: list[Complex | None] = [None] * n
    for k in range(b):
        for i, value in enumerate(dft(f, [rotated(f, rows[j][k], j * k, n) for j in range(a)])):
            out[k + b * i] = value
    return out


def _one(f: Arithmetic, x: Sequence[Complex | None]) -> list[Complex | None]:
    return list(x)


def _two(f: Arithmetic, x: Sequence[Complex | None]) -> list[Complex | None]:
    return [add(x[0], x[1]), subtract(x[0], x[1])]


def _three(f: Arithmetic, x: Sequence[Complex | None]) -> list[Complex | None]:
    total, difference = add(x[1], x[2]), subtract(x[1], x[2])
    middle, height = scaled_sum(f, -0.5, total, x[0]), math.sqrt(0.75)
    return [
        add(x[0], total),
        turned_sum(f, height, difference, middle),
        turned_sum(f, -height, difference, middle),
    ]


def _four(f: Arithmetic, x: Sequence[Complex | None]) -> list[Complex | None]:
    even, odd = _two(f, [x[0], x[2]]), _two(f, [x[1], x[3]])
    turned = quarter(odd[1])
    return [add(even[0], odd[0]), add(even[1], turned), subtract(even[0], odd[0]), subtract(even[1], turned)]


def _five(f: Arithmetic, x: Sequence[Complex | None]) -> list[Complex | None]:
    outer, inner = add(x[1], x[4]), add(x[2], x[3])
    outward, inward = subtract(x[1], x[4]), subtract(x[2], x[3])
    c, s = ([g(2 * math.pi * k / 5) for k in (1, 2)] for g in (math.cos, math.sin))
    out: list[Complex | None] = [add(x[0], add(outer, inner)), None, None, None, None]
    for k, (near, far) in enumerate([(0, 1), (1, 0)], 1):
        real = scaled_sum(f, c[far], inner, scaled_sum(f, c[near], outer, x[0]))
        sign = 1 if k == 1 else -1
        turn = scaled_sum(f, sign * s[far], inward, scaled_sum(f, s[near], outward, None))
        out[k], out[5 - k] = add(real, quarter(turn)), subtract(real, quarter(turn))
    return out


_PRIMES = {1: _one, 2: _two, 3: _three, 4: _four, 5: _five}


# ---------------------------------------------------------------- longer transforms, in passes


@functools.cache
def radices(n: int, most: int = 16) -> tuple[int, ...]:
    """The lengths of the passes of a transform: as few as can be, as equal as can be, each at most `most`.

    Example:
        >>> radices(72), radices(16), radices(1024)
        ((8, 9), (16,), (8, 8, 16))
    """
    for count in range(1, 12):
        found = [c for c in _products(n, count, most) if c]
        if found:
            return min(found, key=lambda c: (max(c), sum(c)))
    raise ValueError(f"no transform of length {n} from passes of at most {most}")


def _products(n: int, count: int, most: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Ways to write n as a product of `count` ascending factors."""
    if count == 1:
        if least <= n <= most:
            yield (n,)
        return
    for first in range(max(least, 2), most + 1):
        if n % first == 0:
            for rest in _products(n // first, count - 1, most, first):
                yield (first, *rest)


@functools.cache
def good(least: int) -> int:
    """The smallest length from `least` on without prime factors above 5.

    Example:
        >>> good(71), good(1), good(97)
        (72, 1, 100)
    """
    n = least
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


@functools.cache
def operations(n: int, inputs: int | None = None) -> tuple[int, int]:
    """(multiplications, additions) of one complex transform in passes, as real operations.

    Args:
        n: the length.
        inputs: elements from this one on are known zeros.

    Example:
        >>> operations(2), operations(4), operations(8), operations(8, 1)
        ((0, 4), (0, 16), (4, 52), (0, 0))
    """
    total, rest, done = Count(), n, 1
    for number, radix in enumerate(radices(n)):
        rest //= radix
        for p in range(rest):
            left = n if number or inputs is None else inputs
            present = sum(p + rest * i < left for i in range(radix))
            one = Count()
            out = dft(one, [(_Counted(one), _Counted(one)) if i < present else None for i in range(radix)])
            if rest > 1:
                for value in out[1:]:
                    if value is not None:
                        times(one, value, (one.constant(0), one.constant(0), one.constant(0)))
            total.multiplications += done * one.multiplications
            total.additions += done * one.additions
        done *= radix
    return total.multiplications, total.additions
