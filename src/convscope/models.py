"""One way in: `load` turns a name, a file or a module into a `Net`, which every other verb takes.

A `Net` is the caller's module, left untouched, with what is needed to feed it (`InputSpec`), the names of its
classes, and where it came from. Nothing here imports torchvision or timm: `convscope._sources` does, on
demand.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
import os
import random
import re
import sys
import warnings as python_warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from convscope.errors import BadInput, ConvscopeWarning, ModelError, RequestError, UntrainedWeights

if TYPE_CHECKING:
    from rich.table import Table

_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# ------------------------------------------------------------------------------------------------------------
# InputSpec


@dataclass(frozen=True)
class InputSpec:
    """What a network expects as input: shape, value range and normalization.

    An image in [0, 1] is first scaled to `value_range`, then `(x - mean) / std` is applied channel by
    channel.

    Args:
        shape: (channels, height, width), without the batch dimension.
        mean: one number a channel, in the units of `value_range`; None is no shift.
        std: one positive number a channel; None is no scaling.
        value_range: the (low, high) an image covers before mean and std: (0, 1), (0, 255), (-1, 1), ...
        dtype: the floating type of the input tensor.

    Raises:
        BadInput: a value is out of its constraint.

    Example:
        >>> spec = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
        >>> spec.normalize(torch.ones(1, 1, 28, 28)).unique()
        tensor([2.])
    """

    shape: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise BadInput(
                f"input shape {shape} must be three positive integers (channels, height, width) without "
                "the batch; "
                "give for instance (3, 224, 224)"
            )
        object.__setattr__(self, "shape", shape)
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name))
        if self.std is not None and min(self.std) <= 0:
            raise BadInput(f"std={self.std} must be positive in every channel")
        low, high = (float(v) for v in self.value_range)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise BadInput(
                f"value_range={self.value_range} must be two finite numbers (low, high) with low < high"
            )
        object.__setattr__(self, "value_range", (low, high))
        if self.dtype not in _FLOAT_TYPES:
            raise BadInput(
                f"dtype={self.dtype} must be a floating type; give torch.float32 or convert the network"
            )

    def _per_channel(self, name: str) -> tuple[float, ...] | None:
        value = getattr(self, name)
        if value is None:
            return None
        numbers = (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
        if len(numbers) == 1:  # one number serves every channel
            numbers *= self.channels
        if len(numbers) != self.channels or not all(map(math.isfinite, numbers)):
            raise BadInput(
                f"{name}={value} must be {self.channels} finite numbers, one for each channel of shape "
                f"{self.shape}"
            )
        return numbers

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.shape[1], self.shape[2]

    @property
    def is_identity(self) -> bool:
        """Whether an image in [0, 1] is fed as it is."""
        return self.mean is None and self.std is None and self.value_range == (0.0, 1.0)

    def normalize(self, images: Tensor) -> Tensor:
        """Turns images in [0, 1] (Tensor [..., channel, height, width]) into what the network expects."""
        self._check_channels(images)
        low, high = self.value_range
        x = images if (low, high) == (0.0, 1.0) else images * (high - low) + low
        if self.mean is not None:
            x = x - self._column(self.mean, x)
        if self.std is not None:
            x = x / self._column(self.std, x)
        return x

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`: network input back to images in [0, 1]."""
        self._check_channels(x)
        if self.std is not None:
            x = x * self._column(self.std, x)
        if self.mean is not None:
            x = x + self._column(self.mean, x)
        low, high = self.value_range
        return x if (low, high) == (0.0, 1.0) else (x - low) / (high - low)

    def _column(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)  # [channel, 1, 1]

    def _check_channels(self, images: Tensor) -> None:
        if images.ndim < 3 or images.shape[-3] != self.channels:
            raise BadInput(
                f"images of shape {tuple(images.shape)} must be [..., {self.channels}, height, width] for "
                "an input of "
                f"shape {self.shape}"
            )

    def example(self, batch: int = 1, device: torch.device | str | None = None, seed: int = 0) -> Tensor:
        """A normalized batch of uniform noise, the same for the same seed on every device.

        Returns:
            Tensor [batch, channel, height, width] of the spec's dtype.
        """
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand((batch, *self.shape), generator=generator, device="cpu")
        return self.normalize(images).to(device=device, dtype=self.dtype)

    def with_size(self, height: int, width: int) -> InputSpec:
        """The same specification at another size."""
        return replace(self, shape=(self.channels, height, width))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; `from_dict` reads them back."""
        return {
            "shape": list(self.shape),
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "value_range": list(self.value_range),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Reads what `to_dict` wrote.

        Example:
            >>> spec = InputSpec((5, 32, 48), dtype=torch.float64)
            >>> InputSpec.from_dict(spec.to_dict()) == spec
            True
        """
        names = {str(dtype).removeprefix("torch."): dtype for dtype in _FLOAT_TYPES}
        dtype = values.get("dtype", "float32")
        if dtype not in names:
            raise BadInput(f"dtype={dtype!r} must be one of {', '.join(names)}")
        mean, std = values.get("mean"), values.get("std")
        low, high = values.get("value_range", (0.0, 1.0))
        return cls(
            shape=tuple(values["shape"]),
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            value_range=(low, high),
            dtype=names[dtype],
        )

    @classmethod
    def of(cls, example: Tensor) -> InputSpec:
        """The specification of an example tensor [batch, channel, height, width] or [channel, height, width].

        Its values say nothing certain about normalization, so mean and std stay None.
        """
        if example.ndim not in (3, 4):
            raise BadInput(
                f"example input of shape {tuple(example.shape)} must be [batch, channel, height, width]; "
                "convscope looks "
                "at networks that take images"
            )
        return cls(shape=tuple(example.shape[-3:]), dtype=example.dtype)

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Reads `"SIZE"`, `"HEIGHTxWIDTH"` or `"CHANNELSxHEIGHTxWIDTH"`, as given on the command line.

        Example:
            >>> [InputSpec.parse(text).shape for text in ("1x28x28", "320x360", "96")]
            [(1, 28, 28), (3, 320, 360), (3, 96, 96)]
        """
        channels, size = _parse_shape(text)
        return cls(shape=(3 if channels is None else channels, *size))


InputLike: TypeAlias = InputSpec | Tensor | str | Sequence[int]


# ------------------------------------------------------------------------------------------------------------
# Net


@dataclass(frozen=True, eq=False, repr=False)
class Net:
    """A network with what is needed to look at it: the caller's module, its input, its class names, its
    origin.

    Attributes:
        module: the module itself, never changed by convscope; work is done on `copy()`.
        input: what to feed it.
        labels: class names in order of the logits, or None.
        name: a short name for titles.
        source: how to load it again, where that is known.
        trained: True or False where known, None for a module whose history is the caller's.
        warnings: what the reader should know, such as the tensors that hold NaN.
        normalization_known: whether mean, std and range were given or found, rather than assumed to be none.
        recipe: of a rewritten network, how its structure was made from another one's: plain values; see
            `convscope.rewrite`. None otherwise.
    """

    module: nn.Module
    input: InputSpec
    labels: tuple[str, ...] | None = None
    name: str = "network"
    source: str = "module"
    trained: bool | None = None
    warnings: tuple[str, ...] = ()
    normalization_known: bool = False
    recipe: Mapping[str, Any] | None = None
    _hashes: dict[Any, str] = field(default_factory=dict, init=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the state dict: names, shapes, types, bytes; computed again only after a change."""
        state = _tensors(self.module)
        version = tuple((name, id(t), -1 if t.is_inference() else t._version) for name, t in state.items())
        if version not in self._hashes:
            self._hashes.clear()
            self._hashes[version] = _hash(self.module)
        return self._hashes[version]

    def layers(self) -> tuple[str, ...]:
        """Dotted names of all modules but the root, in order of registration."""
        return tuple(name for name, _ in self.module.named_modules() if name)

    @property
    def parameters_count(self) -> int:
        """Number of parameters; a shared one counts once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def copy(self) -> nn.Module:
        """A private deep copy in eval mode, frozen, without gradients; the original is left as it is.

        Raises:
            ModelError: some part of the module cannot be copied.
        """
        with preserved(self.module):
            module = _deepcopy(self.module)
        set_eval(module)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for buffer in module.buffers():
            buffer.grad = None
            buffer.requires_grad_(False)
        return module

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the network's identity, not its weights."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "trained": self.trained,
            "params": self.parameters_count,
            "input": self.input.to_dict(),
            "normalization_known": self.normalization_known,
            "labels": None if self.labels is None else list(self.labels),
            "warnings": list(self.warnings),
        }

    def _facts(self) -> list[tuple[str, str]]:
        spec = self.input
        numbers = lambda values: ", ".join(f"{v:.4g}" for v in values)  # noqa: E731
        normalization = "none" if self.normalization_known else "unknown, none assumed"
        if not spec.is_identity:
            parts = (
                [f"range {spec.value_range[0]:g} to {spec.value_range[1]:g}"]
                if spec.value_range != (0, 1)
                else []
            )
            parts += [f"mean {numbers(spec.mean)}"] if spec.mean is not None else []
            parts += [f"std {numbers(spec.std)}"] if spec.std is not None else []
            normalization = "; ".join(parts)
        weights = {True: "trained", False: "random (untrained)", None: "as given"}[self.trained]
        facts = [
            ("source", self.source),
            ("input", f"{' x '.join(map(str, spec.shape))} {str(spec.dtype).removeprefix('torch.')}"),
            ("normalization", normalization),
            ("weights", f"{weights}, sha256 {self.sha256[:12]}"),
            ("parameters", f"{self.parameters_count:,}"),
            ("modules", f"{len(self.layers()):,}"),
        ]
        if self.labels is not None:
            some = ", ".join(self.labels[:3]) + (", ..." if len(self.labels) > 3 else "")
            facts.append(("classes", f"{len(self.labels):,}: {some}"))
        return facts + [("warning", warning) for warning in self.warnings]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input.shape))
        return (
            f"Net({self.name!r}, input={shape}, parameters={self.parameters_count:,}, source={self.source!r})"
        )

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(_printable(self.name)), show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for key, value in self._facts():  # Text, not markup: names are untrusted
            table.add_row(key, Text(_printable(value), style="yellow" if key == "warning" else ""))
        return table

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th>"
            f"<td style='text-align:left'>{escape(_printable(value))}</td></tr>"
            for key, value in self._facts()
        )
        caption = escape(_printable(self.name))
        return f"<table><caption style='text-align:left;font-weight:bold'>{caption}</caption>{rows}</table>"


def _printable(text: str) -> str:
    """The text with control characters (terminal escapes among them) replaced by a visible mark."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict by name; extra state that is no tensor is left out."""
    state: Mapping[str, Any] = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            digest.update(f"{name}\0{value!r}\0".encode())
            continue
        digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        if value.device.type == "meta":
            continue
        plain = value.detach().cpu()
        if plain.is_quantized or plain.layout is not torch.strided:
            plain = plain.dequantize() if plain.is_quantized else plain.to_dense()
        digest.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def set_eval(module: nn.Module) -> None:
    """Puts every submodule in eval mode, also those (exported programs) that refuse the call `eval()`."""
    try:
        module.eval()
    except NotImplementedError:
        for part in module.modules():
            part.training = False


def _deepcopy(module: nn.Module) -> nn.Module:
    """A deep copy; tensors computed by autograd (old-style weight norm keeps one) are copied by value."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        with python_warnings.catch_warnings(), torch.no_grad():  # else TorchScript copies keep a graph
            python_warnings.simplefilter("ignore")  # graph modules rebuild themselves with deprecated calls
            return copy.deepcopy(module, memo)
    except Exception as error:  # anything may be raised by a foreign object's own copying
        where = _uncopyable(module)
        raise ModelError(
            f"module {where} cannot be copied ({type(error).__name__}: {error}); remove what cannot be "
            "copied from it, "
            "or give it a __deepcopy__"
        ) from error


def _uncopyable(module: nn.Module) -> str:
    """The deepest submodule that fails to copy, for the message."""
    worst = ("", module)
    for name, part in module.named_modules():
        if name.startswith(worst[0]):
            try:
                copy.deepcopy(part)
            except Exception:
                worst = (name, part)
    return f"{worst[0] or '(root)'!r} ({type(worst[1]).__name__})"


# ------------------------------------------------------------------------------------------------------------
# load


@dataclass(frozen=True)
class Request:
    """What the caller asked of a scheme: the name after the colon, its options, and the wishes that shape
    building.

    Attributes:
        rest: what follows "scheme:", without options.
        options: keyword arguments of the builder, from "?key=value&key=value".
        channels: input channels the caller asks for, or None.
        size: input (height, width) the caller asks for, or None.
        weights: "hub" to fetch published weights, a path, or None.
        trust: whether files that run code may be loaded.
    """

    rest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None
    size: tuple[int, int] | None = None
    weights: str | None = None
    trust: bool = False


@dataclass(frozen=True)
class Built:
    """What a scheme gives back: a module and what it knows about it.

    Attributes:
        module: freshly built, owned by the Net to come (a scheme never returns somebody else's module).
        name: a short name for titles.
        input: the specification found in metadata, or None.
        labels: class names in order of the logits, or None.
        trained: True, False, or None where the scheme cannot know.
        warnings: what the reader of the Net should know.
        loaded: whether the scheme has already dealt with `Request.weights`.
        normalization: (mean, std) that a weights file gives for itself, which counts before that of `input`.
        recipe: how the structure was made from another network's, where it was.
    """

    module: nn.Module
    name: str
    input: InputSpec | None = None
    labels: tuple[str, ...] | None = None
    trained: bool | None = None
    warnings: tuple[str, ...] = ()
    loaded: bool = False
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    recipe: Mapping[str, Any] | None = None


Scheme = Callable[[Request], Built]


def _late(module: str, name: str) -> Scheme:
    """A scheme whose owner stands above this file: imported when the scheme is first asked for."""

    def scheme(request: Request) -> Built:
        built: Built = getattr(importlib.import_module(module), name)(request)
        return built

    return scheme


_SCHEMES: dict[str, Scheme] = {"recipe": _late("convscope.rewrites.recipe", "build")}


def register_scheme(name: str, scheme: Scheme) -> None:
    """Makes `load("name:...")` call `scheme(request)`, whose result becomes the Net.

    Raises:
        RequestError: the name is taken, or is no lower-case word.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]+", name):
        raise RequestError(
            f"scheme name {name!r} must be a lower-case word of letters, digits and underscores"
        )
    if _SCHEMES.get(name, scheme) is not scheme:
        raise RequestError(f"scheme {name!r} is already registered; choose another name")
    _SCHEMES[name] = scheme


def load(
    source: nn.Module | Net | str | PathLike[str] | None = None,
    *,
    input: InputLike | None = None,
    weights: str | PathLike[str] | None = None,
    trust: bool = False,
    labels: Iterable[str] | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Net:
    """Loads a network.

    Args:
        source: one of
            None, the embedded EfficientNet-Lite0 with its ImageNet weights;
            `"fashion"` or `"fashion-decoder"`, small embedded networks trained on Fashion-MNIST;
            an `nn.Module`, with `input`;
            `"timm:NAME"` or `"torchvision:NAME"`, the architecture alone, with random weights;
            `"torchvision:NAME:WEIGHTS"`, with published weights that are already in the torch hub cache;
            `"recipe:FOLDER"`, a network that was rewritten and saved;
            `"package.module:factory"`, a function or class of your own that returns a module;
            a path to a whole saved module (`.pt`, TorchScript, `.pt2`), with `trust=True`.
            Named architectures and factories take keyword arguments: `"timm:resnet18?num_classes=10"`.
            timm:, torchvision: and package.module: import that code, which therefore runs.
        input: an `InputSpec`, an example tensor [batch, channel, height, width], a shape (channels, height,
            width), or text such as `"1x28x28"`, `"320x360"`, `"96"`. A shape or text keeps the normalization
            found in the model's metadata; an `InputSpec` replaces it.
        weights: a state dict as `.safetensors`, or `.pt`/`.pth` (read without running code); or `"hub"`,
            which lets timm or torchvision download the published weights of a named model. Nothing is fetched
            otherwise.
        trust: allow files that run code when they are loaded: pickled modules, TorchScript, `.pt2`.
        labels: class names in order of the logits, in place of those found.
        name: a short name for titles, in place of the one found.
        seed: seeds the random weights of an architecture loaded without trained ones.

    Returns:
        The Net. An `nn.Module` given as source stays untouched and is held as it is, except with `weights`,
        which are loaded into a copy. The global random state is as before.

    Raises:
        UnknownName: no such model; the nearest names are listed.
        BadInput: the input is missing or makes no sense.
        UntrustedFile: the file runs code when loaded, and `trust` is False.
        WeightsMismatch: the weights do not fit; the first differing keys are listed.
        RequestError: a file is missing, truncated or not what it claims to be.
        ModelError: the module could not be built.

    Example:
        >>> net = load(torch.nn.Conv2d(1, 4, 3), input="1x28x28")
        >>> net
        Net('Conv2d', input=1x28x28, parameters=40, source='module')
    """
    if isinstance(source, Net):
        return _reload(source, input, weights, trust, labels, name)
    wish = _read_input(input)
    weights = None if weights is None else os.fspath(weights)
    with _kept_rng(seed):
        built, origin = _build(source, wish, weights, trust)
        built = _with_weights(built, weights, trust, own=not isinstance(source, nn.Module))
    check_initialized(built.module)
    spec, known, notes = _settle_input(wish, built)
    odd = _odd_weights(built.module)
    net = Net(
        module=built.module,
        input=spec,
        labels=built.labels if labels is None else _read_labels(labels),
        name=name or built.name,
        source=origin if weights is None else f"{origin} with weights {os.path.basename(weights)}",
        trained=built.trained,
        warnings=built.warnings + notes + odd,
        normalization_known=known,
        recipe=built.recipe,
    )
    for warning in odd:
        python_warnings.warn(f"{net.name}: {warning}", ConvscopeWarning, stacklevel=2)
    return net


def _build(source: Any, wish: _Wish, weights: str | None, trust: bool) -> tuple[Built, str]:
    """The module a source stands for, and the text that says where it came from."""
    from convscope import _sources

    if isinstance(source, nn.Module):
        return _sources.from_module(source), "module"
    if source is None:
        source = "embedded:efficientnet_lite0"
    if not isinstance(source, str | PathLike):
        what = f"class {source.__name__}" if isinstance(source, type) else type(source).__name__
        raise RequestError(
            f"source ({what}) must be an nn.Module instance, a name such as 'timm:resnet18', or a path; "
            "call the class or function first"
        )
    text = os.fspath(source)
    request = Request("", channels=wish.channels, size=wish.size, weights=weights, trust=trust)
    built = _sources.from_text(text, request, _SCHEMES)
    if not isinstance(built.module, nn.Module):
        raise ModelError(f"source={text!r} gave {type(built.module).__name__}, which is no nn.Module")
    set_eval(built.module)
    return built, text


def _with_weights(built: Built, weights: str | None, trust: bool, own: bool) -> Built:
    """The built module with the weights file loaded into it; into a copy where the module is the caller's."""
    if weights is None or built.loaded:
        return built
    if weights == "hub":
        raise RequestError(
            "weights='hub' works with 'timm:NAME' and 'torchvision:NAME' only; give a path instead"
        )
    from convscope import _weights

    module = built.module if own else _deepcopy(built.module)
    checkpoint = _weights.read(weights, trust=trust)
    notes = _weights.fit(module, checkpoint)
    return replace(
        built,
        module=module,
        trained=True,
        warnings=built.warnings + notes,
        normalization=checkpoint.normalization,
    )


def _reload(
    net: Net,
    input: InputLike | None,
    weights: str | PathLike[str] | None,
    trust: bool,
    labels: Iterable[str] | None,
    name: str | None,
) -> Net:
    """A Net given to `load` again, with another input, weights, labels or name."""
    wish = _read_input(input)
    path = None if weights is None else os.fspath(weights)
    built = Built(net.module, net.name, net.input, net.labels, net.trained, net.warnings)
    built = _with_weights(built, path, trust, own=False)
    spec, known, notes = _settle_input(wish, built)
    return replace(
        net,
        module=built.module,
        input=spec,
        labels=net.labels if labels is None else _read_labels(labels),
        name=name or net.name,
        source=net.source if path is None else f"{net.source} with weights {os.path.basename(path)}",
        trained=built.trained,
        warnings=built.warnings + notes + (_odd_weights(built.module) if path else ()),
        normalization_known=known if isinstance(input, InputSpec) else net.normalization_known,
    )


def as_net(net: Net | nn.Module, input: InputLike | None = None) -> Net:
    """What every verb calls first: a Net as it is (at another input where asked), or a module made into one.

    Raises:
        BadInput: a plain module without `input`.
        RequestError: neither a Net nor an nn.Module.

    Example:
        >>> as_net(torch.nn.Conv2d(3, 8, 3), input=torch.zeros(1, 3, 32, 32)).input.size
        (32, 32)
    """
    if isinstance(net, Net) and input is None:
        return net
    if not isinstance(net, Net | nn.Module):
        raise RequestError(
            f"net={net!r} must be a Net or an nn.Module; load it first with convscope.load({net!r})"
            if isinstance(net, str)
            else f"net ({type(net).__name__}) must be a Net or an nn.Module; make one with convscope.load"
        )
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", ConvscopeWarning)  # they stay in Net.warnings
        return load(net, input=input)


def require_trained(net: Net, random: bool = False) -> None:
    """Refuses a network whose weights are known to be random, unless `random`.

    Raises:
        UntrainedWeights: `net.trained` is False; the message says how to get trained weights.
    """
    if net.trained is False and not random:
        raise UntrainedWeights(
            f"{net.name} has random weights (source {net.source!r}), and a picture of random weights is "
            "noise; give "
            "trained ones with weights=PATH (or weights='hub' to download the published ones), or pass "
            "random=True / "
            "--random to go on"
        )


# ------------------------------------------------------------------------------------------------------------
# the input


@dataclass(frozen=True)
class _Wish:
    """What `input=` asks for: a whole specification, or only a shape, a type, or nothing."""

    spec: InputSpec | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None
    dtype: torch.dtype | None = None


def _read_input(input: InputLike | None) -> _Wish:
    if input is None:
        return _Wish()
    if isinstance(input, InputSpec):
        return _Wish(input, input.channels, input.size, input.dtype)
    if isinstance(input, Tensor):
        spec = InputSpec.of(input)
        return _Wish(None, spec.channels, spec.size, spec.dtype)
    if isinstance(input, str):
        channels, size = _parse_shape(input)
        return _Wish(None, channels, size)
    if isinstance(input, Sequence) and all(isinstance(n, int) for n in input):
        shape: tuple[Any, ...] = tuple(input)[1:] if len(input) == 4 else tuple(input)
        spec = InputSpec(shape=shape)
        return _Wish(None, spec.channels, spec.size)
    raise BadInput(
        f"input ({type(input).__name__}) must be an InputSpec, an example tensor, a shape "
        "(channels, height, "
        "width) or text such as '3x224x224'"
    )


def _settle_input(wish: _Wish, built: Built) -> tuple[InputSpec, bool, tuple[str, ...]]:
    """The specification to use, whether its normalization is known, and notes for the reader."""
    found = built.input
    if wish.spec is not None:
        notes: tuple[str, ...] = ()
        if wish.spec.is_identity and found is not None and not found.is_identity:
            notes = (
                "the given InputSpec has no normalization, though the model's metadata has one; give the "
                "shape alone "
                f"(input='{'x'.join(map(str, wish.spec.shape))}') to keep it",
            )
        return wish.spec, not wish.spec.is_identity, notes
    if found is None and wish.size is None:
        raise BadInput(
            f"{built.name} says nothing about its input; give input= an example tensor, an InputSpec or a "
            "shape such as "
            "'3x224x224'"
        )
    first = next((p for p in built.module.parameters() if p.dtype in _FLOAT_TYPES), None)
    dtype = wish.dtype or (first.dtype if first is not None else torch.float32)
    base = found or InputSpec(shape=(wish.channels or 3, 1, 1))
    channels = wish.channels or base.channels
    size = wish.size or base.size
    if built.normalization is not None and len(built.normalization[0]) == channels:
        return InputSpec((channels, *size), *built.normalization, dtype=dtype), True, ()
    mean, std = (base.mean, base.std) if channels == base.channels else (None, None)
    spec = InputSpec((channels, *size), mean, std, base.value_range, dtype)
    return spec, found is not None and channels == base.channels, ()


def _parse_shape(text: str) -> tuple[int | None, tuple[int, int]]:
    """(channels or None, (height, width)) from "SIZE", "HxW" or "CxHxW"."""
    if not re.fullmatch(r"\s*\d{1,6}(\s*[xX]\s*\d{1,6}){0,2}\s*", text, flags=re.ASCII):
        raise BadInput(
            f"input={text!r} must be SIZE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, for instance 224, "
            "320x360 or 1x28x28"
        )
    numbers = [int(part) for part in re.findall(r"\d+", text)]
    channels = numbers[0] if len(numbers) == 3 else None
    height, width = (numbers[0], numbers[0]) if len(numbers) == 1 else numbers[-2:]
    return channels, (height, width)


def _read_labels(labels: Iterable[str]) -> tuple[str, ...]:
    names = tuple(labels) if not isinstance(labels, str) else (labels,)
    if isinstance(labels, str) or not all(isinstance(name, str) for name in names):
        raise RequestError("labels must be a sequence of class names, one for each logit in order")
    return names


# ------------------------------------------------------------------------------------------------------------
# checks and state


def check_initialized(module: nn.Module) -> None:
    """Refuses a lazy module whose parameters have no shape yet.

    Raises:
        ModelError: it names the first such parameter.
    """
    lazy = [
        name for name, p in module.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)
    ]
    if lazy:
        raise ModelError(
            f"parameter {lazy[0]!r} has no shape yet (a lazy module); run the network once on an example "
            "input first"
        )


def _odd_weights(module: nn.Module, shown: int = 5) -> tuple[str, ...]:
    """A warning that names the tensors holding NaN or infinity, or nothing."""
    odd = []
    for name, value in _tensors(module).items():
        if not (value.is_floating_point() or value.is_complex()) or value.device.type == "meta":
            continue
        dense = value.detach() if value.layout is torch.strided else value.detach().to_dense()
        if not torch.isfinite(dense).all():
            kinds = [
                kind for kind, test in (("NaN", torch.isnan), ("infinity", torch.isinf)) if test(dense).any()
            ]
            odd.append(f"{name} ({' and '.join(kinds)})")
    if not odd:
        return ()
    more = f" and {len(odd) - shown} more" if len(odd) > shown else ""
    return (f"weights are not finite in {len(odd)} tensors: {', '.join(odd[:shown])}{more}",)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def preserved(module: nn.Module) -> Iterator[nn.Module]:
    """Leaves the module and the global random state as they were, also after an exception.

    Restores the train/eval flag of each submodule, requires_grad and grad of each parameter and buffer, and
    removes hooks added inside. Weights are not saved: nobody inside may change them.

    Raises:
        ModelError: the body ended well but left hooks behind (they are removed).

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with preserved(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    flags = [(part, part.training) for part in module.modules()]
    tensors = [(t, t.requires_grad, t.grad if t.is_leaf else None) for t in _parameters_and_buffers(module)]
    hooks = [(part, name, dict(getattr(part, name, None) or {})) for part, _ in flags for name in _HOOKS]
    done = False
    try:
        with _kept_rng(None):
            yield module
        done = True
    finally:
        left = _remove_new_hooks(hooks)
        for part, training in flags:
            part.training = training
        for tensor, requires_grad, grad in tensors:
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad
        if done and left:
            raise ModelError(f"{left} hooks were left on {type(module).__name__} and have been removed")


def _parameters_and_buffers(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _remove_new_hooks(before: list[tuple[nn.Module, str, dict[int, Any]]]) -> int:
    """Removes hooks that were not there before; returns how many."""
    count = 0
    for part, name, old in before:
        now: dict[int, Any] = getattr(part, name, None) or {}
        for key in [key for key in now if key not in old]:
            del now[key]
            count += 1
    return count


@contextmanager
def _kept_rng(seed: int | None) -> Iterator[None]:
    """Restores the global random generators of torch, numpy and Python; seeds them inside where asked."""
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    states = (torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None)
    cuda_states = torch.cuda.get_rng_state_all() if cuda else None
    try:
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed % 2**32)
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy and states[2] is not None:
            numpy.random.set_state(states[2])
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
