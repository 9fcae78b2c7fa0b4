"""`conv2d` and `conv1d`: torch's functions, with a choice of algorithm.

Eagerly an algorithm runs as it is, differentiable by torch's autograd. Where something watches or rewrites
operations (`torch.compile`, `torch.export`, a dispatch mode such as a profiler's or convscope's own recorder) one
operator `convscope::convolution` stands for it, with its shape and its gradient registered; the choice of "auto" is then
made when the operator runs, never while it is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms import chooser, gradient
from convscope.algorithms.base import ALGORITHMS, Algorithm, in_format, last_format, resolve
from convscope.algorithms.base import algorithm as named
from convscope.algorithms.chooser import Choice
from convscope.algorithms.direct import Direct
from convscope.algorithms.problem import Padding, Problem, flat, frozen, pair, sides
from convscope.algorithms.race import Use
from convscope.errors import RequestError

Step = int | Sequence[int]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Step = 1,
    padding: Padding = 0,
    dilation: Step = 1,
    groups: int = 1,
    algorithm: str = "auto",
    *,
    max_error: float | None = None,
) -> Tensor:
    """Two-dimensional convolution (cross-correlation) as `torch.nn.functional.conv2d`, by an algorithm of choice.

    Args:
        x: `[batch, in_channels, height, width]` or `[in_channels, height, width]`.
        weight: `[out_channels, in_channels / groups, kernel height, kernel width]`.
        bias: `[out_channels]`.
        stride: one number, or one for each axis.
        padding: zeros around the input: one number, one for each axis, ((top, bottom), (left, right)), "valid" or
            "same" (stride 1).
        dilation: pixels from one tap of the kernel to the next; one number, or one for each axis.
        groups: consecutive channels that are convolved apart from the others.
        algorithm: "direct", "im2col", "fft" or "winograd"; with a variant, such as "winograd:F(4,3)"; or "auto", which
            measures once which is fastest here and remembers it.
        max_error: expected error, relative to the output's maximum, that may not be exceeded.

    Returns:
        `[batch, out_channels, height, width]`, without the batch where x has none; in the memory format that torch
        would give it.

    Raises:
        RuntimeError, TypeError: what torch's function refuses.
        UnknownName: there is no such algorithm.
        RequestError: the algorithm cannot serve this convolution, or not as exactly as `max_error` asks.

    Example:
        >>> x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
        >>> conv2d(x, weight, padding=1, algorithm="winograd:F(2,3)")
        tensor([[[[4., 6., 6., 4.],
                  [6., 9., 9., 6.],
                  [6., 9., 9., 6.],
                  [4., 6., 6., 4.]]]])
    """
    _check_tensors("conv2d", 2, x, weight, bias)
    return _convolve(x, weight, bias, stride, padding, dilation, groups, algorithm, max_error)


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Step = 1,
    padding: Padding = 0,
    dilation: Step = 1,
    groups: int = 1,
    algorithm: str = "auto",
    *,
    max_error: float | None = None,
) -> Tensor:
    """One-dimensional convolution as `torch.nn.functional.conv1d`, by an algorithm of choice.

    Args:
        x: `[batch, in_channels, length]` or `[in_channels, length]`.
        weight: `[out_channels, in_channels / groups, kernel length]`.
        padding: one number, ((left, right),), "valid" or "same" (stride 1).
        bias, stride, dilation, groups, algorithm, max_error: see `conv2d`.

    Returns:
        `[batch, out_channels, length]`, without the batch where x has none.

    Raises:
        RuntimeError, TypeError, UnknownName, RequestError: see `conv2d`.

    Example:
        >>> conv1d(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[[1.0, -1.0]]]), algorithm="im2col")
        tensor([[-1., -2.]])
    """
    _check_tensors("conv1d", 1, x, weight, bias)
    y = _convolve(
        x.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        flat("stride", stride, 1),
        flat("padding", padding, 0),
        flat("dilation", dilation, 1),
        groups,
        algorithm,
        max_error,
    )
    return y.squeeze(-2)


def _check_tensors(name: str, axes: int, x: Any, weight: Any, bias: Any) -> None:
    for what, value in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (what == "bias" and value is None):
            raise TypeError(f"{name}(): argument {what!r} must be Tensor, not {type(value).__name__}")
    if x.dim() not in (axes + 1, axes + 2):
        raise RuntimeError(
            f"Expected {axes + 1}D (unbatched) or {axes + 2}D (batched) input to {name}, but got input of size: "
            f"{list(x.shape)}"
        )
    if weight.dim() != axes + 2:
        raise RuntimeError(
            f"Expected {axes + 2}D weight [out_channels, in_channels / groups, ...] for {name}, but got weight of size: "
            f"{list(weight.shape)}"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise RuntimeError(
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {weight.shape[0]} "
            f"elements, but got bias of size {list(bias.shape)} instead"
        )
    if bias is not None and bias.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise RuntimeError(f"Input type ({x.dtype}) and bias type ({bias.dtype}) should be the same")


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Step,
    padding: Padding,
    dilation: Step,
    groups: int,
    name: str,
    max_error: float | None,
) -> Tensor:
    """Two axes; with or without a batch."""
    if x.dim() == 3:
        y = _convolve(x.unsqueeze(0), weight, bias, stride, padding, dilation, groups, name, max_error)
        return y.squeeze(0)
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return _as_operator(x, weight, bias, stride, padding, dilation, groups, name, max_error)
    device = x.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return _run(x, weight, bias, stride, padding, dilation, groups, name, max_error)
    x, weight, bias = (_lowered(each, torch.get_autocast_dtype(device)) for each in (x, weight, bias))
    with torch.autocast(device, enabled=False):  # what an algorithm computes in float32 stays so
        return _run(x, weight, bias, stride, padding, dilation, groups, name, max_error)


def _lowered(tensor: Any, dtype: torch.dtype) -> Any:
    """As autocast casts the arguments of torch's convolutions."""
    castable = tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if castable else tensor


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Step,
    padding: Padding,
    dilation: Step,
    groups: int,
    name: str,
    max_error: float | None,
) -> Tensor:
    problem = Problem.of(x, weight, stride, padding, dilation, groups)
    if not (x.numel() and weight.numel()):  # nothing to compute; torch knows the shape
        if name != "auto":
            named(name)
        return ALGORITHMS["direct"].run(problem, x, weight, bias, "contiguous")
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    found, variant = choose(problem, name, x, weight, max_error, "training" if wanted else "once")
    return found.run(problem, x, weight, bias, variant)


def choose(
    problem: Problem,
    name: str,
    x: Tensor,
    weight: Tensor,
    max_error: float | None,
    use: Use,
) -> tuple[Algorithm, str]:
    """The algorithm and variant that a name means for this problem.

    "auto" is measured once and remembered; where nothing may be run, because x has no data, a function is being
    transformed or a graph of a device is being captured, it is what was remembered, or direct. A bare name is the
    first variant that is exact enough.

    Raises:
        UnknownName: there is no such algorithm.
        RequestError: it cannot serve this problem, or not as exactly as asked.
    """
    layout = "channels_last" if last_format(x, weight) else "contiguous"
    if name == "auto":
        ask = chooser.choose if _measurable(x, weight) else chooser.recall
        choice: Choice | None = ask(problem, layout=layout, use=use, max_error=max_error)
        if choice is None:
            return ALGORITHMS["direct"], layout
        return ALGORITHMS[choice.algorithm], choice.variant
    found, variant = resolve(name, problem)
    if name == Direct.name:
        variants: tuple[str, ...] = (Direct().layout(problem, last_format(x, weight)),)
    else:
        variants = (variant,) if ":" in name else found.variants(problem)
    if max_error is None:
        return found, variants[0]
    errors = {each: found.error(problem, each).expected for each in variants}
    exact = [each for each in variants if errors[each] <= max_error]
    if not exact:
        raise RequestError(
            f"algorithm={name!r} expects an error of {min(errors.values()):.1e} here, above max_error={max_error:g}; "
            f"allow more, or choose 'auto'."
        )
    return found, exact[0]


def _measurable(*tensors: Tensor) -> bool:
    """Whether "auto" may run something now."""
    if any(each.device.type == "meta" for each in tensors) or not gradient.plain(*tensors):
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


# ---------------------------------------------------------------- as one operator


def _as_operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Step,
    padding: Padding,
    dilation: Step,
    groups: int,
    name: str,
    max_error: float | None,
) -> Tensor:
    """For what traces or records: torch's own operator for direct, ours for the others."""
    steps, spread = pair("stride", frozen(stride)), pair("dilation", frozen(dilation))
    kernel = weight.shape[2], weight.shape[3]
    (top, bottom), (left, right) = sides(frozen(padding), kernel, steps, spread)
    around = min(top, bottom), min(left, right)
    if top != bottom or left != right:
        x = F.pad(x, (left - around[1], right - around[1], top - around[0], bottom - around[0]))
    if name == "direct" and max_error is None:
        return F.conv2d(x, weight, bias, steps, around, spread, groups)
    return operator(x, weight, bias, steps, around, spread, groups, name, max_error)


@torch.library.custom_op(
    "convscope::convolution",
    mutates_args=(),
    schema="(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups, str algorithm, float? max_error) -> Tensor",
)
def operator(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    max_error: float | None,
) -> Tensor:
    """`convscope::convolution`: a batch, two axes."""
    with torch.no_grad():
        y = _convolve(input, weight, bias, stride, padding, dilation, groups, algorithm, max_error)
        return in_format(y, last_format(input, weight))


@operator.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    max_error: float | None,
) -> Tensor:
    y = torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, (0, 0), groups)
    return in_format(torch.empty_like(y), last_format(input, weight))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The input's gradient by the algorithm itself where it is a convolution, everything else by torch."""
    x, weight = ctx.saved_tensors
    stride, padding, dilation, groups, name, max_error = ctx.geometry
    of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    again = of_x and name != "direct" and tuple(stride) == (1, 1) and min(reach) >= 0
    dx = dw = None
    if again:
        swapped = gradient.swapped(weight, groups)
        dx = operator(grad, swapped, None, stride, reach, dilation, groups, name, max_error)
    if of_weight or (of_x and not again):
        zeros = (padding[0], padding[0]), (padding[1], padding[1])
        found = gradient.by_torch(
            grad, x, weight, stride, zeros, dilation, groups, of_x=of_x and not again, of_weight=of_weight
        )
        dx, dw = dx if again else found[0] if of_x else None, found[1] if of_weight else None
    return dx, dw, grad.sum((0, 2, 3)) if of_bias else None, *[None] * 6


operator.register_autograd(_backward, setup_context=_save)
