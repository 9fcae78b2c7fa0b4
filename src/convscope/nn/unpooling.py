"""Max pooling that remembers where its maxima were, and the unpooling that puts them back there.

The two know each other: `MaxUnpool2d(pool)` takes the switches that `pool` left behind, so that an encoder and a
decoder can be any modules, with nothing handed from one to the other:

    pool = SwitchedMaxPool2d(2)
    net = nn.Sequential(encoder, pool, middle, MaxUnpool2d(pool), decoder)

What waits to be taken is kept for each thread, each pair and each pooled shape, one set of switches at a time. Two
batches in flight at once (both pooled before the first is unpooled) are kept apart by a `SwitchMemory` each, or by
handing the switches over: `y, switches = pool.pool(x)`, `unpool(y, switches)`. Where it cannot be told whose switches
are meant, unpooling raises `UnpairedSwitches`; it never guesses.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import BadInput, RequestError, UnpairedSwitches
from convscope.nn.geometry import Size, out_size, whole_numbers
from convscope.nn.interpolation import image_batch


class Switches(NamedTuple):
    """Where the maxima of one pooling were.

    Attributes:
        indices: of the shape of the pooled output, int64: row times width plus column of each maximum.
        size: height and width of the input of the pooling.
    """

    indices: Tensor
    size: tuple[int, int]


# ---------------------------------------------------------------- who waits for whom


@dataclass
class _Waiting:
    switches: Switches
    poolings: int = 1  # of this shape since the last was taken; only one can be told whose it is


class _Slots:
    """The switches of one pair that wait to be taken: the latest of each pooled shape."""

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []
        self.taken = False  # whether any ever was

    def put(self, switches: Switches) -> None:
        for waiting in self.waiting:
            if waiting.switches.indices.shape == switches.indices.shape:
                waiting.switches = switches
                waiting.poolings += 1
                return
        self.waiting.append(_Waiting(switches))

    def take(self, shape: torch.Size, keep: bool, who: str) -> Switches:
        for at, waiting in enumerate(self.waiting):
            if waiting.switches.indices.shape == shape:
                if not keep or waiting.poolings > 1:
                    del self.waiting[at]
                if waiting.poolings > 1:
                    raise UnpairedSwitches(_ambiguous(who, shape, waiting.poolings))
                self.taken = True
                return waiting.switches
        raise UnpairedSwitches(self._missing(who, shape))

    def _missing(self, who: str, shape: torch.Size) -> str:
        shapes = ", ".join(str(tuple(waiting.switches.indices.shape)) for waiting in self.waiting)
        if shapes:
            return (
                f"MaxUnpool2d was given an input of shape {tuple(shape)}, but {who} pooled to {shapes}; what is "
                f"unpooled must have the shape that was pooled to."
            )
        if self.taken:
            return (
                f"MaxUnpool2d found that the switches of {who} were taken already; run the pool before each "
                f"unpooling, or give every MaxUnpool2d that shares it, but the last to run, keep=True."
            )
        return (
            f"MaxUnpool2d waits for switches of {who}, which has not pooled in this thread and SwitchMemory (nor in this "
            f"pass of a checkpoint's recomputation); run it first, or hand the switches over as a second argument."
        )


def _ambiguous(who: str, shape: torch.Size, poolings: int) -> str:
    return (
        f"{who} pooled {poolings} batches to {tuple(shape)} before MaxUnpool2d took the switches of one, so it cannot be told "
        f"whose are meant; they are forgotten now. Keep batches apart by a SwitchMemory each, or call forget() on the "
        f"pool after a pass that unpools nothing."
    )


class _Default(threading.local):
    """The slots of one pair in one thread, outside any SwitchMemory."""

    def __init__(self) -> None:
        self.forward = _Slots()
        self.backward = _Slots()  # of passes recomputed while a gradient is computed (checkpointing)
        self.task = -1  # the gradient computation that `backward` belongs to

    def slots(self) -> _Slots:
        if torch.compiler.is_compiling():
            return self.forward
        task = torch._C._current_graph_task_id()  # -1 outside a gradient computation
        if task == -1:
            return self.forward
        if task != self.task:  # what an earlier recomputation left behind is nobody's
            self.backward, self.task = _Slots(), task
        return self.backward


class _Pair:
    """What a pool and its unpoolings have in common: an identity, and what waits between them.

    Copying or pickling a network makes a new pair, the same one for all modules of the copy; nothing waits in it.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.default = _Default()

    def __reduce__(self) -> tuple[type[_Pair], tuple[str]]:
        return _Pair, (self.pool,)

    def slots(self) -> _Slots:
        active = _ACTIVE.memories
        return active[-1].slots(self) if active else self.default.slots()


class _Active(threading.local):
    def __init__(self) -> None:
        self.memories: list[SwitchMemory] = []


_ACTIVE = _Active()


class SwitchMemory:
    """Keeps the switches of one batch apart from those of others that are in flight at the same time.

    Inside `with memory:` all pools of this thread remember in it and all unpoolings look in it alone. It can be
    entered again, later and in another thread: that is how a batch is unpooled after others were pooled.

    Example:
        >>> pool = SwitchedMaxPool2d(2)
        >>> unpool = MaxUnpool2d(pool)
        >>> first, second = SwitchMemory(), SwitchMemory()
        >>> with first:
        ...     a = pool(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> with second:
        ...     b = pool(torch.tensor([[[0.0, 0.0], [0.0, 2.0]]]))
        >>> with first:
        ...     unpool(a)
        tensor([[[1., 0.],
                 [0., 0.]]])
    """

    def __init__(self) -> None:
        self._slots: dict[_Pair, _Slots] = {}

    def slots(self, pair: _Pair) -> _Slots:
        """What waits here between a pool and its unpoolings."""
        return self._slots.setdefault(pair, _Slots())

    def __enter__(self) -> SwitchMemory:
        _ACTIVE.memories.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _ACTIVE.memories.pop()


# ---------------------------------------------------------------- the layers


class SwitchedMaxPool2d(nn.Module):
    """Max pooling that remembers the place of each maximum for its `MaxUnpool2d`.

    For an input `[batch, channels, height, width]`, or one without batch, each axis of the output has

        size' = floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1

    positions (the ceiling with `ceil_mode`, as long as a window starts on the image or the padding before it): those
    of `torch.nn.MaxPool2d`.

    - Parameters: none.
    - MACs: none; kernel_h kernel_w comparisons an output. The switches take 8 bytes an output until they are taken.

    Args:
        kernel_size: one number, or (height, width).
        stride: one number, or one an axis; the kernel's where it is None.
        padding: one number, or one an axis, at most half the kernel; never the maximum.
        dilation: distance between pixels of a window.
        ceil_mode: whether a window may reach over the end.

    Raises:
        RequestError: an argument is wrong; it is a ValueError.

    Example:
        >>> pool = SwitchedMaxPool2d(2)
        >>> pool(torch.tensor([[[1.0, 2.0, 8.0, 7.0], [4.0, 3.0, 5.0, 6.0]]]))
        tensor([[[4., 8.]]])
        >>> MaxUnpool2d(pool)(torch.tensor([[[10.0, 20.0]]]))
        tensor([[[ 0.,  0., 20.,  0.],
                 [10.,  0.,  0.,  0.]]])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = whole_numbers(kernel_size, 2, "kernel_size")
        self.stride = self.kernel_size if stride is None else whole_numbers(stride, 2, "stride")
        self.padding = whole_numbers(padding, 2, "padding", least=0)
        self.dilation = whole_numbers(dilation, 2, "dilation")
        self.ceil_mode = ceil_mode
        if any(2 * pad > kernel for pad, kernel in zip(self.padding, self.kernel_size, strict=True)):
            raise RequestError(
                f"padding={padding!r} must be at most half of kernel_size={kernel_size!r}, or a window could lie on "
                f"padding alone."
            )
        self.pair = _Pair(repr(self))

    def forward(self, x: Tensor) -> Tensor:
        y, switches = self.pool(x)
        self.pair.slots().put(switches)
        return y

    def pool(self, x: Tensor) -> tuple[Tensor, Switches]:
        """The pooled input and its switches, to hand to `MaxUnpool2d` as a second argument; nothing is remembered.

        Raises:
            BadInput: the input is no image or batch of images.
        """
        image_batch(x, self)
        y, indices = functional.max_pool2d_with_indices(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return y, Switches(indices, (x.shape[-2], x.shape[-1]))

    def forget(self) -> None:
        """Drops what waits to be unpooled in this thread, or in the `SwitchMemory` that is entered."""
        self.pair.slots().waiting.clear()

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """Height and width of the output for an input of this height and width.

        Raises:
            RequestError: the window is larger than the padded input.
        """
        size = whole_numbers(input_size, 2, "input_size")
        sides = tuple((pad, pad) for pad in self.padding)
        whole = out_size(size, self.kernel_size, self.stride, self.dilation, sides)
        return tuple(map(self._ceiled, range(2), size, whole)) if self.ceil_mode else whole

    def _ceiled(self, axis: int, size: int, whole: int) -> int:
        """One more than `whole` where the last windows leave pixels over and a further one starts on the image."""
        reach = (whole - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        left_over = size + 2 * self.padding[axis] > reach
        return whole + (left_over and whole * self.stride[axis] < size + self.padding[axis])

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxUnpool2d(nn.Module):
    """Puts values back where a max pooling found its maxima, zeros elsewhere.

    Made from a `SwitchedMaxPool2d`, it takes the switches that the pool left behind, once, and its output has the
    size of the pool's input, whatever was lost to rounding. Made from numbers, it is `torch.nn.MaxUnpool2d`: the
    indices are handed to it, and each axis of the output has

        size' = (size - 1) stride - 2 padding + kernel

    positions where no size is asked for.

    Where windows overlap, a pixel can be the maximum of several. The last of them in reading order wins, on every
    device and in every run, and the gradient goes to it alone. (torch's operator leaves the winner open on a GPU and
    gives a gradient to losers.)

    - Parameters: none.
    - MACs: none; one copy an input.

    Zeiler, Taylor, Fergus, "Adaptive Deconvolutional Networks for Mid and High Level Feature Learning" (2011).

    Args:
        pool: the pool whose switches to take; or a kernel size, one number or (height, width).
        stride, padding: of the pooling, where a kernel size is given; the stride is the kernel's where it is None.
        keep: leaves the switches for another `MaxUnpool2d` of the same pool.

    Raises:
        RequestError: an argument is wrong.

    Example:
        >>> pool = SwitchedMaxPool2d(2)
        >>> net = nn.Sequential(pool, nn.Conv2d(3, 3, 1), MaxUnpool2d(pool))
        >>> net(torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 3, 5, 7])
    """

    pair: _Pair | None

    def __init__(
        self,
        pool: SwitchedMaxPool2d | Size,
        stride: Size | None = None,
        padding: Size = 0,
        *,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.keep = keep
        if isinstance(pool, SwitchedMaxPool2d):
            if stride is not None or padding != 0:
                raise RequestError(
                    f"stride={stride!r} and padding={padding!r} are those of the pool; leave them out."
                )
            self.pair = pool.pair
            self.kernel_size, self.stride, self.padding = pool.kernel_size, pool.stride, pool.padding
            self.dilation = pool.dilation
        else:
            if keep:
                raise RequestError("keep=True is for a MaxUnpool2d made from a SwitchedMaxPool2d.")
            self.pair = None
            self.kernel_size = whole_numbers(pool, 2, "kernel_size")
            self.stride = self.kernel_size if stride is None else whole_numbers(stride, 2, "stride")
            self.padding = whole_numbers(padding, 2, "padding", least=0)
            self.dilation = (1, 1)

    def forward(
        self, x: Tensor, switches: Switches | Tensor | None = None, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Unpools.

        Args:
            x: `[batch, channels, height, width]` or without batch, of the shape that was pooled to.
            switches: those of `SwitchedMaxPool2d.pool`, or torch's indices of the shape of x; None takes those that
                the pool left behind.
            output_size: with indices, the size or shape of the pooling's input.

        Raises:
            UnpairedSwitches: there are no switches, they were taken, or it cannot be told whose are meant.
            BadInput: the shapes do not fit, or `output_size` is one that no pooling came from.
        """
        image_batch(x, self)
        if switches is None:
            if self.pair is None:
                raise UnpairedSwitches(
                    "MaxUnpool2d made from a kernel size needs the switches as a second argument; make it from a "
                    "SwitchedMaxPool2d to have them remembered."
                )
            switches = self.pair.slots().take(x.shape, self.keep, self.pair.pool)
        if isinstance(switches, Switches):
            if output_size is not None:
                raise BadInput(f"output_size={tuple(output_size)!r} must be left out: the switches know it.")
            indices, size = switches
        else:
            indices, size = switches, self._asked_size(x, output_size)
        if indices.shape != x.shape:
            raise BadInput(
                f"MaxUnpool2d was given an input of shape {tuple(x.shape)} and switches of shape "
                f"{tuple(indices.shape)}; they must be equal."
            )
        return _place(x, indices, size, overlapping=self._overlapping)

    @property
    def _overlapping(self) -> bool:
        return any(
            s < d * (k - 1) + 1 for k, s, d in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        )

    def _asked_size(self, x: Tensor, asked: Sequence[int] | None) -> tuple[int, int]:
        """The size asked for, within a stride of the usual one, as torch allows."""
        usual = self.output_size(x.shape[-2:])
        if asked is None:
            return usual[0], usual[1]
        wanted = tuple(asked)[-2:]
        fits = [abs(n - m) < s for n, m, s in zip(wanted, usual, self.stride, strict=False)]
        if len(asked) not in (2, x.ndim) or not all(fits):
            raise BadInput(
                f"output_size={tuple(asked)} must be height and width, each less than the stride {self.stride} from {usual}."
            )
        return wanted[0], wanted[1]

    def output_size(self, input_size: Size) -> tuple[int, ...]:
        """The smallest height and width that pool to this one: the output's, unless the pool remembers a larger."""
        size = whole_numbers(input_size, 2, "input_size", least=0)
        return tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, k, s, p, d in zip(
                size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        if self.pair is not None:
            return f"{self.pair.pool}{', keep=True' if self.keep else ''}"
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def _place(x: Tensor, indices: Tensor, size: tuple[int, int], overlapping: bool) -> Tensor:
    """Zeros of a height and width with x at its indices; of several values for one pixel the last."""
    values, places = x.flatten(-2), indices.flatten(-2)  # [..., pooled pixel]
    shape = (*x.shape[:-2], size[0] * size[1])
    if not overlapping:
        return x.new_zeros(shape).scatter(-1, places, values).unflatten(-1, size)
    order = torch.arange(values.shape[-1], device=x.device).expand_as(places)
    nobody = torch.full(shape, -1, device=x.device)
    winner = nobody.scatter_reduce(-1, places, order, "amax")  # [..., pixel]: the pooled pixel that it shows
    shown = values.gather(-1, winner.clamp_min(0))
    return shown.where(winner >= 0, 0.0).unflatten(-1, size)
