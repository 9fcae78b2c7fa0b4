"""The columns of a tile: complex transforms of a sheet's columns into spectra, and back.

A sheet's column is [row][re, im][lane]; a spectrum's place is left to the caller: real and imaginary vector of
frequency u lie at u * stride and u * stride + imaginary.
"""

from __future__ import annotations

from convscope.algorithms.kernels.builder import FLOATS, Function, Int, Module, Pointer
from convscope.algorithms.kernels.fourier_cut import Cut
from convscope.algorithms.kernels.fourier_dft import Complex
from convscope.algorithms.kernels.fourier_passes import Read, Write, in_area, transform
from convscope.algorithms.kernels.fourier_rows import areas


def _spread(base: Pointer, stride: int, imaginary: int, width: int) -> tuple[Read, Write]:
    """Reading and writing of a spectrum whose frequencies lie apart."""

    def place(index: Int | int, offset: int) -> Pointer:
        return base + index * stride + offset * stride

    def read(index: Int | int, offset: int) -> Complex:
        at = place(index, offset)
        return at.load(align=4 * width), (at + imaginary).load(align=4 * width)

    def write(index: Int | int, offset: int, value: Complex) -> None:
        at = place(index, offset)
        at.store(value[0], align=4 * width)
        (at + imaginary).store(value[1], align=4 * width)

    return read, write


def forward(module: Module, name: str, cut: Cut, stride: int, imaginary: int) -> Function:
    """A column into a spectrum; takes (column, spectrum, twiddles, scratch)."""
    f = module.function(name, public=False, column=FLOATS, out=FLOATS, table=FLOATS, scratch=FLOATS)
    column, out, table, scratch = f.arguments
    width = module.width
    read, write = in_area(column, width)[0], _spread(out, stride, imaginary, width)[1]
    room = areas(scratch, cut.length, width)
    transform(f, cut.length, read, write, table=table, scratch=room, inputs=cut.inputs)
    return f


def inverse(module: Module, name: str, cut: Cut, stride: int, imaginary: int) -> Function:
    """A spectrum into a column of `cut.step` rows, an odd number made even by zeros.

    The function takes (spectrum, column, twiddles, scratch).
    """
    f = module.function(name, public=False, spectrum=FLOATS, column=FLOATS, table=FLOATS, scratch=FLOATS)
    spectrum, column, table, scratch = f.arguments
    width = module.width
    read, write = _swapped(_spread(spectrum, stride, imaginary, width)[0], in_area(column, width)[1])
    room = areas(scratch, cut.length, width)
    transform(f, cut.length, read, write, table=table, scratch=room, outputs=cut.step)
    if cut.step % 2:
        in_area(column, width)[1](cut.step, 0, (f.zero(), f.zero()))
    return f


def _swapped(read: Read, write: Write) -> tuple[Read, Write]:
    """Real and imaginary part change places on both ends: a forward transform becomes the inverse."""

    def read_swapped(index: Int | int, offset: int) -> Complex:
        real, imaginary = read(index, offset)
        return imaginary, real

    def write_swapped(index: Int | int, offset: int, value: Complex) -> None:
        write(index, offset, (value[1], value[0]))

    return read_swapped, write_swapped


def multiply(module: Module, name: str, cut: Cut) -> Function:
    """A spectrum in place times one of the kernel, lane by lane: the product of depthwise convolution.

    The function takes (spectrum, kernel), both [frequency][re, im][lane].
    """
    f = module.function(name, public=False, spectrum=FLOATS, kernel=FLOATS)
    spectrum, kernel = f.arguments
    read, write = in_area(spectrum, module.width)
    weight = in_area(kernel, module.width)[0]
    with f.loop(0, cut.length) as u:
        (a, b), (c, d) = read(u, 0), weight(u, 0)
        write(u, 0, (f.fma(a, c, -(b * d)), f.fma(a, d, b * c)))
    return f
