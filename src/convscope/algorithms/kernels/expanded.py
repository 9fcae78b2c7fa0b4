"""A depthwise convolution of channels that a pointwise convolution makes, without ever storing those, in machine code.

Mobile networks expand a few channels to many, clip, and convolve each by itself: the expanded map is several times
larger than what goes in and comes out, and on a CPU writing and reading it takes longer than computing it. Here a
thread makes the expanded rows of a band in an area of its own, one vector of channels at a time, and convolves them
there. The gradient makes them again, to know which were clipped, and goes back to the few channels at once.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convscope.algorithms.kernels import depthwise, depthwise_gradient, threads, workspace
from convscope.algorithms.kernels.builder import FLOATS, INT, INTS, Function, Int, Module, Pointer
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.depthwise import Bounds, clipped, packed
from convscope.algorithms.kernels.few_channels import together
from convscope.algorithms.kernels.host import Host, current
from convscope.algorithms.problem import Problem
from convscope.errors import RequestError

ARGUMENTS = ("x", "y", "expand", "expand_bias", "weight", "bias", "scratch", "batch")
BACK_ARGUMENTS = (
    "slope",
    "y",
    "x",
    "expand",
    "expand_bias",
    "weight",
    "project",
    "result",
    "scratch",
    "batch",
)
MOST_VECTORS = 4  # of the channels before the expansion


@dataclass(frozen=True)
class Shape:
    """What the kernels are built for.

    Attributes:
        inner: channels before the expansion.
        ahead, back: shapes of the depthwise convolution and of its gradient.
    """

    inner: int
    ahead: depthwise.Shape
    back: depthwise_gradient.Shape

    @property
    def padded(self) -> int:
        """`inner` rounded up to whole vectors."""
        return -(-self.inner // self.ahead.lanes) * self.ahead.lanes


def refuses(problem: Problem, inner: int) -> str | None:
    """Why no kernel serves a depthwise problem behind an expansion of `inner` channels, or None."""
    reason = depthwise_gradient.refuses(problem)
    if reason is None and not 1 <= inner <= MOST_VECTORS * current().width:
        return f"this machine code is for expansions of at most {MOST_VECTORS * current().width} channels"
    return reason


def prepare(
    problem: Problem,
    expansion: tuple[Tensor, Tensor | None],
    weight: Tensor,
    bias: Tensor | None,
    before: Bounds | None,
    after: Bounds | None,
) -> ExpandedKernel:
    """Both kernels for one problem, the weights in order.

    Args:
        problem: of the depthwise convolution.
        expansion: weight [channels, inner, 1, 1] and bias [channels] or None of the convolution before it.
        weight, bias: of the depthwise convolution, [channels, 1, height, width] and [channels] or None.
        before, after: bounds that the expanded channels and the outputs are clipped to.

    Raises:
        RequestError: the problem is refused.

    Example:
        >>> x, expand, weight = torch.rand(1, 6, 9, 9), torch.rand(20, 6, 1, 1), torch.rand(20, 1, 3, 3)
        >>> problem = Problem.of(torch.empty(1, 20, 9, 9), weight, 1, 1, groups=20)
        >>> wanted = torch.conv2d(torch.conv2d(x, expand).clamp(0, 2), weight, None, 1, 1, 1, 20)
        >>> if refuses(problem, 6) is None:
        ...     kernel = prepare(problem, (expand, None), weight, None, (0.0, 2.0), None)
        ...     found = kernel(x.contiguous(memory_format=torch.channels_last))
        ...     assert torch.allclose(found, wanted, atol=1e-4)
    """
    reason = refuses(problem, expansion[0].shape[1])
    if reason is not None:
        raise RequestError(f"no expanded depthwise kernel can be built: {reason}.")
    return ExpandedKernel(problem, expansion, weight.detach(), bias, before, after)


class ExpandedKernel:
    """Expansion, clip, depthwise convolution and clip ready to run, and their gradient."""

    def __init__(
        self,
        problem: Problem,
        expansion: tuple[Tensor, Tensor | None],
        weight: Tensor,
        bias: Tensor | None,
        before: Bounds | None,
        after: Bounds | None,
    ) -> None:
        host, team = current(), threads.count()
        wide, given = expansion[0].detach().flatten(1), expansion[1]  # [channels, inner]
        inner = wide.shape[1]
        self._problem = problem
        self.input_shape = (problem.batch, inner, *problem.size)
        ahead = depthwise.shape_of(problem, host, True, before, after, team)
        back = depthwise_gradient.shape_of(problem, host, before, after, team)
        self._shape = shape = Shape(inner, ahead, replace(back, band=_band(problem, back, team)))
        self._code, self._ahead, self._back = _built(shape, host)
        lanes, vectors = ahead.lanes, ahead.vectors
        whole = torch.zeros(vectors * lanes, shape.padded)
        whole[: len(wide), :inner] = wide
        self._project = whole.contiguous()  # [vector, lane, inner padded]
        self._expand = (
            whole[:, :inner].unflatten(0, (vectors, lanes)).mT.contiguous()
        )  # [vector, inner, lane]
        self._weight = packed(weight, lanes)
        self._biases = torch.zeros(2, vectors * lanes)
        for row, values in enumerate((given, bias)):
            if values is not None:
                self._biases[row, : len(values)] = values.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Output of inputs [batch, inner, height, width], both channels last."""
        y = torch.empty(self._problem.output_shape, memory_format=torch.channels_last)
        if y.numel():
            expand_bias, bias = self._biases
            self._run(
                self._ahead, [x, y, self._expand, expand_bias, self._weight, bias], self._shape.ahead.private
            )
        return y

    def gradient(self, of_y: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The gradient by the inputs, given that by the outputs y of x; all channels last."""
        result = torch.empty(self.input_shape, memory_format=torch.channels_last)
        if result.numel():
            of_y = of_y.contiguous(memory_format=torch.channels_last)
            arrays = [of_y, y, x, self._expand, self._biases, self._weight, self._project, result]
            self._run(self._back, arrays, _private(self._shape.back))
        return result

    def _run(self, address: int, arrays: list[Tensor], private: int) -> None:
        team = threads.count()
        with workspace.borrow(4 * team * private) as scratch:
            table = (*(array.data_ptr() for array in arrays), scratch, self._problem.batch)
            threads.run(address, table, team)


def _private(shape: depthwise_gradient.Shape) -> int:
    """Floats of one thread's area in the gradient: the gradients it sees, an expanded row and its gradient."""
    return shape.private + 2 * shape.size[1] * shape.lanes


def _band(problem: Problem, shape: depthwise_gradient.Shape, team: int) -> int:
    """Rows of a task of the gradient, which takes all channels: enough tasks for all threads."""
    step = shape.stride[0]
    steps = -(-problem.size[0] // step)
    bands = min(steps, max(-(-4 * team // max(problem.batch, 1)), -(-shape.size[0] // shape.band)))
    return -(-steps // bands) * step


@functools.lru_cache(maxsize=256)
def _built(shape: Shape, host: Host) -> tuple[Code, int, int]:
    code = build(text(shape, host), host)
    return code, code.address("ahead"), code.address("back")


# ---------------------------------------------------------------- the kernels


def text(shape: Shape, host: Host) -> str:
    """The kernels `ahead` and `back`, which take tables of `ARGUMENTS` and `BACK_ARGUMENTS`."""
    module = Module(host)
    expand = _expand(module, shape)
    _ahead(module, shape, expand)
    _back(module, shape, expand)
    return module.text()


def _ahead(module: Module, shape: Shape, expand: Function) -> None:
    ahead, inner = shape.ahead, shape.inner
    compute = depthwise.computing(module, ahead)
    f = module.function("ahead", arguments=INTS)
    (table,) = f.arguments
    x, y, wide, wide_bias, weight, bias, scratch = (
        (table + i).as_("ptr").load_pointer() for i in range(len(ARGUMENTS) - 1)
    )
    batch = (table + (len(ARGUMENTS) - 1)).load_int()
    thread, team = f.thread(), f.threads()
    area = scratch + thread * ahead.private
    (high, across), (rows, columns), (seen, line_columns) = ahead.size, ahead.output, ahead.seen
    start = min(ahead.corner[1], line_columns)
    stop = min(start + across, line_columns)
    total = batch * ahead.bands * ahead.vectors
    with f.loop(thread * total // team, (thread + 1) * total // team) as task:
        group, band = task % ahead.vectors, task // ahead.vectors % ahead.bands
        image, channel = task // (ahead.vectors * ahead.bands), group * ahead.lanes
        top = band * ahead.band
        lanes = f.integer(ahead.channels) - channel
        first = top * ahead.stride[0] - ahead.corner[0]
        with f.loop(0, seen) as row:
            line = area + row * (line_columns * ahead.lanes)
            _zeros(f, line, 0, start, ahead.lanes)
            _zeros(f, line, stop, line_columns, ahead.lanes)
            with f.either((first + row).inside(high)) as (there, beyond):
                with there:
                    source = x + (image * high + first + row) * (across * inner)
                    weights = wide + group * (inner * ahead.lanes)
                    f.call(
                        expand, source, weights, wide_bias + channel, line + start * ahead.lanes, stop - start
                    )
                with beyond:
                    _zeros(f, line, start, stop, ahead.lanes)
        target = y + (image * rows + top) * (columns * ahead.channels) + channel
        taps = weight + group * (math.prod(ahead.kernel) * ahead.lanes)
        with f.loop(0, f.minimum(ahead.band, f.integer(rows) - top)) as row:
            line = area + row * (ahead.stride[0] * line_columns * ahead.lanes)
            f.call(compute, line, taps, bias + channel, lanes, target + row * (columns * ahead.channels))


def _zeros(f: Function, line: Pointer, first: int, last: int, lanes: int) -> None:
    if first < last:
        with f.loop(first, last) as column:
            (line + column * lanes).store(f.zero())


def _expand(module: Module, shape: Shape) -> Function:
    """Expanded pixels of a row, clipped; takes (input row, weights, bias, target, pixels, at least one block)."""
    f = module.function(
        "expand", public=False, x=FLOATS, weights=FLOATS, bias=FLOATS, target=FLOATS, pixels=INT
    )
    x, weights, bias, target, pixels = f.arguments
    lanes, inner = shape.ahead.lanes, shape.inner
    count = together(min(_pixels(shape), shape.ahead.size[1]), module.host.registers - 3)
    start = bias.load()
    with f.loop(0, pixels, count) as first:
        left = f.minimum(first, pixels - count)
        sums = [f.variable(start) for _ in range(count)]
        source = x + left * inner
        with f.loop(0, inner) as channel:
            weight = (weights + channel * lanes).load()
            for number, total in enumerate(sums):
                total.set(f.fma((source + channel + number * inner).splat(), weight, total.get()))
        for number, total in enumerate(sums):
            (target + (left + number) * lanes).store(clipped(f, total.get(), shape.ahead.before))
    return f


def _pixels(shape: Shape) -> int:
    """The fewest pixels that a row is expanded by."""
    columns = shape.ahead.seen[1]
    start = min(shape.ahead.corner[1], columns)
    return max(1, min(start + shape.ahead.size[1], columns) - start)


def _back(module: Module, shape: Shape, expand: Function) -> None:
    back, inner = shape.back, shape.inner
    fill = depthwise_gradient.filling(module, back)
    rows = [depthwise_gradient.row_of(module, back, phase, back.lanes) for phase in range(back.stride[0])]
    project = _project(module, shape)
    f = module.function("back", arguments=INTS)
    (table,) = f.arguments
    slope, y, x, wide, wide_bias, weight, narrow, result, scratch = (
        (table + i).as_("ptr").load_pointer() for i in range(len(BACK_ARGUMENTS) - 1)
    )
    batch = (table + (len(BACK_ARGUMENTS) - 1)).load_int()
    thread, team = f.thread(), f.threads()
    area = scratch + thread * _private(back)
    expanded = area + back.private
    undone = expanded + back.size[1] * back.lanes
    (high, across), (down, columns), step = back.size, back.output, back.stride[0]
    total = batch * back.bands
    with f.loop(thread * total // team, (thread + 1) * total // team) as task:
        band, image = task % back.bands, task // back.bands
        top = band * back.band
        with f.loop(0, back.vectors) as group:
            channel = group * back.lanes
            lanes = f.integer(back.channels) - channel
            start = image * (down * columns * back.channels) + channel
            f.call(fill, slope + start, y + start, band * (back.band // step) + back.first(0), lanes, area)
            taps = weight + group * (math.prod(back.kernel) * back.lanes)
            with f.loop(0, back.band // step) as number:
                line = area + number * (back.seen(1) * back.lanes)
                for phase, row in enumerate(rows):
                    place = top + number * step + phase
                    with f.when(place < high):
                        offset = (image * high + place) * (across * inner)
                        weights = wide + group * (inner * back.lanes)
                        f.call(expand, x + offset, weights, wide_bias + channel, expanded, across)
                        f.call(row, line, taps, expanded, lanes, undone)
                        f.call(project, undone, narrow + channel * shape.padded, result + offset, group)


def _project(module: Module, shape: Shape) -> Function:
    """A row of expanded gradients added to those of the few channels; takes (gradients, weights, target, group).

    The first group of channels begins the sums, the others add to them.
    """
    f = module.function("project", public=False, source=FLOATS, weights=FLOATS, target=FLOATS, group=INT)
    source, weights, target, group = f.arguments
    lanes, inner, pixels = shape.ahead.lanes, shape.inner, shape.back.size[1]
    vectors = shape.padded // lanes
    count = together(pixels, max(1, (module.host.registers - 2 - vectors) // vectors))
    masks = [f.lanes(inner - k * lanes) if inner < (k + 1) * lanes else None for k in range(vectors)]

    def some(first: Int | int, count: int) -> None:
        sums = [[f.variable(f.zero()) for _ in range(vectors)] for _ in range(count)]
        place = target + first * inner
        with f.when(group > 0):
            for number, row in enumerate(sums):
                for k, total in enumerate(row):
                    total.set((place + (number * inner + k * lanes)).load(mask=masks[k]))
        with f.loop(0, lanes) as lane:
            parts = [(weights + lane * shape.padded + k * lanes).load() for k in range(vectors)]
            for number, row in enumerate(sums):
                slope = (source + (first + number) * lanes + lane).splat()
                for part, total in zip(parts, row, strict=True):
                    total.set(f.fma(slope, part, total.get()))
        for number, row in enumerate(sums):
            for k, total in enumerate(row):
                (place + (number * inner + k * lanes)).store(total.get(), mask=masks[k])

    whole = pixels // count * count
    with f.loop(0, whole, count) as first:
        some(first, count)
    if whole < pixels:
        some(whole, pixels - whole)
    return f
