"""The notebook view of a profile: the table of its layers, with bars for what they cost."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from convscope.measures.figures import printable
from convscope.measures.profile_columns import Column, columns, count, size
from convscope.measures.profile_table import heading, remarks, total_cells

if TYPE_CHECKING:
    from convscope.measures.profile import LayerRow, Profile

MOST = 400  # rows a notebook cell holds
_BARS = ("params", "macs", "element_ops", "activation_bytes", "seconds")
_STYLE = (
    "<style>.convscope-profile{font:13px/1.4 system-ui,sans-serif}"
    ".convscope-profile .rows{max-height:520px;overflow:auto}"
    ".convscope-profile table{border-collapse:collapse}"
    ".convscope-profile th{position:sticky;top:0;background:var(--jp-layout-color0,#fff)}"
    ".convscope-profile th,.convscope-profile td{padding:2px 10px 2px 4px;text-align:left;white-space:nowrap}"
    ".convscope-profile .n{text-align:right;font-variant-numeric:tabular-nums}"
    ".convscope-profile tr.total td{border-top:1px solid currentColor;font-weight:600}"
    ".convscope-profile p{margin:4px 0;opacity:.8}</style>"
)


def profile_html(profile: Profile) -> str:
    """A table that scrolls, with a bar behind each cost as long as its share of the largest."""
    shown = columns(profile, brief=True)
    largest = {column.key: _largest(profile, column) for column in shown if column.key in _BARS}
    head = "".join(f"<th{_side(column)}>{escape(column.title)}</th>" for column in shown)
    rows = "".join(
        f"<tr>{''.join(_cell(profile, row, column, largest) for column in shown)}</tr>"
        for row in profile.layers[:MOST]
    )
    sums = total_cells(profile)
    foot = "".join(f"<td{_side(column)}>{escape(sums.get(column.key, ''))}</td>" for column in shown)
    left = len(profile.layers) - MOST
    notes = [*([f"and {left} more rows"] if left > 0 else []), *remarks(profile)]
    totals = profile.totals
    facts = [
        f"{count(totals.params) or '0'} parameters",
        f"{count(totals.macs) or '0'} MACs",
        f"{size(totals.activation_bytes)} of activations at most",
    ]
    return (
        f'{_STYLE}<div class="convscope-profile"><b>{escape(printable(heading(profile)))}</b>: '
        f"{escape(', '.join(facts))}"
        f'<div class="rows"><table><tr>{head}</tr>{rows}<tr class="total">{foot}</tr></table></div>'
        + "".join(f"<p>{escape(printable(note))}</p>" for note in notes)
        + "</div>"
    )


def _side(column: Column) -> str:
    return ' class="n"' if column.numeric else ""


def _largest(profile: Profile, column: Column) -> float:
    return max((column.of(profile, row) or 0 for row in profile.layers), default=0)


def _cell(profile: Profile, row: LayerRow, column: Column, largest: dict[str, float]) -> str:
    bar, top = "", largest.get(column.key)
    if top:
        share = 100 * (column.of(profile, row) or 0) / top
        bar = f' style="background:linear-gradient(to left,rgba(66,133,244,.25) {share:.1f}%,transparent 0)"'
    return f"<td{_side(column)}{bar}>{escape(printable(column.cell(profile, row)))}</td>"
