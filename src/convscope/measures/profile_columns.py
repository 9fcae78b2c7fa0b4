"""The columns of a profile: for each its key, its title, the value of a row and how that is written.

Columns of optional measures are there only where the measure is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope.timing import duration

if TYPE_CHECKING:
    from convscope.measures.profile import LayerRow, Profile
    from convscope.measures.receptive_field import ReceptiveField


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: its name in `sort`, CSV and JSON.
        title: its heading.
        value: row, its row in the optional measure (or None) -> a plain value.
        text: that value -> what is shown; of None it is never asked.
        measure: the optional measure that it shows, or "".
        brief: whether it stands in printed tables; the others are in CSV and JSON only.
        numeric: whether it holds numbers.
        adds: whether a group's value is the sum over its rows.
    """

    key: str
    title: str
    value: Callable[[LayerRow, Any], Any]
    text: Callable[[Any], str] = str
    measure: str = ""
    brief: bool = True
    numeric: bool = True
    adds: bool = False

    def of(self, profile: Profile, row: LayerRow) -> Any:
        """The value of a row; None where there is none."""
        if not self.measure:
            return self.value(row, None)
        names = row.members if self.adds and row.members else (row.name,)
        found = [profile.joined(self.measure, name) for name in names]
        values = [self.value(row, each) for each in found if each is not None]
        return sum(values) if self.adds and values else values[0] if values else None

    def cell(self, profile: Profile, row: LayerRow) -> str:
        """What is shown of a row."""
        value = self.of(profile, row)
        return "" if value is None else self.text(value)


def count(value: float) -> str:
    """A count with a suffix.

    Example:
        >>> count(4089184256), count(64), count(0)
        ('4.09 G', '64', '')
    """
    if not value:
        return ""
    for limit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:g}"


def size(value: float) -> str:
    """Bytes.

    Example:
        >>> size(3211264), size(1035264), size(512), size(0)
        ('3.06 MiB', '0.987 MiB', '512 B', '')
    """
    if not value:
        return ""
    for limit, suffix in ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")):
        if abs(value) >= limit * 999.5 / 1024:  # so that no number has more than three digits
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.0f} B"


def sizes(shape: Sequence[int]) -> str:
    """A shape, batch first."""
    return "x".join(map(str, shape))


def field_text(field: ReceptiveField) -> str:
    """size/stride/padding, one number where all axes agree; "whole" where a path sees the whole image."""
    if any(field.whole):
        return "whole" if field.local is None else f"whole ({field_text(field.local)} locally)"
    text = "/".join(_alike(values) for values in (field.size, field.stride, field.padding))
    return text + ("" if field.aligned else " misaligned") + (" at most" if field.bounds else "")


def window_text(row: LayerRow) -> str | None:
    """Kernel, stride, padding, dilation and groups as far as they are not the usual ones."""
    if row.kernel is None or row.stride is None or row.padding is None or row.dilation is None:
        return None
    parts = [_alike(row.kernel) if len(row.kernel) == 1 else sizes(row.kernel)]
    for letter, values, usual in (("s", row.stride, 1), ("p", row.padding, 0), ("d", row.dilation, 1)):
        if any(value != usual for value in values):
            parts.append(letter + _alike(values))
    if row.groups is not None and row.groups > 1:
        parts.append(f"g{row.groups}")
    return " ".join(parts)


def _alike(values: Sequence[Any]) -> str:
    """One number where all are the same."""
    return str(values[0]) if len(set(values)) == 1 else ",".join(map(str, values))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _kept(value: Any) -> Any:
    return value if value is None or not isinstance(value, float) or math.isfinite(value) else None


COLUMNS = (
    Column("name", "layer", lambda row, _: row.name or "(network)", numeric=False),
    Column("kind", "kind", lambda row, _: row.kind + (" (between)" if row.functional else ""), numeric=False),
    Column("in", "in", lambda row, _: sizes(row.in_shape), brief=False, numeric=False),
    Column("out", "out", lambda row, _: sizes(row.out_shape), numeric=False),
    Column("window", "kernel", lambda row, _: window_text(row), numeric=False),
    Column("params", "params", lambda row, _: row.params, count),
    Column("shared_params", "shared", lambda row, _: row.shared_params, count, brief=False),
    Column("macs", "MACs", lambda row, _: row.macs, count),
    Column("backward_macs", "backward MACs", lambda row, _: row.backward_macs, count),
    Column("element_ops", "element ops", lambda row, _: row.element_ops, count),
    Column("weight_bytes", "weights", lambda row, _: row.weight_bytes, size, brief=False),
    Column("activation_bytes", "activations", lambda row, _: row.activation_bytes, size),
    Column("peak_bytes", "alive", lambda row, _: row.peak_bytes, size),
    Column("training_bytes", "training", lambda row, _: row.training_bytes, size),
    Column("moved_bytes", "moved", lambda row, _: row.moved_bytes, size, brief=False),
    Column(
        "intensity", "ops/byte", lambda row, _: row.intensity, lambda value: f"{value:.3g}" if value else ""
    ),
    Column(
        "receptive_field",
        "field",
        lambda row, _: None if row.receptive_field is None else field_text(row.receptive_field),
        numeric=False,
    ),
    Column("seconds", "time", lambda _, found: found.seconds, duration, "latency", adds=True),
    Column("bound", "bound", lambda _, found: found.bound, str, "latency", numeric=False),
    Column("macs_per_second", "MAC/s", lambda _, found: found.macs_per_second, count, "latency", brief=False),
    Column("bytes_per_second", "B/s", lambda _, found: found.bytes_per_second, size, "latency", brief=False),
    Column("border_share", "touches padding", lambda _, found: found.share, _percent, "border"),
    Column("border_change", "changed there", lambda _, found: _kept(found.border_change), _percent, "border"),
    Column(
        "equivariance",
        "shift error",
        lambda _, found: None if found.equivariance is None else _kept(found.equivariance.error.value),
        _percent,
        "consistency",
    ),
    Column("dead", "dead", lambda _, found: len(found.dead), count, "health"),
    Column(
        "effective_rank",
        "rank",
        lambda _, found: _kept(found.effective_rank),
        lambda value: f"{value:.1f}",
        "health",
    ),
)


def columns(profile: Profile, *, brief: bool) -> list[Column]:
    """The columns that have anything to say of a profile."""
    found = []
    for column in COLUMNS:
        if brief and not column.brief:
            continue
        if column.measure and getattr(profile, column.measure) is None:
            continue
        if column.key in ("backward_macs", "training_bytes") and getattr(profile.totals, column.key) is None:
            continue
        if (
            column.key == "receptive_field"
            and brief
            and all(row.receptive_field is None for row in profile.layers)
        ):
            continue
        found.append(column)
    return found
