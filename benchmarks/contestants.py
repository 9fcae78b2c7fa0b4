"""Who computes a convolution in the benchmarks: torch in its forms, its peers, and convscope. Each is a call without
arguments whose output is freshly allocated, with its weights prepared beforehand and the threads it is told to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convscope import algorithms

Run = Callable[[], object]
LAST = torch.channels_last


@dataclass(frozen=True)
class Layer:
    """A convolution with "same" padding, drawn at random."""

    batch: int
    channels: int
    filters: int
    size: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False

    @property
    def name(self) -> str:
        parts = [f"{self.batch}x{self.channels}x{self.size}x{self.size}", f"{self.kernel}x{self.kernel}"]
        parts += [f"to {self.filters}"] if self.filters != self.channels else []
        parts += [f"stride {self.stride}"] if self.stride > 1 else []
        parts += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        return " ".join([*parts, "depthwise"] if self.depthwise else parts)

    @property
    def groups(self) -> int:
        return self.channels if self.depthwise else 1

    @property
    def settings(self) -> dict[str, int]:
        """As `conv2d` takes them."""
        padding = self.dilation * (self.kernel - 1) // 2
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}

    def data(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Input `[batch, channel, height, width]` and weight, of unit variance."""
        own = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, self.channels, self.size, self.size, generator=own)
        shape = (self.filters, self.channels // self.groups, self.kernel, self.kernel)
        weight = torch.randn(shape, generator=own) * (shape[1] * self.kernel**2) ** -0.5
        return x.to(device), weight.to(device)


def eager(layer: Layer, x: Tensor, weight: Tensor) -> dict[str, Run]:
    """torch in both memory layouts, input and weight laid out beforehand."""
    last = x.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)
    return {
        "torch contiguous": lambda: F.conv2d(x, weight, None, **layer.settings),
        "torch channels_last": lambda: F.conv2d(*last, None, **layer.settings),
    }


def prepacked(layer: Layer, x: Tensor, weight: Tensor) -> Run:
    """oneDNN with the weight in the form it likes best, as torch.compile calls it."""
    pair = [[value] * 2 for value in (layer.settings["padding"], layer.stride, layer.dilation)]
    ops = torch.ops.mkldnn
    packed = ops._reorder_convolution_weight(weight, *pair, layer.groups, list(x.shape))
    x = x.contiguous(memory_format=LAST)
    return lambda: ops._convolution_pointwise(x, packed, None, *pair, layer.groups, "none", [], "")


def planned(layer: Layer, x: Tensor, weight: Tensor, algorithm: str) -> Run:
    """convscope, on an input in the layout given."""
    plan = algorithms.prepare(weight, algorithm=algorithm, **layer.settings)
    return lambda: plan(x)


def fft_conv(layer: Layer, x: Tensor, weight: Tensor) -> Run:
    """fft-conv-pytorch."""
    from fft_conv_pytorch import fft_conv

    return lambda: fft_conv(x, weight, **layer.settings)


# ---------------------------------------------------------------- whole networks of convolutions


@dataclass(frozen=True)
class Stack:
    """Convolutions of 3x3 with ReLU; 0 stands for a 2x2 max pool."""

    weights: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, channels: Sequence[int], first: int) -> Stack:
        own, weights, before = torch.Generator().manual_seed(0), [], first
        for count in channels:
            if count:
                scale = (2 / (9 * before)) ** 0.5
                weights.append(torch.randn(count, before, 3, 3, generator=own) * scale)
                before = count
            else:
                weights.append(None)
        return cls(tuple(weights))

    def module(self) -> nn.Sequential:
        """As torch would have it."""
        parts: list[nn.Module] = []
        for weight in self.weights:
            if weight is None:
                parts.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.weight.data, conv.bias.data = weight.clone(), torch.zeros(len(weight))  # type: ignore[union-attr]
            parts += [conv, nn.ReLU(inplace=True)]
        return nn.Sequential(*parts).eval().requires_grad_(False)

    def planned(self, x: Tensor, algorithm: str) -> Run:
        """convscope, ReLU fused where the kernel can."""
        steps = [
            F.max_pool2d if weight is None else
            algorithms.prepare(weight, torch.zeros(len(weight)), padding=1, algorithm=algorithm, activation="relu")
            for weight in self.weights
        ]  # fmt: skip

        def run() -> Tensor:
            y = x
            for step in steps:
                y = F.max_pool2d(y, 2) if step is F.max_pool2d else step(y)
            return y

        return run

    def onnx(self, x: Tensor) -> bytes:
        """The same as an ONNX model, built by hand: no exporter decides anything."""
        from onnx import TensorProto, checker, helper, numpy_helper

        nodes, weights, value = [], [], "x"
        for number, weight in enumerate(self.weights):
            if weight is None:
                nodes.append(
                    helper.make_node("MaxPool", [value], [f"p{number}"], kernel_shape=[2, 2], strides=[2, 2])
                )
                value = f"p{number}"
                continue
            names = [f"w{number}", f"b{number}"]
            for name, data in zip(names, (weight, torch.zeros(len(weight))), strict=True):
                weights.append(numpy_helper.from_array(data.numpy(), name))
            conv = [value, *names], [f"c{number}"]
            nodes.append(helper.make_node("Conv", *conv, kernel_shape=[3, 3], pads=[1] * 4))
            nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
            value = f"r{number}"
        ends = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape)),
            helper.make_tensor_value_info(value, TensorProto.FLOAT, list("nchw")),
        ]
        graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        checker.check_model(model)
        return bytes(model.SerializeToString())


def compiled(module: nn.Module, x: Tensor) -> Run:
    """torch.compile, weights frozen, in the layout it likes best."""
    import torch._inductor.config as inductor

    module, x = module.to(memory_format=LAST), x.contiguous(memory_format=LAST)  # type: ignore[call-overload]
    with inductor.patch(freezing=True):
        fast = torch.compile(module)
        fast(x)
    return lambda: fast(x)


def onnxruntime(model: bytes, x: Tensor) -> Run:
    """onnxruntime on the CPU, all its optimizations on."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)


def openvino(model: bytes, x: Tensor) -> Run:
    """OpenVINO on the CPU, for latency, in float32: left alone it would take bfloat16 where the processor has it."""
    import openvino as ov

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = ov.Core()
    net = core.compile_model(core.read_model(model), "CPU", settings)
    feed = {0: x.numpy()}
    return lambda: net(feed, share_inputs=True, share_outputs=False)
