"""Fourier kernels in machine code against float64, over every shape that has an edge of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convscope.algorithms.kernels import fourier, host, threads, workspace
from convscope.algorithms.kernels.fourier import Layer
from convscope.algorithms.kernels.fourier_cut import Cut, tiled, whole
from convscope.errors import RequestError

WIDTHS = [width for width in (16, 8) if width <= host.detect().width]
pytestmark = pytest.mark.skipif(
    host.detect().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=WIDTHS, ids=lambda width: f"width{width}")
def machine(request: pytest.FixtureRequest) -> Iterator[host.Host]:
    with host.pretend(host.narrowed(request.param)) as narrowed:
        yield narrowed


def layer(
    channels: tuple[int, int, int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    *,
    tile: int | None = None,
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> Layer:
    """Batch, inputs, outputs and groups; "same" padding unless told."""
    sides = padding or tuple((k // 2, k - 1 - k // 2) for k in kernel)  # type: ignore[assignment]

    def cut(axis: int) -> Cut:
        shape = size[axis], kernel[axis], *sides[axis]
        return whole(*shape) if tile is None else tiled(*shape, tile)

    return Layer(*channels, cut(0), cut(1))


def data(of: Layer, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = of.outputs, of.inputs // of.groups, of.down.kernel, of.across.kernel
    shapes = (of.batch, of.inputs, of.down.size, of.across.size), weight, (of.outputs,)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def direct(of: Layer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = F.pad(x.double(), (of.across.low, of.across.high, of.down.low, of.down.high))
    return F.conv2d(x, weight.double(), None if bias is None else bias.double(), groups=of.groups)


def error(found: Tensor, right: Tensor) -> float:
    return ((found - right).abs().max() / right.abs().max().clamp(1e-3)).item()


LAYERS = {
    "one pixel": layer((1, 1, 1, 1), (1, 1), (1, 1)),
    "odd rows": layer((2, 16, 16, 1), (9, 8), (3, 3)),
    "ragged channels": layer((2, 3, 5, 1), (9, 11), (3, 5)),
    "kernel as large as the image": layer((1, 8, 24, 1), (7, 7), (7, 7), padding=((0, 0), (0, 0))),
    "padding beyond the kernel": layer((1, 8, 8, 1), (7, 7), (1, 2), padding=((3, 4), (5, 0))),
    "pixels left out": layer((1, 8, 8, 1), (12, 14), (3, 2), padding=((-2, 1), (2, -3))),
    "tiles with edges": layer((2, 20, 40, 1), (40, 41), (5, 4), tile=16),
    "tiles of odd rows": layer((1, 16, 16, 1), (29, 31), (4, 4), tile=12),
    "several batches of tiles": layer((3, 33, 17, 1), (30, 34), (3, 3), tile=8),
    "one dimension": layer((2, 8, 8, 1), (1, 300), (1, 31), tile=64),
    "three passes": layer((1, 4, 4, 1), (1, 500), (1, 9)),
    "groups of whole panels": layer((2, 32, 64, 4), (10, 11), (5, 4)),
    "groups in one vector": layer((2, 36, 12, 3), (10, 11), (5, 4)),
    "single inputs": layer((2, 12, 36, 12), (10, 11), (3, 4), tile=8),
    "depthwise": layer((2, 40, 40, 40), (20, 21), (5, 4)),
    "depthwise tiles": layer((2, 20, 20, 20), (30, 31), (5, 4), tile=16),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_convolution(name: str, machine: host.Host) -> None:
    of = LAYERS[name]
    x, weight, bias = data(of)
    kernel, wanted = fourier.prepare(of, weight, bias, relu=True), direct(of, x, weight, bias).relu()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = kernel(x.contiguous(memory_format=memory_format))
        assert found.is_contiguous(memory_format=memory_format)
        assert error(found, wanted) < 2e-6


def test_without_bias_and_rectifier(machine: host.Host) -> None:
    of = LAYERS["tiles with edges"]
    x, weight, _ = data(of)
    assert error(fourier.prepare(of, weight)(x), direct(of, x, weight)) < 2e-6


def test_many_channels_keep_the_accuracy() -> None:
    of = layer((1, 512, 16, 1), (14, 14), (13, 13))
    x, weight, _ = data(of)
    assert error(fourier.prepare(of, weight)(x), direct(of, x, weight)) < 2e-6


# ---------------------------------------------------------------- how it is called


def test_layouts_and_views() -> None:
    of = LAYERS["ragged channels"]
    x, weight, _ = data(of)
    kernel = fourier.prepare(of, weight)
    right = kernel(x)
    wide = torch.randn(2, 3, 18, 22)
    wide[..., ::2, ::2] = x
    for same in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2, ::2], x.flip(0).flip(0)):
        assert torch.equal(kernel(same), right)


def test_an_empty_batch() -> None:
    of = layer((0, 4, 6, 1), (9, 9), (3, 3))
    x, weight, bias = data(of)
    assert fourier.prepare(of, weight, bias)(x).shape == (0, 6, 9, 9)


@pytest.mark.parametrize("name", ["tiles with edges", "depthwise tiles"])
def test_any_number_of_threads(name: str) -> None:
    """The team may change after preparation; the sums do not."""
    of = LAYERS[name]
    x, weight, bias = data(of)
    kernel = fourier.prepare(of, weight, bias)
    right = kernel(x)
    before = torch.get_num_threads()
    try:
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(kernel(x), right)
    finally:
        torch.set_num_threads(before)


def test_python_threads_at_once() -> None:
    of = LAYERS["odd rows"]
    _, weight, _ = data(of)
    kernel = fourier.prepare(of, weight)
    inputs = [data(of, seed)[0] for seed in range(6)]
    right = [kernel(x) for x in inputs]
    found: list[bool] = []

    def work(index: int) -> None:
        found.append(all(torch.equal(kernel(inputs[index]), right[index]) for _ in range(20)))

    team = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for each in team:
        each.start()
    for each in team:
        each.join()
    assert found == [True] * 6


def test_a_nan_spreads_over_its_tile_and_no_further() -> None:
    of = layer((1, 16, 16, 16), (30, 30), (3, 3), tile=12)
    x, weight, _ = data(of)
    clean = fourier.prepare(of, weight)(x)
    x[0, 3, 0, 0] = float("nan")
    found = fourier.prepare(of, weight)(x)
    step = of.down.step
    assert found[0, 3, :step, :step].isnan().all()
    found[0, 3, :step, :step] = clean[0, 3, :step, :step]
    assert torch.equal(found, clean)


def test_memory_is_told_and_given_back() -> None:
    of = LAYERS["odd rows"]
    x, weight, _ = data(of)
    kernel = fourier.prepare(of, weight)
    down, across = of.down.length, of.across.length // 2 + 1
    lanes = host.current().width
    assert kernel.bytes == 8 * down * across * 16 * max(16, lanes)
    assert kernel.workspace == fourier.workspace_of(of) > 0
    kernel(x)
    assert workspace.held() >= kernel.workspace
    workspace.release()


def test_the_weight_may_change_afterwards() -> None:
    of = LAYERS["odd rows"]
    x, weight, _ = data(of)
    kernel = fourier.prepare(of, weight)
    right = kernel(x)
    weight.zero_()
    assert torch.equal(kernel(x), right)


def test_other_inputs_are_refused() -> None:
    """Machine code reads memory unasked: nothing but what it was built for may reach it."""
    of = LAYERS["odd rows"]
    x, weight, _ = data(of)
    kernel = fourier.prepare(of, weight)
    for wrong in (x[..., 1:], x[:1], x.double()):
        with pytest.raises(
            RequestError, match=r"this kernel was prepared for float32 \[2, 16, 9, 8\] on cpu"
        ):
            kernel(wrong)
    with pytest.raises(
        RequestError, match=r"the weight is \[16, 16, 3, 2\]; this layer's is \[16, 16, 3, 3\]"
    ):
        fourier.prepare(of, weight[..., 1:])


# ---------------------------------------------------------------- where it does not run


def test_it_refuses_with_a_reason() -> None:
    assert fourier.refuses(torch.float32, "cpu") is None
    assert fourier.refuses(torch.float64, "cpu") == "machine code is for float32, not float64"
    assert fourier.refuses(torch.float32, "cuda") == "machine code is for the CPU, not cuda"
    of = LAYERS["odd rows"]
    _, weight, _ = data(of)
    with host.pretend(host.narrowed(0)):
        reason = fourier.refuses(torch.float32, "cpu")
        assert reason is not None
        assert "neither AVX-512 nor AVX2" in reason
        with pytest.raises(RuntimeError, match="no Fourier kernel can be built: the processor"):
            fourier.prepare(of, weight)
    with pytest.raises(RuntimeError, match="no Fourier kernel can be built: machine code is for float32"):
        fourier.prepare(of, weight.double())
