"""Convolution of pictures, of at most four channels, and its gradient in machine code: a network's first layer.

Forward, a thread copies the rows that a band of outputs sees into an area with the padding's zeros, and multiplies each
of their numbers by a vector of weights, one lane an output channel. Backward it turns each gradient pixel into what
all taps hand back, one lane a tap and channel, and adds up those that meet at an input pixel. torch's kernels (oneDNN)
are made for many channels and took three times as long backward. Any stride and padding; float32, channels last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from convscope.algorithms.kernels import meeting, threads, workspace
from convscope.algorithms.kernels.builder import FLOATS, INT, INTS, Function, Int, Module, Pointer, Vector
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.host import Host, current
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

LANES = 4  # channels of an input pixel at most, and lanes of the function that adds up
MOST_VECTORS = 4  # of taps x channels
AHEAD = ("x", "y", "weight", "bias", "scratch", "batch")
BACK = ("slope", "weight", "result", "scratch", "batch")


@dataclass(frozen=True)
class Shape:
    """What the kernels are built for.

    Attributes:
        few, channels: of input and output.
        size, output: height and width of input and output.
        kernel, stride, corner: along height and width; zeros above and to the left.
        lanes: numbers in a vector.
        ahead, back: output rows of a task, and input rows of a task of the gradient, a multiple of the stride.
    """

    few: int
    channels: int
    size: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    corner: tuple[int, int]
    lanes: int
    ahead: int
    back: int

    @property
    def vectors(self) -> int:
        """Vectors that hold the output channels."""
        return -(-self.channels // self.lanes)

    @property
    def taps(self) -> int:
        """Taps times input channels."""
        return self.kernel[0] * self.kernel[1] * self.few

    @property
    def padded(self) -> int:
        """`taps` rounded up to whole vectors."""
        return -(-self.taps // self.lanes) * self.lanes

    @property
    def seen(self) -> tuple[int, int]:
        """Input rows that a band of outputs sees, and pixels of such a row with its zeros."""
        (down, across), (step, side) = self.kernel, self.stride
        columns = max((self.output[1] - 1) * side + across, self.corner[1] + self.size[1])
        return (self.ahead - 1) * step + down, columns

    @property
    def line(self) -> int:
        """Floats of such a row, whole vectors."""
        return -(-self.seen[1] * self.few // self.lanes) * self.lanes

    def first(self, axis: int) -> int:
        """The output that the first tap of input 0 belongs to: none or negative."""
        return meeting.first(self.kernel[axis], self.stride[axis], self.corner[axis])

    def met(self, axis: int) -> int:
        """Outputs that a band (axis 0) or a row (axis 1) of inputs meets."""
        extent = self.back if axis == 0 else -(-self.size[1] // self.stride[1]) * self.stride[1]
        return meeting.outputs(extent, self.kernel[axis], self.stride[axis], self.corner[axis])

    def private(self, backward: bool) -> int:
        """Floats of one thread's area."""
        if backward:
            return self.met(0) * self.met(1) * self.padded + self.lanes
        return self.seen[0] * self.line


def refuses(problem: Problem) -> str | None:
    """Why no kernel serves a problem here, or None."""
    if problem.dtype != torch.float32 or problem.device != "cpu":
        return (
            f"this machine code is for float32 on the CPU, not {str(problem.dtype)[6:]} on {problem.device}"
        )
    if problem.groups != 1 or problem.dilation != (1, 1) or problem.in_channels > LANES:
        return f"this machine code is for at most {LANES} channels, without groups and dilation"
    reason = current().refuses() or threads.refuses()
    taps = problem.kernel[0] * problem.kernel[1] * problem.in_channels
    if reason is None and taps > MOST_VECTORS * current().width:
        return (
            f"this machine code is for kernels of at most {MOST_VECTORS * current().width} numbers a channel"
        )
    return reason


def prepare(problem: Problem, weight: Tensor, bias: Tensor | None = None) -> FewKernel:
    """Both kernels for one problem, its weight in order.

    Args:
        problem: any that `refuses` has nothing against.
        weight, bias: [out channels, channels, height, width] and [out channels] or None.

    Raises:
        RequestError: the problem is refused.

    Example:
        >>> x, weight = torch.rand(1, 3, 9, 9), torch.rand(20, 3, 3, 3)
        >>> problem = Problem.of(x, weight, 2, 1)
        >>> if refuses(problem) is None:
        ...     found = prepare(problem, weight)(x.contiguous(memory_format=torch.channels_last))
        ...     assert torch.allclose(found, torch.conv2d(x, weight, None, 2, 1), atol=1e-5)
    """
    reason = refuses(problem)
    if reason is not None:
        raise RequestError(f"no kernel for few channels can be built: {reason}.")
    return FewKernel(problem, weight.detach(), None if bias is None else bias.detach())


class FewKernel:
    """A convolution of few channels ready to run, and its gradient."""

    def __init__(self, problem: Problem, weight: Tensor, bias: Tensor | None) -> None:
        host = current()
        self._problem = problem
        self._shape = shape = _shape(problem, host, threads.count())
        self._code, self._ahead, self._back = _built(shape, host)
        flat = weight.permute(0, 2, 3, 1).flatten(1)  # [out channel, (row, column, channel)]
        whole = torch.zeros(shape.vectors * shape.lanes, shape.padded)
        whole[: len(flat), : shape.taps] = flat
        self._weight = whole[:, : shape.taps].unflatten(0, (shape.vectors, shape.lanes)).mT.contiguous()
        self._turned = whole[: len(flat)].contiguous()  # [out channel, tap padded]
        self._bias = torch.zeros(shape.vectors * shape.lanes)
        if bias is not None:
            self._bias[: len(bias)] = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs of inputs, both channels last."""
        y = torch.empty(self._problem.output_shape, memory_format=torch.channels_last)
        if y.numel():
            self._run(self._ahead, [x, y, self._weight, self._bias], self._shape.private(False))
        return y

    def gradient(self, of_y: Tensor) -> Tensor:
        """The gradient by the inputs, channels last, given that by the outputs."""
        result = torch.empty(self._problem.input_shape, memory_format=torch.channels_last)
        if result.numel():
            of_y = of_y.contiguous(memory_format=torch.channels_last)
            self._run(self._back, [of_y, self._turned, result], self._shape.private(True))
        return result

    def _run(self, address: int, arrays: list[Tensor], private: int) -> None:
        team = threads.count()
        with workspace.borrow(4 * team * private) as scratch:
            table = (*(array.data_ptr() for array in arrays), scratch, self._problem.batch)
            threads.run(address, table, team)


def _shape(problem: Problem, host: Host, team: int) -> Shape:
    """Bands whose areas fit in half of the core's first cache, and enough of them for all threads."""

    def shape(ahead: int, back: int) -> Shape:
        return Shape(
            problem.in_channels,
            problem.out_channels,
            problem.size,
            problem.output_size,
            problem.kernel,
            problem.stride,
            (problem.padding[0][0], problem.padding[1][0]),
            host.width,
            ahead,
            back,
        )

    def band(rows: int, backward: bool) -> int:
        bands = min(rows, -(-4 * team // max(problem.batch, 1)))
        step = problem.stride[0] if backward else 1
        while bands < rows:
            tried = -(-rows // bands)
            if 8 * shape(tried, tried * step).private(backward) <= host.l2 // 2:
                break
            bands += 1
        return -(-rows // bands)

    step = problem.stride[0]
    return shape(band(problem.output_size[0], False), band(-(-problem.size[0] // step), True) * step)


@functools.lru_cache(maxsize=64)
def _built(shape: Shape, host: Host) -> tuple[Code, int, int]:
    code = build(text(shape, host), host)
    return code, code.address("ahead"), code.address("back")


# ---------------------------------------------------------------- the kernels


def text(shape: Shape, host: Host) -> str:
    """The kernels `ahead` and `back`, which take tables of `AHEAD` and `BACK`."""
    module = Module(host)
    _ahead(module, shape)
    _back(module, shape)
    return module.text()


def _ahead(module: Module, shape: Shape) -> None:
    compute = _row(module, shape)
    f = module.function("ahead", arguments=INTS)
    (table,) = f.arguments
    x, y, weight, bias, scratch = ((table + i).as_("ptr").load_pointer() for i in range(5))
    batch, thread, team = (table + 5).load_int(), f.thread(), f.threads()
    area = scratch + thread * shape.private(False)
    (high, wide), (rows, columns), few = shape.size, shape.output, shape.few
    bands = -(-rows // shape.ahead)
    with f.loop(thread * (batch * bands) // team, (thread + 1) * (batch * bands) // team) as task:
        band, image = task % bands, task // bands
        top = band * shape.ahead
        first = top * shape.stride[0] - shape.corner[0]
        with f.loop(0, shape.seen[0]) as row:
            line = area + row * shape.line
            with f.loop(0, shape.line, shape.lanes) as k:
                (line + k).store(f.zero())
            with f.when((first + row).inside(high)):
                source = x + (image * high + first + row) * (wide * few)
                _copy(f, source, line + shape.corner[1] * few, wide * few)
        with f.loop(0, f.minimum(shape.ahead, f.integer(rows) - top)) as row:
            line = area + row * (shape.stride[0] * shape.line)
            target = y + ((image * rows + top) + row) * (columns * shape.channels)
            with f.loop(0, shape.vectors) as group:
                channel = group * shape.lanes
                lanes = f.integer(shape.channels) - channel
                f.call(compute, line, weight + channel * shape.taps, bias + channel, lanes, target + channel)


def _copy(f: Function, source: Pointer, target: Pointer, count: int) -> None:
    """A row of numbers; their count is known."""
    whole = count // f.width * f.width
    with f.loop(0, whole, f.width) as k:
        (target + k).store((source + k).load())
    if whole < count:
        rest = f.lanes(count - whole)
        (target + whole).store((source + whole).load(mask=rest), mask=rest)


def _row(module: Module, shape: Shape) -> Function:
    """A vector of channels of one row of outputs; takes (first row that it sees, weights, bias, lanes, outputs)."""
    f = module.function("row", public=False, line=FLOATS, weights=FLOATS, bias=FLOATS, lanes=INT, y=FLOATS)
    line, weights, bias, lanes, y = f.arguments
    mask = f.lanes(lanes) if shape.channels % shape.lanes else None
    wide, side = shape.output[1], shape.stride[1] * shape.few
    count = together(wide, module.host.registers - 4)
    start, across = bias.load(), shape.kernel[1] * shape.few
    with f.loop(0, wide, count) as first:
        left = f.minimum(
            first, wide - count
        )  # the last block begins earlier: some outputs are computed twice
        sums = [f.variable(start) for _ in range(count)]
        with f.loop(0, shape.kernel[0]) as tap:
            source, row = line + tap * shape.line + left * side, weights + tap * (across * shape.lanes)
            with f.loop(0, across) as k:
                weight = (row + k * shape.lanes).load()
                for number, total in enumerate(sums):
                    total.set(f.fma((source + k + number * side).splat(), weight, total.get()))
        for number, total in enumerate(sums):
            (y + (left + number) * shape.channels).store(total.get(), mask=mask)
    return f


def together(count: int, most: int) -> int:
    """How many of so many to take at a time: few rounds, little done twice.

    Example:
        >>> together(64, 28), together(5, 28)
        (16, 5)
    """
    return min(range(1, max(1, min(count, most)) + 1), key=lambda n: (-(-count // n) * (n + 1), -n))


def _back(module: Module, shape: Shape) -> None:
    hand, meet = _handed(module, shape), [_meeting(module, shape, phase) for phase in range(shape.stride[0])]
    f = module.function("back", arguments=INTS)
    (table,) = f.arguments
    slope, weight, result, scratch = ((table + i).as_("ptr").load_pointer() for i in range(4))
    batch, thread, team = (table + 4).load_int(), f.thread(), f.threads()
    area = scratch + thread * shape.private(True)
    (high, wide), (rows, columns), step = shape.size, shape.output, shape.stride[0]
    bands = -(-high // shape.back)
    pixels = shape.met(1)
    start = min(-shape.first(1), pixels)
    stop = min(start + columns, pixels)
    with f.loop(thread * (batch * bands) // team, (thread + 1) * (batch * bands) // team) as task:
        band, image = task % bands, task // bands
        first = band * (shape.back // step) + shape.first(0)
        with f.loop(0, shape.met(0)) as row:
            line = area + row * (pixels * shape.padded)
            _clear(f, line, 0, start * shape.padded)
            _clear(f, line, stop * shape.padded, pixels * shape.padded)
            with f.either((first + row).inside(rows)) as (there, beyond):
                with there:
                    source = slope + (image * rows + first + row) * (columns * shape.channels)
                    if start < stop:
                        f.call(hand, source, weight, line + start * shape.padded)
                with beyond:
                    _clear(f, line, start * shape.padded, stop * shape.padded)
        with f.loop(0, shape.back // step) as number:
            for phase, function in enumerate(meet):
                place = band * shape.back + number * step + phase
                with f.when(place < high):
                    line = area + number * (pixels * shape.padded)
                    f.call(function, line, result + (image * high + place) * (wide * shape.few))


def _clear(f: Function, line: Pointer, first: int, last: int) -> None:
    if first < last:
        with f.loop(first, last, f.width) as k:
            (line + k).store(f.zero())


def _handed(module: Module, shape: Shape) -> Function:
    """What a row of gradients hands back through each tap; takes (gradients, weights, target [pixel, tap padded])."""
    f = module.function("handed", public=False, source=FLOATS, weights=FLOATS, target=FLOATS)
    source, weights, target = f.arguments
    pixels = shape.met(1)
    start = min(-shape.first(1), pixels)
    many, vectors = min(start + shape.output[1], pixels) - start, shape.padded // shape.lanes
    count = together(max(1, many), max(1, (module.host.registers - 2 - vectors) // vectors))
    with f.loop(0, many, count) as first:
        left = f.minimum(first, many - count)
        sums = [[f.variable(f.zero()) for _ in range(vectors)] for _ in range(count)]
        with f.loop(0, shape.channels) as channel:
            row = weights + channel * shape.padded
            parts = [(row + k * shape.lanes).load() for k in range(vectors)]
            for number, totals in enumerate(sums):
                slope = (source + (left + number) * shape.channels + channel).splat()
                for part, total in zip(parts, totals, strict=True):
                    total.set(f.fma(slope, part, total.get()))
        for number, totals in enumerate(sums):
            for k, total in enumerate(totals):
                (target + ((left + number) * shape.padded + k * shape.lanes)).store(total.get())
    return f


def _meeting(module: Module, shape: Shape, phase: int) -> Function:
    """One row of results, so many after a multiple of the stride; takes (first row of the area it meets, results)."""
    f = module.function(f"meeting{phase}", public=False, width=LANES, line=FLOATS, result=FLOATS)
    line, result = f.arguments
    side, wide, few = shape.stride[1], shape.size[1], shape.few

    def offsets(turn: int) -> list[int]:
        """In floats, from the area's pixel of the same number on, of what meets at a pixel of a phase."""
        (down, row), (across, column) = _taps(shape, 0, phase), _taps(shape, 1, turn)
        return [
            ((row - m) * shape.met(1) + column - n) * shape.padded + (ky * shape.kernel[1] + kx) * few
            for m, ky in enumerate(down)
            for n, kx in enumerate(across)
        ]

    def pixel(number: Int | int, turn: int, masked: bool) -> None:
        total: Vector | None = None
        for offset in offsets(turn):
            part = (line + number * shape.padded + offset).load()
            total = part if total is None else total + part
        # a whole vector runs into the next pixels, which are written after it
        mask = f.lanes(few) if masked else None
        (result + (number * side + turn) * few).store(f.zero() if total is None else total, mask=mask)

    inner = max(0, wide - -(-(LANES - few) // few)) // side
    with f.loop(0, inner) as number:
        for turn in range(side):
            pixel(number, turn, False)
    for place in range(inner * side, wide):
        pixel(place // side, place % side, True)
    return f


def _taps(shape: Shape, axis: int, phase: int) -> tuple[range, int]:
    """The taps that inputs of a phase meet, and the place in the area of the output that the first belongs to."""
    step = shape.stride[axis]
    whole, rest = divmod(phase + shape.corner[axis], step)
    return range(rest, shape.kernel[axis], step), whole - shape.first(axis)
