"""Times every module call of a forward pass from the inside, at the price of two looks at a clock a call.

Not by hooks: those send a call down torch's slow path, and switch off the fused paths of attention and transformer
layers. Instead each module of a private copy gets a `_call_impl` of its own while a pass is timed: that is what
`Module.__call__` calls, so that a call's fixed price and the hooks a module already has are in its time.

On an accelerator the clock is an event in the queue of work: it shows when the device came by, without waiting
for it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from convscope import timing
from convscope.errors import ModelError


@dataclass(frozen=True)
class Span:
    """One module call in one pass.

    Attributes:
        name: dotted module name.
        index: 0 for the module's first call in the pass, 1 for the second, ...
        seconds: how long it took.
        children: positions among the pass's spans of the calls made from it.
    """

    name: str
    index: int
    seconds: float
    children: tuple[int, ...] = ()


@dataclass(frozen=True)
class Price:
    """What the clock itself costs for each call it times, in seconds.

    Attributes:
        inside: of it, between its two looks.
        whole: with all that surrounds them.
    """

    inside: float
    whole: float


class Clock:
    """Seconds of the processor."""

    def now(self) -> Any:
        return time.perf_counter()

    def between(self, began: Any, ended: Any) -> float:
        """Seconds between two looks, once the device has done its work."""
        return float(ended - began)


class EventClock(Clock):
    """Seconds of a device with a queue."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Any:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def between(self, began: Any, ended: Any) -> float:
        return float(began.elapsed_time(ended)) / 1e3


def clock_of(device: torch.device) -> Clock:
    """The clock that shows when the device did its work."""
    return Clock() if device.type == "cpu" else EventClock(device)


_Entry = tuple[int, str, int, Any, Any]  # serial number of the call, name, entries before it, began, ended


class Timed:
    """Times the module calls of passes of a network that is the caller's to change.

    What torch.compile or TorchScript made is one call: nothing inside of it is touched.

    Example:
        >>> net = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> with Timed(net) as timed:
        ...     _ = net(torch.zeros(1, 2, 3))
        ...     timed.cut()
        >>> [(span.name, span.children) for span in timed.passes()[0]]
        [('0', ()), ('1', ()), ('', (0, 1))]
    """

    def __init__(self, module: nn.Module, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._log: list[_Entry] = []
        self._cuts: list[int] = []
        self._serials = itertools.count()
        self._stand_ins = [(part, self.wrapped(name, part._call_impl)) for name, part in visible(module)]

    def __enter__(self) -> Timed:
        for part, stand_in in self._stand_ins:
            vars(part)["_call_impl"] = stand_in  # past __setattr__, which modules override
        return self

    def __exit__(self, *_: object) -> None:
        for part, _stand_in in self._stand_ins:
            vars(part).pop("_call_impl", None)

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, timed."""
        now, log, serials = self.clock.now, self._log, self._serials

        def timed(*args: Any, **kwargs: Any) -> Any:
            serial, before = next(serials), len(log)
            began = now()
            result = call(*args, **kwargs)
            ended = now()
            log.append((serial, name, before, began, ended))
            return result

        return timed

    def cut(self) -> None:
        """A pass is over."""
        self._cuts.append(len(self._log))

    def passes(self) -> list[list[Span]]:
        """The passes since the last look, each in order of completion; forgets them."""
        found = [self._spans(start, stop) for start, stop in pairwise([0, *self._cuts])]
        self._log.clear()
        self._cuts.clear()
        return found

    def _spans(self, start: int, stop: int) -> list[Span]:
        entries = self._log[start:stop]
        counts: Counter[str] = Counter()
        index: dict[int, int] = {}
        for serial, name, *_ in sorted(entries, key=lambda entry: entry[0]):
            index[serial] = counts[name]
            counts[name] += 1
        spans, orphans = [], list[int]()
        for place, (serial, name, before, began, ended) in enumerate(entries):
            children = [orphan for orphan in orphans if orphan >= before - start]
            del orphans[len(orphans) - len(children) :]
            orphans.append(place)
            spans.append(Span(name, index[serial], self.clock.between(began, ended), tuple(children)))
        return spans


def visible(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose calls can be told apart, each once: not those inside of something compiled."""
    hidden: set[int] = set()
    for name, part in module.named_modules():
        if id(part) not in hidden:
            yield name, part
        if opaque(part):
            hidden.update(id(inner) for inner in part.modules() if inner is not part)


def opaque(module: nn.Module) -> bool:
    """Whether its operations run out of sight of Python."""
    return isinstance(module, torch.jit.ScriptModule) or (
        hasattr(module, "_orig_mod") and hasattr(module, "dynamo_ctx")
    )


def price(clock: Clock, device: torch.device, calls: int = 1000, rounds: int = 9) -> Price:
    """What timing a call costs, by calls that do nothing."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    timed = Timed(nn.Identity(), clock)
    watched = timed.wrapped("", nothing)
    plain_seconds, watched_seconds, inside = [], [], []
    for _ in range(rounds):
        plain_seconds.append(timing.seconds(nothing, device, calls))
        watched_seconds.append(timing.seconds(watched, device, calls))
        timed.cut()
        inside.append(statistics.median(span.seconds for span in timed.passes()[0]))
    plain = statistics.median(plain_seconds)
    return Price(
        max(0.0, statistics.median(inside) - plain), max(0.0, statistics.median(watched_seconds) - plain)
    )


def same_calls(passes: Sequence[Sequence[Span]], name: str) -> None:
    """Checks that all passes made the same calls.

    Raises:
        ModelError: they did not.
    """
    first = [(span.name, span.index, span.children) for span in passes[0]]
    for other in passes[1:]:
        found = [(span.name, span.index, span.children) for span in other]
        if found != first:
            odd = next((a for a, b in itertools.zip_longest(first, found) if a != b), None) or found[-1]
            raise ModelError(
                f"{name} calls other layers from one pass to the next on the same input, first at "
                f"{odd[0] or '(root)'!r}; make its choices fixed, such as by a "
                "seed of its own"
            )
