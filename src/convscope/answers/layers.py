"""The convolutions of a network as they ran: what the questions about layers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from convscope.measures.measure import measure
from convscope.measures.profile import LayerRow, Profile
from convscope.models import Net


@dataclass(frozen=True)
class Conv:
    """One call of a two-dimensional convolution.

    Attributes:
        name: its layer.
        before, after: (height, width) of its input and output.
        channels: (in, out).
        kernel, stride, dilation: (height, width).
        groups: channels are convolved in so many groups apart.
        params, macs: what it costs.
    """

    name: str
    before: tuple[int, int]
    after: tuple[int, int]
    channels: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    params: int
    macs: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Conv:
        """From what `to_dict` gave, also after a round through JSON."""
        plain: dict[str, Any] = {f.name: values[f.name] for f in fields(cls)}
        plain |= {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with whether it is padded."""
        return vars(self) | {"is_padded": self.is_padded}

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels from the first tap of the kernel to the last."""
        (k0, k1), (d0, d1) = self.kernel, self.dilation
        return (k0 - 1) * d0 + 1, (k1 - 1) * d1 + 1

    @property
    def valid(self) -> tuple[int, int]:
        """Size of its output without padding: floor((size - extent) / stride) + 1."""
        sizes = [
            max(0, (n - e) // s + 1) for n, e, s in zip(self.before, self.extent, self.stride, strict=True)
        ]
        return sizes[0], sizes[1]

    @property
    def is_padded(self) -> bool:
        """Whether its output is larger than without padding, however the padding comes about."""
        return any(a > v for a, v in zip(self.after, self.valid, strict=True))

    @property
    def is_depthwise(self) -> bool:
        """Whether every input channel is convolved by itself."""
        return self.groups == self.channels[0] > 1

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel is 1x1."""
        return self.kernel == (1, 1)


def profile_of(net: Net) -> Profile:
    """What every layer costs, by counting alone."""
    return measure(net, fields=False, training=False)


def convolutions(profile: Profile) -> list[Conv]:
    """The two-dimensional convolutions of a network, transposed ones apart, in the order they ran."""
    return [_conv(row) for row in profile.layers if _is_conv(row)]


def _is_conv(row: LayerRow) -> bool:
    return (
        row.macs > 0
        and row.kernel is not None
        and len(row.kernel) == 2
        and None not in (row.stride, row.dilation, row.groups)
        and len(row.in_shape) == len(row.out_shape) == 4
        and row.in_shape[2:] != (1, 1)
        and "Transpose" not in row.kind
        and not (row.functional and row.out_shape[2] > row.in_shape[2])  # likewise transposed
    )


def _conv(row: LayerRow) -> Conv:
    assert row.kernel is not None
    assert row.stride is not None
    assert row.dilation is not None
    assert row.groups is not None
    return Conv(
        name=row.name,
        before=(row.in_shape[2], row.in_shape[3]),
        after=(row.out_shape[2], row.out_shape[3]),
        channels=(row.in_shape[1], row.out_shape[1]),
        kernel=(row.kernel[0], row.kernel[1]),
        stride=(row.stride[0], row.stride[1]),
        dilation=(row.dilation[0], row.dilation[1]),
        groups=row.groups,
        params=row.params,
        macs=row.macs,
    )


def sizes(pair: tuple[int, ...] | list[int]) -> str:
    """A size as people write it.

    Example:
        >>> sizes((3, 5))
        '3x5'
    """
    return "x".join(map(str, pair))
