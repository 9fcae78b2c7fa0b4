"""What the passes of a training need: which samples, which mode, in which numbers, at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from convscope.graph import record
from convscope.measures.counts import counts
from convscope.studies.data import Data, Split


def batches(split: Split, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Places of the samples of each batch, each sample at most once."""
    order = torch.randperm(len(split), generator=generator)
    yield from order[: len(order) // batch * batch].split(batch)


def train_mode(module: nn.Module) -> None:
    """Train mode, but for norms whose parameters are frozen: they keep their statistics."""
    module.train()
    for part in module.modules():
        own = list(part.parameters(recurse=False))
        if hasattr(part, "running_mean") and own and not any(p.requires_grad for p in own):
            part.eval()


def macs_of_sample(module: nn.Module, data: Data, device: torch.device | str) -> int:
    """Multiply-accumulates of a forward and backward pass for one sample; of text, one of mean length."""
    if data.kind == "text":
        length = max(1, round(data.train.lengths.double().mean().item()))
        example = torch.ones(1, length, dtype=torch.int64, device=device)
    else:
        example = torch.zeros(1, *data.shape, device=device)
    counted = counts(record(module, example=example))
    return sum((0 if each.cost is None else each.cost.macs) + each.backward_macs for each in counted)


def precision_of(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def one_result() -> AbstractContextManager[None]:
    """On a GPU, convolutions by algorithms that give the same bits every time."""
    if not torch.cuda.is_available():
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
