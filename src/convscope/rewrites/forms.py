"""The forms that a layer could take to run faster, and the one that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convscope import timing
from convscope.rewrites import verify
from convscope.rewrites.contest import BEFORE, Entry, fastest
from convscope.rewrites.convolution import Convolution
from convscope.rewrites.prepared import PackedLinear
from convscope.rewrites.work import Site

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PLAIN, PACKED = "plain", "packed"  # forms of a linear layer
Form = tuple[nn.Module, ...]


def plain(layout: str) -> str:
    """Name of the form that is torch's own layer with its weight in a layout."""
    return f"direct:{layout}"


@dataclass(frozen=True)
class Options:
    """What a layer could become.

    Attributes:
        site: the layer.
        layers: its name, and that of the ReLU that may become part of it, if there is one.
        forms: by the algorithm's name, in float64, a module for each of the layers.
        usual: the form that is taken unless another is faster.
        errors: expected error of each form.
        layout: that of the maps that layers pass on.
        problem: what it computes; layers with the same one take the same form.
    """

    site: Site
    layers: tuple[str, ...]
    forms: Mapping[str, Form]
    usual: str
    errors: Mapping[str, float]
    layout: str
    problem: Any

    @property
    def key(self) -> Any:
        """Layers with the same one are alike."""
        return self.problem, len(self.layers)

    def entry(self, dtype: torch.dtype) -> Entry:
        """For the contest: copies in the network's type and the layout."""
        forms = {
            name: [laid(verify.copied(part).to(dtype), self.layout) for part in parts]
            for name, parts in self.forms.items()
        }
        return Entry(self.layers, forms, self.key)

    def chosen(self, times: Mapping[str, timing.Timing], batch: int) -> Chosen | str:
        """The fastest form, or why the layer stays as it is.

        A layer that lays out the first map with channels last may be slower than before: whether that pays, the network as
        a whole tells.
        """
        form = fastest(times, self.usual, self.errors)
        before, after = times[BEFORE], times[form]
        alone = form in (PLAIN, plain(self.layout))
        slower = before.over(after).high < 1
        if (alone and self._is_laid) or (slower and self.layout == "contiguous"):
            others = [f"{name}: {before.over(times[name])} as fast" for name in self.forms if name != PLAIN]
            return f"nothing beat torch's own beyond noise, {'; '.join(others)}"
        notes = [f"{before.over(after)} as fast as before, {after.conditions}, batch {batch}"]
        if slower:
            notes.append("slower by itself, for the sake of the layers behind it")
        if alone:
            notes.append("only its weight is laid out anew")
        elif form != self.usual:
            notes.append(f"{form} is {times[self.usual].over(after)} as fast as {self.usual}")
        layers = self.layers[:1] if alone else self.layers
        notes += [f"its ReLU {relu!r} is part of it" for relu in layers[1:]]
        module = self.forms[form][0]
        if isinstance(module, PackedLinear):
            notes.append(f"keeps a packed copy of its weight, {4 * module.weight.numel() / 2**20:.1f} MiB")
        seconds = (before.median, after.median)
        return Chosen(self.site, layers, self.forms[form][: len(layers)], form, tuple(notes), seconds)

    @property
    def _is_laid(self) -> bool:
        part = self.site.module
        if not isinstance(part, nn.Conv2d):
            return True
        return part.weight.is_contiguous(memory_format=FORMATS[self.layout])


@dataclass(frozen=True)
class Chosen:
    """The form that a layer takes, and the ReLU that becomes part of it."""

    site: Site
    layers: tuple[str, ...]
    modules: Form
    form: str
    notes: tuple[str, ...]
    seconds: tuple[float, float]

    @property
    def resolved(self) -> dict[str, Any]:
        """What a recipe needs."""
        if isinstance(self.modules[0], PackedLinear):
            return {"algorithm": self.form, "rows": self.modules[0].rows}
        return {"algorithm": self.form, "relu": self.layers[1] if len(self.layers) > 1 else None}


def made(conv: Convolution, form: str, relu: bool) -> nn.Conv2d:
    """A convolution in a form, in float64; in torch's own where the weight's layout is all there is to it."""
    own = form in map(plain, FORMATS)
    return conv.module("direct" if own else form, "relu" if relu else None)


def laid(module: nn.Module, layout: str) -> nn.Module:
    """With its convolutions' weights in the layout, by which torch and the plans choose that of the output."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=FORMATS[layout])  # type: ignore[call-overload]
    return module
