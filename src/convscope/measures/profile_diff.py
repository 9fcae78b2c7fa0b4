"""Two networks side by side: rows aligned by name, then by kind and shape, and what one costs more.

Rows of the same name are the same layer. Between such anchors, in order, rows of the same kind and output shape are
paired, then those of the same kind; what is left stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from convscope.measures.figures import Sheet, to_html, to_rich, to_text
from convscope.measures.profile import LayerRow, Profile
from convscope.measures.profile_columns import count, field_text, size, sizes, window_text

FIGURES = ("params", "macs", "element_ops", "activation_bytes", "moved_bytes")


@dataclass(frozen=True)
class Pair:
    """One layer in two networks.

    Attributes:
        left, right: its rows; None in the network that has no such layer.
    """

    left: LayerRow | None
    right: LayerRow | None

    @property
    def name(self) -> str:
        """In the left network, or in the right one where that alone has it."""
        return next(row.name for row in (self.left, self.right) if row is not None)

    @property
    def status(self) -> str:
        """ "same", "changed", "left only" or "right only"."""
        if self.left is None or self.right is None:
            return "right only" if self.left is None else "left only"
        return "same" if _facts(self.left) == _facts(self.right) else "changed"

    def delta(self, figure: str) -> int:
        """Left less right; a layer that is not there costs nothing."""
        left, right = (0 if row is None else int(getattr(row, figure)) for row in (self.left, self.right))
        return left - right

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "status": self.status,
            "left": None if self.left is None else self.left.to_dict(),
            "right": None if self.right is None else self.right.to_dict(),
            "delta": {figure: self.delta(figure) for figure in FIGURES},
        }


def _facts(row: LayerRow) -> tuple[object, ...]:
    """What makes two rows the same layer at the same cost."""
    figures = tuple(getattr(row, figure) for figure in FIGURES)
    seen = None if row.receptive_field is None else field_text(row.receptive_field)
    return (row.kind, row.in_shapes, row.out_shapes, window_text(row), seen, *figures)


@dataclass(frozen=True, eq=False, repr=False)
class ProfileDiff:
    """What the left network costs more than the right one; prints as a table of what is not the same.

    Attributes:
        left, right: the profiles.
        layers: the aligned rows, in order.
    """

    left: Profile
    right: Profile
    layers: tuple[Pair, ...]

    def delta(self, figure: str) -> int:
        """Left less right in the totals."""
        return int(getattr(self.left.totals, figure) - getattr(self.right.totals, figure))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        figures = ("params", "macs", "element_ops", "activation_bytes", "moved_bytes", "weight_bytes")
        return {
            "left": self.left.name,
            "right": self.right.name,
            "totals": {
                figure: {
                    "left": getattr(self.left.totals, figure),
                    "right": getattr(self.right.totals, figure),
                    "delta": self.delta(figure),
                }
                for figure in figures
            },
            "layers": [pair.to_dict() for pair in self.layers],
        }

    def _sheet(self) -> Sheet:
        differing = [pair for pair in self.layers if pair.status != "same"]
        rows = tuple(_cells(pair) for pair in differing)
        totals = tuple(
            _change(self.left.totals, self.right.totals, f) for f in ("params", "macs", "element_ops")
        )
        peak = _change(self.left.totals, self.right.totals, "activation_bytes")
        same = len(self.layers) - len(differing)
        columns = ("layer", "", "what", "params>", "MACs>", "element ops>", "activations>", "field")
        note = f"{same} layers are the same" if same else "no layer is the same"
        return Sheet(
            f"{self.left.name} less {self.right.name}",
            columns,
            (*rows, ("total", "", "", *totals, peak, "")),
            (note,),
        )

    def __rich__(self) -> Any:
        return to_rich([self._sheet()])

    def __str__(self) -> str:
        return to_text([self._sheet()], width=1000)

    def __repr__(self) -> str:
        return f"ProfileDiff({self.left.name!r}, {self.right.name!r}, {self.delta('macs'):+,} MACs)"

    def _repr_html_(self) -> str:
        return to_html([self._sheet()])


def _cells(pair: Pair) -> tuple[str, ...]:
    rows = [row for row in (pair.left, pair.right) if row is not None]
    what = [f"{row.kind} {window_text(row) or ''} {sizes(row.out_shape)}".replace("  ", " ") for row in rows]
    fields = [field_text(row.receptive_field) for row in rows if row.receptive_field is not None]
    names = dict.fromkeys(row.name or "(network)" for row in rows)
    figures = ("params", "macs", "element_ops", "activation_bytes")
    return (
        " / ".join(names),
        pair.status,
        " / ".join(dict.fromkeys(what)),
        *(_change(pair.left, pair.right, figure) for figure in figures),
        " / ".join(dict.fromkeys(fields)),
    )


def _change(left: Any, right: Any, figure: str) -> str:
    """The difference, and in totals and pairs what it is of the right one."""
    a, b = (0 if side is None else getattr(side, figure) for side in (left, right))
    if a == b:
        return ""
    text = size(abs(a - b)) if figure.endswith("bytes") else count(abs(a - b))
    share = f" ({100 * (a - b) / b:+.1f} %)" if b else ""
    return f"{'+' if a > b else '-'}{text}{share}"


# ---------------------------------------------------------------- aligning

_KEYS: tuple[Callable[[LayerRow], Hashable], ...] = (
    lambda row: (row.name, row.functional),
    lambda row: (row.kind, row.out_shapes, row.functional),
    lambda row: (row.kind, row.functional),
)


def difference(left: Profile, right: Profile) -> ProfileDiff:
    """Aligns two profiles.

    Example:
        >>> from torch import nn
        >>> from convscope import measure
        >>> wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> thin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        >>> found = measure(wide, input="3x8x8") - measure(thin, input="3x8x8")
        >>> [(pair.name, pair.status, pair.delta("macs")) for pair in found.layers]
        [('0', 'changed', 3888), ('1', 'changed', 0), ('2', 'right only', 0)]
    """
    return ProfileDiff(left, right, tuple(_aligned(left.layers, right.layers, _KEYS)))


def _aligned(
    left: Sequence[LayerRow], right: Sequence[LayerRow], keys: Sequence[Callable[[LayerRow], Hashable]]
) -> Iterator[Pair]:
    if not keys or not left or not right:
        yield from (Pair(row, None) for row in left)
        yield from (Pair(None, row) for row in right)
        return
    key, *rest = keys
    matcher = SequenceMatcher(None, [key(row) for row in left], [key(row) for row in right], autojunk=False)
    i = j = 0
    for block in matcher.get_matching_blocks():  # the last one is empty, at both ends
        yield from _aligned(left[i : block.a], right[j : block.b], rest)
        for step in range(block.size):
            yield Pair(left[block.a + step], right[block.b + step])
        i, j = block.a + block.size, block.b + block.size
