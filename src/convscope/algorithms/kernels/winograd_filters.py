"""Filters to frequencies, G g G^T, once for each weight and in float64, laid out as the product reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from convscope.algorithms.kernels import workspace
from convscope.algorithms.kernels.winograd_layout import Layout


def transformed(weight: Tensor, g: Tensor, layout: Layout) -> Tensor:
    """The filters in the frequency domain.

    Args:
        weight: `[outputs, inputs, taps, taps]`.
        g: G in float64, `[points, taps]`.
        layout: the sizes; channels beyond those of the weight become zeros.

    Returns:
        U, float32 `[wide / columns, frequencies, deep, columns]`, on huge pages where large.
    """
    outputs, inputs = weight.shape[:2]
    both = torch.kron(g, g)  # [frequencies, taps * taps]
    taps = weight.detach().double().flatten(2).permute(2, 1, 0).contiguous()  # [taps * taps, inputs, outputs]
    u = workspace.aligned(4 * layout.u_size, zero=layout.deep > inputs or layout.wide > outputs)
    shape = (layout.wide // layout.columns, layout.frequencies, layout.deep, layout.columns)
    u = u.view(torch.float32).view(shape)
    for part, columns in zip(u, taps.split(layout.columns, dim=2), strict=True):
        count = columns.shape[2]
        frequencies = both @ columns.reshape(both.shape[1], inputs * count)
        part[:, :inputs, :count] = frequencies.view(-1, inputs, count)
    return u
