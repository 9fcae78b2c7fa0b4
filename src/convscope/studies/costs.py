"""What each variant costs when it is used: counted once, and timed in turn with all others once the trainings are over."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from convscope import timing
from convscope.errors import ConvscopeError, ConvscopeWarning
from convscope.measures.measure import measure
from convscope.models import InputSpec, Net, set_eval

TIMED = 0.5  # seconds for each variant


def count(module: nn.Module, spec: InputSpec | None) -> dict[str, Any]:
    """Parameters, multiply-accumulates and receptive field, as plain values; see `results.Cost`.

    Args:
        module: the network.
        spec: its input; None where it takes no images, of which only parameters are counted.

    Example:
        >>> count(nn.Sequential(nn.Conv2d(1, 4, 5), nn.Conv2d(4, 2, 3)), InputSpec((1, 28, 28)))
        {'params': 178, 'macs': 92448, 'receptive_field': [7, 7], 'note': ''}
    """
    params = sum(parameter.numel() for parameter in module.parameters())
    found: dict[str, Any] = {"params": params, "macs": None, "receptive_field": None, "note": ""}
    if spec is None:
        return found | {"note": "multiply-accumulates are counted of networks of images"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvscopeWarning)
            profile = measure(Net(module, spec))
    except ConvscopeError as error:
        return found | {"note": str(error)}
    convolved = [row for row in profile.layers if row.kernel is not None and row.macs and row.receptive_field]
    field = convolved[-1].receptive_field if convolved else None
    uncounted = ", ".join(profile.uncounted)
    return found | {
        "macs": profile.totals.macs,
        "receptive_field": None if field is None else list(field.size),
        "note": f"not counted: {uncounted}" if uncounted else "",
    }


def time_each(modules: Mapping[str, nn.Module], example: torch.Tensor, threads: int) -> dict[str, Any]:
    """Latencies of one input in inference, all variants in turn: name -> plain values.

    Args:
        modules: name -> network; left as they are.
        example: what each is fed, [1, ...].
        threads: of torch's pool.
    """
    before = torch.get_num_threads()
    modes = {name: [(part, part.training) for part in module.modules()] for name, module in modules.items()}
    try:
        torch.set_num_threads(threads)
        for module in modules.values():
            set_eval(module)
        with torch.inference_mode():
            runs = {name: lambda module=module: module(example) for name, module in modules.items()}
            times = timing.measure(runs, budget=TIMED * len(runs), grain=2e-3, warmup=2, dtype=example.dtype)
    finally:
        torch.set_num_threads(before)
        for parts in modes.values():
            for part, mode in parts:
                part.training = mode
    where = {"processor": timing.processor(), "load": timing.load()}
    return {name: found.to_dict() | where for name, found in times.items()}


def missing(keys: Iterable[str], timed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Networks without a latency of this machine's processor."""
    here = timing.processor()
    return [key for key in keys if timed.get(key, {}).get("processor") != here]
