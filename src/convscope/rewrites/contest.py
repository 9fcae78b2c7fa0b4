"""Which form of each layer is fastest where it runs: timed inside the network, not by itself.

By itself a layer finds its weights in the cache, at every call. In a network whose weights together no cache holds it does not,
and a form with more of them (Winograd's transformed filters) loses some of what it won. So each layer is put up in all its
forms at once, and whole passes are run, each layer taking the time of the form it is in.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convscope import timing
from convscope.rewrites.work import place

ROUNDS = 15
LEAST = 5
BEFORE = "before"


@dataclass(frozen=True)
class Entry:
    """A layer, and the layers behind it that go with it, in several forms.

    Attributes:
        layers: their names, in the order they run.
        forms: name of a form -> a module for each of the layers.
        key: layers with the same one are of the same shape, and take the same form.
    """

    layers: tuple[str, ...]
    forms: Mapping[str, Sequence[nn.Module]]
    key: Any


class Stopwatch(nn.Module):
    """A layer in several forms, one of which runs; takes its time."""

    def __init__(self, forms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.forms = forms  # a plain dict: not registered, so that nothing is copied or moved
        self.form = next(iter(forms))
        self.spent = 0.0

    def __getattr__(self, name: str) -> Any:
        """What the network may ask of the layer (its stride, say)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.forms[self.form], name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Whatever the form gives."""
        began = time.perf_counter()
        y = self.forms[self.form](*inputs, **named)
        self.spent += time.perf_counter() - began
        return y


def contest(
    network: nn.Module, entries: Sequence[Entry], x: Tensor, budget: float
) -> dict[Any, dict[str, timing.Timing]]:
    """Times all forms of all layers in passes of the whole network.

    Args:
        network: as it is, in its own type; not changed, its parameters are shared.
        entries: the layers, their forms in that type and in the layout they are to pass on.
        x: input of the network.
        budget: seconds, though a few rounds are always run.

    Returns:
        By an entry's key and a form's name, seconds of a layer, the mean over those of that key; the form "before" is what
        the network has now.

    Raises:
        Exception: a pass fails, because of an operation that some layout does not suit: whatever the network raises.
    """
    watches: list[tuple[Entry, list[Stopwatch]]] = []
    before, after = (copy.deepcopy(network, {id(p): p for p in network.parameters()}) for _ in range(2))
    parts = dict(before.named_modules())
    for entry in entries:
        here = [Stopwatch({BEFORE: parts[layer]}) for layer in entry.layers]
        there = [
            Stopwatch({form: modules[place_] for form, modules in entry.forms.items()})
            for place_ in range(len(entry.layers))
        ]
        for layer, first, second in zip(entry.layers, here, there, strict=True):
            place(before, layer, first)
            place(after, layer, second)
        watches.append((entry, [*here, *there]))
    most = max(len(entry.forms) for entry in entries)
    samples: dict[Any, dict[str, list[float]]] = {}
    began = time.perf_counter()
    for done in range(-1, ROUNDS):  # the first warms up
        if done >= LEAST and time.perf_counter() - began > budget:
            break
        for turn in range(most + 1):
            _set(watches, turn)
            (after if turn < most else before)(x)
            if done >= 0:
                _read(watches, turn, turn == most, samples)
    return {
        key: {form: timing.Timing(tuple(s)) for form, s in found.items()} for key, found in samples.items()
    }


def _set(watches: Sequence[tuple[Entry, list[Stopwatch]]], turn: int) -> None:
    """Each layer's form of this turn; layers with fewer forms begin again."""
    for entry, several in watches:
        forms = list(entry.forms)
        for watch in several:
            watch.spent = 0.0
            if BEFORE not in watch.forms:
                watch.form = forms[turn % len(forms)]


def _read(
    watches: Sequence[tuple[Entry, list[Stopwatch]]],
    turn: int,
    is_before: bool,
    samples: dict[Any, dict[str, list[float]]],
) -> None:
    """The mean of a pass by key; a form that ran twice in a round counts once."""
    found: dict[tuple[Any, str], list[float]] = {}
    for entry, several in watches:
        forms = list(entry.forms)
        if is_before or turn < len(forms):
            form = BEFORE if is_before else forms[turn]
            found.setdefault((entry.key, form), []).append(sum(watch.spent for watch in several))
    for (key, form), seconds in found.items():
        samples.setdefault(key, {}).setdefault(form, []).append(sum(seconds) / len(seconds))


def fastest(times: Mapping[str, timing.Timing], usual: str, errors: Mapping[str, float]) -> str:
    """The form to take: the usual one, unless another beats it beyond noise; of those alike the most accurate.

    Example:
        >>> took = {"a": timing.Timing((2.0, 2.1, 2.0)), "b": timing.Timing((1.0, 1.1, 1.0)), "c": timing.Timing((1.0, 1.0, 1.0))}
        >>> fastest(took, "a", {"a": 0.0, "b": 1e-7, "c": 1e-6})
        'b'
    """
    rivals = [
        form for form in times if form not in (usual, BEFORE) and times[usual].over(times[form]).low > 1
    ]
    if not rivals:
        return usual
    best = min(times[form].median for form in rivals)
    alike = [form for form in rivals if times[form].median < 1.03 * best]
    return min(alike, key=lambda form: (errors[form], times[form].median))
