"""What each tensor operation does to a trace: one rule a family of operations, `follow` walks the graph with
them.

An operation without a rule is never guessed at: its result sees the whole image, and says which operation
    did it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, TypeAlias

from convscope.graph.structure import Graph, Op, Shape
from convscope.graph.trace import (
    Axis,
    Factor,
    Number,
    Trace,
    collapse,
    expand,
    image,
    plain,
    ratio,
    union,
)


def follow(graph: Graph) -> tuple[Trace, ...]:
    """The trace of every value of the graph, by value number; worked out once a graph.

    The image is the network's first input; what comes from other inputs, parameters and constants sees
    nothing of it.
    """
    known = graph._cache.get("traces")
    if known is None:
        known = graph._cache["traces"] = _follow(graph)
    traces: tuple[Trace, ...] = known
    return traces


def _follow(graph: Graph) -> tuple[Trace, ...]:
    traces: list[Trace | None] = [None if v.source == "op" else plain(v.shape) for v in graph.values]
    if graph.inputs:
        traces[graph.inputs[0]] = image(graph.values[graph.inputs[0]].shape)
    for op in graph.ops:
        step = Step(op, traces, tuple(graph.values[index].shape for index in op.outputs))
        for index, trace in zip(op.outputs, step.run(), strict=True):
            traces[index] = trace
    return tuple(
        plain(value.shape) if t is None else t for value, t in zip(graph.values, traces, strict=True)
    )


@dataclass(frozen=True)
class Step:
    """One operation about to be followed: its arguments as traces, the shapes of its results."""

    op: Op
    traces: Sequence[Trace | None]
    shapes: tuple[Shape, ...]

    @property
    def name(self) -> str:
        """The operator's name without namespace and the underscore of in-place forms."""
        name = self.op.name.rpartition(".")[2]
        return name if name.startswith("_") and name.endswith("_") else name.removesuffix("_")

    @property
    def reason(self) -> str:
        """How the operation is named where it opens the field to the whole image."""
        return f"{self.op.name} in {self.op.module}" if self.op.module else self.op.name

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.op.attributes.get(name)
        return default if value is None else value

    def tensor(self, name: str = "self") -> Trace:
        found = self.op.tensors[name]
        assert isinstance(found, int)
        return self._trace(found)

    def optional(self, name: str) -> Trace | None:
        found = self.op.tensors.get(name)
        return self._trace(found) if isinstance(found, int) else None

    def listed(self, name: str) -> list[Trace | None]:
        found = self.op.tensors[name]
        assert isinstance(found, tuple)
        return [None if item is None else self._trace(item) for item in found]

    def inputs(self) -> list[Trace]:
        return [self._trace(item) for item in self.op.inputs]

    def _trace(self, index: int) -> Trace:
        trace = self.traces[index]
        assert trace is not None, f"value {index} used before it was made"
        return trace

    def run(self) -> list[Trace]:
        """The traces of all results."""
        if not any(trace.depends for trace in self.inputs()):
            return [plain(shape) for shape in self.shapes]
        found = RULES.get(self.name, pointwise if self.op.pointwise else unknown)(self)
        results = [found] if isinstance(found, Trace) else found
        for shape in self.shapes[len(results) :]:  # statistics and other side results
            results.append(collapse(self.inputs(), shape, self.reason))
        return [
            trace if trace.shape == shape else collapse([trace], shape, self.reason)
            for trace, shape in zip(results, self.shapes, strict=False)
        ]


Rule: TypeAlias = Callable[[Step], Trace | list[Trace]]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators named without namespace and overload."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


def unknown(step: Step) -> list[Trace]:
    """Any operation without a rule: the whole image."""
    return [collapse(step.inputs(), shape, step.reason) for shape in step.shapes]


# -- element by element --------------------------------------------------------------------------------------


@rule(
    "hardswish masked_fill where rsub _prelu_kernel prelu log_sigmoid_forward native_dropout dropout "
    "rrelu_with_noise _to_copy clone contiguous detach alias lift_fresh lift_fresh_copy nan_to_num isnan "
    "hardtanh relu6 threshold fake_quantize_per_tensor_affine bernoulli _conj view_as_real_copy glu_jvp"
)
def pointwise(step: Step) -> Trace:
    return union(step.inputs(), step.shape, step.reason)


@rule(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full "
    "empty_strided new_empty_strided zero uniform exponential _shape_as_tensor"
)
def constant(step: Step) -> Trace:
    return plain(step.shape)


@rule("fill")
def fill(step: Step) -> Trace:
    value = step.optional("value")
    return plain(step.shape) if value is None else expand(value, step.shape, step.reason)


@rule("normal")
def normal(step: Step) -> Trace:
    """`normal_` overwrites its tensor; `normal(mean, std)` reads them."""
    return plain(step.shape) if step.op.name.endswith("_") else union(step.inputs(), step.shape, step.reason)


@rule("copy")
def copy(step: Step) -> Trace:
    return expand(step.tensor("src"), step.shape, step.reason)


# -- axes moved about ----------------------------------------------------------------------------------------


@rule("view _unsafe_view reshape _reshape_alias flatten unflatten")
def reshape(step: Step) -> Trace:
    return step.tensor().reshape(step.shape, step.reason)


@rule("permute")
def permute(step: Step) -> Trace:
    rank = len(step.shape)
    return step.tensor().permute([axis % rank for axis in step.attr("dims")])


@rule("transpose t")
def transpose(step: Step) -> Trace:
    rank = len(step.shape)
    order = list(range(rank))
    if rank > 1:
        a, b = step.attr("dim0", 0) % rank, step.attr("dim1", 1) % rank
        order[a], order[b] = order[b], order[a]
    return step.tensor().permute(order)


@rule("unsqueeze")
def unsqueeze(step: Step) -> Trace:
    return step.tensor().insert(step.attr("dim") % len(step.shape))


@rule("squeeze")
def squeeze(step: Step) -> Trace:
    trace = step.tensor()
    rank = len(trace.axes)
    dims = step.attr("dim", tuple(range(rank)))
    wanted = {axis % rank for axis in ((dims,) if isinstance(dims, int) else dims)} if rank else set()
    for axis in sorted(wanted, reverse=True):
        if trace.axes[axis].size == 1:
            trace = trace.drop(axis)
    return trace


@rule("expand broadcast_to")
def expanded(step: Step) -> Trace:
    return expand(step.tensor(), step.shape, step.reason)


@rule("repeat")
def repeat(step: Step) -> Trace:
    trace = step.tensor()
    times = step.attr("repeats")
    for _ in range(len(times) - len(trace.axes)):
        trace = trace.insert(0)
    wide: list[int] = []
    for axis, count in enumerate(times):
        trace = trace.insert(2 * axis, Axis((Factor(count),)))
        wide += [count, trace.axes[2 * axis + 1].size]
    return trace.reshape(step.shape, step.reason)


@rule("as_strided")
def as_strided(step: Step) -> Trace:
    sizes, strides, offset = step.op.attributes["before"]
    new_strides, new_offset = step.attr("stride"), step.attr("storage_offset", offset)
    same = all(a == b for a, b, size in zip(strides, new_strides, sizes, strict=False) if size != 1)
    if tuple(sizes) == step.shape and same and offset == new_offset:
        return step.tensor()
    return collapse([step.tensor()], step.shape, step.reason)


@rule("slice")
def slice_(step: Step) -> Trace:
    trace = step.tensor()
    axis = step.attr("dim", 0) % len(step.shape)
    size = trace.axes[axis].size
    start = step.attr("start", 0)
    start = min(max(start + size if start < 0 else start, 0), size)
    return trace.slice(axis, start, step.shape[axis], step.attr("step", 1), step.reason)


@rule("narrow")
def narrow(step: Step) -> Trace:
    axis = step.attr("dim") % len(step.shape)
    start = step.attr("start") % step.tensor().axes[axis].size
    return step.tensor().slice(axis, start, step.shape[axis], 1, step.reason)


@rule("select")
def select(step: Step) -> Trace:
    trace = step.tensor()
    axis = step.attr("dim") % len(trace.axes)
    return trace.select(axis, step.attr("index") % trace.axes[axis].size)


@rule("split split_with_sizes chunk unsafe_split tensor_split")
def split(step: Step) -> list[Trace]:
    axis = step.attr("dim", 0) % len(step.shape)
    parts, start = [], 0
    for shape in step.shapes:
        parts.append(step.tensor().slice(axis, start, shape[axis], 1, step.reason))
        start += shape[axis]
    return parts


@rule("unbind")
def unbind(step: Step) -> list[Trace]:
    trace = step.tensor()
    axis = step.attr("dim", 0) % len(trace.axes)
    return [trace.select(axis, index) for index in range(len(step.shapes))]


@rule("flip")
def flip(step: Step) -> Trace:
    trace = step.tensor()
    for dim in step.attr("dims"):
        axis = dim % len(trace.axes)
        last = trace.axes[axis].size - 1
        trace = trace.slide(axis, last + 1, -1, last, last, step.reason)
    return trace


@rule("roll")
def roll(step: Step) -> Trace:
    """What goes over one edge comes back at the other: the whole axis, beside the local path of all the
    rest.
    """
    trace = step.tensor()
    dims, shifts = step.attr("dims", ()), step.attr("shifts")
    if not dims:
        return collapse([trace], step.shape, step.reason)
    for dim, shift in zip(dims, shifts, strict=True):
        axis = dim % len(trace.axes)
        size = trace.axes[axis].size
        shift = shift % size
        shift = shift - size if shift > size // 2 else shift
        if shift == 0:
            continue
        wraps = trace.mix([axis], step.reason)
        moved = trace.slide(axis, size, 1, -shift, -shift, step.reason)
        trace = union([moved, wraps], step.shape, step.reason)
    return trace


@rule("unfold")
def unfold(step: Step) -> Trace:
    """Tensor.unfold: windows along an axis, their content in a new last axis."""
    trace = step.tensor()
    axis, size, stride = step.attr("dimension") % len(trace.axes), step.attr("size"), step.attr("step")
    return _unfolded(trace, axis, step.shape[axis], stride, size, 1, 0, len(trace.axes), step.reason)


def _unfolded(
    trace: Trace, axis: int, count: int, stride: int, size: int, dilation: int, pad: int, at: int, reason: str
) -> Trace:
    """`count` windows of `size` positions; the position in the window goes to a new axis inserted at `at`."""
    solid = trace.solid(axis, reason)
    label = solid.axes[axis].factors[0].label
    wide = solid.insert(at, Axis((Factor(size),)))
    axis_now = axis + (at <= axis)

    def change(steps: Any, low: Number, high: Number) -> tuple[Any, Number, Number]:
        own = steps[axis_now][0]
        moved = list(steps)
        moved[axis_now], moved[at] = (own * stride,), (own * dilation,)
        return tuple(moved), low - own * pad, high - own * pad

    axes = list(wide.axes)
    axes[axis_now] = Axis((Factor(count, label),))
    return Trace(tuple(axes), tuple(reach.map(change) for reach in wide.reach))


@rule("im2col")
def im2col(step: Step) -> Trace:
    trace = step.tensor()
    if len(trace.axes) != 4:
        return collapse([trace], step.shape, step.reason)
    kernel, dilation = step.attr("kernel_size"), step.attr("dilation")
    pad, stride = step.attr("padding"), step.attr("stride")
    counts = [
        (trace.axes[2 + i].size + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    trace = _unfolded(trace, 3, counts[1], stride[1], kernel[1], dilation[1], pad[1], 2, step.reason)
    trace = _unfolded(trace, 3, counts[0], stride[0], kernel[0], dilation[0], pad[0], 2, step.reason)
    return trace.reshape(step.shape, step.reason)  # [n, c, kh, kw, oh, ow]


@rule("pixel_shuffle")
def pixel_shuffle(step: Step) -> Trace:
    trace = step.tensor()
    *lead, c, h, w = trace.shape
    r, k = step.attr("upscale_factor"), len(lead)
    trace = trace.reshape([*lead, c // (r * r), r, r, h, w], step.reason)
    order = [*range(k), k, k + 3, k + 1, k + 4, k + 2]
    return trace.permute(order).reshape(step.shape, step.reason)


@rule("pixel_unshuffle")
def pixel_unshuffle(step: Step) -> Trace:
    trace = step.tensor()
    *lead, c, h, w = trace.shape
    r, k = step.attr("downscale_factor"), len(lead)
    trace = trace.reshape([*lead, c, h // r, r, w // r, r], step.reason)
    order = [*range(k), k, k + 2, k + 4, k + 1, k + 3]
    return trace.permute(order).reshape(step.shape, step.reason)


@rule("channel_shuffle native_channel_shuffle")
def channel_shuffle(step: Step) -> Trace:
    return _channels(step.tensor().mix([1], step.reason), 1, step.shape[1])


@rule("cat concat concatenate")
def cat(step: Step) -> Trace:
    traces = [trace for trace in step.listed("tensors") if trace is not None]
    return _concatenated(traces, step.attr("dim", 0) % len(step.shape), step.shape, step.reason)


@rule("stack")
def stack(step: Step) -> Trace:
    axis = step.attr("dim", 0) % len(step.shape)
    traces = [trace.insert(axis) for trace in step.listed("tensors") if trace is not None]
    return _concatenated(traces, axis, step.shape, step.reason)


def _concatenated(traces: list[Trace], axis: int, shape: Shape, reason: str) -> Trace:
    traces = [
        trace for trace in traces if len(trace.axes) == len(shape)
    ]  # an old quirk lets empty 1-d tensors in
    spatial = [index for index, trace in enumerate(traces) if trace.depends and trace.axes[axis].is_spatial]
    if not spatial:
        label = next((t.axes[axis].labels[0] for t in traces if t.depends and t.axes[axis].labels), "")
        pieces = [
            trace.mix([axis], reason).put(axis, Axis((Factor(shape[axis], label),)))
            for trace in traces
            if trace.depends
        ]
        return union(pieces, shape, reason)
    starts = [sum(trace.axes[axis].size for trace in traces[:index]) for index in range(len(traces))]
    if len(spatial) == 1:
        return _beside(traces, spatial[0], axis, shape, reason)
    pieces = []
    for trace, start in zip(traces, starts, strict=True):
        if trace.depends:
            pieces.append(trace.slide(axis, shape[axis], 1, -start, -start, reason))
    return union(pieces, shape, reason)


def _beside(traces: list[Trace], core: int, axis: int, shape: Shape, reason: str) -> Trace:
    """Class tokens and the like set beside the positions of one tensor."""
    main = traces[core]
    had = main.axes[axis]
    before = sum(trace.axes[axis].size for trace in traces[:core])
    after = sum(trace.axes[axis].size for trace in traces[core + 1 :])
    wide = Axis(had.factors, had.before + before, had.after + after)
    result = Trace((*main.axes[:axis], wide, *main.axes[axis + 1 :]), main.reach)
    others = [trace for index, trace in enumerate(traces) if index != core and trace.depends]
    for other in others:  # what they see is kept as "the whole image": see Trace.select
        whole = tuple(
            replace(a, whole=a.whole | b.whole | ({reason} if b.windows else set()))
            for a, b in zip(result.reach, other.reach, strict=True)
        )
        result = Trace(result.axes, whole)
    return result


@rule("index")
def index(step: Step) -> Trace:
    """Indexing by tensors; by one constant index, the other axes keep their windows."""
    trace = step.tensor()
    indices = step.listed("indices")
    used = [axis for axis, item in enumerate(indices) if item is not None]
    first = indices[used[0]] if used else None
    if len(used) != 1 or first is None or first.depends:
        return collapse(step.inputs(), step.shape, step.reason)
    return _picked(trace, used[0], first.shape, step)


@rule("index_select")
def index_select(step: Step) -> Trace:
    if step.tensor("index").depends:
        return collapse(step.inputs(), step.shape, step.reason)
    return _picked(step.tensor(), step.attr("dim") % len(step.shape), step.tensor("index").shape, step)


def _picked(trace: Trace, axis: int, sizes: Shape, step: Step) -> Trace:
    labels = trace.axes[axis].labels
    trace = trace.mix([axis], step.reason).drop(axis)
    for offset, size in enumerate(sizes):
        trace = trace.insert(axis + offset, Axis((Factor(size, labels[0] if len(labels) == 1 else ""),)))
    return trace


@rule("embedding")
def embedding(step: Step) -> Trace:
    trace = step.tensor("indices")
    if step.tensor("weight").depends:
        return collapse(step.inputs(), step.shape, step.reason)
    return trace.insert(len(trace.axes), Axis((Factor(step.shape[-1], "channel"),)))


# -- windows: convolution, pooling, padding, resampling ------------------------------------------------------


def _channels(trace: Trace, axis: int, size: int) -> Trace:
    return trace.put(axis, Axis((Factor(size, "channel"),)))


def _resampled(trace: Trace, axis: int, step: Number, reads: Sequence[tuple[int, int]], reason: str) -> Trace:
    """Position q of the new axis reads the old positions `reads[q]`, first and last; about `step * q`."""
    some = [(q, first, last) for q, (first, last) in enumerate(reads) if first <= last]
    low = min((first - step * q for q, first, _ in some), default=0)
    high = max((last - step * q for q, _, last in some), default=0)
    return trace.slide(axis, len(reads), step, low, high, reason, reads)


@rule("convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution")
def convolution(step: Step) -> Trace:
    trace, weight = step.tensor("input"), step.tensor("weight")
    spatial = len(weight.axes) - 2
    kernel = weight.shape[2:]
    batched = len(trace.axes) == spatial + 2
    trace = trace if batched else trace.insert(0)
    shape = step.shape if batched else (1, *step.shape)
    stride, pad = step.attr("stride"), step.attr("padding")
    dilation = step.attr("dilation")
    trace = _channels(trace.mix([1], step.reason), 1, shape[1])
    for i in range(spatial):
        s, p, d = (values[i if len(values) > 1 else 0] for values in (stride, pad, dilation))
        if step.attr("transposed", False):
            trace = _transposed(trace, 2 + i, shape[2 + i], kernel[i], s, p, d, step.reason)
        else:
            trace = trace.slide(2 + i, shape[2 + i], s, -p, d * (kernel[i] - 1) - p, step.reason)
    trace = _steered(step, trace, "input")
    return trace if batched else trace.drop(0)


@rule("locally_connected")
def locally_connected(step: Step) -> Trace:
    """A convolution without padding, of [batch, height, width, channels]."""
    trace, kernel = step.tensor("x"), step.tensor("weight").shape[4:6]
    trace = _channels(trace.mix([3], step.reason), 3, step.shape[1])
    for i, (s, d) in enumerate(zip(step.attr("stride"), step.attr("dilation"), strict=True)):
        trace = trace.slide(1 + i, step.shape[2 + i], s, 0, d * (kernel[i] - 1), step.reason)
    return _steered(step, trace.permute([0, 3, 1, 2]), "x")


def _steered(step: Step, trace: Trace, main: str) -> Trace:
    """With what weights, biases or statistics computed from the image bring in: all of it."""
    others = [other for name in step.op.tensors if name != main if (other := step.optional(name)) is not None]
    if not any(other.depends for other in others):
        return trace
    return union([trace, collapse(others, trace.shape, step.reason)], trace.shape, step.reason)


def _transposed(
    trace: Trace, axis: int, size: int, kernel: int, stride: int, pad: int, dilation: int, reason: str
) -> Trace:
    """Position q of the result reads p where p * stride - pad + dilation * tap = q for some tap."""
    reads = []
    for q in range(size):
        taps = [q + pad - dilation * tap for tap in range(kernel)]
        hits = [tap // stride for tap in taps if tap % stride == 0]
        reads.append((min(hits), max(hits)) if hits else (1, 0))
    return _resampled(trace, axis, ratio(1, stride), reads, reason)


@rule(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices "
    "avg_pool1d avg_pool2d avg_pool3d mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool2d"
)
def pool(step: Step) -> list[Trace]:
    trace = step.tensor()
    rank = int(step.name.partition("pool")[2][0])
    kernel = _each(step.attr("kernel_size"), rank)
    stride = _each(step.attr("stride") or kernel, rank)
    pad, dilation = _each(step.attr("padding", 0), rank), _each(step.attr("dilation", 1), rank)
    first = len(trace.axes) - rank
    for i in range(rank):
        size = step.shape[first + i]
        reach = dilation[i] * (kernel[i] - 1) - pad[i]
        trace = trace.slide(first + i, size, stride[i], -pad[i], reach, step.reason)
    return [trace] * len(step.shapes)


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)


@rule(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
)
def adaptive_pool(step: Step) -> list[Trace]:
    """One position left sees all; else windows that the sizes decide."""
    trace = step.tensor()
    rank = int(step.name.partition("pool")[2][0])
    for axis in range(len(trace.axes) - rank, len(trace.axes)):
        have, want = trace.axes[axis].size, step.shape[axis]
        if want == 1:
            label = trace.solid(axis, step.reason).axes[axis].labels[0]
            trace = trace.mix([axis], step.reason).put(axis, Axis((Factor(1, label),)))
        elif want != have:
            reads = [(q * have // want, -(-(q + 1) * have // want) - 1) for q in range(want)]
            trace = _resampled(trace, axis, ratio(have, want), reads, step.reason)
    return [trace] * len(step.shapes)


@rule(
    "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d "
    "replication_pad3d"
)
def pad(step: Step) -> Trace:
    """Positions are added, or with negative numbers cut, at both ends; what fills them is called padding."""
    trace = step.tensor()
    amounts = step.attr("pad", step.attr("padding"))
    if step.name == "pad" and step.attr("mode") == "circular":
        return collapse([trace], step.shape, step.reason)
    for i in range(len(amounts) // 2):
        axis = len(trace.axes) - 1 - i
        before, after = amounts[2 * i : 2 * i + 2]
        if before or after:
            trace = trace.slide(axis, step.shape[axis], 1, -before, -before, step.reason)
    return trace


_NEAREST = "upsample_nearest1d upsample_nearest2d upsample_nearest3d"
_EXACT = "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"
_LINEAR = "upsample_linear1d upsample_bilinear2d upsample_trilinear3d"


@rule(f"{_NEAREST} {_EXACT} {_LINEAR} upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa")
def resample(step: Step) -> Trace:
    """Interpolation to another size: position q reads around (q + 1/2) * scale - 1/2."""
    trace = step.tensor()
    rank = int(step.name.removesuffix("_aa").removesuffix("d")[-1])
    for i in range(rank):
        axis = len(trace.axes) - rank + i
        have, want = trace.axes[axis].size, step.shape[axis]
        if have == want == 1:
            continue
        if have == 1:
            label = trace.solid(axis, step.reason).axes[axis].labels[0]
            trace = trace.put(axis, Axis((Factor(want, label),)))
            continue
        scale = _scale(step, i, rank, have, want)
        trace = _resampled(trace, axis, scale, _taps(step, scale, want), step.reason)
    return trace


def _scale(step: Step, i: int, rank: int, have: int, want: int) -> Number:
    """Old positions a new position."""
    if step.attr("align_corners", False):
        return ratio(have - 1, max(want - 1, 1))
    letters = {1: ("",), 2: ("_h", "_w"), 3: ("_d", "_h", "_w")}[rank]
    given = step.attr("scales") if rank == 1 else step.attr(f"scales{letters[i]}")
    factors = step.attr("scale_factors")
    given = factors[i] if factors else given
    if isinstance(given, (int, float)) and given > 0:
        exact = 1 / Fraction(given).limit_denominator(10_000)
        if abs(exact * want - have) < 1:  # else it was not this that decided the size
            return ratio(exact, 1)
    return ratio(have, want)


def _taps(step: Step, scale: Number, want: int) -> list[tuple[int, int]]:
    """The first and last old position that each new one is made of."""
    half = Fraction(1, 2)
    if step.name in _NEAREST.split():
        return [(math.floor(q * scale),) * 2 for q in range(want)]
    if step.name in _EXACT.split():
        return [(math.floor((q + half) * scale),) * 2 for q in range(want)]
    corners = step.attr("align_corners", False)
    centres = [q * scale if corners else (q + half) * scale - half for q in range(want)]
    cubic = "bicubic" in step.name
    if step.name.endswith("_aa"):
        support = (2 if cubic else 1) * max(scale, 1)
        return [(math.floor(c - support) + 1, math.ceil(c + support) - 1) for c in centres]
    before, after = (1, 2) if cubic else (0, 1)
    return [(math.floor(c) - before, math.floor(c) + after) for c in centres]


# -- mixing: reductions, normalization, products -------------------------------------------------------------


@rule(
    "mean sum amax amin prod norm linalg_vector_norm var std var_mean std_mean logsumexp all any max min "
    "argmax argmin "
    "median nanmean nansum count_nonzero aminmax mode"
)
def reduce(step: Step) -> list[Trace]:
    trace = step.tensor()
    if "other" in step.op.tensors and step.op.tensors["other"] is not None:
        return [union(step.inputs(), step.shape, step.reason)]  # torch.max(a, b)
    rank = len(trace.axes)
    dims = step.attr("dim", ())
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    axes = sorted({axis % rank for axis in dims} or set(range(rank)), reverse=True)
    mixed = trace.mix(axes, step.reason)
    for axis in axes:
        if len(step.shape) == rank:
            labels = mixed.axes[axis].labels
            mixed = mixed.put(axis, Axis((Factor(1, labels[0] if labels else ""),)))
        else:
            mixed = mixed.drop(axis)
    return [mixed] * len(step.shapes)


@rule("_softmax softmax _log_softmax log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp")
def softmax(step: Step) -> Trace:
    return step.tensor().mix([step.attr("dim") % len(step.shape)], step.reason, keep=True)


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "batch_norm "
    "miopen_batch_norm _batch_norm_with_update _batch_norm_no_update"
)
def batch_norm(step: Step) -> Trace:
    """With stored statistics, element by element; with those of the batch, over all positions."""
    trace = step.tensor("input")
    training = step.attr("training", step.attr("train", False)) or step.name == "_batch_norm_with_update"
    if training:
        trace = trace.mix([axis for axis in range(len(trace.axes)) if axis != 1], step.reason, keep=True)
    return _steered(step, trace, "input")


@rule("native_layer_norm layer_norm _fused_rms_norm rms_norm")
def layer_norm(step: Step) -> Trace:
    trace = step.tensor("input")
    rank = len(trace.axes)
    count = len(step.attr("normalized_shape"))
    return _steered(step, trace.mix(range(rank - count, rank), step.reason, keep=True), "input")


@rule("native_group_norm group_norm")
def group_norm(step: Step) -> Trace:
    trace = step.tensor("input")
    return _steered(step, trace.mix(range(1, len(trace.axes)), step.reason, keep=True), "input")


def _product(left: Trace, right: Trace, shape: Shape, reason: str) -> Trace:
    """[..., m, k] x [..., k, n]: m moves with the left factor, n with the right one, k is mixed."""
    rank = len(shape)
    m, n = left.axes[-2], right.axes[-1]
    if not left.depends:
        m = Axis((Factor(m.size, "channel"),))
    if not right.depends:
        n = Axis((Factor(n.size, "channel"),))
    parts = []
    if left.depends:
        parts.append(left.mix([rank - 1], reason).put(rank - 1, n))
    if right.depends:
        parts.append(right.mix([rank - 2], reason).put(rank - 2, m))
    return union(parts, shape, reason)


@rule("mm bmm matmul")
def product(step: Step) -> Trace:
    left, right = step.tensor(), step.tensor("mat2" if step.name != "matmul" else "other")
    if not len(left.axes) == len(right.axes) == len(step.shape) >= 2:
        return collapse([left, right], step.shape, step.reason)
    return _product(left, right, step.shape, step.reason)


@rule("addmm baddbmm _addmm_activation")
def added_product(step: Step) -> Trace:
    batched = step.name == "baddbmm"
    left, right = step.tensor("batch1" if batched else "mat1"), step.tensor("batch2" if batched else "mat2")
    return union([_product(left, right, step.shape, step.reason), step.tensor()], step.shape, step.reason)


@rule("linear")
def linear(step: Step) -> Trace:
    trace = step.tensor("input")
    if step.tensor("weight").depends or ((bias := step.optional("bias")) is not None and bias.depends):
        return collapse(step.inputs(), step.shape, step.reason)
    last = len(trace.axes) - 1
    return _channels(trace.mix([last], step.reason), last, step.shape[-1])


@rule(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps"
)
def attention(step: Step) -> Trace:
    """softmax(query x key) x value, by the rules of its parts."""
    query, key, value = step.tensor("query"), step.tensor("key"), step.tensor("value")
    rank = len(query.axes)
    turned = key.permute([*range(rank - 2), rank - 1, rank - 2])
    weights_shape = (*query.shape[:-1], key.shape[-2])
    if query.shape[:-2] != key.shape[:-2]:  # grouped queries
        return collapse([query, key, value], step.shape, step.reason)
    weights = _product(query, turned, weights_shape, step.reason).mix([rank - 1], step.reason, keep=True)
    mask = step.optional("attn_mask") or step.optional("attn_bias")
    if mask is not None and mask.depends:
        weights = union([weights, mask], weights_shape, step.reason)
    return _product(weights, value, step.shape, step.reason)


# -- memory shared with a tensor that an in-place operation changed ------------------------------------------


@rule("write")
def write(step: Step) -> Trace:
    """`base` after an operation wrote `part`, both on the same memory."""
    base, part = step.tensor("base"), step.tensor("part")
    here, there = step.op.attributes["base"], step.op.attributes["part"]
    if here == there:
        return part
    if base.shape == part.shape and _is_dense(here) and _is_dense(there) and here[1:] == there[1:]:
        return part
    if (
        _is_dense(here)
        and _is_dense(there)
        and here[2] == there[2]
        and math.prod(here[0]) == math.prod(there[0])
    ):
        return part.reshape(base.shape, step.reason)
    places = _places(here, there)
    if places is not None:  # part is a slice of base
        return union([base, _placed(part, base.shape, places, step.reason)], step.shape, step.reason)
    places = _places(there, here)
    if places is not None:  # base is a slice of part
        return _cut(part, base.shape, places, step.reason)
    return collapse([base, part], step.shape, step.reason)


_Geometry: TypeAlias = tuple[Shape, Shape, int]


def _is_dense(geometry: _Geometry) -> bool:
    sizes, strides, _ = geometry
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _places(outer: _Geometry, inner: _Geometry) -> list[tuple[int, int, int | None]] | None:
    """For each axis of outer: (start, step, axis of inner or None where one position was selected); None
    if unclear.
    """
    sizes, strides, offset = outer
    inner_sizes, inner_strides, inner_offset = inner
    if any(b <= a * size for (b, _), (a, size) in _pairs_by_stride(sizes, strides)) or 0 in strides:
        return None  # overlapping axes
    rest = inner_offset - offset
    starts = [0] * len(sizes)
    for axis in sorted(range(len(sizes)), key=lambda axis: -strides[axis]):
        starts[axis], rest = divmod(rest, strides[axis]) if sizes[axis] > 1 else (0, rest)
    if rest or any(not 0 <= start < size for start, size in zip(starts, sizes, strict=True)):
        return None
    found: list[tuple[int, int, int | None]] = [(start, 1, None) for start in starts]
    for position, (size, stride) in enumerate(zip(inner_sizes, inner_strides, strict=True)):
        if size == 1:
            continue
        fits = [
            axis
            for axis in range(len(sizes))
            if sizes[axis] > 1
            and found[axis][2] is None
            and stride % strides[axis] == 0
            and starts[axis] + (size - 1) * (stride // strides[axis]) < sizes[axis]
        ]
        if len(fits) != 1:
            fits = [axis for axis in fits if strides[axis] == stride]
        if len(fits) != 1:
            return None
        found[fits[0]] = (starts[fits[0]], stride // strides[fits[0]], position)
    return found


def _pairs_by_stride(sizes: Shape, strides: Shape) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Neighbouring (stride, size) pairs from small to large strides, larger first, of the axes longer than
    1.
    """
    ordered = sorted((stride, size) for stride, size in zip(strides, sizes, strict=True) if size > 1)
    return [(larger, (smaller[0], smaller[1] - 1)) for smaller, larger in pairwise(ordered)]


def _placed(part: Trace, shape: Shape, places: list[tuple[int, int, int | None]], reason: str) -> Trace:
    order = [position for _, _, position in places if position is not None]
    kept = [axis for axis in range(len(part.axes)) if axis in order]
    for axis in reversed(range(len(part.axes))):
        if axis not in kept:
            part = part.drop(axis)
    part = part.permute([kept.index(position) for position in order])
    for axis, (start, step, position) in enumerate(places):
        if position is None:
            part = part.insert(axis, Axis((Factor(shape[axis]),)))
        elif (start, step, part.axes[axis].size) != (0, 1, shape[axis]):
            moved = ratio(-start, step)
            part = part.slide(axis, shape[axis], ratio(1, step), moved, moved, reason)
    return part


def _cut(whole: Trace, shape: Shape, places: list[tuple[int, int, int | None]], reason: str) -> Trace:
    order: list[int] = []
    for axis in reversed(range(len(places))):
        start, step, position = places[axis]
        if position is None:
            whole = whole.select(axis, start)
        else:
            order.insert(0, position)
            whole = whole.slice(axis, start, shape[position], step, reason)
    whole = whole.permute([order.index(position) for position in sorted(order)])
    for axis in range(len(shape)):
        if axis not in order:
            whole = whole.insert(axis)
    return whole
