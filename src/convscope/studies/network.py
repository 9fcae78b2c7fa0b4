"""The network of a run: built by its factory or loaded, and rewritten by the rules of its variant."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from convscope import models
from convscope.errors import ConvscopeWarning, RequestError
from convscope.models import InputSpec, Net
from convscope.rewrites.rewrite import rewrite
from convscope.studies.networks import build
from convscope.studies.plan import RunConfig

SCHEMES = ("timm", "torchvision", "recipe", "embedded")


def is_factory(base: str) -> bool:
    """Whether a base is "package.module:factory", and not a source of `convscope.load`.

    Example:
        >>> is_factory("convscope.studies.networks:small_cnn"), is_factory("timm:resnet18"), is_factory("fashion")
        (True, False, False)
    """
    scheme, colon, _ = base.partition(":")
    return bool(colon) and scheme not in SCHEMES and "?" not in base


def network(
    config: RunConfig, spec: InputSpec | None, offered: Mapping[str, Any] | None = None
) -> tuple[nn.Module, InputSpec | None]:
    """The module that a run trains, with weights by its seed (or those the base comes with), and what to feed it.

    Args:
        config: the run.
        spec: what the data's images are, with a normalization that a network with one of its own does without; None for
            other data, whose networks no rule can rewrite.
        offered: arguments that the data has for a factory; see `Data.arguments`.

    Raises:
        UnknownName, RequestError, ModelError: the network cannot be built or rewritten.
    """
    if spec is None:
        if config.rules or not is_factory(config.base):
            what = f"rule {config.rules[0]!r}" if config.rules else f"base {config.base!r}"
            raise RequestError(f"{what} is for networks of images, and this data has none.")
        module = build(config.base, config.arguments, offered=offered, seed=config.seed)
        return module, None  # what its factory froze, such as given word vectors, stays so
    if is_factory(config.base):
        module = build(config.base, config.arguments, offered=offered, seed=config.seed)
        models.set_eval(module)
        net = Net(module, spec, name=config.base.rpartition(":")[2], source=config.base)
    else:
        net = _loaded(config, spec)
    for rule in config.rules:
        net = rewrite(net, rule, seed=config.seed).net
        if net.input.shape != spec.shape:
            raise RequestError(
                f"rule {rule!r} makes a network for inputs of {list(net.input.shape)}, and the data's are "
                f"{list(spec.shape)}; give data of that size."
            )
    return _to_train(net.module), net.input


def _to_train(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return module


def _loaded(config: RunConfig, spec: InputSpec) -> Net:
    query = "&".join(f"{name}={value}" for name, value in config.arguments.items())
    source = config.base + (("&" if "?" in config.base else "?") + query if query else "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvscopeWarning)  # of weights: a study does not look at them
        net = models.load(source, input=spec.shape, seed=config.seed)
    return net if net.normalization_known else replace(net, input=spec)
