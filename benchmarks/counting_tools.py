"""The counters that are compared, each called as its documentation does, and how its figure becomes MACs.

The peers are imported when they are first called, so that the tables can be made without them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convscope import _torchvision, measure, receptive_field
from counting_cases import Field

_torchvision.declare_missing_operators()  # ptflops imports torchvision, whose compiled operators may not fit this torch


@dataclass(frozen=True)
class Count:
    """What a tool says of one network.

    Attributes:
        macs: its multiply-accumulates, apart from what else it counts where it tells them apart.
        params: None where it counts none.
        total: the figure it gives first, in its own unit.
        told: what it says it left out, by its own names.
    """

    macs: int
    params: int | None
    total: int
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A receptive field as a tool gives it: along local paths, and whether it is called the whole image."""

    field: Field | None
    whole: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Tool:
    """A counter.

    Attributes:
        package: whose version is written down.
        unit: what it reports, and what is done to it.
        field: (network, input, layer) -> receptive field, where the tool gives one.
        backward: (network, input) -> multiply-accumulates of the gradients, likewise.
        settle: puts back what a call leaves behind in torch itself.
    """

    name: str
    package: str
    unit: str
    count: Callable[[nn.Module, Tensor], Count]
    field: Callable[[nn.Module, Tensor, str], Seen] | None = None
    backward: Callable[[nn.Module, Tensor], int] | None = None
    settle: Callable[[], None] = lambda: None


# ---------------------------------------------------------------- convscope


def ours(module: nn.Module, x: Tensor) -> Count:
    found = measure(module, input=x, fields=False, training=False)
    return Count(found.totals.macs, found.totals.params, found.totals.macs, tuple(found.uncounted))


def ours_full(module: nn.Module, x: Tensor) -> Count:
    found = measure(module, input=x)
    return Count(found.totals.macs, found.totals.params, found.totals.macs, tuple(found.uncounted))


def our_field(module: nn.Module, x: Tensor, layer: str) -> Seen:
    found = receptive_field(module, layer, input=x)
    local = found.local if found.is_global else found
    remark = "" if not found.bounds else f"bound: {', '.join(found.bounds)}"
    if local is None:
        return Seen(None, found.is_global, remark)
    return Seen((local.size[-1], _whole(local.stride[-1]), local.padding[-1]), found.is_global, remark)


def our_backward(module: nn.Module, x: Tensor) -> int:
    found = measure(module, input=x, fields=False, training=False, backward=True).totals.backward_macs
    assert found is not None
    return found


def _whole(number: int | Fraction) -> int:
    assert number == int(number), number
    return int(number)


# ---------------------------------------------------------------- peers


def torchinfo(module: nn.Module, x: Tensor) -> Count:
    from torchinfo import summary

    found = summary(module, input_data=x, verbose=0)
    return Count(found.total_mult_adds, found.total_params, found.total_mult_adds)


_FVCORE_PRODUCTS = ("conv", "linear", "addmm", "matmul", "bmm", "mm", "einsum")


def fvcore(module: nn.Module, x: Tensor) -> Count:
    from fvcore.nn import FlopCountAnalysis, parameter_count

    found = FlopCountAnalysis(module, (x,))
    found.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    by_operator = found.by_operator()
    macs = sum(int(by_operator[name]) for name in _FVCORE_PRODUCTS if name in by_operator)
    params = parameter_count(module)[""]
    return Count(macs, params, int(found.total()), tuple(sorted(found.unsupported_ops())))


def ptflops(backend: str) -> Callable[[nn.Module, Tensor], Count]:
    def count(module: nn.Module, x: Tensor) -> Count:
        from ptflops import get_model_complexity_info

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            macs, params = get_model_complexity_info(
                module,
                tuple(x.shape),
                input_constructor=lambda _: x,
                as_strings=False,
                print_per_layer_stat=False,
                backend=backend,
                verbose=True,
                ost=said,
            )
        if macs is None:  # it prints what went wrong
            raise RuntimeError(said.getvalue().strip().splitlines()[-1])
        told = re.findall(
            r"Warning: (?:module )?(\S+)(?: operation)? is treated as a zero-op", said.getvalue()
        )
        return Count(int(macs), int(params), int(macs), tuple(sorted(set(told))))

    return count


def flop_counter(grad: bool) -> Callable[[nn.Module, Tensor], Count]:
    def count(module: nn.Module, x: Tensor) -> Count:
        found = FlopCounterMode(display=False)
        with torch.set_grad_enabled(grad), found:
            module(x)
        return Count(found.get_total_flops() // 2, None, found.get_total_flops())

    return count


def flop_counter_backward(module: nn.Module, x: Tensor) -> int:
    forward, both = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        module(x)
    with both:
        module(x).sum().backward()
    return (both.get_total_flops() - forward.get_total_flops()) // 2


def _trace(module: nn.Module, x: Tensor, keep: str = "none") -> Any:
    """Counts need no activations kept. With its default every later call of a torch function goes through torchlens;
    here they are put back.
    """
    import torchlens

    options = torchlens.options.CaptureOptions(layers_to_save=keep, unwrap_when_done=True)
    return torchlens.trace(module, x, capture=options)


def torchlens(module: nn.Module, x: Tensor) -> Count:
    found = _trace(module, x)
    told = {str(op.func_name) for op in found.unknown_flop_ops} | set(map(str, found.macs_unknown_split_ops))
    macs = int(found.total_macs_forward)
    return Count(macs, int(found.num_params), macs, tuple(sorted(told)))


def torchlens_field(module: nn.Module, x: Tensor, layer: str) -> Seen:
    view = _trace(module, x, keep="all").modules[layer].receptive_field  # concatenation needs what it kept
    status = str(view.status.value)
    if status in ("unknown", "unsupported", "data_dependent"):
        return Seen(None, remark=status)
    if status == "whole_input":
        return Seen(None, whole=True)
    size, jump, centre = view.size[-1], view.jump[-1], view.center0[-1]
    return Seen((size, _whole(jump), _whole(Fraction(size - 1, 2) - centre)), remark=status)


def torchlens_backward(module: nn.Module, x: Tensor) -> int:
    return int(_trace(module, x).total_flops_backward) // 2


def torchlens_settle() -> None:
    from torchlens.backends.torch.wrappers import unwrap_torch

    unwrap_torch()


def torchlens_default(module: nn.Module, x: Tensor) -> None:
    """As it is called without options, for what that leaves behind."""
    import torchlens as package

    package.trace(module, x)


# ---------------------------------------------------------------- all of them

TOOLS = (
    Tool(
        "convscope",
        "convscope",
        "MACs, taken as they are; element operations are a figure of their own",
        ours,
        our_field,
        our_backward,
    ),
    Tool("torchinfo", "torchinfo", "“mult-adds”, taken as MACs", torchinfo),
    Tool(
        "fvcore",
        "fvcore",
        "“flops”, one a multiply-add; those of convolutions and products taken as MACs, the rest left out",
        fvcore,
    ),
    Tool(
        "ptflops",
        "ptflops",
        "MACs, with biases, normalization, activation and pooling in them",
        ptflops("pytorch"),
    ),
    Tool("ptflops, aten", "ptflops", "MACs, with biases in them", ptflops("aten")),
    Tool(
        "torch",
        "torch",
        "`FlopCounterMode`: FLOPs, two a multiply-add; halved. It has formulas for attention on CUDA, none on the CPU",
        flop_counter(True),
        backward=flop_counter_backward,
    ),
    Tool("torch, no_grad", "torch", "the same under `torch.no_grad()`", flop_counter(False)),
    Tool(
        "torchlens",
        "torchlens",
        "MACs, taken as they are; of gradients FLOPs, halved",
        torchlens,
        torchlens_field,
        torchlens_backward,
        torchlens_settle,
    ),
)


def quiet() -> None:
    """No warnings of the peers among the tables."""
    for name in ("fvcore", "torchlens"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
