"""Depthwise convolution in machine code, directly: one lane a channel, no transform.

A thread takes a vector of channels and a band of output rows. It first copies the pixels that the band sees into an
area of its own, [row][column][lane], with zeros where the padding is: then no output is at an edge, and what follows
reads memory in order. Each row of outputs is computed some columns at a time, one sum in a register for each, adding
one tap after the other. Any stride, dilation and padding; float32.

Against torch's kernels (oneDNN) this pays from 5 x 5 on, until Fourier transforms do, at about 11 x 11.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convscope.algorithms.kernels import threads, transpose
from convscope.algorithms.kernels.builder import (
    FLOATS,
    INT,
    INTS,
    Function,
    Int,
    Module,
    Pointer,
    Variable,
    Vector,
)
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.host import Host, current
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

Bounds = tuple[float, float]
RELU: Bounds = (0.0, math.inf)
ARGUMENTS = ("x", "y", "weight", "bias", "scratch", "batch")
UNROLLED = 9  # taps of a row that are written out, their pixels kept in registers; more are a loop


@dataclass(frozen=True)
class Shape:
    """What a kernel is built for; the batch is told at the call.

    Attributes:
        channels: of input and output.
        size, output: height and width.
        kernel, stride, dilation: along height and width.
        corner: zeros above and to the left.
        lanes: channels in a vector.
        columns: outputs of a row in registers at a time.
        band: output rows of a task.
        bias: whether the sums begin with one.
        before, after: bounds that inputs and outputs are clipped to on the way, or None.
    """

    channels: int
    size: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    corner: tuple[int, int]
    lanes: int
    columns: int
    band: int
    bias: bool
    before: Bounds | None
    after: Bounds | None

    @property
    def vectors(self) -> int:
        """Vectors that hold the channels."""
        return -(-self.channels // self.lanes)

    @property
    def bands(self) -> int:
        """Bands of an image."""
        return -(-self.output[0] // self.band)

    @property
    def seen(self) -> tuple[int, int]:
        """Rows that a band sees, columns that a row sees."""
        return self.reach(self.band, 0), self.reach(self.output[1], 1)

    def reach(self, outputs: int, axis: int) -> int:
        """Pixels that so many neighbouring outputs see along an axis."""
        return (outputs - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1

    @property
    def private(self) -> int:
        """Floats of one thread's area."""
        return math.prod(self.seen) * self.lanes


def refuses(problem: Problem) -> str | None:
    """Why no kernel serves a problem here, or None."""
    if not problem.depthwise or problem.out_channels != problem.in_channels:
        return "this machine code is for one output channel for each input channel"
    if problem.dtype != torch.float32 or problem.device != "cpu":
        return (
            f"this machine code is for float32 on the CPU, not {str(problem.dtype)[6:]} on {problem.device}"
        )
    return current().refuses() or threads.refuses()


def prepare(
    problem: Problem,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    before: Bounds | None = None,
    after: Bounds | None = None,
) -> DepthwiseKernel:
    """A kernel for one problem, its weight in order.

    Args:
        problem: any that `refuses` has nothing against.
        weight: [channels, 1, height, width].
        bias: [channels], or None.
        before, after: bounds (low, high) to which inputs, before the padding, and outputs are clipped; `RELU` for a
            rectifier.

    Raises:
        RequestError: the problem is refused.

    Example:
        >>> x, weight = torch.rand(1, 20, 9, 9), torch.rand(20, 1, 3, 3)
        >>> problem = Problem.of(x, weight, 2, 1, groups=20)
        >>> y = prepare(problem, weight)(x) if refuses(problem) is None else None
        >>> y is None or torch.allclose(y, torch.conv2d(x, weight, None, 2, 1, 1, 20), atol=1e-5)
        True
    """
    reason = refuses(problem)
    if reason is not None:
        raise RequestError(f"no depthwise kernel can be built: {reason}.")
    return DepthwiseKernel(problem, weight.detach(), None if bias is None else bias.detach(), before, after)


class DepthwiseKernel:
    """A depthwise convolution ready to run: y = kernel(x)."""

    def __init__(
        self,
        problem: Problem,
        weight: Tensor,
        bias: Tensor | None,
        before: Bounds | None = None,
        after: Bounds | None = None,
    ) -> None:
        host = current()
        self._problem = problem
        self._shape = shape = shape_of(problem, host, bias is not None, before, after, threads.count())
        self._code, self._address = _built(shape, host)
        self._weight = packed(weight, shape.lanes)
        self._bias = torch.zeros(shape.vectors * shape.lanes)
        if bias is not None:
            self._bias[: shape.channels] = bias

    @property
    def bytes(self) -> int:
        """Memory that the weight and bias hold."""
        return 4 * (self._weight.numel() + self._bias.numel())

    @property
    def workspace(self) -> int:
        """Bytes of scratch that a call borrows, beside copies of an image that has not its channels last."""
        return 4 * threads.count() * self._shape.private

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of a batch: channels last where x is so, otherwise contiguous.

        Raises:
            RequestError: x is not of the problem's shape, type and device.
        """
        problem = self._problem
        if x.shape != problem.input_shape or x.dtype != torch.float32 or x.device.type != "cpu":
            raise RequestError(
                f"x is {str(x.dtype)[6:]} {list(x.shape)} on {x.device}; this kernel was prepared for float32 "
                f"{list(problem.input_shape)} on cpu."
            )
        team = threads.count()  # of this call: the scratch is sized for it
        return transpose.with_channels_last(
            x.detach(),
            problem.output_shape,
            4 * team * self._shape.private,
            lambda *places: threads.run(self._address, self._arguments(*places), team),
        )

    def _arguments(self, x: int, y: int, scratch: int) -> list[int]:
        place = {
            "x": x,
            "y": y,
            "weight": self._weight.data_ptr(),
            "bias": self._bias.data_ptr(),
            "scratch": scratch,
            "batch": self._problem.batch,
        }
        return [place[name] for name in ARGUMENTS]


def packed(weight: Tensor, lanes: int) -> Tensor:
    """[channels, 1, height, width] as [vector, tap, lane], lanes of no channel zero."""
    channels = len(weight)
    vectors = -(-channels // lanes)
    whole = torch.zeros(math.prod(weight.shape[2:]), vectors * lanes)
    whole[:, :channels] = weight.flatten(1).T
    return whole.unflatten(1, (vectors, lanes)).transpose(0, 1).contiguous()


def shape_of(
    problem: Problem, host: Host, bias: bool, before: Bounds | None, after: Bounds | None, team: int
) -> Shape:
    """Columns whose sums, and pixels where taps are written out, fit in registers; bands that fit in the core's cache.

    There are bands enough to keep all threads busy.
    """
    high, wide = problem.output_size
    pixels = problem.kernel[1] if problem.kernel[1] <= UNROLLED else -host.registers
    most = min(wide, 14, max(1, (host.registers - 1 - pixels) // 2))
    columns = min(range(1, most + 1), key=lambda count: (-(-wide // count) * (max(count, 6) + 0.5), -count))

    def shape(band: int) -> Shape:
        return Shape(
            problem.in_channels,
            problem.size,
            problem.output_size,
            problem.kernel,
            problem.stride,
            problem.dilation,
            (problem.padding[0][0], problem.padding[1][0]),
            host.width,
            columns,
            band,
            bias,
            before,
            after,
        )

    tasks = problem.batch * -(-problem.in_channels // host.width)
    bands = min(high, -(-4 * team // max(tasks, 1)))
    while bands < high and 4 * shape(-(-high // bands)).private > host.l2 // 2:
        bands += 1
    return shape(-(-high // bands))


@functools.lru_cache(maxsize=256)
def _built(shape: Shape, host: Host) -> tuple[Code, int]:
    code = build(text(shape, host), host)
    return code, code.address("work")


# ---------------------------------------------------------------- the kernel


def text(shape: Shape, host: Host) -> str:
    """The kernel `work`, which takes a table of `ARGUMENTS`."""
    module = Module(host)
    fill, compute = _fill(module, shape), computing(module, shape)
    f = module.function("work", arguments=INTS)
    (table,) = f.arguments
    x, y, weight, bias, scratch = ((table + i).as_("ptr").load_pointer() for i in range(5))
    batch = (table + 5).load_int()
    thread, team = f.thread(), f.threads()
    area = scratch + thread * shape.private
    (high, wide), (rows, columns) = shape.size, shape.output
    total = batch * shape.bands * shape.vectors
    with f.loop(thread * total // team, (thread + 1) * total // team) as task:
        group, band = task % shape.vectors, task // shape.vectors % shape.bands
        image, channel = task // (shape.vectors * shape.bands), group * shape.lanes
        top = band * shape.band
        lanes = f.integer(shape.channels) - channel
        source = x + image * (high * wide * shape.channels) + channel
        f.call(fill, source, top * shape.stride[0] - shape.corner[0], lanes, area)
        target = y + (image * rows + top) * (columns * shape.channels) + channel
        taps = weight + group * (math.prod(shape.kernel) * shape.lanes)
        with f.loop(0, f.minimum(shape.band, f.integer(rows) - top)) as row:
            line = area + row * (shape.stride[0] * shape.seen[1] * shape.lanes)
            f.call(compute, line, taps, bias + channel, lanes, target + row * (columns * shape.channels))
    return module.text()


def _fill(module: Module, shape: Shape) -> Function:
    """The pixels that a band sees; takes (image, its first row, lanes, area)."""
    f = module.function("fill", public=False, x=FLOATS, top=INT, lanes=INT, area=FLOATS)
    x, top, lanes, area = f.arguments
    rows, columns = shape.seen
    high, wide = shape.size
    mask = f.lanes(lanes) if shape.channels % shape.lanes else None
    start = min(shape.corner[1], columns)  # columns of zeros; then pixels; then zeros again
    stop = min(start + wide, columns)
    with f.loop(0, rows) as row:
        line = area + row * (columns * shape.lanes)
        source = x + (top + row) * (wide * shape.channels)
        with f.either((top + row).inside(high)) as (there, beyond):
            with there:
                for first, last in ((0, start), (stop, columns)):
                    if first < last:
                        with f.loop(first, last) as column:
                            (line + column * shape.lanes).store(f.zero())
                if start < stop:
                    with f.loop(start, stop) as column:
                        pixel = (source + (column - start) * shape.channels).load(mask=mask)
                        (line + column * shape.lanes).store(clipped(f, pixel, shape.before))
            with beyond, f.loop(0, columns) as column:
                (line + column * shape.lanes).store(f.zero())
    return f


def computing(module: Module, shape: Shape) -> Function:
    """One row of outputs; takes (first row of the area that it sees, taps, bias, lanes, outputs)."""
    f = module.function("row", public=False, line=FLOATS, taps=FLOATS, bias=FLOATS, lanes=INT, y=FLOATS)
    line, taps, bias, lanes, y = f.arguments
    count, wide = shape.columns, shape.output[1]
    mask = f.lanes(lanes) if shape.channels % shape.lanes else None
    start = bias.load() if shape.bias else f.zero()
    with f.loop(0, wide, count) as first:
        left = f.minimum(
            first, wide - count
        )  # the last block begins earlier: some outputs are computed twice
        sums = [f.variable(start) for _ in range(count)]
        area = line + left * (shape.stride[1] * shape.lanes)
        with f.loop(0, shape.kernel[0]) as row:
            place = area + row * (shape.dilation[0] * shape.seen[1] * shape.lanes)
            weights = taps + row * (shape.kernel[1] * shape.lanes)
            if shape.kernel[1] <= UNROLLED:
                for number in range(shape.kernel[1]):
                    _tap(f, shape, place, weights, number, sums)
            else:
                with f.loop(0, shape.kernel[1]) as tap:
                    _tap(f, shape, place, weights, tap, sums)
        for column, total in enumerate(sums):
            value = clipped(f, total.get(), shape.after)
            (y + (left + column) * shape.channels).store(value, mask=mask)
    return f


def clipped(f: Function, value: Vector, bounds: Bounds | None) -> Vector:
    """Between the bounds; what is not a number stays so."""
    if bounds is None:
        return value
    low, high = bounds
    value = f.larger(f.constant(low), value)
    return value if high == math.inf else f.smaller(f.constant(high), value)


def _tap(
    f: Function, shape: Shape, place: Pointer, weights: Pointer, tap: Int | int, sums: list[Variable]
) -> None:
    """One tap of a row added to all sums."""
    weight = (weights + tap * shape.lanes).load()
    for column, total in enumerate(sums):
        offset = column * shape.stride[1] + tap * shape.dilation[1]
        total.set(f.fma((place + offset * shape.lanes).load(), weight, total.get()))
