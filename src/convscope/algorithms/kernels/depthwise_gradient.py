"""The gradient of a depthwise convolution by its input, in machine code, with clips before and after it undone.

A thread takes a vector of channels and a band of input rows. It first copies the gradients that the band sees into an
area of its own, zero where the output was at a bound of its clip and beyond the border. With a stride, an input pixel
meets only every so manieth tap, by where it lies between the strides: each such phase of rows and columns is a small
convolution of its own. Results are zero where the input was at a bound. Any stride and padding; float32.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convscope.algorithms.kernels import meeting, threads, workspace
from convscope.algorithms.kernels.builder import FLOATS, INT, INTS, Function, Module, Vector
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.depthwise import Bounds, packed
from convscope.algorithms.kernels.depthwise import refuses as depthwise_refuses
from convscope.algorithms.kernels.host import Host, current
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

ARGUMENTS = ("slope", "y", "x", "weight", "result", "scratch", "batch")


@dataclass(frozen=True)
class Shape:
    """What a kernel is built for; the batch is told at the call.

    Attributes:
        channels: of input and output.
        size, output: height and width of the convolution's input and output.
        kernel, stride: along height and width.
        corner: zeros above and to the left of the input.
        lanes: channels in a vector.
        columns: results of a row in registers at a time.
        band: input rows of a task, a multiple of the stride.
        before, after: bounds that inputs and outputs were clipped to, or None.
    """

    channels: int
    size: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    corner: tuple[int, int]
    lanes: int
    columns: int
    band: int
    before: Bounds | None
    after: Bounds | None

    @property
    def vectors(self) -> int:
        """Vectors that hold the channels."""
        return -(-self.channels // self.lanes)

    @property
    def bands(self) -> int:
        """Bands of an image."""
        return -(-self.size[0] // self.band)

    def first(self, axis: int) -> int:
        """The output that the first tap of input 0 belongs to: none or negative."""
        return meeting.first(self.kernel[axis], self.stride[axis], self.corner[axis])

    def seen(self, axis: int) -> int:
        """Outputs that a band (axis 0) or a row (axis 1) of inputs sees."""
        extent = self.band if axis == 0 else -(-self.size[1] // self.stride[1]) * self.stride[1]
        return meeting.outputs(extent, self.kernel[axis], self.stride[axis], self.corner[axis])

    @property
    def private(self) -> int:
        """Floats of one thread's area."""
        return self.seen(0) * self.seen(1) * self.lanes


def refuses(problem: Problem) -> str | None:
    """Why no kernel serves a problem here, or None."""
    if problem.dilation != (1, 1):
        return "this machine code is for kernels without dilation"
    return depthwise_refuses(problem)


def prepare(
    problem: Problem, weight: Tensor, *, before: Bounds | None = None, after: Bounds | None = None
) -> GradientKernel:
    """A kernel for the gradient of one problem, its weight in order.

    Args:
        problem: any that `refuses` has nothing against.
        weight: [channels, 1, height, width].
        before, after: bounds (low, high) to which inputs and outputs were clipped.

    Raises:
        RequestError: the problem is refused.

    Example:
        >>> x, weight = torch.rand(1, 20, 9, 9, requires_grad=True), torch.rand(20, 1, 3, 3)
        >>> y = torch.conv2d(x, weight, None, 2, 1, 1, 20)
        >>> (wanted,) = torch.autograd.grad(y.sum(), x)
        >>> problem = Problem.of(x, weight, 2, 1, groups=20)
        >>> if refuses(problem) is None:
        ...     found = prepare(problem, weight)(torch.ones_like(y), y, x)
        ...     assert torch.allclose(found, wanted, atol=1e-5)
    """
    reason = refuses(problem)
    if reason is not None:
        raise RequestError(f"no depthwise gradient can be built: {reason}.")
    return GradientKernel(problem, weight.detach(), before, after)


class GradientKernel:
    """The gradient of a depthwise convolution ready to run: of_x = kernel(of_y, y, x)."""

    def __init__(self, problem: Problem, weight: Tensor, before: Bounds | None, after: Bounds | None) -> None:
        host = current()
        self._problem = problem
        self._shape = shape = shape_of(problem, host, before, after, threads.count())
        self._code, self._address = _built(shape, host)
        self._weight = packed(weight, shape.lanes)

    def __call__(self, of_y: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The gradient by the input, channels last.

        Args:
            of_y: gradient by the (clipped) output, any layout.
            y: the clipped output, channels last; read only where there is a clip after the convolution.
            x: the input before its clip, channels last; read only where there is a clip before the convolution.
        """
        result = torch.empty(self._problem.input_shape, memory_format=torch.channels_last)
        if not result.numel():
            return result
        of_y = of_y.contiguous(memory_format=torch.channels_last)
        team = threads.count()
        with workspace.borrow(4 * team * self._shape.private) as scratch:
            table = (
                of_y.data_ptr(),
                y.data_ptr(),
                x.data_ptr(),
                self._weight.data_ptr(),
                result.data_ptr(),
                scratch,
                self._problem.batch,
            )
            threads.run(self._address, table, team)
        return result


def shape_of(problem: Problem, host: Host, before: Bounds | None, after: Bounds | None, team: int) -> Shape:
    """Columns whose sums fit in registers; bands whose gradients fit in the core's cache and keep all threads busy."""
    high, wide = problem.size
    step = problem.stride[0]
    taps = -(-problem.kernel[1] // problem.stride[1])
    count = -(-wide // problem.stride[1])
    most = min(count, 14, max(1, (host.registers - 1 - min(taps, 9)) // 2))
    columns = min(range(1, most + 1), key=lambda n: (-(-count // n) * (max(n, 6) + 0.5), -n))

    def shape(band: int) -> Shape:
        return Shape(
            problem.in_channels,
            problem.size,
            problem.output_size,
            problem.kernel,
            problem.stride,
            (problem.padding[0][0], problem.padding[1][0]),
            host.width,
            columns,
            band,
            before,
            after,
        )

    steps = -(-high // step)
    tasks = problem.batch * -(-problem.in_channels // host.width)
    bands = min(steps, -(-4 * team // max(tasks, 1)))
    while bands < steps and 4 * shape(-(-steps // bands) * step).private > host.l2 // 2:
        bands += 1
    return shape(-(-steps // bands) * step)


@functools.lru_cache(maxsize=256)
def _built(shape: Shape, host: Host) -> tuple[Code, int]:
    code = build(text(shape, host), host)
    return code, code.address("work")


# ---------------------------------------------------------------- the kernel


def text(shape: Shape, host: Host) -> str:
    """The kernel `work`, which takes a table of `ARGUMENTS`."""
    module = Module(host)
    fill = filling(module, shape)
    rows = [row_of(module, shape, phase, shape.channels) for phase in range(shape.stride[0])]
    f = module.function("work", arguments=INTS)
    (table,) = f.arguments
    slope, y, x, weight, result, scratch = ((table + i).as_("ptr").load_pointer() for i in range(6))
    batch = (table + 6).load_int()
    thread, team = f.thread(), f.threads()
    area = scratch + thread * shape.private
    (high, wide), (down, across), step = shape.size, shape.output, shape.stride[0]
    total = batch * shape.bands * shape.vectors
    with f.loop(thread * total // team, (thread + 1) * total // team) as task:
        group, band = task % shape.vectors, task // shape.vectors % shape.bands
        image, channel = task // (shape.vectors * shape.bands), group * shape.lanes
        lanes = f.integer(shape.channels) - channel
        start = image * (down * across * shape.channels) + channel
        f.call(fill, slope + start, y + start, band * (shape.band // step) + shape.first(0), lanes, area)
        taps = weight + group * (math.prod(shape.kernel) * shape.lanes)
        top = band * shape.band
        with f.loop(0, shape.band // step) as number:
            line = area + number * (shape.seen(1) * shape.lanes)
            for phase, row in enumerate(rows):
                place = top + number * step + phase
                with f.when(place < high):
                    offset = (image * high + place) * (wide * shape.channels) + channel
                    f.call(row, line, taps, x + offset, lanes, result + offset)
    return module.text()


def filling(module: Module, shape: Shape) -> Function:
    """The gradients that a band sees; takes (gradient and output of the image, first row, lanes, area)."""
    f = module.function("fill", public=False, slope=FLOATS, y=FLOATS, top=INT, lanes=INT, area=FLOATS)
    slope, y, top, lanes, area = f.arguments
    rows, columns, wide = shape.seen(0), shape.seen(1), shape.output[1]
    mask = f.lanes(lanes) if shape.channels % shape.lanes else None
    start = min(-shape.first(1), columns)
    stop = min(start + wide, columns)
    with f.loop(0, rows) as row:
        line = area + row * (columns * shape.lanes)
        with f.either((top + row).inside(shape.output[0])) as (there, beyond):
            with there:
                for first, last in ((0, start), (stop, columns)):
                    if first < last:
                        with f.loop(first, last) as column:
                            (line + column * shape.lanes).store(f.zero())
                if start < stop:
                    with f.loop(start, stop) as column:
                        offset = (top + row) * (wide * shape.channels) + (column - start) * shape.channels
                        value = (slope + offset).load(mask=mask)
                        if shape.after is not None:
                            value = passed(f, value, (y + offset).load(mask=mask), shape.after)
                        (line + column * shape.lanes).store(value)
            with beyond, f.loop(0, columns) as column:
                (line + column * shape.lanes).store(f.zero())
    return f


def passed(f: Function, slope: Vector, value: Vector, bounds: Bounds) -> Vector:
    """A gradient where a clipped value lies between its bounds, zero where it is at one."""
    low, high = bounds
    return f.where(f.between(value, f.constant(low), f.constant(high)), slope, f.zero())


def row_of(module: Module, shape: Shape, phase: int, pitch: int) -> Function:
    """One row of results, the one that many rows after a multiple of the stride.

    Takes (first row of the area that rows of its multiple see, taps, input row, lanes, result row); input and result
    have `pitch` floats a pixel.
    """
    f = module.function(
        f"row{phase}", public=False, line=FLOATS, taps=FLOATS, x=FLOATS, lanes=INT, result=FLOATS
    )
    line, taps, x, lanes, result = f.arguments
    step = shape.stride[1]
    mask = f.lanes(lanes) if pitch % shape.lanes else None
    for turn in range(step):
        count = -(-(shape.size[1] - turn) // step)
        together = min(shape.columns, count)
        if count <= 0:
            continue
        with f.loop(0, count, together) as first:
            left = f.minimum(
                first, count - together
            )  # the last block begins earlier: some are computed twice
            sums = [f.variable(f.zero()) for _ in range(together)]
            down, across = _meeting(shape, 0, phase), _meeting(shape, 1, turn)
            if down.taps and across.taps:
                with f.loop(0, len(down.taps)) as number:
                    place = line + ((down.place - number) * shape.seen(1) + left + across.place) * shape.lanes
                    row = taps + (down.taps.start + number * shape.stride[0]) * (
                        shape.kernel[1] * shape.lanes
                    )
                    for back, tap in enumerate(across.taps):
                        weight = (row + tap * shape.lanes).load()
                        for column, total in enumerate(sums):
                            slope = (place + (column - back) * shape.lanes).load()
                            total.set(f.fma(slope, weight, total.get()))
            for column, total in enumerate(sums):
                offset = ((left + column) * step + turn) * pitch
                value = total.get()
                if shape.before is not None:
                    value = passed(f, value, (x + offset).load(mask=mask), shape.before)
                (result + offset).store(value, mask=mask)
    return f


@dataclass(frozen=True)
class _Meeting:
    """The taps that inputs of a phase meet, and the place in the area of the output that the first belongs to."""

    taps: range
    place: int


def _meeting(shape: Shape, axis: int, phase: int) -> _Meeting:
    step = shape.stride[axis]
    whole, rest = divmod(phase + shape.corner[axis], step)
    return _Meeting(range(rest, shape.kernel[axis], step), whole - shape.first(axis))
