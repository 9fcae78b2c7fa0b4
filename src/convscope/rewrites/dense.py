"""Strides moved into dilation: a network evaluated at every position of a finer grid, computed once.

Where the features of a layer lie c pixels apart and shall lie a = gcd(c, stride) apart instead, the layer after it reads
every (c / a)-th of them: its kernel is dilated by c / a, its padding widened as much. Of its own stride only what the
grid still needs is kept. This is the "à trous" algorithm: Holschneider et al., "A real-time algorithm for signal analysis
with the help of the wavelet transform" (1989); for networks Giusti, Ciresan, Masci, Gambardella, Schmidhuber, "Fast image
scanning with deep max-pooling convolutional neural networks" (2013), and Sermanet et al., "OverFeat" (2014).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import nn as layers
from convscope.graph import Call, Graph, Op, record
from convscope.graph.rules import follow
from convscope.measures.receptive_field import ReceptiveField, field_of
from convscope.models import InputSpec
from convscope.rewrites.base import Refused, VerificationError
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.head import HeadConv2d

Pair = tuple[int, int]


@dataclass(frozen=True)
class Spread:
    """How one layer changes.

    Attributes:
        layer: its name.
        module: as it is.
        dilation: (height, width): how many times as far apart its taps come to lie.
        stride: the one it keeps.
        shape: of its input at the window's size.
    """

    layer: str
    module: nn.Module
    dilation: Pair
    stride: Pair
    shape: tuple[int, ...]

    @property
    def unchanged(self) -> bool:
        """Whether the layer may stay as it is."""
        named = isinstance(self.module, nn.Conv2d) and isinstance(_padding(self.module), str)
        return self.dilation == (1, 1) and self.stride == _pair(self.module.stride) and not named

    @property
    def padded(self) -> bool:
        """Whether it adds a border."""
        if isinstance(self.module, nn.Conv2d):
            return any(map(any, _plain(self.module).sides(self.shape[2:])))  # type: ignore[arg-type]
        return any(_pair(self.module.padding))

    def made(self) -> nn.Module:
        """The layer that replaces it, in float64.

        Raises:
            Refused: there is none.
        """
        if isinstance(self.module, nn.Conv2d):
            return self._convolution(self.module)
        part: Any = self.module
        kernel, padding, own = (
            _pair(part.kernel_size),
            _pair(part.padding),
            _pair(getattr(part, "dilation", 1)),
        )
        for n, k, s, p, d in zip(self.shape[2:], kernel, _pair(part.stride), padding, own, strict=True):
            if part.ceil_mode and (n + 2 * p - d * (k - 1) - 1) % s:
                raise Refused(f"layer {self.layer!r} lets its last window hang over the border (ceil_mode)")
        wider, apart = _times(padding, self.dilation), _times(own, self.dilation)
        if isinstance(part, nn.AvgPool2d):
            return self._average(part, kernel, padding, wider)
        if all(2 * p <= k for p, k in zip(wider, kernel, strict=True)):
            return nn.MaxPool2d(kernel, self.stride, wider, apart, part.return_indices)
        if part.return_indices:
            raise Refused(f"layer {self.layer!r} hands its indices to an unpooling")
        return DilatedMaxPool2d(kernel, self.stride, wider, apart)

    def _average(self, part: nn.AvgPool2d, kernel: Pair, padding: Pair, wider: Pair) -> nn.Module:
        if self.dilation == (1, 1):
            return nn.AvgPool2d(
                kernel, self.stride, padding, False, part.count_include_pad, part.divisor_override
            )
        channels = self.shape[1]  # torch's average pooling has no dilation: a depthwise convolution has
        weight = torch.full(
            (channels, 1, *kernel), 1 / (part.divisor_override or math.prod(kernel)), dtype=torch.float64
        )
        partial = not part.count_include_pad and padding != (0, 0) and not part.divisor_override
        sides = ((wider[0], wider[0]), (wider[1], wider[1]))
        mode = "partial" if partial else "zeros"
        return Convolution(
            weight, None, self.stride, sides, self.dilation, channels, mode, torch.device("cpu")
        ).module()

    def _convolution(self, part: nn.Conv2d) -> nn.Module:
        conv = _plain(part)
        sides = conv.sides(self.shape[2:])  # type: ignore[arg-type] # TensorFlow's "same" as it is for the window
        if conv.mode not in ("zeros", "partial") and any(map(any, sides)):
            raise Refused(f"layer {self.layer!r} pads by {conv.mode!r}, which has no place between windows")
        wider = tuple((a * d, b * d) for (a, b), d in zip(sides, self.dilation, strict=True))
        dilation = _times(conv.dilation, self.dilation)
        if not isinstance(part, HeadConv2d):
            return conv.with_(stride=self.stride, padding=wider, dilation=dilation).module()
        made = copy.deepcopy(part)
        made.stride, made.dilation = self.stride, dilation
        return made


class DilatedMaxPool2d(nn.MaxPool2d):
    """torch's max pooling with any padding; torch itself takes half of the kernel at most, however far it is dilated.

    Every window must hold at least one pixel of the map: those that lie in the padding alone give minus infinity.

    Example:
        >>> DilatedMaxPool2d(3, 1, 2, 2)(torch.arange(9.0).view(1, 1, 3, 3)).flatten()
        tensor([8., 7., 8., 5., 4., 5., 8., 7., 8.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to the same with another height and width."""
        down, right = _pair(self.padding)
        wide = functional.pad(input, (right, right, down, down), value=-math.inf)
        return functional.max_pool2d(wide, self.kernel_size, self.stride, 0, self.dilation)


HANDLED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
PLAIN = (nn.MaxPool2d, nn.AvgPool2d, layers.MaxPool2d, layers.AvgPool2d, DilatedMaxPool2d)


def spreads(module: nn.Module, spec: InputSpec, stride: Pair | None) -> tuple[list[Spread], Pair]:
    """How each layer changes so that the network's scores lie `stride` pixels apart, and the stride they have now.

    Args:
        module: a network that gives a map of scores for larger inputs.
        spec: the input of one window.
        stride: the wanted one, (height, width); None keeps it, and only makes paddings what they are for one window.

    Raises:
        Refused: the stride does not divide the network's, or some operation cannot be spread.
    """
    small = record(meta_copy(module), spec=spec)
    large = record(meta_copy(module), spec=spec.with_size(2 * spec.size[0], 2 * spec.size[1]))
    used = {value for op in large.ops for value in op.inputs} | set(large.calls[-1].outputs)
    fields = {k: field_of(trace) for k, trace in enumerate(follow(large)) if trace.depends and k in used}
    modules = dict(module.named_modules())
    leaves = {call.order: call for call in large.calls if isinstance(modules.get(call.name), HANDLED)}
    found: dict[str, Spread] = {}
    for op in large.ops:
        if owner(op, large, leaves) is None:
            check_local(op, fields)
    total = _stride(fields[large.calls[-1].outputs[0]], "the network")
    wanted = stride or total
    if any(n % s for n, s in zip(total, wanted, strict=True)):
        raise Refused(
            f"its scores lie {_by(total)} pixels apart, of which stride={_by(wanted)} is no divisor"
        )
    for call in sorted(leaves.values(), key=lambda call: call.order):
        part = modules[call.name]
        if not isinstance(part, nn.Conv2d) and type(part) not in PLAIN:
            raise Refused(f"layer {call.name!r} is a {type(part).__name__}, which cannot be spread")
        before = _stride(fields[call.inputs[0]], call.name)
        own = _pair(part.stride)
        now = _gcd(before, wanted)
        kept = _over(_gcd(_times(before, own), wanted), now)
        apart = _over(before, now)
        if not isinstance(part.padding, str) and not any(_pair(part.padding)):  # one tap has no distance
            kernel = _pair(part.kernel_size)
            apart = (apart[0] if kernel[0] > 1 else 1, apart[1] if kernel[1] > 1 else 1)
        shape = small.call(f"{call.name}#{call.index}").in_shapes[0]
        one = Spread(call.name, part, apart, kept, shape)
        if found.setdefault(call.name, one) != one:
            raise Refused(f"layer {call.name!r} is called on maps of several strides or sizes")
    return list(found.values()), total


def check_local(op: Op, fields: Mapping[int, ReceptiveField]) -> None:
    """An operation outside of the layers that are spread must leave every position alone.

    Raises:
        Refused: it mixes positions.
    """
    before = [fields[value] for value in op.inputs if value in fields]
    for after in (fields[value] for value in op.outputs if value in fields):
        name = f"{op.name.rpartition('.')[2]} in {op.module or 'forward'!r}"
        if any(after.whole):
            raise Refused(f"{name} sees the whole map, not one window")
        for axis in range(len(after.size)):
            starts = [-each.padding[axis] for each in before]
            stops = [each.size[axis] - each.padding[axis] for each in before]
            moved = any(each.stride[axis] != after.stride[axis] for each in before)
            start = -after.padding[axis]
            if moved or start < min(starts) or start + after.size[axis] > max(stops):
                raise Refused(f"{name} mixes positions outside of a layer that can be spread")


def owner(op: Op, graph: Graph, leaves: Mapping[int, Call]) -> Call | None:
    at = op.call
    while at is not None:
        if at in leaves:
            return leaves[at]
        at = graph.calls[at].parent
    return None


def _stride(field: ReceptiveField, name: str) -> Pair:
    if any(field.whole) or not all(isinstance(step, int) and step > 0 for step in field.stride):
        raise Refused(f"{name!r} does not move over the image in whole steps")
    return int(field.stride[0]), int(field.stride[1])


def crops_differ(
    before: nn.Module, after: nn.Module, images: Tensor, window: Pair, stride: Pair, most: int
) -> tuple[float, float, int]:
    """Scores computed once, against those of windows cut out one by one: (largest, r.m.s., windows), relative.

    Args:
        before: gives [1, classes] for a window.
        after: gives [1, classes, rows, columns] for an image.
        images: [image, channel, height, width], float64.
        window: height and width.
        stride: pixels between windows.
        most: windows of each image that are tried: the corners, and evenly between.

    Raises:
        VerificationError: there are not as many scores as windows.
    """
    worst = squares = power = 0.0
    tried = 0
    with torch.no_grad():
        for image in images.split(1):
            scores = after(image)  # [1, classes, rows, columns]
            grid = [(n - w) // s + 1 for n, w, s in zip(image.shape[2:], window, stride, strict=True)]
            if list(scores.shape[2:]) != grid:
                raise VerificationError(
                    f"scores of shape {list(scores.shape)} for {_by((grid[0], grid[1]))} windows."
                )
            every = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
            count = min(most, len(every))
            for k in range(count):
                i, j = every[k * (len(every) - 1) // max(count - 1, 1)]
                top, left = i * stride[0], j * stride[1]
                expected = before(image[:, :, top : top + window[0], left : left + window[1]])
                difference = scores[:, :, i, j] - expected
                worst = max(worst, float(difference.abs().max() / expected.abs().max().clamp_min(1e-30)))
                squares += float(difference.square().sum())
                power += float(expected.square().sum())
                tried += 1
    return worst, math.sqrt(squares / max(power, 1e-60)), tried


def layer_differs(one: Spread, made: nn.Module) -> float:
    """How far a spread layer is from the layer itself on every grid that it interleaves, relative to the maximum.

    Random input; both at the natural grid of a corner position, and at the next one.
    """
    step = _times(one.dilation, (1, 1))
    own = _pair(one.module.stride)
    kernel, dilation = _pair(one.module.kernel_size), _pair(getattr(one.module, "dilation", 1))
    size = [d * ((k - 1) * e + 1 + 2 * s) for d, k, e, s in zip(step, kernel, dilation, own, strict=True)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, one.shape[1], *size, generator=generator, dtype=torch.float64)
    fixed = Spread(one.layer, one.module, (1, 1), own, one.shape).made()
    apart = [d * s // kept for d, s, kept in zip(step, own, one.stride, strict=True)]
    worst = 0.0
    with torch.no_grad():
        y = _map(made(x))
        for start in {(0, 0), tuple(int(n > 1) for n in apart)}:
            shift = [a * s for a, s in zip(start, one.stride, strict=True)]
            if any(n >= d for n, d in zip(shift, step, strict=True)) and shift != [0, 0]:
                continue  # the layer's own stride skips it: no grid of its own
            expected = _map(fixed(x[:, :, shift[0] :: step[0], shift[1] :: step[1]]))
            got = y[:, :, start[0] :: apart[0], start[1] :: apart[1]]
            rows, columns = (min(a, b) for a, b in zip(got.shape[2:], expected.shape[2:], strict=True))
            got, expected = got[:, :, :rows, :columns], expected[:, :, :rows, :columns]
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)))
    return worst


def _map(y: Tensor) -> Tensor:
    return y if y.ndim == 4 else y[:, :, None, None]


def put(module: nn.Module, layer: str, made: nn.Module) -> None:
    """Puts a module in a layer's place under every name that it has."""
    old = module.get_submodule(layer)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = made


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy without values, for shapes alone."""
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.detach().to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # traced modules rebuild themselves with deprecated calls
        return copy.deepcopy(module, memo)


def _padding(part: nn.Conv2d) -> Any:
    return (0, 0) if isinstance(part, HeadConv2d) else _plain(part).padding


def _plain(part: nn.Conv2d) -> Convolution:
    if not isinstance(part, HeadConv2d):
        return Convolution.of(part)
    bias = None if part.bias is None else part.bias.detach()
    none = ((0, 0), (0, 0))
    weight = part.weight.detach()
    return Convolution(
        weight, bias, _pair(part.stride), none, _pair(part.dilation), 1, "zeros", weight.device
    )


def _pair(value: Any) -> Pair:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _times(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0], a[1] * b[1]


def _over(a: Pair, b: Pair) -> Pair:
    return a[0] // b[0], a[1] // b[1]


def _gcd(a: Pair, b: Pair) -> Pair:
    return math.gcd(a[0], b[0]), math.gcd(a[1], b[1])


def _by(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
