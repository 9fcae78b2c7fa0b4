"""What a comparison of several networks holds: which of them are worth having (the Pareto front), and how it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope import timing
from convscope.measures.figures import Sheet, to_rich, to_text
from convscope.measures.profile_columns import count
from convscope.rewrites.compare_table import Comparison, table_lines

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Point:
    """One network among several.

    Attributes:
        name: its own.
        cost: MACs, parameters or seconds; see `Comparisons.cost`.
        quality: accuracy, or agreement with the first network; None where neither could be had.
        on_front: whether no other is at least as good at less cost, or better at the same.
    """

    name: str
    cost: float
    quality: float | None
    on_front: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "cost": self.cost, "quality": self.quality, "on_front": self.on_front}


@dataclass(frozen=True, eq=False, repr=False)
class Comparisons:
    """A network and several made from it: what each costs, how good it is, and which of them are worth having.

    Attributes:
        cost: "macs", "params" or "latency".
        quality: "accuracy" or "agreement".
        comparisons: of each with the first, in order.
        points: all networks, the first one first.
    """

    cost: str
    quality: str
    comparisons: tuple[Comparison, ...]
    points: tuple[Point, ...]

    @property
    def front(self) -> tuple[Point, ...]:
        """The networks that no other beats, cheapest first (the Pareto front)."""
        return tuple(sorted((p for p in self.points if p.on_front), key=lambda p: p.cost))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cost": self.cost,
            "quality": self.quality,
            "points": [point.to_dict() for point in self.points],
            "comparisons": [each.to_dict() for each in self.comparisons],
        }

    def sheet(self) -> Sheet:
        """As a table."""
        show = timing.duration if self.cost == "latency" else lambda n: count(int(n))
        rows = tuple(
            (
                point.name,
                show(point.cost),
                "–" if point.quality is None else f"{100 * point.quality:.1f} %",
                "yes" if point.on_front else "",
            )
            for point in self.points
        )
        return Sheet(
            f"{self.quality} against {self.cost}",
            ("network", f"{self.cost}>", f"{self.quality}>", "front"),
            rows,
        )

    def __repr__(self) -> str:
        return f"Comparisons({len(self.points)} networks, {self.quality} against {self.cost})"

    def __rich__(self) -> Group:
        return to_rich([self.sheet()])

    def __str__(self) -> str:
        return to_text([self.sheet()])

    def _repr_html_(self) -> str:
        from convscope.site import comparison

        return comparison.comparisons_html(self)

    def to_markdown(self) -> str:
        """For a pull request."""
        sheet = self.sheet()
        return "\n".join([f"### {sheet.title.capitalize()}", "", *table_lines(sheet)]) + "\n"


def marked(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, with those on the front marked.

    Example:
        >>> [p.on_front for p in marked([Point("a", 9, 0.9), Point("b", 5, 0.9), Point("c", 4, 0.5), Point("d", 6, 0.6)])]
        [False, True, True, False]
    """
    found = []
    for point in points:
        better = any(
            other.quality is not None
            and point.quality is not None
            and other.cost <= point.cost
            and other.quality >= point.quality
            and (other.cost, other.quality) != (point.cost, point.quality)
            for other in points
        )
        found.append(Point(point.name, point.cost, point.quality, point.quality is not None and not better))
    return tuple(found)
