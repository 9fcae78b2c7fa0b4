"""A network and pictures to run through it: what measures on data share.

The network is a private copy, so that hooks, modes and buffers of the caller's are out of reach. Pictures
come as `View`s in batches; nothing of them is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from convscope import data as pictures
from convscope.data import Images
from convscope.errors import BadInput, ModelError, RequestError, UnknownLayer
from convscope.graph import Call, Graph, layout, record, resolve
from convscope.graph.record import flatten
from convscope.graph.rules import follow
from convscope.measures.moves import Frame, View, beyond
from convscope.models import InputLike, InputSpec, Net, as_net

Data: TypeAlias = str | os.PathLike[str] | Images | Tensor | None
Progress: TypeAlias = Callable[[dict[str, Any]], None]
LIMIT = 200  # pictures, where nobody says

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True)
class Subject:
    """A network, ready to run on pictures.

    Attributes:
        name: the network's.
        module: a private copy in eval mode.
        graph: of the network, at the input's size.
        frame: the sizes of views and input.
        source: where the pictures come from.
        count: how many there are; broken files among them.
        labels: number of class names the network has, or None.
        tensors: the pictures, where they are a tensor.
        images: the files, where they are files.
        spec: what the network expects of pictures; None for tensors, which it takes as they are.
    """

    name: str
    module: nn.Module
    graph: Graph
    frame: Frame
    source: str
    count: int
    labels: int | None
    tensors: Tensor | None
    images: Images | None
    spec: InputSpec | None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        every = [*self.module.parameters(), *self.module.buffers()]
        return every[0].device if every else torch.device("cpu")

    def views(self, batch: int) -> Iterator[View]:
        """All pictures, `batch` at a time."""
        if self.tensors is not None:
            for start in range(0, len(self.tensors), batch):
                part = self.tensors[start : start + batch]
                yield View(self.frame, part, tuple(str(start + k) for k in range(len(part))))
            return
        assert self.images is not None
        assert self.spec is not None
        names = self.images.names
        wide = replace(self.spec, shape=(self.spec.channels, *self.frame.canvas))
        for piece in self.images.batches(wide, batch):
            yield View(self.frame, piece.images, tuple(names[index] for index in piece.indices), (0.0, 1.0))

    def run(self, samples: Tensor) -> Tensor:
        """The network's first output for inputs that are not yet normalized.

        Raises:
            ModelError: it fails, or gives no tensor with a row a picture.
        """
        x = samples if self.spec is None else self.spec.normalize(samples).to(self.spec.dtype)
        try:
            result = self.module(x.to(self.device))
        except Exception as error:  # the network's own code: anything may come
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{self.name} failed on a batch of shape {list(x.shape)} ({type(error).__name__}: {reason}); "
                "give the input it expects"
            ) from error
        for tensor in flatten(result):
            if tensor.is_floating_point() and tensor.ndim and len(tensor) == len(samples):
                return tensor
        raise ModelError(
            f"{self.name} gives no tensor of numbers with a row for each of {len(samples)} pictures; wrap it in "
            "a module that returns one"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the pictures, after they were read."""
        if self.images is None or not self.images.broken:
            return ()
        first = self.images.broken[0]
        return (
            f"{len(self.images.broken)} files could not be read; the first, {first.name!r}, {first.reason}",
        )


def subject(
    net: Net | nn.Module, data: Data = None, *, input: InputLike | None = None, limit: int | None = LIMIT
) -> Subject:
    """A private copy of the network, and the pictures to run it on.

    Args:
        net: the network.
        data: an image file, a folder, `Images`, None for the embedded photographs; or a tensor
            [sample, channel, *positions] of what the network takes, already normalized ([sample, length] of
            whole numbers for tokens).
        input: what a plain module is fed; with a tensor as data its size is the default.
        limit: at most this many, evenly spread.

    Raises:
        BadInput, RequestError: network, input and data do not fit together.
        ModelError: the network has no values, or fails on its input.
    """
    if not isinstance(data, Tensor):
        named = as_net(net, input)
        images = pictures.images(data, limit=limit)
        images.batches(named.input, 1)  # complains where the channels do not fit
        frame = Frame(named.input.size, beyond(named.input.size))
        graph = record(named)
        about = (named.name, _private(named), graph, frame, images.source, len(images))
        return Subject(*about, _labels(named), None, images, named.input)
    if limit is not None and limit < 1:
        raise RequestError(f"limit={limit} must be at least 1")
    _check_tensor(data)
    extents = _extents(net, data, input)
    frame = Frame(extents, tuple(data.shape[-len(extents) :]), not data.is_floating_point())
    if limit is not None and len(data) > limit:
        data = data[[k * len(data) // limit for k in range(limit)]]
    named = as_net(net, input=InputSpec()) if not isinstance(net, Net) else net
    module, private = named.module, _private(named)
    first = View(frame, data[:1], ("0",)).centre
    every = [*module.parameters(), *module.buffers()]
    graph = record(module, example=first.to(every[0].device if every else "cpu"))
    return Subject(
        named.name, private, graph, frame, "tensor", len(data), _labels(named), data.detach(), None, None
    )


def _labels(net: Net) -> int | None:
    return None if net.labels is None else len(net.labels)


def _private(net: Net) -> nn.Module:
    empty = next((name for name, t in net.module.state_dict(keep_vars=True).items() if _is_meta(t)), None)
    if empty is not None:
        raise ModelError(
            f"tensor {empty!r} of the network is on the meta device, without values; load its weights first"
        )
    return net.copy()


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _check_tensor(data: Tensor) -> None:
    shape = list(data.shape)
    tokens = data.dtype in _INTEGERS
    if not data.is_floating_point() and not tokens:
        raise BadInput(f"data of type {data.dtype} must be floating numbers, or whole numbers for tokens")
    if (data.ndim != 2 if tokens else data.ndim < 3) or 0 in shape:
        wanted = "[sample, length] of tokens" if tokens else "[sample, channel, *positions]"
        raise BadInput(f"data of shape {shape} must be {wanted}, none of them empty")
    if not tokens and not bool(data.isfinite().all()):
        raise BadInput("data holds values that are not finite; remove those samples")


def _extents(net: Net | nn.Module, data: Tensor, input: InputLike | None) -> tuple[int, ...]:
    """The input's size along the axes of positions, which the data's may exceed."""
    lead = 2 if data.is_floating_point() else 1  # the sample, the channel
    if isinstance(input, Tensor):
        shape = tuple(input.shape[1:]) if input.ndim == data.ndim else tuple(input.shape)
    elif isinstance(input, InputSpec):
        shape = input.shape
    elif isinstance(input, str):
        shape = InputSpec.parse(input).shape
    elif input is not None:
        shape = tuple(input)[1:] if len(input) == data.ndim else tuple(input)
    elif isinstance(net, Net):
        shape = net.input.shape
    else:
        shape = tuple(data.shape[1:])
    own = tuple(data.shape[1:])
    same = len(shape) == len(own) and shape[: lead - 1] == own[: lead - 1]
    if not same or any(have < want for have, want in zip(own, shape, strict=True)):
        raise BadInput(
            f"data of shape {list(data.shape)} does not serve an input of shape {list(shape)}: it must have the "
            "same channels and be nowhere smaller; give other data, or input= another shape"
        )
    return shape[lead - 1 :]


# ---------------------------------------------------------------- reading layers


@contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no inference mode, no ambient autocast, and no fused path that hides layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def find_calls(graph: Graph, layers: str | Sequence[str]) -> dict[str, Call]:
    """The calls that names and globs mean, by address; of a module that runs often, the last where no `#k` is
    said.

    Raises:
        UnknownLayer: a name or glob matches nothing.
    """
    calls = [graph.call(name) for name in resolve(graph, layers)]
    return {graph.address(call): call for call in calls}


def has_channels(graph: Graph, call: Call) -> bool:
    """Whether a call gives channels, for each picture and depending on it: not an attention map, not a table."""
    if not call.outputs or call.out_shapes[0][:1] != (1,) or not follow(graph)[call.outputs[0]].depends:
        return False
    return layout(graph, graph.address(call)).channel_axis is not None


@contextmanager
def tapped(
    module: nn.Module, calls: Mapping[str, Call], on_output: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, `on_output(address, tensor)` is called with the first tensor that each of the calls returns.

    The tensor is what the layer gave at that moment: it must be used at once, or copied, since the network may
    change it in place.
    """
    parts = dict(module.named_modules())
    wanted: dict[str, dict[int, str]] = {}
    for address, call in calls.items():
        wanted.setdefault(call.name, {})[call.index] = address
    counts: dict[str, int] = {}

    def begin(*_: Any) -> None:
        counts.clear()

    def hook(name: str, addresses: Mapping[int, str]) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            index = counts.get(name, 0)
            counts[name] = index + 1
            tensor = next(flatten(output), None)
            if index in addresses and tensor is not None:
                on_output(addresses[index], tensor)

        return after

    with ExitStack() as hooks:
        hooks.callback(module.register_forward_pre_hook(begin).remove)
        for name, addresses in wanted.items():
            if name not in parts:
                raise UnknownLayer(f"layer {name!r} is not a module of the network's copy; name another")
            hooks.callback(parts[name].register_forward_hook(hook(name, addresses)).remove)
        yield


class Meter:
    """Turns finished pictures into progress events."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0
        self.began = time.perf_counter()

    def finished(self, count: int, layer: str) -> None:
        """So many more are done; `layer` says of what."""
        self.done += count
        if self.progress is None:
            return
        rate = self.done / max(time.perf_counter() - self.began, 1e-9)
        left = max(self.total - self.done, 0) / rate if rate > 0 else None
        self.progress(
            {"done": self.done, "total": self.total, "rate": rate, "seconds_left": left, "layer": layer}
        )
