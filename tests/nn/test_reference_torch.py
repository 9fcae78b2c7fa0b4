"""The sample inputs that torch tests its own operators with, through the layers that claim the same semantics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.nn import (
    BilinearUpsample2d,
    Conv2d,
    EmbeddingChannels,
    MaxUnpool2d,
    NearestUpsample2d,
    OneHot,
    SwitchedMaxPool2d,
    TransposedConv2d,
)
from convscope.nn.subpixel import PixelShuffleUpsample2d
from operators import database

TYPES = [torch.float64, torch.float32, torch.bfloat16]


def _samples(name: str, dtype: torch.dtype) -> Iterator[Any]:
    yield from database()[name].sample_inputs("cpu", dtype)


def _same(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted)


def test_the_database_leaves_no_trace() -> None:
    assert len(database()) > 500
    assert hypothesis.settings.default is not None
    assert hypothesis.settings.default.max_examples == 60
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before  # still allowed


# ---------------------------------------------------------------- convolutions


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


@pytest.mark.parametrize("dtype", TYPES)
def test_transposed_convolution(dtype: torch.dtype) -> None:
    count = 0
    for sample in _samples("nn.functional.conv_transpose2d", dtype):
        weight, bias = (*sample.args, None)[:2]
        options = dict(sample.kwargs)
        groups = options.get("groups", 1)
        layer = TransposedConv2d(
            weight.shape[0],
            weight.shape[1] * groups,
            weight.shape[2:],
            bias=bias is not None,
            dtype=dtype,
            **options,
        )
        x = sample.input
        wanted = functional.conv_transpose2d(x, weight, bias, **options)
        _same(_with_weights(layer, weight, bias)(x), wanted)
        assert layer.output_size(x.shape[-2:]) == wanted.shape[-2:]
        count += 1
    assert count >= 12


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, about its own copy
@pytest.mark.parametrize("dtype", TYPES)
def test_convolution(dtype: torch.dtype) -> None:
    count = 0
    for sample in _samples("nn.functional.conv2d", dtype):
        weight, bias = (*sample.args, None)[:2]
        options = dict(sample.kwargs)
        groups = options.get("groups", 1)
        if 0 in weight.shape or 0 in sample.input.shape[-3:]:
            continue  # no channels at all: layers have some
        layer = Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            weight.shape[2:],
            bias=bias is not None,
            dtype=dtype,
            **options,
        )
        x = sample.input
        wanted = functional.conv2d(x, weight, bias, **options)
        _same(_with_weights(layer, weight, bias)(x), wanted)
        assert layer.output_size(x.shape[-2:]) == wanted.shape[-2:]
        count += 1
    assert count >= 24


# ---------------------------------------------------------------- unpooling


@pytest.mark.parametrize("dtype", TYPES)
def test_max_unpooling(dtype: torch.dtype) -> None:
    count = 0
    for sample in _samples("nn.functional.max_unpool2d", dtype):
        options = dict(sample.kwargs)
        size = options.pop("output_size")
        layer = MaxUnpool2d(options["kernel_size"], options["stride"], options["padding"])
        wanted = functional.max_unpool2d(sample.input, *sample.args, **sample.kwargs)
        _same(layer(sample.input, *sample.args, size), wanted)
        if size is None:
            assert layer.output_size(sample.input.shape[-2:]) == wanted.shape[-2:]
        count += 1
    assert count >= 250


def test_max_unpooling_gradients() -> None:
    count = 0
    for sample in database()["nn.functional.max_unpool2d grad"].sample_inputs(
        "cpu", torch.float64, requires_grad=True
    ):
        options = dict(sample.kwargs)
        size = options.pop("output_size")
        layer = MaxUnpool2d(options["kernel_size"], options["stride"], options["padding"])
        wanted = functional.max_unpool2d(sample.input, *sample.args, **sample.kwargs)
        found = layer(sample.input, *sample.args, size)
        slope = torch.rand_like(wanted)
        _same(*(torch.autograd.grad(y, sample.input, slope)[0] for y in (found, wanted)))
        count += 1
    assert count >= 30


def test_max_unpooling_refuses_what_torch_refuses() -> None:
    count = 0
    for wrong in database()["nn.functional.max_unpool2d"].error_inputs("cpu"):
        sample, options = wrong.sample_input, dict(wrong.sample_input.kwargs)
        size = options.pop("output_size", None)
        with pytest.raises((ValueError, RuntimeError)):
            MaxUnpool2d(**{"pool": options.pop("kernel_size"), **options})(sample.input, *sample.args, size)
        count += 1
    assert count >= 1


def test_switched_pooling() -> None:
    count = 0
    for at, sample in enumerate(_samples("nn.functional.max_pool2d", torch.float64)):
        options = dict(sample.kwargs)
        options.pop("return_indices")
        if at % 7:  # 1440 of them
            continue
        pool = SwitchedMaxPool2d(**options)
        x = sample.input
        wanted, indices = functional.max_pool2d(x, **options, return_indices=True)
        y, switches = pool.pool(x)
        _same(y, wanted)
        _same(switches.indices, indices)
        assert pool.output_size(x.shape[-2:]) == wanted.shape[-2:]
        _same(pool(x), wanted)
        restored = MaxUnpool2d(pool)(wanted)
        assert restored.shape == x.shape
        assert torch.equal(restored[restored != 0], x[restored != 0])
        count += 1
    assert count >= 200


# ---------------------------------------------------------------- interpolation


def _resized(sample: Any) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None] | None:
    """Size and scale as the layers take them; None where the sample is not an image or a pair cannot say it."""
    options = dict(sample.kwargs)
    if sample.input.ndim != 4 or options.get("recompute_scale_factor"):
        return None
    size = (*sample.args, options.get("size"))[0]
    scale = (*sample.args, None, None)[1] if len(sample.args) > 1 else options.get("scale_factor")
    return size, scale


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
def test_interpolation(mode: str, dtype: torch.dtype) -> None:
    count = 0
    for sample in _samples(f"nn.functional.interpolate {mode}", dtype):
        asked = _resized(sample)
        if asked is None:
            continue
        size, scale = asked
        if mode == "bilinear":
            aligned = bool(sample.kwargs["align_corners"])
            layer: Any = BilinearUpsample2d(scale, size, align_corners=aligned)
        else:
            layer = NearestUpsample2d(scale, size, exact=mode == "nearest-exact")
        wanted = functional.interpolate(sample.input, *sample.args, **sample.kwargs)
        _same(layer(sample.input), wanted)
        assert layer.output_size(sample.input.shape[-2:]) == wanted.shape[-2:]
        count += 1
    assert count >= 6


def test_antialiased_interpolation() -> None:
    count = 0
    for sample in _samples("_upsample_bilinear2d_aa", torch.float64):
        options = dict(sample.kwargs)
        if "scale_factors" not in options:  # the overload that the function for users does not call
            continue
        layer = BilinearUpsample2d(
            options["scale_factors"],
            options["output_size"],
            align_corners=options["align_corners"],
            antialias=True,
        )
        wanted = torch.ops.aten._upsample_bilinear2d_aa(sample.input, **options)
        _same(layer(sample.input), wanted)
        count += 1
    assert count >= 3


# ---------------------------------------------------------------- channels to pixels, words to channels


def test_pixel_shuffle() -> None:
    count = 0
    for sample in _samples("nn.functional.pixel_shuffle", torch.float64):
        scale, x = sample.kwargs["upscale_factor"], sample.input
        channels = x.shape[-3]
        if 0 in x.shape[-3:]:
            continue
        layer = PixelShuffleUpsample2d(
            channels, channels // scale**2, scale, 1, bias=False, dtype=torch.float64
        )
        nn.init.dirac_(layer.conv.weight)  # a convolution that changes nothing
        _same(layer(x), functional.pixel_shuffle(x, scale))
        count += 1
    assert count >= 2


def test_one_hot_and_embedding() -> None:
    count = 0
    for sample in _samples("nn.functional.one_hot", torch.int64):
        words, classes = sample.input, sample.kwargs["num_classes"]
        if classes > 0 and words.ndim in (1, 2):
            _same(OneHot(classes, dtype=torch.int64)(words).mT, functional.one_hot(words, classes))
            count += 1
    for sample in _samples("nn.functional.embedding", torch.float64):
        table, (words,), options = sample.input, sample.args, sample.kwargs
        if words.ndim in (1, 2) and set(options) <= {"padding_idx"}:
            layer = EmbeddingChannels.from_pretrained(table.detach(), **options)
            _same(layer(words).mT.detach(), functional.embedding(words, table, **options).detach())
            count += 1
    assert count >= 4
