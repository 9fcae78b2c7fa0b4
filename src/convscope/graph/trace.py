"""Where in the image a tensor's elements come from: the algebra behind receptive fields and layouts.

A tensor axis is a product of factors, major to minor: the 196 tokens of a vision transformer are (14 rows, 14
columns), the 48 channels of a patchified image (3, 4, 4). Along one axis of the image, an element at factor
positions p sees the pixels from `low + sum(step * p)` to `high + sum(step * p)`, both ends included: a
`Window`. Merging, splitting and moving axes then only moves factors about, and every convolution, pooling or
resampling only changes steps and ends. Paths whose steps differ are kept as separate windows. What cannot be
said this way becomes "the whole axis", with the name of the operation that made it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise, product
from typing import TypeAlias

Number: TypeAlias = int | Fraction
Label: TypeAlias = int | str  # number of the image axis, "channel", "batch", or "" for anything else
Steps: TypeAlias = tuple[tuple[Number, ...], ...]  # one step a factor, grouped by tensor axis

_MOST_WINDOWS = 8  # paths of different steps kept apart, along one image axis


@dataclass(frozen=True, slots=True)
class Factor:
    """A part of a tensor axis that moves as one."""

    size: int
    label: Label = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """A tensor axis: `before` positions of something else (class tokens), the product of the factors,
    `after` more.
    """

    factors: tuple[Factor, ...]
    before: int = 0
    after: int = 0

    @property
    def core(self) -> int:
        """Number of positions of the factors together."""
        return math.prod(factor.size for factor in self.factors)

    @property
    def size(self) -> int:
        return self.before + self.core + self.after

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(factor.label for factor in self.factors)

    @property
    def is_spatial(self) -> bool:
        return any(isinstance(label, int) for label in self.labels)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a tensor's elements see along one axis of the image.

    Attributes:
        extent: size of the image along the axis.
        windows: steps -> (low, high) of the local paths.
        whole: names of the operations through which an element sees the whole axis.
        aligned: whether paths of the same steps have the same centre.
        bounds: names of the operations at which the window had to be widened, so that it is only an upper
            bound.
    """

    extent: int
    windows: dict[Steps, tuple[Number, Number]]
    whole: frozenset[str] = frozenset()
    aligned: bool = True
    bounds: frozenset[str] = frozenset()

    def map(self, change: Callable[[Steps, Number, Number], tuple[Steps, Number, Number]]) -> Reach:
        """Every window changed; those that come to have equal steps are joined."""
        windows: dict[Steps, tuple[Number, Number]] = {}
        aligned = self.aligned
        for steps, (low, high) in self.windows.items():
            steps, low, high = change(steps, low, high)
            known = windows.get(steps)
            if known is not None:
                aligned = False  # their steps differed, and are equal now only because they had to be widened
                low, high = min(low, known[0]), max(high, known[1])
            windows[steps] = (low, high)
        return replace(self, windows=windows, aligned=aligned)

    def opened(self, reason: str) -> Reach:
        """No local path left: the whole axis."""
        return Reach(self.extent, {}, self.whole | {reason})


@dataclass(frozen=True, slots=True)
class Trace:
    """A tensor's axes and, for each axis of the image, what its elements see; `reach` is empty for
    constants.
    """

    axes: tuple[Axis, ...]
    reach: tuple[Reach, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def depends(self) -> bool:
        """Whether the tensor depends on the image at all."""
        return bool(self.reach)

    # -- axes ------------------------------------------------------------------------------------------------

    def permute(self, order: Sequence[int]) -> Trace:
        """Axis i of the result is axis `order[i]`."""

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            return tuple(steps[axis] for axis in order), low, high

        return self._with(tuple(self.axes[axis] for axis in order), change)

    def insert(self, position: int, axis: Axis = Axis(())) -> Trace:
        """A new axis along which nothing moves."""
        zeros = (0,) * len(axis.factors)

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            return (*steps[:position], zeros, *steps[position:]), low, high

        return self._with((*self.axes[:position], axis, *self.axes[position:]), change)

    def drop(self, position: int) -> Trace:
        """Without an axis; of one along which windows move, position 0 stays."""

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            return (*steps[:position], *steps[position + 1 :]), low, high

        return self._with((*self.axes[:position], *self.axes[position + 1 :]), change)

    def put(self, position: int, axis: Axis) -> Trace:
        """With another axis in a place, along which nothing moves."""
        return self.drop(position).insert(position, axis)

    def _with(
        self, axes: tuple[Axis, ...], change: Callable[[Steps, Number, Number], tuple[Steps, Number, Number]]
    ) -> Trace:
        return Trace(axes, tuple(reach.map(change) for reach in self.reach))

    def solid(self, position: int, reason: str) -> Trace:
        """The axis as one factor, class tokens and the like included; widens windows that are not linear
        in it.
        """
        axis = self.axes[position]
        sizes = [factor.size for factor in axis.factors]
        if len(sizes) == 1 and axis.before == axis.after == 0:
            return self
        places = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        labels = [label for label in axis.labels if label != ""]
        merged = Axis((Factor(axis.size, labels[0] if labels else ""),))

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            own = steps[position]
            step: Number = 0
            if own:
                step = ratio(own[0], places[0]) if own[0] else own[-1]
            slack = [
                (had - step * place) * (size - 1) for had, place, size in zip(own, places, sizes, strict=True)
            ]
            low = low + sum(min(0, part) for part in slack) - axis.before * step
            high = high + sum(max(0, part) for part in slack) - axis.before * step
            return (*steps[:position], (step,), *steps[position + 1 :]), low, high

        def row(steps: Steps, low: Number, high: Number) -> tuple[Number, Number, Number]:
            moved, low, high = change(steps, low, high)
            step = moved[position][0]
            return step, low + axis.before * step, high + axis.before * step

        result = self._with((*self.axes[:position], merged, *self.axes[position + 1 :]), change)
        widened = [
            any(
                _widens(steps[position], sizes, ends, row(steps, *ends))
                for steps, ends in reach.windows.items()
            )
            for reach in self.reach
        ]
        return Trace(
            result.axes,
            tuple(
                replace(reach, bounds=reach.bounds | {reason}) if wide else reach
                for reach, wide in zip(result.reach, widened, strict=True)
            ),
        )

    def slide(
        self,
        position: int,
        size: int,
        step: Number,
        low: Number,
        high: Number,
        reason: str,
        reads: Sequence[tuple[int, int]] = (),
    ) -> Trace:
        """Position q of the new axis reads positions `step * q + low` to `step * q + high` of the old.

        Where these are fractions, `reads` gives the true (first, last) for q = 0, 1, ...: an upper bound is
        then told from an exact answer.
        """
        solid = self.solid(position, reason)
        factor = solid.axes[position].factors[0] if solid.axes[position].factors else Factor(1)
        axis = Axis((Factor(size, factor.label),))

        def change(steps: Steps, start: Number, stop: Number) -> tuple[Steps, Number, Number]:
            own = steps[position][0]
            ends = (own * low, own * high)
            moved = (*steps[:position], (own * step,), *steps[position + 1 :])
            return moved, start + min(ends), stop + max(ends)

        result = solid._with((*solid.axes[:position], axis, *solid.axes[position + 1 :]), change)
        if not any(
            _blurs(steps[position][0], ends, change(steps, *ends), position, reads)
            for reach in solid.reach
            for steps, ends in reach.windows.items()
        ):
            return result
        return result.bounded(reason)

    def bounded(self, reason: str) -> Trace:
        """Marked as an upper bound wherever there is a local path."""
        marked = (replace(r, bounds=r.bounds | {reason}) if r.windows else r for r in self.reach)
        return Trace(self.axes, tuple(marked))

    def select(self, position: int, index: int) -> Trace:
        """The slice of one index, without the axis."""
        axis = self.axes[position]
        inner = index - axis.before
        if not 0 <= inner < axis.core:  # a class token: it saw what attention gave it, which is in `whole`
            return self._beside(tuple(self.axes[:position]) + tuple(self.axes[position + 1 :]))
        digits: list[int] = []
        for factor in reversed(axis.factors):
            inner, digit = divmod(inner, factor.size)
            digits.insert(0, digit)

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            shift = sum(step * digit for step, digit in zip(steps[position], digits, strict=True))
            return (*steps[:position], *steps[position + 1 :]), low + shift, high + shift

        return self._with((*self.axes[:position], *self.axes[position + 1 :]), change)

    def slice(self, position: int, start: int, size: int, step: int, reason: str) -> Trace:
        """`size` positions from `start`, every `step`-th."""
        axis = self.axes[position]
        if (start, size, step) == (0, axis.size, 1):
            return self
        stop = start + (size - 1) * step + 1 if size else start
        if axis.before or axis.after:
            if step == 1 and start <= axis.before and stop >= axis.before + axis.core:
                kept = Axis(axis.factors, axis.before - start, stop - axis.before - axis.core)
                return Trace((*self.axes[:position], kept, *self.axes[position + 1 :]), self.reach)
            if stop <= axis.before or start >= axis.before + axis.core:
                return self._beside(
                    (*self.axes[:position], Axis((Factor(size),)), *self.axes[position + 1 :])
                )
        return self.slide(position, size, step, start, start, reason)

    def _beside(self, axes: tuple[Axis, ...]) -> Trace:
        """What sits beside the image positions in an axis: it sees the whole image, or nothing of it."""
        if not any(reach.whole for reach in self.reach):
            return Trace(axes)
        return Trace(axes, tuple(replace(reach, windows={}) for reach in self.reach))

    def reshape(self, shape: Sequence[int], reason: str) -> Trace:
        """The same elements in the same order under another shape."""
        if tuple(shape) == self.shape:
            return self
        pieces = _regroup(self.axes, shape)
        if pieces is None:  # windows of 7 cut into pairs, say: widen to even rows first
            even = self
            for position, axis in enumerate(self.axes):
                if len(axis.factors) > 1 and axis.before == axis.after == 0:
                    even = even.solid(position, reason)
            if even is not self and _regroup(even.axes, shape) is not None:
                return even.reshape(shape, reason)
            return collapse([self], shape, reason)
        axes = tuple(
            Axis(tuple(Factor(size, label) for size, label, *_ in group), before, after)
            for group, before, after in pieces
        )

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            moved = tuple(
                tuple(steps[axis][factor] * times for _, _, axis, factor, times in group)
                for group, _, _ in pieces
            )
            return moved, low, high

        return self._with(axes, change)._fused()

    def _fused(self) -> Trace:
        """Neighbouring factors of an axis joined wherever they move as one."""
        result = self
        for position, axis in enumerate(self.axes):
            groups: list[list[int]] = []
            for index, factor in enumerate(axis.factors):
                if groups and self._moves_as_one(position, index) and axis.labels[index - 1] == factor.label:
                    groups[-1].append(index)
                else:
                    groups.append([index])
            if len(groups) < len(axis.factors):
                result = result._join(position, groups)
        return result

    def _moves_as_one(self, position: int, index: int) -> bool:
        size = self.axes[position].factors[index].size
        return all(
            steps[position][index - 1] == steps[position][index] * size
            for reach in self.reach
            for steps in reach.windows
        )

    def _join(self, position: int, groups: list[list[int]]) -> Trace:
        axis = self.axes[position]
        factors = tuple(
            Factor(math.prod(axis.factors[i].size for i in group), axis.factors[group[0]].label)
            for group in groups
        )

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            own = tuple(steps[position][group[-1]] for group in groups)
            return (*steps[:position], own, *steps[position + 1 :]), low, high

        joined = Axis(factors, axis.before, axis.after)
        return self._with((*self.axes[:position], joined, *self.axes[position + 1 :]), change)

    def _split(self, position: int, sizes: list[int]) -> Trace:
        """The axis's factors split into ones of these sizes."""
        axis = self.axes[position]
        pieces = _regroup((Axis(axis.factors),), sizes)
        assert pieces is not None  # sizes come from _common_sizes
        flat = [group[0] for group, _, _ in pieces]
        factors = tuple(Factor(size, label) for size, label, *_ in flat)

        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            own = tuple(steps[position][factor] * times for _, _, _, factor, times in flat)
            return (*steps[:position], own, *steps[position + 1 :]), low, high

        split = Axis(factors, axis.before, axis.after)
        return self._with((*self.axes[:position], split, *self.axes[position + 1 :]), change)

    # -- what elements see -----------------------------------------------------------------------------------

    def mix(self, positions: Iterable[int], reason: str, keep: bool = False) -> Trace:
        """Every element now sees what all elements along these axes saw; `keep` keeps its own path beside
        that.
        """
        positions = tuple(positions)
        moved = tuple(self._mixed(reach, positions, reason) for reach in self.reach)
        if keep:
            moved = tuple(
                _join_reach(self.axes, a, b, reason) for a, b in zip(self.reach, moved, strict=True)
            )
        return Trace(self.axes, moved)

    def _mixed(self, reach: Reach, positions: tuple[int, ...], reason: str) -> Reach:
        def change(steps: Steps, low: Number, high: Number) -> tuple[Steps, Number, Number]:
            moved = list(steps)
            for position in positions:
                for step, factor in zip(steps[position], self.axes[position].factors, strict=True):
                    low, high = (
                        low + min(0, step * (factor.size - 1)),
                        high + max(0, step * (factor.size - 1)),
                    )
                moved[position] = (0,) * len(steps[position])
            return tuple(moved), low, high

        result = reach.map(change)
        # A path that moved only along the mixed axes has become the same for every element: the whole image.
        lost = [steps for steps in reach.windows if _moves(steps) and not _moves(change(steps, 0, 0)[0])]
        if not lost:
            return result
        local = {steps: ends for steps, ends in reach.windows.items() if steps not in lost}
        if not local:
            return reach.opened(reason)
        return replace(replace(reach, windows=local).map(change), whole=reach.whole | {reason})

    def opened(self, reason: str) -> Trace:
        """Every element sees the whole image."""
        return Trace(self.axes, tuple(reach.opened(reason) for reach in self.reach))


def _widens(
    own: tuple[Number, ...], sizes: list[int], ends: tuple[Number, Number], row: tuple[Number, Number, Number]
) -> bool:
    """Whether one even row of windows holds more pixels than the windows over several factors did."""
    if all(left == right * sizes[i + 1] for i, (left, right) in enumerate(pairwise(own))):
        return False
    step, low, high = row
    for digits in product(*(range(size) for size in sizes)):
        place = sum(step * digit for step, digit in zip(own, digits, strict=True))
        index = 0
        for digit, size in zip(digits, sizes, strict=True):
            index = index * size + digit
        at = step * index
        if math.ceil(low + at) != math.ceil(ends[0] + place) or math.floor(high + at) != math.floor(
            ends[1] + place
        ):
            return True
    return False


def _blurs(
    own: Number,
    ends: tuple[Number, Number],
    moved: tuple[Steps, Number, Number],
    position: int,
    reads: Sequence[tuple[int, int]],
) -> bool:
    """Whether fractions of a position, multiplied by the step they stand for, take in pixels that are not
    read.
    """
    steps, low, high = moved
    step = steps[position][0]
    for q, (first, last) in enumerate(reads):
        if first > last or own == 0:
            continue
        near, far = (own * first, own * last) if own > 0 else (own * last, own * first)
        if math.ceil(low + step * q) < math.ceil(ends[0] + near) or math.floor(high + step * q) > math.floor(
            ends[1] + far
        ):
            return True
    return False


def ratio(numerator: Number, denominator: Number) -> Number:
    """An exact quotient, an int where it is one."""
    value = Fraction(numerator) / Fraction(denominator)
    return value.numerator if value.denominator == 1 else value


def plain(shape: Sequence[int]) -> Trace:
    """A tensor that does not depend on the image."""
    return Trace(tuple(Axis((Factor(size),)) for size in shape))


def image(shape: Sequence[int]) -> Trace:
    """The network's input, batch first: [batch, channel, *space], or [batch, position] for sequences of
    indices.
    """
    first = 2 if len(shape) > 2 else 1
    labels: tuple[Label, ...] = (*("batch", "channel")[:first], *range(len(shape) - first))
    axes = tuple(Axis((Factor(size, label),)) for size, label in zip(shape, labels, strict=True))
    reach = tuple(
        Reach(shape[axis], {tuple((1 if other == axis else 0,) for other in range(len(shape))): (0, 0)})
        for axis in range(first, len(shape))
    )
    return Trace(axes, reach)


def collapse(traces: Iterable[Trace], shape: Sequence[int], reason: str) -> Trace:
    """A tensor of which nothing is known but that it depends on these: every element sees the whole image."""
    known = [trace for trace in traces if trace.depends]
    if not known:
        return plain(shape)
    alike = next((trace for trace in known if trace.shape == tuple(shape)), None)
    axes = plain(shape).axes if alike is None else alike.axes
    reach = tuple(_gathered([trace.reach[axis] for trace in known]) for axis in range(len(known[0].reach)))
    return Trace(axes, reach).opened(reason)


def _gathered(parts: list[Reach]) -> Reach:
    return Reach(
        parts[0].extent,
        {},
        frozenset().union(*(part.whole for part in parts)),
        all(part.aligned for part in parts),
        frozenset().union(*(part.bounds for part in parts)),
    )


def union(traces: Sequence[Trace], shape: Sequence[int], reason: str) -> Trace:
    """Element by element, what any of the tensors sees; shapes are broadcast to `shape`."""
    known = [expand(trace, shape, reason) for trace in traces if trace.depends]
    if not known:
        return plain(shape)
    result = known[0]
    for other in known[1:]:
        left, right = _refined(result, other, reason)
        reach = tuple(
            _join_reach(left.axes, a, b, reason) for a, b in zip(left.reach, right.reach, strict=True)
        )
        result = Trace(left.axes, reach)
    return result


def expand(trace: Trace, shape: Sequence[int], reason: str) -> Trace:
    """Broadcast to a shape: new leading axes, and axes of size 1 repeated."""
    for _ in range(len(shape) - len(trace.axes)):
        trace = trace.insert(0)
    for position, size in enumerate(shape):
        axis = trace.axes[position]
        if axis.size != size:
            if axis.size != 1:
                return collapse([trace], shape, reason)
            label = axis.labels[0] if axis.labels else ""
            trace = trace.put(position, Axis((Factor(size, label),)))
    return trace


def _refined(left: Trace, right: Trace, reason: str) -> tuple[Trace, Trace]:
    """Both with the same factors along every axis."""
    for position in range(len(left.axes)):
        a, b = left.axes[position], right.axes[position]
        if (a.before, a.after) != (b.before, b.after):
            left, right = left.solid(position, reason), right.solid(position, reason)
        elif [factor.size for factor in a.factors] != [factor.size for factor in b.factors]:
            left, right = _split_alike(left, right, position, reason)
    axes = tuple(
        Axis(
            tuple(
                Factor(f.size, f.label if f.label != "" else g.label)
                for f, g in zip(a.factors, b.factors, strict=True)
            ),
            a.before,
            a.after,
        )
        for a, b in zip(left.axes, right.axes, strict=True)
    )
    return Trace(axes, left.reach), Trace(axes, right.reach)


def _split_alike(left: Trace, right: Trace, position: int, reason: str) -> tuple[Trace, Trace]:
    sizes = _common_sizes(
        [factor.size for factor in left.axes[position].factors],
        [factor.size for factor in right.axes[position].factors],
    )
    if sizes is None:
        return left.solid(position, reason), right.solid(position, reason)
    return left._split(position, sizes), right._split(position, sizes)


def _common_sizes(left: list[int], right: list[int]) -> list[int] | None:
    """The coarsest factors of which both lists are products, in order; None where they do not fit."""
    a, b = [n for n in left if n != 1][::-1], [n for n in right if n != 1][::-1]
    found: list[int] = []
    while a and b:
        x, y = a.pop(), b.pop()
        # major to minor: the major part of the larger factor matches the smaller one
        if x == y:
            found.append(x)
        elif x > y and x % y == 0:
            found.append(y)
            a.append(x // y)
        elif y > x and y % x == 0:
            found.append(x)
            b.append(y // x)
        else:
            return None
    return None if a or b else found


# (size, label, source axis, source factor, times the source's step) of each new factor; positions before and
# after
_Group: TypeAlias = tuple[list[tuple[int, Label, int, int, int]], int, int]


def _regroup(axes: Sequence[Axis], shape: Sequence[int]) -> list[_Group] | None:
    """How the factors of `axes` make up axes of sizes `shape`, in order; None where a boundary cuts a
    factor oddly.
    """
    queue: list[tuple[int, Label, int, int, int]] = []
    affixed: dict[int, Axis] = {}
    for a, axis in enumerate(axes):
        if axis.before or axis.after:
            affixed[a] = axis
            queue.append((axis.size, "", a, -1, 1))  # must stay in one piece
            continue
        queue.extend((f.size, f.label, a, i, 1) for i, f in enumerate(axis.factors) if f.size != 1)
    queue.reverse()
    groups: list[_Group] = []
    for size in shape:
        group: list[tuple[int, Label, int, int, int]] = []
        filled = 1
        while filled < size:
            if not queue:
                return None
            had, label, a, index, times = queue.pop()
            if index < 0:
                if had != size:
                    return None
                whole = affixed[a]
                inner = [(f.size, f.label, a, i, 1) for i, f in enumerate(whole.factors)]
                groups.append((inner, whole.before, whole.after))
                break
            if filled * had > size:
                part, odd = divmod(size, filled)
                if odd or had % part:
                    return None
                queue.append((had // part, label, a, index, times))
                had, times = part, times * (had // part)
            group.append((had, label, a, index, times))
            filled *= had
        else:
            if filled != size:
                return None
            groups.append((group, 0, 0))
    return None if queue else groups


def _moves(steps: Steps) -> bool:
    return any(step != 0 for group in steps for step in group)


def _join_reach(axes: tuple[Axis, ...], left: Reach, right: Reach, reason: str) -> Reach:
    """The union along one image axis of two reaches over the same factors."""
    windows = dict(left.windows)
    whole, aligned = left.whole | right.whole, left.aligned and right.aligned
    bounds = left.bounds | right.bounds
    if left.windows and right.windows and left.bounds != right.bounds:
        aligned = False  # one path moves unevenly and the other does not
    for steps, (low, high) in right.windows.items():
        known = windows.get(steps)
        if known is not None:
            aligned = aligned and known[0] + known[1] == low + high
            low, high = min(low, known[0]), max(high, known[1])
        windows[steps] = (low, high)
    if len(windows) > 1:
        for steps, (low, high) in list(windows.items()):
            if not _moves(steps) and low <= 0 and high >= left.extent - 1:
                del windows[steps]  # the same everywhere, and all of the image
                whole = whole | {reason}
    if len(windows) > _MOST_WINDOWS:
        windows, bounds = _hull(axes, windows), bounds | {reason}
    return Reach(left.extent, windows, whole, aligned, bounds)


def _hull(
    axes: tuple[Axis, ...], windows: dict[Steps, tuple[Number, Number]]
) -> dict[Steps, tuple[Number, Number]]:
    """One window that contains all, with the steps of the first."""
    target = next(iter(windows))
    sizes = [factor.size for axis in axes for factor in axis.factors]
    flat = [step for group in target for step in group]
    lows: list[Number] = []
    highs: list[Number] = []
    for steps, (low, high) in windows.items():
        own = [step for group in steps for step in group]
        slack = [(a - b) * (size - 1) for a, b, size in zip(own, flat, sizes, strict=True)]
        lows.append(low + sum(min(0, part) for part in slack))
        highs.append(high + sum(max(0, part) for part in slack))
    return {target: (min(lows), max(highs))}
