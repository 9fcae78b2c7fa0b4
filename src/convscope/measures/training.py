"""What training keeps: the memory that a forward pass with gradients holds for the backward pass, measured.

torch tells of every tensor it saves (`saved_tensors_hooks`); each piece of memory counts once, in the layer that
first saved it. All parameters are taken as trained. The pass runs in eval mode, as everything else is measured, so
that the masks of dropout are not in it.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from convscope.errors import ModelError
from convscope.models import set_eval


def saved_bytes(module: nn.Module, arguments: tuple[Any, ...]) -> dict[tuple[str, int], int]:
    """Bytes kept for the backward pass, by (module name, number of the call) in which they were first saved.

    Args:
        module: stays untouched; a copy of it runs, which shares its weights.
        arguments: what it is called with.

    Raises:
        ModelError: the pass fails with gradients.

    Example:
        >>> saved_bytes(nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU()), (torch.zeros(1, 1, 10),))
        {('0', 0): 40, ('1', 0): 80}
    """
    try:
        with torch.inference_mode(False):
            return _run(_trainable(module), tree_map(_ordinary, arguments))
    except Exception as error:  # the network's own code: anything may come
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the network cannot be run with gradients ({type(error).__name__}: {reason}); "
            "ask for the other measures only"
        ) from error


def _trainable(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters are new, trainable handles of the same weights."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        continuous = parameter.is_floating_point() or parameter.is_complex()
        memo[id(parameter)] = nn.Parameter(_ordinary(parameter.detach()), requires_grad=continuous)
    private = copy.deepcopy(module, memo)
    set_eval(private)
    return private


def _ordinary(value: Any) -> Any:
    """A tensor that was made in inference mode, which autograd refuses, is copied."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _run(module: nn.Module, arguments: tuple[Any, ...]) -> dict[tuple[str, int], int]:
    own = {_key(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    found: dict[tuple[str, int], int] = {}
    held: dict[int, Any] = {}  # keeps every storage alive, so that its address means no other
    stack: list[tuple[str, int]] = [("", 0)]
    counts: dict[str, int] = {}

    def save(tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in own and key not in held:
            strided = tensor.layout is torch.strided
            held[key] = tensor.untyped_storage() if strided else tensor
            size = held[key].nbytes() if strided else tensor.numel() * tensor.element_size()
            found[stack[-1]] = found.get(stack[-1], 0) + size
        return tensor

    def enter(name: str) -> Any:
        def before(*_: Any) -> None:
            index = counts.get(name, 0)
            counts[name] = index + 1
            stack.append((name, index))

        return before

    def leave(*_: Any) -> None:
        stack.pop()

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with ExitStack() as around:
        for name, part in module.named_modules():
            around.callback(part.register_forward_pre_hook(enter(name), prepend=True).remove)
            around.callback(part.register_forward_hook(leave, always_call=True).remove)
        around.enter_context(torch.random.fork_rng(devices=devices))
        around.enter_context(torch.enable_grad())
        around.enter_context(torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor))
        module(*arguments)
    return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
