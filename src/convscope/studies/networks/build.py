"""From the name of a factory, its arguments and a seed to a network with new weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from convscope.errors import ModelError, RequestError, UnknownName, nearest
from convscope.models import _kept_rng

Factory = Callable[..., nn.Module]


def build(
    factory: str | Factory,
    arguments: Mapping[str, Any] | None = None,
    *,
    offered: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network with new weights, the same for the same seed; the global random state is as before.

    Args:
        factory: a function or class that returns a module, or its name, "package.module:factory". Naming one imports
            its module, which runs that code.
        arguments: of the factory; it must take all of them.
        offered: further arguments, of which it is given those it takes: `Data.arguments`.
        seed: of the weights.

    Raises:
        UnknownName: there is no such module, factory or argument.
        RequestError: the factory refuses a value.
        ModelError: it fails, or returns no module.

    Example:
        >>> net = build("convscope.studies.networks:small_cnn", {"kernel_size": 5}, offered={"in_channels": 3})
        >>> net.stage1.conv1.kernel_size, net.stage1.conv1.in_channels
        ((5, 5), 3)
    """
    made_by = find(factory)
    name = factory if isinstance(factory, str) else getattr(factory, "__qualname__", repr(factory))
    wanted = dict(arguments or {})
    known, any_name = _parameters(made_by)
    if not any_name and (odd := next((key for key in wanted if key not in known), None)) is not None:
        raise UnknownName(
            f"{name} has no argument {odd!r}{nearest(odd, known)}; it takes {', '.join(known) or 'none'}"
        )
    taken = {key: value for key, value in (offered or {}).items() if key in known and key not in wanted}
    with _kept_rng(seed):
        try:
            module = made_by(**taken, **wanted)
        except RequestError:
            raise
        except Exception as error:  # the factory's own code: anything may come
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{name} failed ({type(error).__name__}: {reason}); check {wanted}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} returned {type(module).__name__}; it must return an nn.Module")
    return module


def find(factory: str | Factory) -> Factory:
    """The factory that a name means; one given as it is stays.

    Raises:
        UnknownName: there is no such module, or nothing of that name in it.
        RequestError: what is there cannot be called.
    """
    found: Any = factory
    if isinstance(factory, str):
        module_name, _, attribute = factory.partition(":")
        if not module_name or not attribute:
            raise RequestError(f"factory={factory!r} must be 'package.module:factory'")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UnknownName(f"factory={factory!r}: cannot import {module_name!r} ({error})") from error
        if not hasattr(module, attribute):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise UnknownName(
                f"factory={factory!r}: {module_name} has no {attribute!r}{nearest(attribute, public)}"
            )
        found = getattr(module, attribute)
    if not callable(found):
        raise RequestError(f"factory={factory!r} must be a function or class that returns an nn.Module")
    made: Factory = found
    return made


def _parameters(factory: Factory) -> tuple[list[str], bool]:
    """Names of the arguments, and whether it takes any name."""
    kinds = inspect.signature(factory).parameters.values()
    named = [p.name for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in kinds)
