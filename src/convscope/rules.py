"""The rules that `convscope.rewrite` applies: one design choice each, composable with `|`.

from convscope import rewrite, rules

made = rewrite(net, rules.KernelSize(5, where="features.*"))
"""

from convscope.rewrites.base import Chain, Rule
from convscope.rewrites.bottleneck import Bottleneck
from convscope.rewrites.kernel_size import KernelSize
from convscope.rewrites.separable import Separable

__all__ = ["Bottleneck", "Chain", "KernelSize", "Rule", "Separable"]
