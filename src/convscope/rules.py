"""The rules that `convscope.rewrite` applies: one design choice each, composable with `|`.

from convscope import rewrite, rules

made = rewrite(net, rules.KernelSize(5, where="features.*"))
"""

from convscope.rewrites.algorithm import Algorithm
from convscope.rewrites.base import Chain, Rule
from convscope.rewrites.bottleneck import Bottleneck
from convscope.rewrites.convolutionalize import Convolutionalize
from convscope.rewrites.fold_batch_norm import FoldBatchNorm
from convscope.rewrites.input_size import InputSize
from convscope.rewrites.input_sizes import input_sizes
from convscope.rewrites.kernel_size import KernelSize
from convscope.rewrites.padding import Padding
from convscope.rewrites.pool import Pool
from convscope.rewrites.separable import Separable
from convscope.rewrites.untie import Tie, Untie
from convscope.rewrites.upsample import Upsample

__all__ = [
    "Algorithm",
    "Bottleneck",
    "Chain",
    "Convolutionalize",
    "FoldBatchNorm",
    "InputSize",
    "KernelSize",
    "Padding",
    "Pool",
    "Rule",
    "Separable",
    "Tie",
    "Untie",
    "Upsample",
    "input_sizes",
]
