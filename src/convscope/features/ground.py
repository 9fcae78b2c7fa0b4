"""The same ground for every picture, whatever the caller has switched on around the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_ground() -> Iterator[None]:
    """No inference mode (pictures need gradients), no ambient autocast, float32 as the default type.

    Example:
        >>> with torch.inference_mode(), own_ground():
        ...     torch.is_inference_mode_enabled()
        False
    """
    default = torch.get_default_dtype()
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
