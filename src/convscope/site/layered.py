"""A small layered graph layout, left to right: the drawing of a network's flow.

In the manner of Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures"
(1981): every box has a rank, edges over several ranks get a lane of their own through those between, lanes and boxes
of a rank are put in an order with few crossings, then moved towards what they are joined to, never closer than a gap.
All long edges of one box share a lane, so that a box that feeds twenty others takes one lane and not twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP, LANE, APART = 26.0, 8.0, 14.0  # between ranks; a lane's height; between boxes of a rank; pixels
SWEEPS = 12
NEAR = 3.0  # pixels that a box may be off its chain
HEAVY = 64.0  # how much more a box resists being moved than a lane


@dataclass(frozen=True)
class Box:
    """Where a box lies: its upper left corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """Boxes in the order given, the lines between them as SVG paths, and the size of it all."""

    boxes: tuple[Box, ...]
    lines: tuple[str, ...]
    width: float
    height: float


def draw(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Lays out an acyclic graph.

    Args:
        sizes: (width, height) of each box; sources come before what they feed.
        edges: (from, to) with from < to.

    Returns:
        The drawing. Boxes never overlap, and every edge runs from left to right.

    Example:
        >>> found = draw([(40, 20), (60, 20), (20, 20)], [(0, 1), (1, 2)])
        >>> [(box.x, box.y) for box in found.boxes], found.width, found.height
        ([(0.0, 0.0), (66.0, 0.0), (152.0, 0.0)], 172.0, 20.0)
        >>> found.lines
        ('M40 10L66 10', 'M126 10L152 10')
    """
    ranks = rank(len(sizes), edges)
    web = _Web(sizes, ranks, edges)
    web.order()
    web.place()
    return web.drawing()


def rank(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The longest way from any source to each box, in edges.

    Example:
        >>> rank(4, [(0, 1), (1, 2), (0, 2), (2, 3)])
        [0, 1, 2, 3]
    """
    ranks = [0] * count
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    return ranks


class _Web:
    """Boxes and lanes by rank; edges join neighbouring ranks only."""

    def __init__(
        self, sizes: Sequence[tuple[float, float]], ranks: Sequence[int], edges: Sequence[tuple[int, int]]
    ) -> None:
        self.boxes = len(sizes)
        self.sizes = [(float(width), float(height)) for width, height in sizes]
        self.rank = list(ranks)
        self.before: list[list[int]] = [[] for _ in sizes]
        self.after: list[list[int]] = [[] for _ in sizes]
        self.links: list[tuple[int, int]] = []
        lanes: dict[tuple[int, int], int] = {}
        for source, target in sorted(set(edges)):
            at = source
            for between in range(ranks[source] + 1, ranks[target]):
                known = lanes.get((source, between))
                if known is None:
                    known = lanes[source, between] = self._lane(between)
                    self._link(at, known)
                at = known
            self._link(at, target)
        self.layers: list[list[int]] = [[] for _ in range(max(self.rank, default=-1) + 1)]
        # lanes first: a shortcut runs above what it passes by
        for item in sorted(range(len(self.rank)), key=lambda item: (item < self.boxes, item)):
            self.layers[self.rank[item]].append(item)
        self.y = [0.0] * len(self.rank)  # of the middle

    def _lane(self, at: int) -> int:
        self.sizes.append((0.0, LANE))
        self.rank.append(at)
        self.before.append([])
        self.after.append([])
        return len(self.rank) - 1

    def _link(self, source: int, target: int) -> None:
        self.after[source].append(target)
        self.before[target].append(source)
        self.links.append((source, target))

    # -- the order within each rank -------------------------------------------------------------------------

    def order(self) -> None:
        """Every item to the mean place of its neighbours, back and forth; the order of fewest crossings stays."""
        best, least = [list(layer) for layer in self.layers], self._crossings()
        for sweep in range(SWEEPS):
            if not least:
                break
            down = sweep % 2 == 0
            for layer in self.layers[1:] if down else reversed(self.layers[:-1]):
                self._sort(layer, self.before if down else self.after)
            found = self._crossings()
            if found < least:
                best, least = [list(layer) for layer in self.layers], found
        self.layers = best

    def _sort(self, layer: list[int], neighbours: Sequence[Sequence[int]]) -> None:
        place = self._places()
        mean = {
            item: sum(place[other] for other in neighbours[item]) / len(neighbours[item])
            if neighbours[item]
            else float(place[item])
            for item in layer
        }
        layer.sort(key=lambda item: mean[item])

    def _places(self) -> dict[int, int]:
        return {item: place for layer in self.layers for place, item in enumerate(layer)}

    def _crossings(self) -> int:
        place, total = self._places(), 0
        for layer in self.layers[:-1]:
            ends = [sorted(place[other] for other in self.after[item]) for item in layer]
            seen: list[int] = []
            for group in ends:
                total += sum(earlier > end for end in group for earlier in seen)
                seen += group
        return total

    # -- coordinates ----------------------------------------------------------------------------------------

    def place(self) -> None:
        """Every item to the mean height of its neighbours, as near as the gaps to those of its rank allow."""
        for layer in self.layers:
            self._settle(layer, [0.0] * len(layer))
        for sweep in range(3 * SWEEPS):
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                self._settle(layer, [self._wish(item) for item in layer])
        self._straighten()

    def _straighten(self) -> None:
        """What is all but straight becomes straight; the gaps leave room for that."""
        self.y = [round(2 * y) / 2 for y in self.y]
        for source, target in sorted(self.links, key=lambda link: self.rank[link[1]]):
            if max(source, target) < self.boxes and self._branches(source, target) == 1:
                near = abs(self.y[source] - self.y[target]) <= NEAR
                self.y[target] = self.y[source] if near else self.y[target]

    def _wish(self, item: int) -> float:
        """Boxes follow boxes where they can, so that a chain runs straight, in a branch too: one of many that a box
        feeds counts little. Lanes follow lanes above all.
        """
        if item < self.boxes:  # on each side boxes, or lanes where there are only those
            sides = (self.before[item], self.after[item])
            near = [one for side in sides for one in [k for k in side if k < self.boxes] or side]
            pull = [1 / self._branches(item, other) for other in near]
        else:
            near = [*self.before[item], *self.after[item]]
            pull = [1.0 if other < self.boxes else 4.0 for other in near]
        return (
            sum(self.y[other] * by for other, by in zip(near, pull, strict=True)) / sum(pull)
            if near
            else self.y[item]
        )

    def _branches(self, item: int, other: int) -> int:
        """How many edges leave and enter where two neighbours are joined, multiplied: 1 within a chain."""
        source, target = (item, other) if self.rank[item] < self.rank[other] else (other, item)
        return len(self.after[source]) * len(self.before[target])

    def _settle(self, layer: Sequence[int], wishes: Sequence[float]) -> None:
        """The places nearest to the wishes (least squares) that keep the order and the gaps: neighbours that would
        come too close move together (pool adjacent violators), lanes sooner than boxes.
        """
        offsets = [0.0]
        for upper, lower in pairwise(layer):
            apart = APART if upper < self.boxes or lower < self.boxes else LANE / 2
            offsets.append(offsets[-1] + (self.sizes[upper][1] + self.sizes[lower][1]) / 2 + apart)
        pools: list[tuple[float, float, int]] = []  # (mean, weight, how many)
        for item, wish, offset in zip(layer, wishes, offsets, strict=True):
            mean, weight, count = wish - offset, HEAVY if item < self.boxes else 1.0, 1
            while pools and pools[-1][0] > mean:
                other, more, many = pools.pop()
                mean = (mean * weight + other * more) / (weight + more)
                weight, count = weight + more, count + many
            pools.append((mean, weight, count))
        means = [mean for mean, _, count in pools for _ in range(count)]
        for item, mean, offset in zip(layer, means, offsets, strict=True):
            self.y[item] = mean + offset

    # -- the drawing ----------------------------------------------------------------------------------------

    def drawing(self) -> Drawing:
        widths = [max((self.sizes[item][0] for item in layer), default=0.0) for layer in self.layers]
        lefts = [sum(widths[:k]) + GAP * k for k in range(len(widths))]
        top = min((self.y[item] - self.sizes[item][1] / 2 for item in range(len(self.y))), default=0.0)
        low = max((self.y[item] + self.sizes[item][1] / 2 for item in range(len(self.y))), default=0.0)
        boxes = []
        for item in range(self.boxes):
            (width, height), column = self.sizes[item], self.rank[item]
            x = lefts[column] + (widths[column] - width) / 2
            boxes.append(Box(x, round(self.y[item] - height / 2 - top, 1), width, height))
        lines = []
        for source, target in self.links:
            start = lefts[self.rank[source]] + widths[self.rank[source]]
            stop = lefts[self.rank[target]]
            from_x = boxes[source].x + boxes[source].width if source < self.boxes else start
            to_x = boxes[target].x if target < self.boxes else stop + widths[self.rank[target]]
            lines.append(_line(from_x, start, self.y[source] - top, stop, self.y[target] - top, to_x))
        return Drawing(
            tuple(boxes), tuple(lines), sum(widths) + GAP * max(0, len(widths) - 1), round(low - top, 1)
        )


def _line(from_x: float, start: float, y0: float, stop: float, y1: float, to_x: float) -> str:
    """Straight to the end of the column, over to the next, straight on."""
    if abs(y0 - y1) < 0.05:
        return f"M{from_x:g} {y0:g}L{to_x:g} {y1:g}"
    middle = (start + stop) / 2
    path = f"M{from_x:g} {y0:g}"
    if start > from_x:
        path += f"L{start:g} {y0:g}"
    path += f"C{middle:g} {y0:g} {middle:g} {y1:g} {stop:g} {y1:g}"
    return path + (f"L{to_x:g} {y1:g}" if to_x > stop else "")
