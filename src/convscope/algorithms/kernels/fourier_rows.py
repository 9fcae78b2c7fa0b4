"""The rows of a tile: real transforms of image rows, two at a time, and back.

Two real rows a and b are the real and imaginary part of one complex signal z = a + i b. With Z its transform,
2 A[k] = Z[k] + conj Z[-k] and 2 i B[k] = Z[k] - conj Z[-k]; the factor of two is left to the kernel's spectrum.
Back, Z = A + i B. Half the spectrum says all: `half` = length // 2 + 1 columns.

A *sheet* holds the half spectra of a tile's rows, for the lanes of one vector: [column][row][re, im][lane], the
rows rounded up to an even number.
"""

from __future__ import annotations

from dataclasses import dataclass

from convscope.algorithms.kernels.builder import FLOATS, INT, Function, Int, Mask, Module, Pointer
from convscope.algorithms.kernels.fourier_cut import Cut
from convscope.algorithms.kernels.fourier_dft import Complex, radices
from convscope.algorithms.kernels.fourier_passes import Scratch, in_area, transform, values


@dataclass(frozen=True)
class Image:
    """An image in memory, [row][column][channel], as the rows' functions see it.

    Attributes:
        width: columns.
        channels: numbers from one pixel to the next.
        ragged: whether channels is not a multiple of the lanes, so that the last vector is partly filled.
    """

    width: int
    channels: int
    lanes: int

    @property
    def ragged(self) -> bool:
        return self.channels % self.lanes != 0


def sheet(cut: Cut, rows: int, width: int) -> int:
    """Floats of a sheet of so many rows."""
    return half(cut) * column(rows, width)


def column(rows: int, width: int) -> int:
    """Floats of one column of a sheet."""
    return (rows + rows % 2) * 2 * width


def half(cut: Cut) -> int:
    """Columns of the half spectrum."""
    return cut.length // 2 + 1


def areas(scratch: Pointer, n: int, width: int) -> Scratch:
    """The two areas of a transform inside the thread's scratch."""
    return Scratch(scratch, scratch + values(n, width))


def mask_of(f: Function, lanes: Int, image: Image) -> Mask | None:
    """The lanes that hold channels, None where all do."""
    return f.lanes(lanes) if image.ragged else None


# ---------------------------------------------------------------- forward


def forward(module: Module, name: str, cut: Cut, image: Image | None, column_floats: int) -> Function:
    """Two rows into two rows of a sheet.

    The function takes (first row, second row, lanes, sheet at the first row, twiddles, scratch). With an image the
    rows are read where they lie in it; without, from an area that `gather` filled: `first row` is that area.
    """
    f = module.function(
        name, public=False, a=FLOATS, b=FLOATS, lanes=INT, out=FLOATS, table=FLOATS, scratch=FLOATS
    )
    a, b, lanes, out, table, scratch = f.arguments
    n, width = cut.length, module.width
    room = areas(scratch, n, width)
    end = room[(len(radices(n)) - 1) % 2]
    read_end, write_end = in_area(end, width)
    if image is None:
        read = in_area(a, width)[0]
    else:
        mask, pixel = mask_of(f, lanes, image), image.channels

        def read(index: Int | int, offset: int) -> Complex:
            place = index * pixel + offset * pixel
            return (a + place).load(mask=mask), (b + place).load(mask=mask)

    transform(f, n, read, write_end, table=table, scratch=room, inputs=cut.inputs)

    def put(k: Int | int, z: Complex, mirrored: Complex) -> None:
        place = out + k * column_floats
        parts = (z[0] + mirrored[0], z[1] - mirrored[1], z[1] + mirrored[1], mirrored[0] - z[0])
        for number, part in enumerate(parts):
            (place + number * width).store(part, align=4 * width)

    zero = read_end(0, 0)
    put(0, zero, zero)
    with f.loop(1, half(cut)) as k:
        put(k, read_end(k, 0), read_end(n - k, 0))
    return f


def gather(module: Module, name: str, cut: Cut, image: Image) -> Function:
    """Two rows of a tile that reaches over the image's edge into an area, zeros where the image ends.

    The function takes (first row, second row, whether each lies in the image, the tile's first column, lanes, area).
    """
    f = module.function(
        name, public=False, a=FLOATS, b=FLOATS, has_a=INT, has_b=INT, left=INT, lanes=INT, out=FLOATS
    )
    a, b, has_a, has_b, left, lanes, out = f.arguments
    width, mask = module.width, mask_of(f, lanes, image)
    with f.loop(0, cut.inputs) as n:
        place = out + n * (2 * width)
        for number, (row, has) in enumerate([(a, has_a), (b, has_b)]):
            with f.either((left + n).inside(image.width) & has.equals(1)) as (yes, no):
                with yes:
                    (place + number * width).store((row + (left + n) * image.channels).load(mask=mask))
                with no:
                    (place + number * width).store(f.zero())
    return f


def clear(module: Module, name: str, cut: Cut, column_floats: int) -> Function:
    """Two rows of zeros into a sheet; takes (sheet at the first row)."""
    f = module.function(name, public=False, out=FLOATS)
    (out,) = f.arguments
    with f.loop(0, half(cut)) as k:
        for number in range(4):
            (out + k * column_floats + number * module.width).store(f.zero())
    return f


# ---------------------------------------------------------------- back


def inverse(
    module: Module, name: str, cut: Cut, image: Image | None, column_floats: int, *, bias: bool, relu: bool
) -> Function:
    """Two rows of a sheet back into pixels, with bias and rectifier.

    The function takes (sheet at the first row, first row, second row, lanes, bias of these lanes, twiddles,
    scratch). With an image, rows are written where they lie; without, into an area (`first row`), for `scatter`.
    """
    f = module.function(
        name,
        public=False,
        sheet=FLOATS,
        a=FLOATS,
        b=FLOATS,
        lanes=INT,
        bias=FLOATS,
        table=FLOATS,
        scratch=FLOATS,
    )
    source, a, b, lanes, biases, table, scratch = f.arguments
    n, width = cut.length, module.width
    room = areas(scratch, n, width)
    read_start, write_start = in_area(room.second, width)

    def merge(k: Int | int, mirror: bool) -> None:
        place = source + k * column_floats
        ar, ai, br, bi = ((place + i * width).load(align=4 * width) for i in range(4))
        write_start(k, 0, (ai + br, ar - bi))  # imaginary part first: the inverse is the forward one, swapped
        if mirror:
            write_start(n - k, 0, (br - ai, ar + bi))

    merge(0, False)
    with f.loop(1, (n + 1) // 2) as k:
        merge(k, True)
    if n % 2 == 0:
        merge(f.integer(n // 2), False)
    offset = biases.load() if bias else None
    write_area = in_area(a, width)[1]

    def write(index: Int | int, offset_: int, value: Complex) -> None:
        swapped = [value[1], value[0]]
        if offset is not None:
            swapped = [part + offset for part in swapped]
        if relu:
            swapped = [f.positive(part) for part in swapped]
        if image is None:
            write_area(index, offset_, (swapped[0], swapped[1]))
            return
        place, mask = index * image.channels + offset_ * image.channels, mask_of(f, lanes, image)
        (a + place).store(swapped[0], mask=mask)
        (b + place).store(swapped[1], mask=mask)

    transform(f, n, read_start, write, table=table, scratch=room, outputs=cut.step)
    return f


def scatter(module: Module, name: str, image: Image) -> Function:
    """What `inverse` left in an area into the rows of the output, as far as they are in it.

    The function takes (area, first row, second row, whether the second is wanted, columns wanted, lanes).
    """
    f = module.function(name, public=False, area=FLOATS, a=FLOATS, b=FLOATS, has_b=INT, count=INT, lanes=INT)
    area, a, b, has_b, count, lanes = f.arguments
    width, mask = module.width, mask_of(f, lanes, image)
    with f.loop(0, count) as n:
        place = area + n * (2 * width)
        (a + n * image.channels).store(place.load(), mask=mask)
        with f.when(has_b.equals(1)):
            (b + n * image.channels).store((place + width).load(), mask=mask)
    return f
