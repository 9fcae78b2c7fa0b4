"""Images that rewrites fit to and are verified on, and what layers are given on them.

Unlabelled images suffice. Covariances are gathered in one streaming pass; of the inputs themselves only a few are ever
held.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convscope import data as pictures
from convscope.errors import BadInput
from convscope.graph.record import flatten
from convscope.models import InputSpec, Net

if TYPE_CHECKING:
    from convscope.rewrites.work import Work

TRIED = 2  # images that verification runs on
BATCH = 8


class Calibration:
    """The images given, or none.

    Args:
        net: whose input they are made to fit.
        data: None for no images; a file, folder, `Images`, or Tensor [image, channel, height, width] of network input
            (normalized already).
        limit: at most so many images.
        seed: of the random inputs.

    Raises:
        BadInput: a tensor of another shape than the network takes.
        RequestError: see `convscope.data.images`.
    """

    def __init__(self, net: Net, data: Any = None, limit: int = 256, seed: int = 0) -> None:
        self._spec, self._limit, self._seed = net.input, limit, seed
        self._tensor: Tensor | None = None
        self._images: Any = None
        if isinstance(data, Tensor):
            if data.ndim != 4 or data.shape[1] != net.input.channels or not data.shape[0]:
                raise BadInput(
                    f"data of shape {tuple(data.shape)} must be [image, {net.input.channels}, height, width] of network "
                    "input."
                )
            self._tensor = data.detach()[:limit]
        elif data is not None:
            self._images = pictures.images(data, limit=limit)

    @property
    def given(self) -> bool:
        """Whether there are images at all."""
        return self._tensor is not None or self._images is not None

    @property
    def description(self) -> dict[str, Any] | None:
        """For the record: what the images were."""
        if self._tensor is not None:
            return {"source": "tensor", "count": len(self._tensor)}
        if self._images is not None:
            return {"source": str(self._images.source), "count": len(self._images)}
        return None

    def resize(self, spec: InputSpec) -> None:
        """From here on image files come at another size; a tensor stays as it is."""
        self._spec = spec

    def batches(self, size: int = BATCH) -> Iterator[Tensor]:
        """Network input, [batch, channel, height, width], float32."""
        if self._tensor is not None:
            yield from self._tensor.float().split(size)
        elif self._images is not None:
            for batch in self._images.batches(self._spec, batch=size):
                yield self._spec.normalize(batch.images).float()

    def network_inputs(self, spec: InputSpec) -> list[Tensor]:
        """What verification feeds a network: one random input, and a few of the images; float64."""
        generator = torch.Generator().manual_seed(self._seed)
        found = [torch.randn(1, *spec.shape, generator=generator, dtype=torch.float64)]
        if self.given:
            first = next(self.batches(TRIED))[:TRIED].double()
            if tuple(first.shape[1:]) == tuple(spec.shape):
                found.append(first)
        return found

    def inputs(self, layer: str, work: Work) -> list[tuple[Tensor, ...]]:
        """What a layer is given on a few of the images, float64; nothing without images."""
        if not self.given:
            return []
        kept: list[tuple[Tensor, ...]] = []
        with watched(work.module, {layer: lambda *tensors: kept.append(tensors)}), torch.no_grad():
            work.module(next(self.batches(TRIED))[:TRIED].double())
        return [tuple(t.detach().double() for t in tensors) for tensors in kept]

    def stream(
        self, module: nn.Module, watchers: dict[str, Callable[..., None]], outputs: bool = False
    ) -> int:
        """One pass over all images, in float32; each watcher is called with its layer's inputs, or outputs.

        Returns the number of images. A rule that fits several layers gathers for all of them in one pass: see
        `LayerRule.gather`.
        """
        module = copy.deepcopy(module).float()
        count = 0
        with watched(module, watchers, outputs), torch.no_grad():
            for x in self.batches():
                module(x)
                count += len(x)
        return count


@contextmanager
def watched(
    module: nn.Module, watchers: dict[str, Callable[..., None]], outputs: bool = False
) -> Iterator[None]:
    """While it lasts, each watcher is called with the tensors its layer is given, or gives, at every call."""
    parts = dict(module.named_modules())

    def before(watcher: Callable[..., None]) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            watcher(*[each for each in args if isinstance(each, Tensor)])

        return hook

    def after(watcher: Callable[..., None]) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            watcher(*flatten(output))

        return hook

    handles = [
        parts[name].register_forward_hook(after(watcher))
        if outputs
        else parts[name].register_forward_pre_hook(before(watcher))
        for name, watcher in watchers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
