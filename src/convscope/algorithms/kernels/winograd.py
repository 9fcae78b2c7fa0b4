"""Winograd convolution in machine code: the entry point of its family, a file a stage.

    winograd_layout     where the numbers lie, and the sizes of all blocks
    winograd_blocking   which blocks suit a shape and a machine
    winograd_filters    the weight to frequencies, once
    winograd_transform  tiles to frequencies, products to pixels
    winograd_product    what binds: sums over the input channels, in registers
    winograd_driver     the loop nest around them, run by all threads

The code depends on channels, tile and blocks; batch, height, width and padding are arguments of a call.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convscope.algorithms.base import last_format
from convscope.algorithms.cook_toom import matrices
from convscope.algorithms.kernels import compile, workspace
from convscope.algorithms.kernels import threads as pool
from convscope.algorithms.kernels.host import Host, current
from convscope.algorithms.kernels.winograd_blocking import choose
from convscope.algorithms.kernels.winograd_driver import ARGUMENTS, Recipe, module
from convscope.algorithms.kernels.winograd_filters import transformed
from convscope.algorithms.kernels.winograd_layout import Layout
from convscope.errors import RequestError

if TYPE_CHECKING:
    from convscope.algorithms.problem import Problem

POINTS = 8  # along one side: larger tiles no longer fit the registers, nor float32's digits
FILTERS = 1 << 30  # bytes that the transformed filters of one convolution may take
HUGE_OUTPUT = 4 << 20  # bytes of output from which huge pages are asked for


def refuses(problem: Problem, tile: int) -> str | None:
    """Why the machine code cannot serve a convolution with F(tile, r), or None where it can.

    Example:
        >>> from convscope.algorithms.problem import Problem
        >>> refuses(Problem(1, 8, 8, (32, 32), (3, 3), stride=(2, 2)), 4)
        'it serves stride 1, not (2, 2)'
    """
    height, width = problem.kernel
    if problem.device != "cpu" or problem.dtype != torch.float32:
        return f"it serves float32 on the CPU, not {str(problem.dtype)[6:]} on {problem.device}"
    if problem.stride != (1, 1):
        return f"it serves stride 1, not {problem.stride}"
    if problem.dilation != (1, 1):
        return f"it serves dilation 1, not {problem.dilation}"
    if problem.groups != 1:
        return f"it serves one group, not {problem.groups}"
    if height != width or height < 2:
        return f"it serves square kernels of 2x2 or more, not {height}x{width}"
    if tile < 1 or tile + height - 1 > POINTS:
        return f"F({tile},{height}) needs {tile + height - 1} points; 2 to {POINTS} are served"
    if min(problem.in_channels, problem.out_channels, *problem.output_size) < 1:
        return "there is no channel or no pixel to compute"
    size = 4 * (tile + height - 1) ** 2 * problem.in_channels * problem.out_channels
    if size > FILTERS:
        return f"the transformed filters would take {size >> 20} MiB, above the limit of {FILTERS >> 20} MiB"
    return current().refuses() or pool.refuses()


class WinogradKernel:
    """A prepared convolution; any number of threads may call it at once.

    Attributes:
        bytes: memory that the transformed filters hold.
        layout: sizes of all blocks.
    """

    def __init__(
        self,
        problem: Problem,
        weight: Tensor,
        bias: Tensor | None,
        layout: Layout,
        host: Host,
        *,
        relu: bool,
        team: int | None,
    ) -> None:
        transform = matrices(layout.tile, problem.kernel[0])
        output, g, input = transform.tensors()
        height, width = problem.output_size
        size = 4 * problem.batch * problem.out_channels * height * width
        read = 4 * problem.batch * problem.in_channels * math.prod(problem.size)
        recipe = Recipe(
            layout,
            to_frequencies=input.tolist(),
            to_pixels=output.tolist(),
            bias=bias is not None,
            relu=relu,
            # an output that the third cache cannot hold beside the rest need not pass through it
            streaming=size > host.l3 // 8 * 3 and layout.outputs % layout.width == 0,
            far=read > host.l3 // 8,
        )
        self.layout = layout
        self._problem = problem
        self._team = team
        self._code = compile.build(module(recipe, host).text(), host)
        self._address = self._code.address("convolve")
        self._filters = transformed(weight, g, layout)
        self._bias = torch.zeros(0) if bias is None else bias.detach().float().contiguous().clone()
        self._zeros = torch.zeros(layout.zeros)
        self._huge = size >= HUGE_OUTPUT
        self.bytes = sum(4 * part.numel() for part in (self._filters, self._bias, self._zeros))

    @property
    def workspace(self) -> int:
        """Bytes of scratch that a call borrows, with the threads that torch has now."""
        return 4 * self.layout.workspace(self._team or pool.count())

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of a batch.

        Args:
            x: float32, `[batch, in_channels, height, width]` of the problem. Channels last is fastest; any other
                layout is converted first.

        Returns:
            `[batch, out_channels, height, width]`, with channels last where x is, otherwise contiguous, as torch does. A NaN or
            an infinity makes NaN of every pixel of the tiles that see it.

        Raises:
            RequestError: x has another shape, type or device.
        """
        problem = self._problem
        if x.shape != problem.input_shape or x.dtype != torch.float32 or x.device.type != "cpu":
            raise RequestError(
                f"x is {str(x.dtype)[6:]} {list(x.shape)} on {x.device}; this kernel was prepared for float32 "
                f"{list(problem.input_shape)} on cpu."
            )
        last = torch.channels_last
        y = torch.empty(problem.output_shape, memory_format=last)
        if self._huge:
            workspace.advise_huge(y)
        if problem.batch:
            self._run(x.detach().contiguous(memory_format=last), y)
        return y if last_format(x) else y.contiguous()

    def _run(self, x: Tensor, y: Tensor) -> None:
        """Call the machine code; both tensors have channels last."""
        problem, tile = self._problem, self.layout.tile
        height, width = problem.output_size
        down, across = -(-height // tile), -(-width // tile)
        team = self._team or pool.count()
        with workspace.borrow(4 * self.layout.workspace(team)) as scratch:
            values = {
                "x": x.data_ptr(),
                "y": y.data_ptr(),
                "filters": self._filters.data_ptr(),
                "bias": self._bias.data_ptr(),
                "zeros": self._zeros.data_ptr(),
                "scratch": scratch,
                "height": problem.size[0],
                "width": problem.size[1],
                "top": problem.padding[0][0],
                "left": problem.padding[1][0],
                "out_height": height,
                "out_width": width,
                "down": down,
                "across": across,
                "tiles": problem.batch * down * across,
                "next": 0,
            }
            pool.run(self._address, [values[name] for name in ARGUMENTS], team)


def prepare(
    problem: Problem,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tile: int = 4,
    relu: bool = False,
    threads: int | None = None,
) -> WinogradKernel:
    """A kernel for one convolution and weight.

    Args:
        problem: the convolution; `refuses` tells whether it can be served.
        weight: `[out_channels, in_channels, r, r]`; it is transformed here, later changes do not reach the kernel.
        bias: `[out_channels]`, added to the output.
        tile: m of F(m, r): pixels of output along one side of a tile. 2 is the most exact, 6 the fastest.
        relu: whether negative outputs become 0.
        threads: of the team; by default as many as torch has at each call.

    Raises:
        RequestError: the convolution cannot be served; the message says why.

    Example:
        >>> from convscope.algorithms.problem import Problem
        >>> problem = Problem(1, 8, 16, (32, 32), (3, 3), padding=((1, 1), (1, 1)))
        >>> if refuses(problem, 4) is None:
        ...     y = prepare(problem, torch.ones(16, 8, 3, 3))(torch.ones(1, 8, 32, 32))
        ...     assert round(float(y[0, 0, 0, 0]), 3) == 32  # 4 taps inside the corner, 8 channels
    """
    reason = refuses(problem, tile)
    if reason is not None:
        raise RequestError(f"the Winograd kernel cannot serve this convolution: {reason}.")
    if weight.shape != problem.weight_shape:
        raise RequestError(
            f"weight has shape {list(weight.shape)}; the problem needs {list(problem.weight_shape)}."
        )
    host, team = current(), threads or pool.count()
    height, width = (-(-length // tile) for length in problem.output_size)
    layout = choose(
        tile,
        problem.kernel[0],
        problem.in_channels,
        problem.out_channels,
        problem.batch * height * width,
        host,
        team,
    )
    return WinogradKernel(problem, weight, bias, layout, host, relu=relu, team=threads)
