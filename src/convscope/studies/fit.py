"""Whether a study can run at all: its device is there, and its networks take the data. Said before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from convscope.errors import BadInput, ConvscopeError, ModelError, RequestError
from convscope.models import InputSpec, _kept_rng, set_eval
from convscope.studies.data import Data
from convscope.studies.scoring import check_outputs


def check_device(device: str) -> None:
    """Refuses a device that this machine lacks.

    Raises:
        RequestError: torch finds none of that name.
    """
    kind, _, number = device.partition(":")
    there = {
        "cuda": torch.cuda.device_count,
        "mps": lambda: int(torch.backends.mps.is_available()),
    }.get(kind, lambda: 1)()
    if not there or (number.isdigit() and int(number) >= there):
        raise RequestError(
            f"device={device!r} is not there: torch finds {there} of that kind; take device='cpu', or engine='ray' with a "
            "cluster that has it."
        )


def check_network(module: nn.Module, spec: InputSpec | None, data: Data, base: str) -> None:
    """Refuses a network that fails on the data, or whose outputs are not what the data asks for.

    Raises:
        ModelError: it fails.
        BadInput: its outputs do not fit.
    """
    count = min(64 if spec is None else 2, len(data.validation))  # a sentence alone may be too short
    inputs, targets = data.validation.batch(torch.arange(count))
    set_eval(module)
    try:
        with torch.no_grad(), _kept_rng(0):
            outputs = module(inputs if spec is None else spec.normalize(inputs))
    except ConvscopeError:
        raise
    except Exception as error:  # the network's own code: anything may come
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"base={base!r} fails on {data.kind} data of shape {list(inputs.shape)} "
            f"({type(error).__name__}: {reason}); give data that it can take, or another base."
        ) from error
    if not isinstance(outputs, torch.Tensor):  # of anything else the training says what to do
        return
    try:
        check_outputs(outputs, targets)
    except BadInput as error:
        if data.kind == "dense" and base.endswith(":small_cnn"):
            raise BadInput(
                f'{error}; small_cnn predicts every pixel by arguments = {{ upsampling = "nearest" }}.'
            ) from error
        raise
