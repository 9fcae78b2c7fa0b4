"""Convolution four ways, and an honest chooser.

    from convscope import algorithms

    y = algorithms.conv2d(x, weight, bias, padding=1, algorithm="winograd")  # as torch.nn.functional.conv2d
    plan = algorithms.prepare(weight, bias, padding=1)                       # the weight transformed once
    y = plan(x)
    print(algorithms.explain(x, weight, padding=1))                          # what "auto" tried, and why one won

`direct` is torch's own, `im2col` unfolds and multiplies one matrix, `fft` multiplies spectra, `winograd` computes
tiles with fewer multiplications; `cost` and `error_bound` tell what each costs and how exact it is.
"""

from convscope.algorithms.base import ALGORITHMS
from convscope.algorithms.cost import Cost, cost
from convscope.algorithms.error import ErrorBound, error_bound
from convscope.algorithms.explanation import Explanation, explain
from convscope.algorithms.function import conv1d, conv2d
from convscope.algorithms.plan import Plan, prepare

__all__ = [
    "ALGORITHMS",
    "Cost",
    "ErrorBound",
    "Explanation",
    "Plan",
    "conv1d",
    "conv2d",
    "cost",
    "error_bound",
    "explain",
    "prepare",
]
