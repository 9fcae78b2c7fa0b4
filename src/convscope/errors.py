"""Every error convscope raises on purpose.

Each message is one sentence that names the argument or layer, its value, the constraint, and what to do.
`exit_code` is what the command line returns: 2 when the request was wrong, 1 when the work failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvscopeError(Exception):
    """Base of all errors raised on purpose: the work failed."""

    exit_code = 1


class RequestError(ConvscopeError, ValueError):
    """The request was wrong: an argument, name or file the caller can correct."""

    exit_code = 2


class UnknownName(RequestError):
    """A model, layer, channel, page or other name that does not exist; the nearest right ones are suggested."""


class UnknownLayer(UnknownName):
    """A layer name or pattern that matches no module of the network."""


class BadInput(RequestError):
    """An input specification, image or tensor that the network or verb cannot take."""


class UntrustedFile(RequestError):
    """A file that can run code when loaded, given without `trust=True` / `--trust`."""


class WeightsMismatch(RequestError):
    """A weights file whose tensors do not fit the network; the first differing keys are listed."""


class UntrainedWeights(RequestError):
    """A verb that needs trained weights was given random ones, without `random=True` / `--random`."""


class ModelError(ConvscopeError):
    """The network could not be built, copied or run forward on its example input."""


class UnpairedSwitches(ConvscopeError, RuntimeError):
    """A max unpooling that has no switches, or cannot tell whose it has: its pool did not run, or ran several times."""


class StoreError(ConvscopeError):
    """A result could not be written or read: no space, no permission, a damaged record."""


class StoreMismatch(RequestError):
    """A results folder made by another model or other settings."""


class EngineError(ConvscopeError):
    """Work cannot be handed out: no worker process starts, or the Ray cluster cannot be reached or is gone."""


class OutOfMemory(ConvscopeError):
    """The smallest possible batch does not fit in memory."""


class ConvscopeWarning(UserWarning):
    """Something the caller should know that stops no work: odd weights, a library half usable."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that suggests the nearest right names, or an empty string.

    Example:
        >>> nearest("resnet81", ["resnet18", "resnet50", "vgg16"])
        "; did you mean 'resnet18' or 'resnet50'?"
    """
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
    if not matches:
        return ""
    quoted = [repr(match) for match in matches]
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
    return f"; did you mean {listed}?"
