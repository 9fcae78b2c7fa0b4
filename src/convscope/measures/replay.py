"""The executed graph run again on what each position reads, in place of numbers: how often, or whether it is padding.

Channels of one position are alike but for what
they read, so a convolution works on their mean (or whether any did), whatever its weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from convscope.graph import Graph, Op
from convscope.graph.rules import RULES, Step, follow, pointwise
from convscope.graph.trace import Trace
from convscope.measures.readings import Algebra
from convscope.measures.windows import CONVOLUTIONS, windows, words

_SHAPES = words("view _unsafe_view reshape _reshape_alias flatten unflatten")
_MOVES = words(
    "permute transpose t unsqueeze squeeze repeat slice narrow select split split_with_sizes chunk unsafe_split "
    "tensor_split unbind unfold flip roll pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle"
)
_SUMS = words("add sub rsub")
_PRODUCTS = {  # the factors of a matrix product, and what is added to it
    "mm": ("self", "mat2", ""),
    "bmm": ("self", "mat2", ""),
    "matmul": ("self", "other", ""),
    "addmm": ("mat1", "mat2", "self"),
    "_addmm_activation": ("mat1", "mat2", "self"),
    "baddbmm": ("batch1", "batch2", "self"),
}


def replay(
    graph: Graph,
    algebra: Algebra,
    start: Tensor,
    wanted: Collection[int],
    *,
    source: int | None = None,
    ops: Sequence[Op] | None = None,
    local: bool = True,
    on_value: Callable[[int, Tensor], None] | None = None,
) -> dict[int, Tensor]:
    """Readings of the wanted values.

    Args:
        graph: the recording.
        algebra: `Counting()` or `Touching()`.
        start: readings of the source; broadcasts to its shape.
        wanted: value numbers.
        source: value number to start from; the network's first input by default.
        ops: the operations to go through; all by default.
        local: whether paths that see the whole image (gates, attention) are left out wherever a local one is beside
            them.
        on_value: called with each wanted value as it is made; then nothing is returned.

    Raises:
        RequestError: an operation that the algebra refuses is on the way.
    """
    run = _Replay(graph, algebra, local)
    source = graph.inputs[0] if source is None else source
    run.values[source] = start.expand(graph.values[source].shape)
    steps = list(graph.ops if ops is None else ops)
    last = {index: number for number, op in enumerate(steps) for index in op.inputs}
    missing = set(wanted)
    found: dict[int, Tensor] = {}

    def emit(indices: Collection[int]) -> None:
        for index in indices:
            if index in missing and index in run.values:
                missing.discard(index)
                if on_value is None:
                    found[index] = run.values[index]
                else:
                    on_value(index, run.values[index])

    emit([source])
    for number, op in enumerate(steps):
        if not missing:
            break
        run.step(op)
        emit(op.outputs)
        for index in (*op.inputs, *op.outputs):  # activations are freed as in a plain forward pass
            if last.get(index, -1) <= number:
                run.values.pop(index, None)
    return found


class _Replay:
    def __init__(self, graph: Graph, algebra: Algebra, local: bool) -> None:
        self.graph = graph
        self.algebra = algebra
        self.local = local
        self.traces = follow(graph)
        self.values: dict[int, Tensor] = {}

    def step(self, op: Op) -> None:
        reads = any(index in self.values for index in op.inputs)
        if not reads or not any(self.traces[index].depends for index in op.outputs):
            return
        shapes = tuple(self.graph.values[index].shape for index in op.outputs)
        step = Step(op, self.traces, shapes)
        result = self._result(step)
        results = list(result) if isinstance(result, (list, tuple)) else [result] * len(op.outputs)
        for index, shape, value in zip(op.outputs, shapes, results, strict=True):
            if not self.traces[index].depends:
                continue
            if value.shape != shape:  # side results: indices, statistics
                value = self.algebra.gather(value, range(value.ndim), value.numel()).reshape([1] * len(shape))
            self.values[index] = value.expand(shape)

    def _get(self, step: Step, name: str) -> Tensor | None:
        index = step.op.tensors.get(name)
        return self.values.get(index) if isinstance(index, int) else None

    def _parts(self, step: Step) -> list[Tensor]:
        """The dependent arguments, without the global ones where local ones are beside them."""
        indices = [index for index in step.op.inputs if index in self.values]
        if self.local:
            near = [index for index in indices if self._is_local(index)]
            indices = near or indices
        return [self.values[index] for index in indices]

    def _is_local(self, index: int) -> bool:
        return _has_windows(self.traces[index])

    def _result(self, step: Step) -> Any:
        name = step.name
        if name in CONVOLUTIONS:
            return self._convolution(step)
        along = windows(step)
        if along is not None:
            x = self._get(step, "self")
            assert x is not None
            keep = {part.axis for part in along}
            return _wide(self.algebra.slide(thin(x, keep), along), step.shape)
        if name in _SHAPES:
            return self.values[step.op.inputs[0]].reshape(step.shape)
        if name in _MOVES:
            return self._native(step)
        handler = _HANDLERS.get(name)
        if handler is not None:
            return handler(self, step)
        if step.op.pointwise or RULES.get(name) is pointwise:
            return self._pointwise(step)
        return _wide(self._unknown(step), step.shape)

    def _unknown(self, step: Step) -> Tensor:
        return self.algebra.unknown(self._parts(step), step).reshape([1] * len(step.shape))

    def _native(self, step: Step) -> Any:
        """An operation that only moves elements does the same with their readings."""
        namespace, _, name = step.op.name.partition(".")
        packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"))
        function = getattr(packet, step.op.overload or "default")
        tensors = {key: self._get(step, key) for key in step.op.tensors}
        if "shuffle" in name:
            tensors = {key: x if x is None else x.contiguous() for key, x in tensors.items()}
        return function(**tensors, **step.op.attributes)

    def _pointwise(self, step: Step) -> Tensor:
        parts = [thin(part) for part in self._parts(step)]
        combined = self.algebra.sum(parts) if step.name in _SUMS else self.algebra.product(parts)
        return _wide(combined, step.shape)

    def _convolution(self, step: Step) -> Tensor:
        along = windows(step)
        x = self._get(step, "input")
        assert along is not None
        if x is None:  # only its weights depend on the image
            return _wide(self._unknown(step), step.shape)
        batched = x.ndim == len(step.tensor("weight").axes)
        channel = 1 if batched else 0
        groups, wide = step.attr("groups", 1), step.shape[channel]
        x = thin(x, {part.axis for part in along})
        if x.shape[channel] > 1:
            places = x.shape[channel] // _alike(step.tensor("input"), channel)  # of an unfolded window
            grouped = x.unflatten(channel, (groups, x.shape[channel] // groups))
            alike = max(grouped.shape[channel + 1] // places, 1)
            x = self.algebra.gather(grouped, [channel + 1], alike).squeeze(channel + 1)
        x = self.algebra.slide(x, along)  # [batch, group or 1, *space]
        if x.shape[channel] > 1:
            x = x.repeat_interleave(wide // groups, channel)
        return self._steered(step, _wide(x, step.shape), "input")

    def _steered(self, step: Step, x: Tensor, main: str) -> Tensor:
        """With what weights or statistics computed from the image bring in."""
        others = [
            value for key in step.op.tensors if key != main and (value := self._get(step, key)) is not None
        ]
        index = step.op.tensors[main]
        if not others or (self.local and isinstance(index, int) and self._is_local(index)):
            return x
        flat = [self.algebra.gather(other, range(other.ndim), other.numel()) for other in others]
        return self.algebra.sum([x, *(part.reshape([1] * x.ndim) for part in flat)])

    def _mixed(self, step: Step, main: str, axes: Sequence[int]) -> Tensor:
        """An element keeps its own readings and takes in those of all along some axes."""
        x = self._get(step, main)
        if x is None:
            return _wide(self._unknown(step), step.shape)
        index = step.op.tensors[main]
        assert isinstance(index, int)
        if axes and not self.local:
            x = self.algebra.product([x, self._gather(x, self.traces[index], axes)]).expand(x.shape)
        return self._steered(step, x, main)

    def _gather(self, x: Tensor, trace: Trace, axes: Sequence[int], adds: bool = False) -> Tensor:
        """All along some axes; `adds`: what is stacked there is added up, so it counts as often."""
        alike = 1
        for axis in axes:
            part = trace.axes[axis]
            if adds and not any(label in ("batch", "channel") for label in part.labels):
                continue
            same = _alike(trace, axis)
            if x.stride(axis) == 0 and (same == part.size or self.local):
                x = x.narrow(axis, 0, 1)  # one and the same all along: no mean needed
            else:
                alike *= same
        return self.algebra.gather(x, axes, alike)


def _alike(trace: Trace, axis: int) -> int:
    """How many elements along an axis are channels of one place: not positions, nor places in a window."""
    return math.prod(
        factor.size
        for number, factor in enumerate(trace.axes[axis].factors)
        if not isinstance(factor.label, int)
        and not any(steps[axis][number] for reach in trace.reach for steps in reach.windows)
    )


def _has_windows(trace: Trace) -> bool:
    """Whether there is a local path along every axis of the image."""
    return trace.depends and all(part.windows for part in trace.reach)


def _mixed_along(trace: Trace, axis: int) -> Trace:
    return trace.mix([axis % len(trace.axes)], "") if trace.depends else trace


def thin(x: Tensor, keep: Collection[int] = ()) -> Tensor:
    """With size 1 along the axes whose elements are one and the same."""
    for axis in range(x.ndim):
        if axis not in keep and x.stride(axis) == 0 and x.shape[axis] > 1:
            x = x.narrow(axis, 0, 1)
    return x


def _wide(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.expand(tuple(shape))


# -- operations with a way of their own ----------------------------------------------------------------------


def _reduce(run: _Replay, step: Step) -> Any:
    if "other" in step.op.tensors:  # torch.max(a, b)
        return run._pointwise(step)
    x = run._get(step, "self")
    assert x is not None
    dims = step.attr("dim", ())
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    axes = sorted({axis % x.ndim for axis in dims}) or list(range(x.ndim))
    adds = step.name in ("sum", "nansum")
    return [run._gather(x, step.tensor(), axes, adds).reshape(shape) for shape in step.shapes]


def _softmax(run: _Replay, step: Step) -> Tensor:
    return run._mixed(step, "self", [step.attr("dim") % len(step.shape)])


def _batch_norm(run: _Replay, step: Step) -> Any:
    training = step.attr("training", step.attr("train", False)) or step.name == "_batch_norm_with_update"
    axes = [axis for axis in range(len(step.shape)) if axis != 1] if training else []
    return _with_statistics(run, step, axes)


def _layer_norm(run: _Replay, step: Step) -> Any:
    rank = len(step.shape)
    return _with_statistics(run, step, range(rank - len(step.attr("normalized_shape")), rank))


def _group_norm(run: _Replay, step: Step) -> Any:
    return _with_statistics(run, step, range(1, len(step.shape)))


def _with_statistics(run: _Replay, step: Step, axes: Sequence[int]) -> list[Tensor]:
    return [run._mixed(step, "input", axes)] * len(step.shapes)


def _product(run: _Replay, step: Step) -> Tensor:
    left, right, added = _PRODUCTS[step.name]
    return _multiplied(run, step, [(left, -1), (right, -2)], added)


def _linear(run: _Replay, step: Step) -> Tensor:
    return _multiplied(run, step, [("input", -1), ("weight", None), ("bias", None)], "")


def _attention(run: _Replay, step: Step) -> Tensor:
    """Its own path is the query's: keys and values of all positions come in through the weights."""
    return _multiplied(run, step, [("query", -1), ("key", None), ("value", -2)], "")


def _multiplied(run: _Replay, step: Step, factors: Sequence[tuple[str, int | None]], added: str) -> Tensor:
    """A matrix product reads each factor along its inner axis, here kept with size 1; None: all of it."""
    names: list[tuple[str, int | None]] = [
        (name, axis) for name, axis in factors if run._get(step, name) is not None
    ]
    if run.local:  # what is gathered over positions is local no more
        near: list[tuple[str, int | None]] = [
            (name, axis)
            for name, axis in names
            if axis is not None and _has_windows(_mixed_along(run.traces[_index(step, name)], axis))
        ]
        names = (
            near[:1] or names
        )  # of attention's weights, the query's path: the key's ends in the next product
    parts = []
    for name, axis in names:
        x = run._get(step, name)
        assert x is not None
        trace = run.traces[_index(step, name)]
        axes = range(x.ndim) if axis is None else [axis % x.ndim]
        part = run._gather(x, trace, axes)
        parts.append(part if axis is not None else part.reshape([1] * len(step.shape)))
    extra = run._get(step, added) if added else None
    if extra is not None:
        parts.append(extra)
    return _wide(run.algebra.sum(parts), step.shape)


def _index(step: Step, name: str) -> int:
    index = step.op.tensors[name]
    assert isinstance(index, int)
    return index


def _cat(run: _Replay, step: Step) -> Tensor:
    indices = step.op.tensors["tensors"]
    assert isinstance(indices, tuple)
    axis = step.attr("dim", 0) % len(step.shape)
    stack = step.name == "stack"
    some = next(
        value for index in indices if index is not None and (value := run.values.get(index)) is not None
    )
    pieces = []
    for index in indices:
        if index is None or math.prod(run.graph.values[index].shape) == 0:
            continue
        value = run.values.get(index)
        if value is None:  # a constant set beside the image is padding
            value = some.new_zeros(()).expand(run.graph.values[index].shape)
            if not stack and _sides(run, step, axis):
                value = run.algebra.blank(value, torch.ones_like(value, dtype=torch.bool))
        pieces.append(value)
    return torch.stack(pieces, axis) if stack else torch.cat(pieces, axis)


def _sides(run: _Replay, step: Step, axis: int) -> bool:
    """Whether an axis runs along the image alone: not over tokens, beside which class tokens are set."""
    labels = run.traces[step.op.outputs[0]].axes[axis].labels
    return sum(isinstance(label, int) for label in labels) == 1


def _expand(run: _Replay, step: Step) -> Tensor:
    return _wide(run._parts(step)[0], step.shape)


def _copy(run: _Replay, step: Step) -> Tensor:
    source = run._get(step, "src")
    # copied over with a constant: nothing of the image is left
    some = next(iter(run.values.values()))
    return some.new_zeros(()).expand(step.shape) if source is None else _wide(source, step.shape)


def _picked(run: _Replay, step: Step) -> Tensor:
    """By constant indices along one axis, whose values the recording does not keep: fine among channels."""
    x = run._get(step, "self")
    indices = step.op.tensors.get("indices")
    listed = indices if isinstance(indices, tuple) else None
    used = (
        [step.attr("dim") % len(step.shape)]
        if listed is None
        else [a for a, item in enumerate(listed) if item is not None]
    )
    known = [item for item in (listed or (step.op.tensors.get("index"),)) if isinstance(item, int)]
    trace = step.tensor()
    if x is None or len(used) != 1 or trace.axes[used[0]].is_spatial or any(i in run.values for i in known):
        return _wide(run._unknown(step), step.shape)
    mixed = run._gather(x, trace, used)
    had = len(run.graph.values[known[0]].shape) if listed is not None else 1
    for _ in range(had - 1):
        mixed = mixed.unsqueeze(used[0])
    return _wide(mixed if had else mixed.squeeze(used[0]), step.shape)


def _embedding(run: _Replay, step: Step) -> Tensor:
    x = run._get(step, "indices")
    return _wide(run._unknown(step) if x is None else x.unsqueeze(-1), step.shape)


def _im2col(run: _Replay, step: Step) -> Tensor:
    x = run._get(step, "self")
    if x is None or x.ndim != 4:
        return _wide(run._unknown(step), step.shape)
    rows, columns = step.attr("padding")
    framed = torch.nn.functional.pad(x, (columns, columns, rows, rows))
    inside = torch.nn.functional.pad(torch.ones_like(x[:1, :1]), (columns, columns, rows, rows))
    framed = run.algebra.blank(framed, inside == 0)
    return torch.nn.functional.unfold(
        framed, step.attr("kernel_size"), step.attr("dilation"), 0, step.attr("stride")
    )


def _write(run: _Replay, step: Step) -> Tensor:
    """`base` after an operation wrote `part`, both on the same memory."""
    here, there = step.op.attributes["base"], step.op.attributes["part"]
    base, part = run._get(step, "base"), run._get(step, "part")
    if part is not None and here == there:
        return part
    some = base if base is not None else part
    assert some is not None
    room = 1 + max(
        offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        for sizes, strides, offset in (here, there)
    )
    memory = some.new_zeros(room)
    if base is not None:
        memory = torch.as_strided_scatter(memory, base, *here)
    new = memory.new_zeros(()).expand(there[0]) if part is None else part
    result = torch.as_strided_scatter(memory, new, *there).as_strided(*here)
    if base is None:  # a constant frame about the image
        covered = torch.as_strided_scatter(memory.new_zeros(room), torch.ones_like(new), *there)
        axes = run.traces[step.op.outputs[0]].axes
        others = [axis for axis in range(len(axes)) if not axes[axis].is_spatial]
        seen = covered.as_strided(*here)
        bare = (seen.amax(others, keepdim=True) if others else seen) == 0
        result = run.algebra.blank(result, bare)
    return result


def _as_strided(run: _Replay, step: Step) -> Tensor:
    x = run._get(step, "self")
    assert x is not None
    sizes, strides, offset = step.op.attributes["before"]
    room = 1 + offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    start = step.attr("storage_offset", offset)
    need = (
        1
        + start
        + sum((size - 1) * stride for size, stride in zip(step.shape, step.attr("stride"), strict=True))
    )
    memory = torch.as_strided_scatter(x.new_zeros(max(room, need)), x, sizes, strides, offset)
    return memory.as_strided(step.shape, step.attr("stride"), start)


_HANDLERS: dict[str, Callable[[_Replay, Step], Any]] = {
    **dict.fromkeys(
        words(
            "mean sum amax amin prod norm linalg_vector_norm var std var_mean std_mean logsumexp all any max min argmax "
            "argmin median nanmean nansum count_nonzero aminmax mode"
        ),
        _reduce,
    ),
    **dict.fromkeys(words("_softmax softmax _log_softmax log_softmax _safe_softmax"), _softmax),
    **dict.fromkeys(
        words(
            "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm batch_norm "
            "miopen_batch_norm _batch_norm_with_update _batch_norm_no_update"
        ),
        _batch_norm,
    ),
    **dict.fromkeys(words("native_layer_norm layer_norm _fused_rms_norm rms_norm"), _layer_norm),
    **dict.fromkeys(words("native_group_norm group_norm"), _group_norm),
    **dict.fromkeys(_PRODUCTS, _product),
    "linear": _linear,
    **dict.fromkeys([name for name in RULES if "dot_product" in name], _attention),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _cat),
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    "copy": _copy,
    **dict.fromkeys(("index", "index_select"), _picked),
    "embedding": _embedding,
    "im2col": _im2col,
    "write": _write,
    "as_strided": _as_strided,
}
