"""An oracle for receptive fields that derives nothing.

It puts NaN into one column of pixels and looks which features turn NaN: NaN survives ReLU, max pooling and
zero weights, where a finite perturbation may die.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from convscope._torchvision import torchvision
from convscope.graph import Graph, layout, record
from convscope.measures.receptive_field import receptive_field
from convscope.models import InputSpec


class _Enough(Exception):
    """Ends the forward pass once the layer has run."""


@contextmanager
def structural(module: nn.Module, layer: str) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """A copy whose parameters hide no path, stopped after the layer, and a list that receives its output."""
    # In float64: the fast float32 algorithms add and subtract neighbouring pixels, which spreads NaN too far.
    private = copy.deepcopy(module).eval().double()
    generator = torch.Generator().manual_seed(0)
    for parameter in private.parameters():  # timm starts the last norm of residual branches at zero
        parameter.data.normal_(0, 0.1, generator=generator)
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: object, output: object) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]
        raise _Enough

    handle = private.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        yield private, kept
    handle.remove()


def poisoned(
    module: nn.Module, layer: str, graph: Graph, axis: int, pixels: list[int], batch: int = 8
) -> Tensor:
    """[pixel, position]: whether some feature at the position turns NaN with that row or column of pixels."""
    found = []
    plan = layout(graph, layer)
    shape = graph.values[graph.inputs[0]].shape[1:]
    with structural(module, layer) as (private, kept):
        for start in range(0, len(pixels), batch):
            chosen = pixels[start : start + batch]
            x = torch.rand(len(chosen), *shape, generator=torch.Generator().manual_seed(1)).double()
            for row, pixel in enumerate(chosen):
                x[row].select(1 + axis, pixel).fill_(math.nan)
            kept.clear()
            with suppress(_Enough):
                private(x)
            features = plan.as_map(kept[-1]).isnan().movedim(2 + axis, 1)  # [batch, position, ...]
            found.append(features.flatten(2).any(2))
    return torch.cat(found)


def check(
    module: nn.Module, layer: str, shape: tuple[int, ...], axes: tuple[int, ...] = (1,), most: int = 60
) -> None:
    """The derived boxes hold every NaN, and reach no further than the first and last of them."""
    torch.set_num_threads(1)
    spec = InputSpec(shape)
    graph = record(module, spec=spec)
    found = receptive_field(module, layer, graph=graph)
    for axis in axes:
        extent, count = found.image[axis], layout(graph, layer).grid[axis]
        boxes = [
            found.box([p if a == axis else 0 for a in range(len(found.size))])[axis] for p in range(count)
        ]
        edges = {e + d for start, stop in boxes for e in (start, stop) for d in (-1, 0)}
        pixels = sorted({e for e in edges if 0 <= e < extent} | {0, extent - 1})
        if len(pixels) > most:
            pixels = pixels[:: -(-len(pixels) // most)]
        seen = poisoned(module, layer, graph, axis, pixels)
        derived = torch.tensor([[start <= pixel < stop for start, stop in boxes] for pixel in pixels])
        missed = seen & ~derived
        assert not missed.any(), (
            f"axis {axis}: sees more than derived, (pixel, position) {missed.nonzero()[:5].tolist()}"
        )
        # Dilation may leave holes inside; the ends must be seen wherever they lie in the image.
        if not found.bounds:
            row = {pixel: index for index, pixel in enumerate(pixels)}
            for position, (start, stop) in enumerate(boxes):
                for end in (start, stop - 1):
                    assert end not in row or seen[row[end], position], (
                        f"axis {axis}: {position} does not see {end}"
                    )


def build(source: str, **options: object) -> nn.Module:
    """`torchvision:NAME` or `timm:NAME`, with random weights."""
    scheme, _, name = source.partition(":")
    models = torchvision().models
    if name in ("alexnet", "vgg16", "vgg19"):  # without the time to fill a huge classifier
        with torch.device("meta"):
            features = getattr(models, name)().features
        return nn.Sequential(OrderedDict(features=features.to_empty(device="cpu")))
    if scheme == "timm":
        timm = importlib.import_module("timm")
        return timm.create_model(name, **options)  # type: ignore[no-any-return]
    return getattr(models, name)(**options)  # type: ignore[no-any-return]
