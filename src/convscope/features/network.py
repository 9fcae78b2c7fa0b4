"""The private network that pictures are optimized on: frozen, batch norms folded, fast memory layout and type.

Nothing here changes what a layer computes beyond rounding, and the caller's module is never touched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from convscope.errors import ModelError, RequestError
from convscope.features.capture import Capture, split_key
from convscope.features.chains import join
from convscope.features.quicker import has_hooks, quicken
from convscope.graph import Graph, Op
from convscope.graph.folding import rest
from convscope.models import InputSpec, Net

_NORMS = {
    "aten.batch_norm",
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit_no_training",
    "aten.cudnn_batch_norm",
}
_CONVOLUTIONS = {"aten.convolution", "aten.conv2d", "aten.mkldnn_convolution"}

# Multiply-accumulates an output value of the convolutions from which half precision pays. Measured on CPUs: VGG-16
# has 300 to 900 and runs 4 times faster with matrix units, twice with AVX-512's bfloat16 dot product;
# EfficientNet-Lite0 has about 50 and runs slower.
_DENSE = 150.0


@dataclass(frozen=True)
class Network:
    """A private network, ready to be captured.

    Attributes:
        module: the private copy.
        graph: the executed graph of the original.
        spec: its input.
        dtype: the type it runs in.
        device: where it runs.
        folded: number of batch norms merged into their convolutions.
    """

    module: nn.Module
    graph: Graph
    spec: InputSpec
    dtype: torch.dtype
    device: torch.device
    folded: int

    def capture(self, keys: Iterable[str]) -> Capture:
        """Hooks the network for the given layer keys."""
        return Capture(self.module, self.graph, keys)

    def feed(self, images: Tensor) -> Tensor:
        """Pictures [unit, channel, height, width] in [0, 1] to normalized input, in the network's type and layout."""
        return self.in_type(self.spec.normalize(images))

    def in_type(self, x: Tensor) -> Tensor:
        """Normalized input in the network's type and layout."""
        return x.to(dtype=self.dtype, memory_format=torch.channels_last)

    @functools.cached_property
    def normalization(self) -> tuple[Tensor, Tensor]:
        """(gain, shift), one number a channel each: pictures become `gain * picture + shift`."""
        channels, (low, high) = self.spec.channels, self.spec.value_range
        mean, std = (
            torch.tensor(given or (usual,) * channels, dtype=torch.float64)
            for given, usual in ((self.spec.mean, 0.0), (self.spec.std, 1.0))
        )
        return ((high - low) / std).float(), ((low - mean) / std).float()


def prepare(
    net: Net,
    graph: Graph,
    keys: Iterable[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
) -> Network:
    """A private, frozen, folded copy of the network for reading the given layer keys.

    Args:
        net: the network.
        graph: as recorded.
        keys: layer keys that will be read; a batch norm behind one of them is not folded, since that would
            change the value.
        device: where to run; that of the network's parameters by default.
        dtype: "auto", or a floating type. Auto is bfloat16 where the hardware multiplies it natively and the network's
            convolutions are dense enough for it to pay, else float32.
    """
    addresses = {graph.call(split_key(key)[0]).name for key in keys}
    empty = next((name for name, tensor in net.module.state_dict().items() if tensor.is_meta), None)
    if empty is not None:
        raise ModelError(
            f"tensor {empty!r} of the network is on the meta device, without values; load its weights first"
        )
    module = net.copy()
    place = _usable(device) if device is not None else _device(module)
    chosen = _dtype(dtype, net, graph, place)
    if chosen is torch.float64:
        module = module.double()  # before folding, which rounds to the type it finds
    folded = fold(module, graph, protected=addresses)
    quicken(module, graph, addresses)
    join(module, graph, addresses)
    module = module.to(device=place, dtype=chosen)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(module, graph, net.input, chosen, place, folded)


def _usable(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # what torch raises differs by device
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"device={str(device)!r} cannot be used here ({reason}); give 'cpu' or one torch sees"
        ) from None
    return place


def _device(module: nn.Module) -> torch.device:
    tensor = next((t for t in [*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _dtype(asked: str | torch.dtype, net: Net, graph: Graph, device: torch.device) -> torch.dtype:
    names = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    if isinstance(asked, torch.dtype):
        if asked not in names.values():
            raise RequestError(f"dtype={asked} must be one of {', '.join(names)} or 'auto'")
        return asked
    if asked != "auto":
        if asked not in names:
            raise RequestError(f"dtype={asked!r} must be one of {', '.join(names)} or 'auto'")
        return names[asked]
    own = {p.dtype for p in net.module.parameters() if p.is_floating_point()}
    if own - {torch.float32}:  # a half or double network runs as it is
        return net.input.dtype if net.input.dtype in own else next(iter(own))
    return torch.bfloat16 if has_fast_bfloat16(device) and density(graph) >= _DENSE else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively: matrix units, or AVX-512's dot product (twice float32's rate)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        capability.startswith("AVX512")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and (_has("_is_amx_tile_supported") or _has("_is_avx512_bf16_supported"))
    )


def _has(check: str) -> bool:
    supported = getattr(torch.cpu, check, None)
    return bool(supported()) if supported is not None else False


def density(graph: Graph) -> float:
    """Multiply-accumulates an output value, over all convolutions of the network: how compute-bound they are."""
    macs = outputs = 0
    for op in graph.ops:
        if op.name not in _CONVOLUTIONS:
            continue
        weight, out = op.tensors.get("weight"), graph.values[op.outputs[0]].shape
        if not isinstance(weight, int) or op.attributes.get("transposed"):
            continue
        macs += math.prod(out) * math.prod(graph.values[weight].shape[1:])
        outputs += math.prod(out)
    return macs / outputs if outputs else 0.0


def fold(module: nn.Module, graph: Graph, protected: Iterable[str] = ()) -> int:
    """Merges each eval-mode batch norm into the convolution it follows, in place; returns how many.

    Only where the graph proves it exact: the convolution's output goes to the batch norm and nowhere else, both
    modules run once, their parameters are plain and their own, and neither carries a hook. A convolution in `protected`
    is left alone.
    """
    readers: dict[int, int] = {}
    for op in graph.ops:
        for value in op.inputs:
            readers[value] = readers.get(value, 0) + 1
    makers = {value: op for op in graph.ops for value in op.outputs}
    runs: dict[str, int] = {}
    for call in graph.calls:
        runs[call.name] = runs.get(call.name, 0) + 1
    protected = set(protected)
    shared = _shared(module)
    parts = dict(module.named_modules())  # get_submodule knows no name with a dot in it
    parents = _parents(module)
    folded = 0
    for norm_op in graph.ops:
        if norm_op.name not in _NORMS:
            continue
        between = norm_op.tensors.get("input")
        if not isinstance(between, int) or readers[between] != 1:
            continue
        conv_op = makers.get(between)
        if conv_op is None or conv_op.name not in _CONVOLUTIONS:
            continue
        names = (conv_op.module, norm_op.module)
        if "" in names or conv_op.module in protected or any(runs.get(name) != 1 for name in names):
            continue
        if norm_op.attributes.get("training") or not _are_plain(graph, conv_op, norm_op):
            continue
        if _inside_others(between, names[0], names[1], graph, protected):
            continue
        folded += _merge(parts[names[0]], parts[names[1]], parents, shared)
    return folded


def _parents(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By a part's identity, where it hangs: a network may call it by any of the names it has."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in module.modules():
        for name, child in parent._modules.items():
            found.setdefault(id(child), []).append((parent, name))
    return found


def _are_plain(graph: Graph, conv: Op, norm: Op) -> bool:
    """Whether both operations ran on their module's own parameters, not on something computed from them."""
    for op, names in ((conv, ("weight", "bias")), (norm, ("weight", "bias", "running_mean", "running_var"))):
        for name in names:
            read = op.tensors.get(name)
            if isinstance(read, int) and graph.values[read].name != f"{op.module}.{name}":
                return False
    return True


def _inside_others(value: int, conv: str, norm: str, graph: Graph, protected: set[str]) -> bool:
    """Whether some protected module other than the pair hands out or takes in the value between the two."""
    return any(
        call.name in protected and call.name != norm and value in call.outputs
        for call in graph.calls
        if call.name != conv
    )


def _shared(module: nn.Module) -> set[int]:
    """Parameters that several modules hold."""
    seen: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def _merge(
    conv: nn.Module, norm: nn.Module, parents: dict[int, list[tuple[nn.Module, str]]], shared: set[int]
) -> bool:
    if not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) or has_hooks(conv) or has_hooks(norm):
        return False
    if getattr(conv, "parametrizations", None) or conv.transposed:
        return False
    if (
        not isinstance(norm, nn.modules.batchnorm._BatchNorm)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        return False
    replacement = rest(norm)
    if replacement is None or any(id(p) in shared for p in (conv.weight, conv.bias, norm.weight, norm.bias)):
        return False
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    w, b, mean, var, gain, shift = (None if t is None else t.detach().double() for t in tensors)
    weight, bias = fuse_conv_bn_weights(w, b, mean, var, norm.eps, gain, shift)  # type: ignore[arg-type]
    conv.weight, conv.bias = (
        nn.Parameter(t.to(conv.weight.dtype), requires_grad=False) for t in (weight, bias)
    )
    replacement.train(norm.training)
    for parent, name in parents[id(norm)]:
        parent._modules[name] = replacement
    return True
