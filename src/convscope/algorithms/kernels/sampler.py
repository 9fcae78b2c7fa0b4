"""Pictures looked at through an affine map, in machine code: bilinear, mirrored at the border, and its gradient.

What torch does in a dozen passes (a grid, its resampling, normalization, channels last) is one here. A picture is
first copied into an area of its thread's own, four numbers a pixel, so that a corner of a sample is one load for all
channels; the gradient is added up in such an area, in a fixed order, and copied out. A row's places and weights are
computed some columns at a time beforehand. One thread works on a picture, so that no two write to one place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from convscope.algorithms.kernels import threads, workspace
from convscope.algorithms.kernels.builder import FLOATS, INT, INTS, Function, Int, Module, Vector
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.host import Host, current

LANES = 4  # numbers a pixel in an area: as many channels at most
ARGUMENTS = (
    "pictures",
    "seen",
    "maps",
    "gain",
    "shift",
    "scratch",
    "count",
    "high",
    "wide",
    "rows",
    "columns",
)


def refuses(pictures: Tensor) -> str | None:
    """Why no kernel serves such pictures here, or None.

    Args:
        pictures: [picture, channel, height, width].
    """
    if pictures.dtype != torch.float32 or pictures.device.type != "cpu":
        return (
            f"this machine code is for float32 on the CPU, not {str(pictures.dtype)[6:]} on {pictures.device}"
        )
    if not 1 <= pictures.shape[1] <= LANES or min(pictures.shape[2:]) < 2:
        return f"this machine code is for pictures of 1 to {LANES} channels and at least 2 x 2 pixels"
    if pictures.shape[2] * pictures.shape[3] * LANES > 1 << 24:
        return "this machine code counts pixels in float32; the picture is too large"
    return current().refuses() or threads.refuses()


def look(pictures: Tensor, maps: Tensor, gain: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies at the places of a map: `gain * picture + shift`, channels last.

    Args:
        pictures: float32 [picture, channel, height, width].
        maps: float32 [picture, 6]: output pixel (row, column) looks at x = m0 column + m1 row + m2 and y = m3 column +
            m4 row + m5, in pixels from the picture's outer edges, beyond which it is mirrored.
        gain, shift: float32 [channel].
        size: height and width of the output.

    Example:
        >>> pictures = torch.rand(1, 3, 8, 8)
        >>> still = torch.tensor([[1.0, 0.0, 0.5, 0.0, 1.0, 0.5]])
        >>> if refuses(pictures) is None:
        ...     seen = look(pictures, still, torch.ones(3), torch.zeros(3), (8, 8))
        ...     assert torch.allclose(seen, pictures)
    """
    shape = (len(pictures), pictures.shape[1], *size)
    seen = torch.empty(shape, memory_format=torch.channels_last)
    _run("look", pictures.contiguous(), seen, maps, gain, shift)
    return seen


def gradient(
    of_seen: Tensor, maps: Tensor, gain: Tensor, shift: Tensor, shape: tuple[int, int, int, int]
) -> Tensor:
    """The gradient by the pictures, given that by what `look` saw.

    Args:
        of_seen: float32 [picture, channel, height, width], any layout.
        maps, gain, shift: as given to `look`.
        shape: of the pictures.
    """
    of_pictures = torch.empty(shape)
    _run("gradient", of_pictures, of_seen.contiguous(memory_format=torch.channels_last), maps, gain, shift)
    return of_pictures


def _run(name: str, pictures: Tensor, seen: Tensor, maps: Tensor, gain: Tensor, shift: Tensor) -> None:
    count, channels, high, wide = pictures.shape
    rows, columns = seen.shape[2:]
    if not seen.numel():
        return
    host, team = current(), min(threads.count(), count)
    _, addresses = _built(channels, host)
    maps = maps.contiguous()
    factors = torch.zeros(2, LANES)
    factors[0, :channels], factors[1, :channels] = gain, shift
    with workspace.borrow(4 * team * _private(high, wide, columns, host.width)) as scratch:
        table = (
            pictures.data_ptr(),
            seen.data_ptr(),
            maps.data_ptr(),
            factors.data_ptr(),
            factors.data_ptr() + 4 * LANES,
            scratch,
            count,
            high,
            wide,
            rows,
            columns,
        )
        threads.run(addresses[name], table, team)


def _private(high: int, wide: int, columns: int, width: int) -> int:
    """Floats of a thread's area: the picture, then a row's offsets and two weights."""
    return LANES * -(-high * wide // width) * width + 3 * -(-columns // width) * width


@functools.lru_cache(maxsize=16)
def _built(channels: int, host: Host) -> tuple[Code, dict[str, int]]:
    code = build(text(channels, host), host)
    return code, {name: code.address(name) for name in ("look", "gradient")}


# ---------------------------------------------------------------- the kernel


def text(channels: int, host: Host) -> str:
    """The kernels `look` and `gradient`, which take a table of `ARGUMENTS`."""
    module = Module(host)
    places = _places(module)
    _work(module, "look", channels, (_gathered(module, channels), places), _spread(module, channels), None)
    _work(
        module, "gradient", channels, (_scattered(module, channels), places), None, _planes(module, channels)
    )
    return module.text()


def _work(
    module: Module,
    name: str,
    channels: int,
    row_functions: tuple[Function, Function],
    before: Function | None,
    after: Function | None,
) -> None:
    """For each picture: fill its area (or clear it), go through the rows, write the area out."""
    row_function, places = row_functions
    f = module.function(name, arguments=INTS)
    (table,) = f.arguments
    pictures, seen, maps, gain, shift, scratch = ((table + i).as_("ptr").load_pointer() for i in range(6))
    count, high, wide, rows, columns = ((table + i).load_int() for i in range(6, 11))
    width, thread, team = module.width, f.thread(), f.threads()
    area_floats = (high * wide + (width - 1)) // width * (width * LANES)
    line_floats = (columns + (width - 1)) // width * width
    area = scratch + thread * (area_floats + line_floats * 3)
    offsets = area + area_floats
    across, down = offsets + line_floats, offsets + line_floats * 2
    with f.loop(thread * count // team, (thread + 1) * count // team) as number:
        picture = pictures + number * (high * wide * channels)
        if before is None:
            with f.loop(0, area_floats, width) as k:
                (area + k).store(f.zero())
        else:
            f.call(before, picture, area, high * wide, gain, shift)
        with f.loop(0, rows) as row:
            f.call(places, maps + number * 6, row, columns, high, wide, offsets, across, down)
            line = seen + (number * rows + row) * (columns * channels)
            f.call(row_function, area, line, offsets, across, down, wide * LANES, columns)
        if after is not None:
            f.call(after, area, picture, high * wide, gain)


def _places(module: Module) -> Function:
    """Where a row looks: for each column the offset of its upper left corner and the weights of the others."""
    f = module.function(
        "places", public=False, map=FLOATS, row=INT, columns=INT, high=INT, wide=INT,
        offsets=FLOATS, across=FLOATS, down=FLOATS,
    )  # fmt: skip
    map_, row, columns, high, wide, offsets, across, down = f.arguments
    line = f.number(row)
    with f.loop(0, columns, module.width) as first:
        column = f.number(first) + f.ramp()
        corners = []
        for axis, size in enumerate((wide, high)):
            slope, climb, start = ((map_ + 3 * axis + i).splat() for i in range(3))
            place = f.fma(column, slope, f.fma(line, climb, start))
            corners.append(_mirrored(f, place, f.number(size)))
        (x, left), (y, top) = corners
        (across + first).store(x - left)
        (down + first).store(y - top)
        offset = f.fma(top, f.number(wide), left) * f.constant(LANES)
        (offsets + first).store_floor(offset)
    return f


def _mirrored(f: Function, place: Vector, size: Vector) -> tuple[Vector, Vector]:
    """A place within the picture's pixel centres, mirrored at its edges as often as needed, and the pixel before it.

    At the last pixel's centre that is the pixel before the last, with all weight on the other.
    """
    period = size + size
    turn = f.floor(place * f.inverse(period))
    inside = size - f.magnitude(f.fma(-turn, period, place) - size)  # up and down between 0 and size
    one = f.constant(1.0)
    inside = f.smaller(f.larger(inside - f.constant(0.5), f.zero()), size - one)
    return inside, f.smaller(f.floor(inside), size - one - one)


def _gathered(module: Module, channels: int) -> Function:
    """One row of samples; takes (area, output, offsets, weights across and down, floats of an area's row, columns)."""
    f = _row(module, "gathered")
    area, line, offsets, across, down, pitch, columns = f.arguments

    def sample(column: Int, last: bool) -> None:
        corner = area + (offsets + column).as_("i32").load_short()
        x, y = (across + column).splat(), (down + column).splat()
        upper = _between(f, corner.load(), (corner + LANES).load(), x)
        lower = _between(f, (corner + pitch).load(), (corner + pitch + LANES).load(), x)
        value = _between(f, upper, lower, y)
        # a whole vector runs into the next pixels, which are written after it
        (line + column * channels).store(value, mask=f.lanes(channels) if last else None)

    inner = f.select(columns > _beyond(channels), columns - _beyond(channels), 0)
    with f.loop(0, inner) as column:
        sample(column, False)
    with f.loop(inner, columns) as column:
        sample(column, True)
    return f


def _beyond(channels: int) -> int:
    """Pixels at a row's end at which a whole vector would run out of it."""
    return -(-(LANES - channels) // channels)


def _between(f: Function, a: Vector, b: Vector, share: Vector) -> Vector:
    return f.fma(share, b - a, a)


def _scattered(module: Module, channels: int) -> Function:
    """One row of gradients added to the area; takes what `_gathered` takes.

    Neighbours add to the same pixels and wait for each other, so two halves of the row take turns.
    """
    f = _row(module, "scattered")
    area, line, offsets, across, down, pitch, columns = f.arguments

    def add(column: Int, last: bool) -> None:
        corner = area + (offsets + column).as_("i32").load_short()
        x, y = (across + column).splat(), (down + column).splat()
        value = (line + column * channels).load(mask=f.lanes(channels) if last else None)
        lower = value * y
        for place, part in ((corner, value - lower), (corner + pitch, lower)):
            right = part * x
            place.store(place.load() + (part - right))
            (place + LANES).store((place + LANES).load() + right)

    inner = f.select(columns > _beyond(channels), columns - _beyond(channels), 0)
    half = inner // 2
    with f.loop(0, half) as column:
        add(column, False)
        add(half + column, False)
    with f.loop(half * 2, columns) as column:
        add(column, True)
    return f


def _row(module: Module, name: str) -> Function:
    return module.function(
        name, public=False, width=LANES, area=FLOATS, line=FLOATS, offsets=FLOATS, across=FLOATS, down=FLOATS,
        pitch=INT, columns=INT,
    )  # fmt: skip


def _spread(module: Module, channels: int) -> Function:
    """A picture into an area, normalized; takes (picture, area, pixels, gain, shift)."""
    f = module.function(
        "spread", public=False, picture=FLOATS, area=FLOATS, pixels=INT, gain=FLOATS, shift=FLOATS
    )
    picture, area, pixels, gain, shift = f.arguments
    width = module.width

    def some(first: Int, whole: bool) -> None:
        mask = None if whole else f.lanes(pixels - first)
        planes = []
        for channel in range(channels):
            value = (picture + pixels * channel + first).load(mask=mask)
            planes.append(f.fma(value, (gain + channel).splat(), (shift + channel).splat()))
        planes += [f.zero()] * (LANES - channels)
        for part in range(LANES):
            sources = [part * width // LANES + lane // LANES for lane in range(width)]
            low, high = (
                f.shuffle(
                    planes[k], planes[k + 1], [s + width * (lane % 2) for lane, s in enumerate(sources)]
                )
                for k in (0, 2)
            )
            picked = [lane + width * (lane % LANES >= 2) for lane in range(width)]
            (area + first * LANES + part * width).store(f.shuffle(low, high, picked))

    _in_vectors(f, pixels, some)
    return f


def _planes(module: Module, channels: int) -> Function:
    """An area into a picture, times the gain; takes (area, picture, pixels, gain)."""
    f = module.function("planes", public=False, area=FLOATS, picture=FLOATS, pixels=INT, gain=FLOATS)
    area, picture, pixels, gain = f.arguments
    width = module.width

    def some(first: Int, whole: bool) -> None:
        mask = None if whole else f.lanes(pixels - first)
        parts = [(area + first * LANES + part * width).load() for part in range(LANES)]
        for channel in range(channels):
            quarter = [LANES * lane + channel for lane in range(2 * width // LANES)] * 2
            low, high = f.shuffle(parts[0], parts[1], quarter), f.shuffle(parts[2], parts[3], quarter)
            half = width // 2
            value = f.shuffle(low, high, [lane if lane < half else width + lane for lane in range(width)])
            (picture + pixels * channel + first).store(value * (gain + channel).splat(), mask=mask)

    _in_vectors(f, pixels, some)
    return f


def _in_vectors(f: Function, count: Int, body: Callable[[Int, bool], None]) -> None:
    """Run the body for each full vector of a row of numbers, and for the rest."""
    width = f.width
    full = count // width * width
    with f.loop(0, full, width) as first:
        body(first, True)
    with f.when(count > full):
        body(full, False)
