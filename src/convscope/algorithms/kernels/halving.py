"""Max pooling of 2x2 windows and its gradient in machine code, without the indices that torch writes.

torch's kernel stores where each maximum was as a 64-bit integer, four times the bytes of a bfloat16 map, and its
gradient fills a map with zeros and scatters into it. Here the gradient finds the place again by comparing. Numbers are
compared as integers, which IEEE formats allow once the bits of negative ones are turned around: one kernel serves
every format of a width. Channels last, whole vectors of channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from convscope.algorithms.kernels import threads
from convscope.algorithms.kernels.builder import INTS, Function, Int, Module, Pointer
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.host import Host, current
from convscope.errors import RequestError

# bits of infinity, above which a magnitude is not a number
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


def refuses(x: Tensor) -> str | None:
    """Why no kernel serves a map here, or None.

    Args:
        x: [batch, channel, height, width].
    """
    if x.device.type != "cpu" or x.dtype not in _INFINITY:
        return f"this machine code is for float32, bfloat16 and float16 on the CPU, not {str(x.dtype)[6:]} on {x.device}"
    if x.dim() != 4 or min(x.shape) < 1 or min(x.shape[2:]) < 2:
        return f"this machine code is for maps of at least 2x2, not {list(x.shape)}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "this machine code is for channels last"
    reason = current().refuses() or threads.refuses()
    if reason is None and x.shape[1] % (4 * current().width // x.element_size()):
        return f"this machine code is for whole vectors of channels, not {x.shape[1]}"
    return reason


def halve(x: Tensor) -> Tensor:
    """The maximum of each 2x2 window, NaN where one of the four is.

    Args:
        x: [batch, channel, height, width], channels last; a last odd row or column is left out.

    Returns:
        [batch, channel, height // 2, width // 2], channels last.

    Raises:
        RequestError: `refuses` has something against it.

    Example:
        >>> x = torch.rand(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
        >>> refuses(x) is not None or torch.equal(halve(x), torch.nn.functional.max_pool2d(x, 2))
        True
    """
    _code, ahead, _ = _ready(x)
    batch, channels, high, wide = x.shape
    shape = (batch, channels, high // 2, wide // 2)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    threads.run(ahead, (x.data_ptr(), y.data_ptr(), batch, channels, high, wide), threads.count())
    return y


def gradient(of_y: Tensor, x: Tensor) -> Tensor:
    """What `halve` hands back: the first of the largest values of a window takes its gradient.

    Args:
        of_y: [batch, channel, height // 2, width // 2], of x's type.
        x: the input of `halve`.

    Returns:
        [batch, channel, height, width], channels last.

    Raises:
        RequestError: `refuses` has something against it.
    """
    _code, _, back = _ready(x)
    of_y = of_y.contiguous(memory_format=torch.channels_last)
    batch, channels, high, wide = x.shape
    result = torch.empty_like(x, memory_format=torch.channels_last)
    if high % 2:
        result[:, :, -1].zero_()
    if wide % 2:
        result[..., -1].zero_()
    table = (x.data_ptr(), of_y.data_ptr(), result.data_ptr(), batch, channels, high, wide)
    threads.run(back, table, threads.count())
    return result


def _ready(x: Tensor) -> tuple[Code, int, int]:
    reason = refuses(x)
    if reason is not None:
        raise RequestError(f"no kernel for 2x2 max pooling can be built: {reason}.")
    return _built(8 * x.element_size(), _INFINITY[x.dtype], current())


@functools.lru_cache(maxsize=16)
def _built(bits: int, infinity: int, host: Host) -> tuple[Code, int, int]:
    code = build(text(bits, infinity, host), host)
    return code, code.address("ahead"), code.address("back")


# ---------------------------------------------------------------- the kernels


def text(bits: int, infinity: int, host: Host) -> str:
    """The kernels `ahead` and `back` for numbers of so many bits."""
    module = Module(host)
    lanes = _Lanes(bits, infinity, 32 * host.width // bits)

    f = module.function("ahead", arguments=INTS)
    (table,) = f.arguments
    x, y = ((table + i).as_("ptr").load_pointer(lanes.element) for i in range(2))
    batch, channels, high, wide = ((table + 2 + i).load_int() for i in range(4))
    with _windows(f, lanes.count, batch, channels, high, wide) as (corners, place):
        keys = [lanes.key(f, lanes.load(x + corner)) for corner in corners]
        lanes.store(y + place, lanes.turned(f, lanes.largest(f, keys)))

    f = module.function("back", arguments=INTS)
    (table,) = f.arguments
    x, of_y, result = ((table + i).as_("ptr").load_pointer(lanes.element) for i in range(3))
    batch, channels, high, wide = ((table + 3 + i).load_int() for i in range(4))
    with _windows(f, lanes.count, batch, channels, high, wide) as (corners, place):
        keys = [lanes.key(f, lanes.load(x + corner)) for corner in corners]
        top, slope = lanes.largest(f, keys), lanes.load(of_y + place)
        for corner, key in zip(corners, keys, strict=True):
            wins = f.emit(f"icmp eq {lanes.vector} {key}, {top}")
            given = (
                f"select <{lanes.count} x i1> {wins}, {lanes.vector} {slope}, {lanes.vector} zeroinitializer"
            )
            lanes.store(result + corner, f.emit(given))
            # what was given is gone for the corners that follow
            kept = (
                f"select <{lanes.count} x i1> {wins}, {lanes.vector} zeroinitializer, {lanes.vector} {slope}"
            )
            slope = f.emit(kept)
    return module.text()


class _Lanes:
    """Vectors of numbers of some width, as integers whose order is that of the numbers."""

    def __init__(self, bits: int, infinity: int, count: int) -> None:
        self.bits, self.count, self.infinity = bits, count, infinity
        self.element = f"i{bits}"
        self.vector = f"<{count} x {self.element}>"
        self._rest = (1 << (bits - 1)) - 1  # all bits but the sign

    def load(self, place: Pointer) -> str:
        return place.f.emit(f"load {self.vector}, ptr {place.name}, align {self.bits // 8}")

    def store(self, place: Pointer, value: str) -> None:
        place.f.line(f"store {self.vector} {value}, ptr {place.name}, align {self.bits // 8}")

    def key(self, f: Function, value: str) -> str:
        """Integers that compare as the numbers do, -0 below 0; what is not a number is above all."""
        magnitude = f.emit(f"and {self.vector} {value}, {self._splat(self._rest)}")
        nothing = f.emit(f"icmp ugt {self.vector} {magnitude}, {self._splat(self.infinity)}")
        turned = self.turned(f, value)
        top = f"{self.vector} {self._splat(self._rest)}"
        return f.emit(f"select <{self.count} x i1> {nothing}, {top}, {self.vector} {turned}")

    def turned(self, f: Function, value: str) -> str:
        """The bits of negative ones turned around, all but the sign; done twice, nothing is changed."""
        sign = f.emit(f"ashr {self.vector} {value}, {self._splat(self.bits - 1)}")
        mask = f.emit(f"and {self.vector} {sign}, {self._splat(self._rest)}")
        return f.emit(f"xor {self.vector} {value}, {mask}")

    def largest(self, f: Function, keys: list[str]) -> str:
        """The largest in each lane."""
        top = keys[0]
        for key in keys[1:]:
            wins = f.emit(f"icmp sgt {self.vector} {key}, {top}")
            top = f.emit(f"select <{self.count} x i1> {wins}, {self.vector} {key}, {self.vector} {top}")
        return top

    def _splat(self, number: int) -> str:
        return f"splat ({self.element} {number})"


@contextmanager
def _windows(
    f: Function, lanes: int, batch: Int, channels: Int, high: Int, wide: Int
) -> Iterator[tuple[list[Int], Int]]:
    """For each window and vector of channels of this thread: where its four numbers lie, and where the one."""
    rows, columns, thread, team = high // 2, wide // 2, f.thread(), f.threads()
    tasks = batch * rows
    with f.loop(thread * tasks // team, (thread + 1) * tasks // team) as task:
        top = (task // rows * high + task % rows * 2) * wide
        with f.loop(0, columns) as column, f.loop(0, channels, lanes) as channel:
            first = (top + column * 2) * channels + channel
            below = first + wide * channels
            yield (
                [first, first + channels, below, below + channels],
                (task * columns + column) * channels + channel,
            )
