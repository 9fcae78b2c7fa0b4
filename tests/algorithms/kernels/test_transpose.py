"""Transposition in machine code: nothing but a copy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convscope.algorithms.kernels import host, threads, transpose

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
pytestmark = pytest.mark.skipif(
    host.detect().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("width", WIDTHS)
@given(count=st.integers(0, 3), rows=st.integers(1, 40), columns=st.integers(1, 40))
@settings(max_examples=40)
def test_it_transposes_and_touches_nothing_else(width: int, count: int, rows: int, columns: int) -> None:
    source = torch.arange(count * rows * columns, dtype=torch.float32).view(count, rows, columns)
    target = torch.full((count * rows * columns + 64,), -1.0)
    with host.pretend(host.narrowed(width)):
        transpose.run(source.data_ptr(), target[32:].data_ptr(), count, rows, columns)
    assert torch.equal(target[32 : 32 + source.numel()].view(count, columns, rows), source.mT)
    assert (target[:32] == -1).all()
    assert (target[32 + source.numel() :] == -1).all()
