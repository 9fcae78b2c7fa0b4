"""Rows of a profile summed up by module, down to a depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from convscope.graph.structure import Graph, split_address
from convscope.measures.profile import LayerRow


def grouped(rows: Sequence[LayerRow], depth: int, graph: Graph | None) -> tuple[LayerRow, ...]:
    """One row for all rows whose module names begin with the same `depth` names, at the place of the last."""
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        path = split_address(row.name)[0].split(".") if row.name else []
        name = ".".join(path[:depth])
        groups[name] = [*groups.pop(name, []), row]
    return tuple(_merged(name, members, graph) for name, members in groups.items())


def _merged(name: str, rows: Sequence[LayerRow], graph: Graph | None) -> LayerRow:
    if len(rows) == 1 and rows[0].name == name:
        return rows[0]
    called = None if graph is None or not graph.has(name) else graph.call(name)
    first, last = rows[0], rows[-1]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    known = [row.backward_macs for row in rows if row.backward_macs is not None]
    kept = [row.training_bytes for row in rows if row.training_bytes is not None]
    is_one = len({split_address(row.name)[0] for row in rows}) == 1
    window = first if is_one else LayerRow("", "")
    return LayerRow(
        name=name,
        kind=called.kind if called is not None else kinds[0] if len(kinds) == 1 else "",
        in_shapes=first.in_shapes if called is None else called.in_shapes,
        out_shapes=last.out_shapes if called is None else called.out_shapes,
        kernel=window.kernel,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=window.groups,
        params=sum(row.params for row in rows),
        shared_params=sum(row.shared_params for row in rows),
        weight_bytes=sum(row.weight_bytes for row in rows),
        macs=sum(row.macs for row in rows),
        backward_macs=sum(known) if known else None,
        element_ops=sum(row.element_ops for row in rows),
        activation_bytes=sum(row.activation_bytes for row in rows),
        peak_bytes=max(row.peak_bytes for row in rows),
        training_bytes=sum(kept) if kept else None,
        moved_bytes=sum(row.moved_bytes for row in rows),
        receptive_field=last.receptive_field,
        no_field=last.no_field,
        ops=_added([row.ops for row in rows]),
        uncounted=_added([row.uncounted for row in rows]),
        calls=sum(row.calls for row in rows),
        members=tuple(name for row in rows for name in row.members or (row.name,)),
    )


def _added(tallies: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    return dict(total)
