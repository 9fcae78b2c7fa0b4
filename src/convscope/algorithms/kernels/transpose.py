"""From channels first to channels last and back: each image a matrix, [channels, pixels], transposed.

Blocks of one vector by one vector are turned in registers, in log2(lanes) rounds of exchanges between vectors whose
numbers differ in one bit. Each thread takes bands of source columns, down all rows: lines are read whole, and each row
of the target is written from end to end. torch's own copies between the layouts took up to five times as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from convscope.algorithms.kernels import threads, workspace
from convscope.algorithms.kernels.builder import INTS, Function, Int, Module, Pointer, Vector
from convscope.algorithms.kernels.compile import Code, build
from convscope.algorithms.kernels.host import Host, current


def run(source: int, target: int, count: int, rows: int, columns: int) -> None:
    """Transpose matrices that lie one after the other.

    Args:
        source: address of float32 `[count, rows, columns]`.
        target: address of `[count, columns, rows]`, apart from the source.
        count, rows, columns: their number and shape.
    """
    _, address = _built(current())
    threads.run(address, [source, target, count, rows, columns], threads.count())


def with_channels_last(
    x: Tensor, output: tuple[int, int, int, int], scratch: int, work: Callable[[int, int, int], None]
) -> Tensor:
    """Run a kernel for images with channels last on images of any layout.

    Args:
        x: float32, [batch, channel, height, width].
        output: shape of the result.
        scratch: bytes that the kernel needs beside.
        work: called once with the addresses of input, output and scratch, unless the output is empty.

    Returns:
        The output: with channels last where x is so, otherwise contiguous.
    """
    last = x.is_contiguous(memory_format=torch.channels_last)
    y = torch.empty(output, memory_format=torch.channels_last if last else torch.contiguous_format)
    workspace.advise_huge(y)
    if not y.numel():
        return y
    if last:
        with workspace.borrow(scratch) as block:
            work(x.data_ptr(), y.data_ptr(), block)
        return y
    x = x.contiguous()
    source, target = (-(-4 * each.numel() // workspace.LINE) * workspace.LINE for each in (x, y))
    with workspace.borrow(source + target + scratch) as block:
        run(x.data_ptr(), block, len(x), x.shape[1], x.shape[2] * x.shape[3])
        work(block, block + source, block + source + target)
        run(block + source, y.data_ptr(), len(y), y.shape[2] * y.shape[3], y.shape[1])
    return y


@functools.lru_cache(maxsize=8)
def _built(host: Host) -> tuple[Code, int]:
    code = build(text(host), host)
    return code, code.address("work")


def text(host: Host) -> str:
    """The kernel `work`, which takes a table of (source, target, count, rows, columns)."""
    module = Module(host)
    width = module.width
    f = module.function("work", arguments=INTS)
    (table,) = f.arguments
    source, target = ((table + i).as_("ptr").load_pointer() for i in (0, 1))
    count, rows, columns = ((table + i).load_int() for i in (2, 3, 4))
    bands = (columns + (width - 1)) // width
    thread, team, total = f.thread(), f.threads(), count * bands
    with f.loop(thread * total // team, (thread + 1) * total // team) as task:
        matrix, left = task // bands, task % bands * width
        with f.loop(0, rows, width) as top:
            start = source + (matrix * rows + top) * columns + left
            end = target + (matrix * columns + left) * rows + top
            down, across = rows - top, columns - left
            with f.either((down >= width) & (across >= width)) as (whole, partly):
                with whole:
                    for j, vector in enumerate(
                        turned(f, [(start + i * columns).load() for i in range(width)])
                    ):
                        (end + j * rows).store(vector)
                with partly:
                    _edge(f, start, end, (rows, columns), (down, across))
    return module.text()


def _edge(f: Function, start: Pointer, end: Pointer, shape: tuple[Int, Int], left: tuple[Int, Int]) -> None:
    """A block of which only some rows and columns are there; what stands for the missing rows is not written."""
    (rows, columns), (down, across) = shape, left
    width, seen, kept = f.module.width, f.lanes(across), f.lanes(down)
    vectors = [(start + f.minimum(down - 1, i) * columns).load(mask=seen) for i in range(width)]
    for j, vector in enumerate(turned(f, vectors)):
        with f.when(across > j):
            (end + j * rows).store(vector, mask=kept)


def turned(f: Function, vectors: list[Vector]) -> list[Vector]:
    """As many vectors as they have lanes, transposed."""
    width, step = len(vectors), 1
    while step < width:
        first = [lane if not lane & step else width + lane - step for lane in range(width)]
        second = [lane + step if not lane & step else width + lane for lane in range(width)]
        for i in range(width):
            if not i & step:
                a, b = vectors[i], vectors[i | step]
                vectors[i], vectors[i | step] = f.shuffle(a, b, first), f.shuffle(a, b, second)
        step *= 2
    return vectors
