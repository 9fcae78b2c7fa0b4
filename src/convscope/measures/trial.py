"""A network made ready to run as its user runs it: a private copy on a device, in a type, with its input.

What is timed and what is weighed both start here, so that both refuse the same networks in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from convscope.errors import ConvscopeError, ModelError, OutOfMemory, RequestError
from convscope.graph.record import flatten
from convscope.models import InputLike, InputSpec, Net, as_net


@dataclass(frozen=True, eq=False)
class Trial:
    """A private copy of a network in eval mode and what it is fed.

    Attributes:
        name: the network's, for titles.
        module: the copy.
        arguments: of its forward.
        device: where both are.
        dtype: of the first floating input; None where there is none.
    """

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    device: torch.device
    dtype: torch.dtype | None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the input tensors, batch included."""
        return tuple(tuple(tensor.shape) for tensor in flatten(self.arguments))

    @contextmanager
    def worded(self) -> Iterator[None]:
        """Failures of the network, in a sentence."""
        try:
            yield
        except ConvscopeError:
            raise
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                self._fail(error)
            raise OutOfMemory(
                f"{self.name} does not fit in the memory of {self.device} on an input of shape "
                f"{self._listed()}; give a smaller batch= or input"
            ) from error
        except Exception as error:  # the network's own code: anything may come
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{self.name} failed on an input of shape {self._listed()} ({type(error).__name__}: {reason}); "
            "give the input it expects"
        ) from error

    def _listed(self) -> str:
        return ", ".join(str(list(shape)) for shape in self.shapes)


def ready(
    net: Net | nn.Module,
    *,
    input: InputLike | None = None,
    example: Any = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Trial:
    """Copies the network and draws its input; the caller's module stays as it is.

    Args:
        net: a Net, or a module with `input` or `example`.
        input: what to feed it, instead of the Net's own specification.
        example: the input itself: a tensor, or a tuple of arguments.
        batch: examples at once, where they are drawn.
        device: where to run; that of the network's parameters by default.
        dtype: what weights and input are converted to; by default both stay as they are.

    Raises:
        RequestError: the batch, device or type makes no sense.
        ModelError: the network has no values (meta device), cannot be copied, or was compiled in place.

    Example:
        >>> trial = ready(nn.Conv2d(3, 8, 3), input="3x9x9", batch=2, dtype=torch.float64)
        >>> trial.shapes, trial.dtype
        (((2, 3, 9, 9),), torch.float64)
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise RequestError(f"batch={batch!r} must be a positive whole number of examples")
    if example is not None and batch != 1:
        raise RequestError(f"batch={batch} and example= exclude each other; give an example of that batch")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise RequestError(f"dtype={dtype!r} must be a floating type of torch, such as torch.float32")
    if isinstance(net, nn.Module) and example is not None:  # which need not be a picture
        whole = Net(net, InputSpec(), name=type(net).__name__)
    else:
        whole = as_net(net, input)
    _refuse(whole.module)
    place = usable(device) if device is not None else _device(whole.module)
    module = whole.copy().to(device=place, dtype=dtype)
    given = whole.input.example(batch) if example is None else example
    given = given if isinstance(given, tuple) else (given,)

    def moved(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return item.detach().to(device=place, dtype=dtype if item.is_floating_point() else None, copy=True)

    arguments = tree_map(moved, given)
    floating = (tensor.dtype for tensor in flatten(arguments) if tensor.is_floating_point())
    return Trial(whole.name, module, arguments, place, next(floating, None))


def usable(device: str | torch.device) -> torch.device:
    """The device, after a look whether torch can use it here.

    Raises:
        RequestError: it cannot.

    Example:
        >>> usable("cpu")
        device(type='cpu')
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # what torch raises differs by device
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"device={str(device)!r} cannot be used here ({reason}); give 'cpu' or one torch sees"
        ) from None
    if place.type == "meta":
        raise RequestError("device='meta' computes nothing; give 'cpu' or one torch sees")
    return place


def _refuse(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(
                f"tensor {name!r} of the network is on the meta device, where nothing is computed; load its "
                "weights, or give it some with to_empty(device='cpu')"
            )
    for name, part in module.named_modules():
        if part._compiled_call_impl is not None:
            raise ModelError(
                f"module {name or '(root)'!r} was compiled in place (module.compile()), which no copy keeps; "
                "give torch.compile(module) instead"
            )


def _device(module: nn.Module) -> torch.device:
    tensor = next((tensor for tensor in [*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
