"""`explain`: what `auto` tried for a convolution, what each took, and why one won."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convscope import timing
from convscope.algorithms.candidates import Tried
from convscope.algorithms.chooser import Choice, choose
from convscope.algorithms.cost import described
from convscope.algorithms.problem import Padding, Problem
from convscope.algorithms.race import Use

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Explanation:
    """Why `auto` computes a convolution as it does; prints as a table.

    Attributes:
        problem: the convolution.
        choice: the winner, and all that was tried.
        conditions: device, threads and dtype.
        layout: memory layout of the input.
        use: what a call was.
    """

    problem: Problem
    choice: Choice
    conditions: timing.Conditions
    layout: str
    use: Use

    @property
    def tried(self) -> tuple[Tried, ...]:
        """Every candidate: the winner, the others that ran, fastest first, and those that did not run."""
        return self.choice.tried

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "problem": describe(self.problem),
            "layout": self.layout,
            "use": self.use,
            **vars(self.conditions),
            "remembered": self.choice.remembered,
            **self.choice.to_dict(),
        }

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        origin = "remembered" if self.choice.remembered else f"measured in {self.choice.spent:.2g} s"
        if self.choice.seconds is None:
            origin = "not measured"
        elif not self.choice.steady:
            origin += " on a busy machine, so that the next process measures again"
        table = Table(
            title=f"{describe(self.problem)}, {self.layout}",
            caption=escape(
                f"{self.choice.name}: {self.choice.reason}. {self.conditions}; {self.use}; {origin}."
            ),
            title_justify="left",
            caption_justify="left",
        )
        for name in ("algorithm", "", "time (95 %)", "error", "differs", "workspace", "operations", "why"):
            table.add_column(
                name, justify="left" if name in ("algorithm", "", "why") else "right", no_wrap=name != "why"
            )
        for each in self.tried:
            style = "bold green" if each.verdict == "won" else "" if each.seconds else "dim"
            table.add_row(*map(escape, _cells(each)), style=style)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=160, color_system=None).print(self)
        return text.getvalue().rstrip()


def describe(problem: Problem) -> str:
    """A convolution in one line.

    Example:
        >>> describe(Problem.of(torch.empty(2, 8, 9, 9), torch.empty(16, 4, 3, 5), 2, 1, 1, 2))
        '2 x 8 x 9 x 9 -> 16, 3x5, stride 2, padding 1, groups 2, float32'
    """
    shape = f"{problem.batch} x {problem.in_channels} x {problem.size[0]} x {problem.size[1]}"
    parts = [f"{shape} -> {problem.out_channels}", f"{problem.kernel[0]}x{problem.kernel[1]}"]
    for name, value, plain in (
        ("stride", problem.stride, (1, 1)),
        ("padding", problem.padding, ((0, 0), (0, 0))),
        ("dilation", problem.dilation, (1, 1)),
    ):
        if value != plain:
            parts.append(f"{name} {_short(value)}")
    if problem.groups > 1:
        parts.append(f"groups {problem.groups}")
    return ", ".join([*parts, str(problem.dtype).removeprefix("torch.")])


def _short(value: Any) -> str:
    """One number where all are the same."""
    flat = [number for pair in value for number in (pair if isinstance(pair, tuple) else (pair,))]
    return str(flat[0]) if len(set(flat)) == 1 else str(value).replace(" ", "")


def _cells(each: Tried) -> tuple[str, ...]:
    took, spread = "", ""
    if each.seconds is not None:
        took = timing.duration(each.seconds.median)
        spread = f" ({timing.duration(each.seconds.low)} to {timing.duration(each.seconds.high)})"
    return (
        each.name,
        each.verdict,
        took + spread,
        "" if each.expected_error is None else f"{each.expected_error:.1e}",
        "" if each.difference is None else f"{each.difference:.1e}",
        "" if each.workspace is None else f"{each.workspace / 2**20:.1f} MiB",
        "" if each.operations is None else f"{each.operations / 1e6:,.0f} M",
        "" if each.verdict == "won" else each.reason,
    )


def explain(
    input: Tensor | Sequence[int],
    weight: Tensor | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    max_error: float | None = None,
    use: Use = "prepared",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str | None = None,
    fresh: bool = False,
) -> Explanation:
    """What `algorithm="auto"` tries for a convolution, what each takes and why one wins.

    The answer comes from memory if the question was asked before; else it is measured now and remembered.

    Args:
        input: `[batch, in_channels, height, width]`, or without the batch, or without the height for one dimension; a
            tensor or its shape, contents do not matter.
        weight: `[out_channels, in_channels / groups, height, width]` likewise.
        stride, padding, dilation, groups: as `conv2d` takes them.
        max_error: leave out what expects a larger error, relative to the output's maximum.
        use: "prepared" as `prepare` does it, "once" with the weight transformed in the call, "training" with both
            gradients.
        dtype, device: of shapes; tensors have their own.
        layout: "contiguous" or "channels_last"; that of the input by default.
        fresh: measure again.

    Returns:
        The explanation; `print` shows it as a table.

    Raises:
        RequestError: see `chooser.choose`.

    Example:
        >>> why = explain((1, 8, 32, 32), (8, 8, 3, 3), padding=1)
        >>> why.choice.algorithm in ("direct", "im2col", "fft", "winograd"), why.tried[0].verdict
        (True, 'won')
    """
    problem = described(input, weight, stride, padding, dilation, groups, dtype, device)
    if layout is None:
        x = input if isinstance(input, Tensor) and input.dim() == 4 else None
        is_last = (
            x is not None and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        )
        layout = "channels_last" if is_last else "contiguous"
    choice = choose(problem, layout=layout, use=use, max_error=max_error, fresh=fresh)
    return Explanation(problem, choice, timing.Conditions.now(problem.device, problem.dtype), layout, use)
