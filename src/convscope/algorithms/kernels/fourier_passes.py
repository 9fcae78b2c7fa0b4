"""Whole transforms in machine code: one lane a channel, so that a vector is one number of 16 (or 8) signals.

A transform of length n runs in passes of straight-line code (Stockham's order: no bit reversal). With s the
product of the lengths of earlier passes, r this pass's length and m what remains, n = s r m, pass s maps

    y[q + s (r p + k)] = w^(p k) * DFT_r over i of x[q + s (p + m i)]     p < m, q < s, w = exp(-2 pi i / (r m))

The first pass reads and the last one writes through functions of the caller, which decide where values lie and
what is done on the way (zeros, a product with a spectrum, bias and rectifier). The inverse transform is the
forward one with real and imaginary parts swapped on both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from convscope.algorithms.kernels.builder import Function, Int, Pointer
from convscope.algorithms.kernels.fourier_dft import Complex, dft, radices, times

Read = Callable[[Int | int, int], Complex]  # element `index + offset`, the offset known beforehand
Write = Callable[[Int | int, int, Complex], None]


class Scratch(NamedTuple):
    """Two areas of `values(n)` floats between which passes alternate."""

    first: Pointer
    second: Pointer


def values(n: int, width: int) -> int:
    """Floats that one area of the scratch needs."""
    return 2 * n * width


def twiddles(n: int) -> torch.Tensor:
    """The factors w^(p k) between the passes as (cos, sin), for p then k = 1 .. r - 1, pass after pass."""
    parts, rest = [], n
    for radix in radices(n):
        rest //= radix
        if rest > 1:
            turn = torch.outer(torch.arange(rest), torch.arange(1, radix)).double() * (
                2 * torch.pi / (rest * radix)
            )
            parts.append(torch.stack([turn.cos(), turn.sin()], -1).flatten())
    return torch.cat([*parts, torch.zeros(2, dtype=torch.float64)]).float()


def in_area(area: Pointer, width: int) -> tuple[Read, Write]:
    """Reading from and writing to an area where element e is its real vector, then its imaginary one."""

    def read(index: Int | int, offset: int) -> Complex:
        place = area + index * (2 * width) + offset * (2 * width)
        return place.load(align=4 * width), (place + width).load(align=4 * width)

    def write(index: Int | int, offset: int, value: Complex) -> None:
        place = area + index * (2 * width) + offset * (2 * width)
        place.store(value[0], align=4 * width)
        (place + width).store(value[1], align=4 * width)

    return read, write


def transform(
    f: Function,
    n: int,
    read: Read,
    write: Write,
    *,
    table: Pointer,
    scratch: Scratch,
    inputs: int | None = None,
    outputs: int | None = None,
) -> None:
    """Emit a forward transform.

    Args:
        f: the function to emit into.
        n: the length.
        read: gives an element of the input.
        write: takes an element of the output.
        table: `twiddles(n)`.
        scratch: room between the passes.
        inputs: elements from this one on are zero and never read.
        outputs: elements from this one on are not wanted and never written.
    """
    inputs, outputs = inputs or n, outputs or n
    width, lengths = f.module.width, radices(n)
    rest, done = n, 1
    for number, radix in enumerate(lengths):
        rest //= radix
        first, last = number == 0, number == len(lengths) - 1
        source = read if first else in_area(scratch[1 - number % 2], width)[0]
        target = write if last else in_area(scratch[number % 2], width)[1]
        if first:
            with_more = inputs - (-(-inputs // rest) - 1) * rest  # p below this have one input more
            present = -(-inputs // rest)
            spans = [(0, with_more, present), (with_more, rest, present - 1)]
        else:
            spans = [(0, rest, radix)]
        for start, stop, present in spans:
            if start == stop:
                continue
            with f.loop(start, stop) as p:
                factors = _factors(f, table, p, radix) if rest > 1 else None
                _pass(f, p, (radix, done, rest), source, target, factors, present, outputs if last else n)
        if rest > 1:
            table = table + 2 * rest * (radix - 1)
        done *= radix


def _factors(f: Function, table: Pointer, p: Int, radix: int) -> Pointer:
    return table + p * (2 * (radix - 1))


def _pass(
    f: Function,
    p: Int,
    shape: tuple[int, int, int],
    source: Read,
    target: Write,
    factors: Pointer | None,
    present: int,
    outputs: int,
) -> None:
    """One pass for one p: all q. Outputs beyond `outputs` are dropped (only the last pass drops any)."""
    radix, done, rest = shape
    wanted = -(-outputs // done)
    with_more = (
        outputs - (wanted - 1) * done
    )  # q below this have one output more (rest is 1 where it matters)
    spans = (
        [(0, done, radix)]
        if rest > 1 or outputs == done * radix
        else [(0, with_more, wanted), (with_more, done, wanted - 1)]
    )
    for start, stop, kept in spans:
        if start == stop:
            continue
        with f.loop(start, stop) as q:
            base = p * done + q if rest > 1 else q
            x = [source(base, done * rest * i) if i < present else None for i in range(radix)]
            y = dft(f, x)
            out = p * (done * radix) + q if rest > 1 else q
            for k, value in enumerate(y[:kept]):
                if value is None:
                    value = (f.zero(), f.zero())
                if factors is not None and k:
                    place = factors + 2 * (k - 1)
                    s = (place + 1).splat()
                    value = times(f, value, (place.splat(), s, -s))
                target(out, done * k, value)
