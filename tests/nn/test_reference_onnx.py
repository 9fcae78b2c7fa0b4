"""The layers against implementations that share nothing with torch: ONNX's reference evaluator, and loops in numpy.

The evaluator is plain numpy written by other people from a specification of its own.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from convscope.nn import (
    BedOfNails2d,
    BilinearUpsample2d,
    Conv2d,
    MaxUnpool2d,
    NearestUpsample2d,
    OneHot,
    PixelShuffleUpsample2d,
    SwitchedMaxPool2d,
    TransposedConv2d,
)

Array = npt.NDArray[Any]

SIZES = [(1, 1), (2, 3), (4, 4), (5, 7), (6, 5)]  # odd and even


def _onnx(operator: str, *inputs: Array | None, outputs: int = 1, **attributes: Any) -> list[Array]:
    """One operator of ONNX on arrays; None leaves an optional input out."""
    names = ["" if array is None else f"x{at}" for at, array in enumerate(inputs)]
    results = [f"y{at}" for at in range(outputs)]
    kinds = {
        name: helper.np_dtype_to_tensor_dtype(array.dtype)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    }
    graph = helper.make_graph(
        [helper.make_node(operator, names, results, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, {f"x{at}": a for at, a in enumerate(inputs) if a is not None})


def _draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def _close(found: torch.Tensor, wanted: Array) -> None:
    torch.testing.assert_close(found.detach(), torch.from_numpy(np.asarray(wanted)), rtol=1e-9, atol=1e-12)


def test_the_evaluator_is_onnxs() -> None:
    assert _onnx("Add", np.ones(2), np.ones(2))[0].tolist() == [2, 2]
    assert "torch" not in ReferenceEvaluator.__module__
    assert onnx.__version__


# ---------------------------------------------------------------- interpolation


def _resize(x: Array, scale: tuple[int, int], **attributes: str) -> Array:
    scales = np.array([1, 1, *scale], dtype=np.float32)
    return _onnx("Resize", x, None, scales, **attributes)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (3, 2)])
def test_interpolation(size: tuple[int, int], scale: tuple[int, int]) -> None:
    x = _draw(1, 2, *size)
    image = torch.from_numpy(x)
    linear: dict[str, str] = {"mode": "linear"}
    half = _resize(x, scale, **linear, coordinate_transformation_mode="half_pixel")
    _close(BilinearUpsample2d(scale)(image), half)
    corners = _resize(x, scale, **linear, coordinate_transformation_mode="align_corners")
    _close(BilinearUpsample2d(scale, align_corners=True)(image), corners)
    near = {"mode": "nearest"}
    floor = _resize(x, scale, **near, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    _close(NearestUpsample2d(scale)(image), floor)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("out", [(3, 4), (8, 5), (9, 11)])
def test_interpolation_to_any_size(out: tuple[int, int], align_corners: bool) -> None:
    x = _draw(1, 2, 5, 4)
    sizes = np.array([1, 2, *out], dtype=np.int64)
    how = "align_corners" if align_corners else "half_pixel"
    wanted = _onnx("Resize", x, None, None, sizes, mode="linear", coordinate_transformation_mode=how)[0]
    _close(BilinearUpsample2d(size=out, align_corners=align_corners)(torch.from_numpy(x)), wanted)
    exact = _onnx(
        "Resize",
        x,
        None,
        None,
        sizes,
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
    )[0]
    _close(NearestUpsample2d(size=out, exact=True)(torch.from_numpy(x)), exact)


# ---------------------------------------------------------------- nails and switches


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (3, 2)])
def test_bed_of_nails_is_unpooling_to_the_corners(size: tuple[int, int], scale: tuple[int, int]) -> None:
    x = _draw(2, 3, *size)
    out = (size[0] * scale[0], size[1] * scale[1])
    for offset in ((0, 0), (scale[0] - 1, scale[1] - 1)):
        image, row, column = np.ogrid[:6, : size[0], : size[1]]
        places = (image * out[0] + row * scale[0] + offset[0]) * out[1] + column * scale[1] + offset[1]
        wanted = _onnx(
            "MaxUnpool", x, places.reshape(x.shape).astype(np.int64), kernel_shape=scale, strides=scale
        )[0]
        _close(BedOfNails2d(scale, offset)(torch.from_numpy(x)), wanted)
    block = np.zeros(scale)
    block[0, 0] = 1
    _close(BedOfNails2d(scale)(torch.from_numpy(x)), np.kron(x, block))  # numpy's own


@pytest.mark.parametrize("kernel", [(2, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (3, 2)])
def test_unpooling(kernel: tuple[int, int], blocks: tuple[int, int]) -> None:
    x = _draw(2, 3, blocks[0] * kernel[0], blocks[1] * kernel[1])
    pooled, switches = _onnx("MaxPool", x, outputs=2, kernel_shape=kernel, strides=kernel)
    wanted = _onnx("MaxUnpool", pooled * 2, switches, kernel_shape=kernel, strides=kernel)[0]
    pool = SwitchedMaxPool2d(kernel)
    unpool = MaxUnpool2d(pool)
    y = pool(torch.from_numpy(x))
    _close(y, pooled)
    _close(unpool(y * 2), wanted)


def _unpooled(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """The maxima of all windows at their places, by loops; the last window wins."""
    y = np.zeros_like(x)
    height, width = x.shape[-2:]
    for image in np.ndindex(*x.shape[:-2]):
        for top, left in product(
            range(-padding, height + padding - kernel + 1, stride),
            range(-padding, width + padding - kernel + 1, stride),
        ):
            rows = range(max(top, 0), min(top + kernel, height))
            columns = range(max(left, 0), min(left + kernel, width))
            best = max(product(rows, columns), key=lambda at: (x[(*image, *at)], -at[0], -at[1]))
            y[(*image, *best)] = x[(*image, *best)]
    return y


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (6, 5)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (3, 1, 1), (2, 3, 0)]
)
def test_unpooling_odd_sizes_and_overlaps(
    size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    x = _draw(2, 2, *size)
    pool = SwitchedMaxPool2d(kernel, stride, padding)
    unpool = MaxUnpool2d(pool)
    _close(unpool(pool(torch.from_numpy(x))), _unpooled(x, kernel, stride, padding))


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (6, 5), (9, 8), (3, 2)])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (4, 3), (5, 5), (7, 2)])
def test_same_padding_at_stride_2(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    x, weight, bias = _draw(2, 3, *size), _draw(4, 3, *kernel), _draw(4)
    layer = Conv2d(3, 4, kernel, stride=2, padding="same", dtype=torch.float64)
    layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    found = layer(torch.from_numpy(x))
    wanted = _onnx("Conv", x, weight, bias, strides=[2, 2], auto_pad="SAME_UPPER")[0]
    _close(found, wanted)
    assert found.shape[2:] == layer.output_size(size) == (-(-size[0] // 2), -(-size[1] // 2))


@pytest.mark.parametrize("size", [4, 5, 8, 9])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_by_loops(size: int, kernel: int, stride: int) -> None:
    """TensorFlow's rule: ceil(size / stride) outputs, total = max((outputs - 1) stride + kernel - size, 0)."""
    x, weight = _draw(1, 1, size, size), _draw(1, 1, kernel, kernel)
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    wanted = np.zeros((1, 1, outputs, outputs))
    for row, column, i, j in product(range(outputs), range(outputs), range(kernel), range(kernel)):
        y, z = row * stride + i - before, column * stride + j - before
        if 0 <= y < size and 0 <= z < size:
            wanted[0, 0, row, column] += weight[0, 0, i, j] * x[0, 0, y, z]
    layer = Conv2d(1, 1, kernel, stride, padding="same", bias=False, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.from_numpy(weight)})
    _close(layer(torch.from_numpy(x)), wanted)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"), [(3, 2, 1, 1), (4, 2, 1, 0), (2, 3, 0, 2), (5, 1, 2, 0)]
)
def test_transposed_convolution(kernel: int, stride: int, padding: int, extra: int) -> None:
    x, weight, bias = _draw(2, 4, 3, 5), _draw(4, 3, kernel, kernel), _draw(6)
    layer = TransposedConv2d(4, 6, kernel, stride, padding, extra, groups=2, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    halves = [  # the evaluator's groups are its weak spot: one call a group
        _onnx(
            "ConvTranspose",
            x[:, 2 * g : 2 * g + 2],
            weight[2 * g : 2 * g + 2],
            bias[3 * g : 3 * g + 3],
            strides=[stride, stride],
            pads=[padding] * 4,
            output_padding=[extra, extra],
        )[0]
        for g in range(2)
    ]
    _close(layer(torch.from_numpy(x)), np.concatenate(halves, 1))


@pytest.mark.parametrize("scale", [2, 3])
def test_pixel_shuffle(scale: int) -> None:
    layer = PixelShuffleUpsample2d(3, 2, scale, start="uniform", dtype=torch.float64)
    x = _draw(2, 3, 4, 5)
    weight, bias = (parameter.detach().numpy() for parameter in layer.conv.parameters())
    low = _onnx("Conv", x, weight, bias, auto_pad="SAME_UPPER")[0]
    _close(layer(torch.from_numpy(x)), _onnx("DepthToSpace", low, blocksize=scale, mode="CRD")[0])


# ---------------------------------------------------------------- words


def test_one_hot() -> None:
    words = np.array([[3, 1, 4], [1, 5, 0]])
    values = np.array([0.0, 1.0])
    rows = _onnx("OneHot", words, np.array(7), values, axis=-1)[0]
    channels = _onnx("OneHot", words, np.array(7), values, axis=1)[0]
    _close(OneHot(7, dtype=torch.float64)(torch.from_numpy(words)), channels)
    _close(OneHot(7, "rows", dtype=torch.float64)(torch.from_numpy(words))[:, 0], rows)
