"""A linear layer whose weight is kept in the form that oneDNN multiplies it in."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.algorithms import gradient


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN packs linear layers of this type there."""
    ops: Any = torch.ops.mkldnn
    has = torch.backends.mkldnn.is_available() and hasattr(ops, "_linear_pointwise")
    return dtype == torch.float32 and device.type == "cpu" and has


class PackedLinear(nn.Linear):
    """`torch.nn.Linear`, whose state_dict it has, with a packed copy of its weight for inputs of so many rows.

    torch's own function brings the weight of a large layer into another order at every call. What is not float32 on the
    CPU, has another number of rows, wants a gradient, or is traced runs as in torch. Packed at the first call; again when
    the weight changes. After writing to `weight.data`, which nothing can see, `eval()` or `train()` drops the copy.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.
        rows: vectors that a call multiplies, the batch usually.

    Example:
        >>> layer = PackedLinear(8, 4, rows=2)
        >>> x = torch.ones(2, 8)
        >>> with torch.no_grad():
        ...     torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rows: int,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.rows = rows
        self._packed: tuple[tuple[Any, ...], Tensor] | None = None

    @classmethod
    def of(cls, linear: nn.Linear, rows: int) -> PackedLinear:
        """The same layer, with parameters of its own."""
        weight, bias = linear.weight, linear.bias
        made = cls(
            linear.in_features, linear.out_features, bias is not None, weight.device, weight.dtype, rows=rows
        )
        with torch.no_grad():
            made.weight.copy_(weight)
            if bias is not None:
                made.bias.copy_(bias)
        return made.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if not self._serves(input):
            return functional.linear(input, self.weight, self.bias)
        with torch.no_grad():
            y: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._weight(), self.bias, "none", [], "")
        return y

    def _serves(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or not gradient.plain(x, self.weight, self.bias):
            return False
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
            return False
        wanted = x.requires_grad or any(p.requires_grad for p in self.parameters())
        return (
            not (wanted and torch.is_grad_enabled())
            and x.dtype == self.weight.dtype == torch.float32
            and x.shape[-1] == self.in_features
            and x.numel() == self.rows * self.in_features
        )

    def _weight(self) -> Tensor:
        weight = self.weight
        version = -1 if weight.is_inference() else weight._version
        state = (id(weight), version, weight.data_ptr())
        kept = self._packed
        if kept is None or kept[0] != state:
            with torch.inference_mode(False):
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), self.rows)
            kept = self._packed = (state, packed)
        return kept[1]

    def train(self, mode: bool = True) -> Self:
        """As every module; the packed copy is dropped."""
        self._packed = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """As torch's, and the rows."""
        return f"{super().extra_repr()}, rows={self.rows}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a copy packs its own
