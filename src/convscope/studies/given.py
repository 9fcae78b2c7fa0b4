"""A `Net` as the base of a design: it stands there as text, "given:NAME?key=HASH", and travels to workers as a pickle.

The hash is of its weights, its structure, its input and the source of its classes, so that a study is gone on with by
whoever has the same network.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from convscope.errors import RequestError
from convscope.models import Built, Net, Request, register_scheme

SCHEME = "given"
RUN = "convscope.studies.given:run"
_given: dict[str, Net] = {}  # key -> the network, of this process


def text_of(net: Net) -> str:
    """What stands in a design for a network; `convscope.load` of it gives a copy, in this process.

    Example:
        >>> import convscope
        >>> text_of(convscope.load("fashion"))
        'given:fashion?key=k...'
    """
    key = _key(net)
    if key not in _given:
        _given[key] = replace(net, module=net.copy())
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", net.name).strip("-") or "network"
    return f"{SCHEME}:{name}?key={key}"


def is_given(base: str) -> bool:
    """Whether a design's base stands for a network that was given as an object."""
    return base.startswith(f"{SCHEME}:")


def packed(base: str) -> dict[str, Any]:
    """The network for workers.

    Raises:
        RequestError: it cannot be pickled, or is not of this process.
    """
    key = base.partition("?key=")[2]
    net = _known(key, base)
    try:
        return {"key": key, "network": pickle.dumps(net)}
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise RequestError(
            f"{net.name} cannot be sent to workers ({type(error).__name__}: {error}); take engine 'inline'."
        ) from error


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """`convscope.studies.run.run` in a worker, which first unpacks the network.

    Raises:
        RequestError: its classes are not to be had here, or as `run`.
    """
    from convscope.studies import run as runs

    sent = payload["given"]
    if sent["key"] not in _given:
        try:
            _given[sent["key"]] = pickle.loads(sent["network"])  # made by our own driver a moment ago
        except (AttributeError, ImportError) as error:
            raise RequestError(
                f"the network cannot be rebuilt in a worker ({type(error).__name__}: {error}); its classes must be "
                "importable there: put them in a module, or take engine 'inline'."
            ) from error
    return runs.run(payload)


def _key(net: Net) -> str:
    classes = {type(part) for part in net.module.modules()}
    parts = {
        "weights": net.sha256,
        "structure": repr(net.module),
        "input": net.input.to_dict(),
        "known": net.normalization_known,
        "recipe": None if net.recipe is None else dict(net.recipe),
        "classes": sorted(f"{each.__module__}.{each.__qualname__} {_source(each)}" for each in classes),
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return "k" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _source(kind: type[nn.Module]) -> str:
    """The text of a class of the user's own; of torch the version counts, see `code_version`."""
    if kind.__module__.partition(".")[0] == "torch":
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into a prompt
        return ""


def _known(key: str, text: str) -> Net:
    if key not in _given:
        raise RequestError(
            f"the network {text!r} was given as an object, which this process does not have; give it again."
        )
    return _given[key]


def _built(request: Request) -> Built:
    key = str(request.options.get("key", ""))
    net = _known(key, f"{SCHEME}:{request.rest}")
    if odd := [name for name in request.options if name != "key"]:
        raise RequestError(
            f"base {net.name!r} is a network, which takes no argument {odd[0]!r}; vary a rule or the training."
        )
    spec = net.input if net.normalization_known else None
    return Built(net.copy(), net.name, spec, net.labels, net.trained, recipe=net.recipe)


register_scheme(SCHEME, _built)
