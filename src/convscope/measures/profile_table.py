"""A profile as text: a table, a tree by module, CSV, Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope import timing
from convscope.graph.structure import split_address
from convscope.measures.figures import Sheet, printable
from convscope.measures.profile_columns import columns, count, size, sizes

if TYPE_CHECKING:
    from rich.tree import Tree

    from convscope.measures.profile import LayerRow, Profile


def table(profile: Profile) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and the cells of each row, the last one the totals; a column of numbers ends in ">"."""
    shown = columns(profile, brief=True)
    heads = tuple(column.title + (">" if column.numeric else "") for column in shown)
    cells = [tuple(column.cell(profile, row) for column in shown) for row in profile.layers]
    sums = total_cells(profile)
    return heads, [*cells, tuple(sums.get(column.key, "") for column in shown)]


def total_cells(profile: Profile) -> dict[str, str]:
    """The totals by column; of activations and what is alive the peak."""
    totals = profile.totals
    found = {"name": "total", "params": count(totals.params), "macs": count(totals.macs)}
    found["element_ops"] = count(totals.element_ops)
    found["peak_bytes"] = size(totals.activation_bytes)
    if totals.backward_macs is not None:
        found["backward_macs"] = count(totals.backward_macs)
    if totals.training_bytes is not None:
        found["training_bytes"] = size(totals.training_bytes)
    if profile.latency is not None:
        from convscope.timing import duration

        found["seconds"] = duration(profile.latency.total.median)
    return found


def remarks(profile: Profile) -> list[str]:
    """What stands below the table: what is not counted, not used, not shown."""
    totals, found = profile.totals, []
    if profile.partial:
        found.append("not all rows are shown; the totals are of the whole network")
    if profile.uncounted:
        listed = ", ".join(f"{name} x {times}" for name, times in profile.uncounted.items())
        found.append(f"not counted, because their cost is not known: {listed}")
    if totals.unused_params:
        found.append(f"{count(totals.unused_params)} parameters were not used in this pass")
    shared = sum(row.shared_params > 0 for row in profile.layers)
    if shared:
        found.append(f"{shared} rows use parameters of an earlier row, which count there")
    if profile.latency is not None:
        rest, left = profile.latency.rest.seconds, profile.latency.unattributed
        found.append(
            f"a pass takes {profile.latency.total}; beside the layers Python between them took "
            f"{timing.duration(rest)}, and {'-' * (left < 0)}{timing.duration(abs(left))} is unattributed"
        )
    if profile.memory is not None:
        found.append(
            f"a pass was measured to add {size(profile.memory.inference)} to weights and input at its peak"
        )
    if profile.consistency is not None:
        for name, moved in profile.consistency.moves.items():
            if moved.pooled.agreement is not None:
                found.append(f"top-1 holds under {name}: {moved.pooled.agreement.percent()}")
    return [*found, *profile.notes]


def heading(profile: Profile) -> str:
    """One line: what was measured, on what."""
    fed = " and ".join(sizes(shape) for shape in profile.inputs) or "nothing"
    return f"{profile.name}, input {fed} {profile.dtype} on {profile.device}"


def sheet(profile: Profile) -> Sheet:
    """The table with its title and remarks."""
    heads, cells = table(profile)
    return Sheet(heading(profile), heads, tuple(cells), tuple(remarks(profile)))


def to_csv(profile: Profile) -> str:
    """All columns, numbers in full, with a header line."""
    shown = columns(profile, brief=False)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.key for column in shown)
    for row in profile.layers:
        values = [column.of(profile, row) for column in shown]
        writer.writerow("" if value is None else value for value in values)
    return text.getvalue()


def to_markdown(profile: Profile) -> str:
    """The table as Markdown, the totals as its last row, the remarks as a list below."""
    heads, cells = table(profile)
    lines = [
        _line([head.removesuffix(">") for head in heads]),
        _line(["---:" if head.endswith(">") else "---" for head in heads]),
        *(_line(row) for row in cells),
    ]
    notes = [f"- {_plain(note)}" for note in remarks(profile)]
    return "\n".join([_plain(heading(profile)), "", *lines, *(["", *notes] if notes else [])]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Untrusted text that is to stay in its cell."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}") if mark != "_" else text
    return printable(text)


# ---------------------------------------------------------------- the tree


@dataclass(frozen=True)
class Branch:
    """A module with what it and all in it cost together.

    Attributes:
        name: last part of its dotted name.
        kind: class name; "" for a container that is not called itself.
        params, macs, element_ops: sums.
        parts: the modules in it, in the order of their first row; what it does between them stands last, where that
            is more than element operations.
        calls: number of calls summed up.
    """

    name: str
    kind: str
    params: int
    macs: int
    element_ops: int
    parts: tuple[Branch, ...]
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "parts": [part.to_dict() for part in self.parts]}

    def __rich__(self) -> Tree:
        from rich.tree import Tree

        return self._grown(Tree(self._label(self.macs)), self.macs)

    def _grown(self, tree: Tree, whole: int) -> Tree:
        for part in self.parts:
            part._grown(tree.add(part._label(whole)), whole)
        return tree

    def _label(self, whole: int) -> Any:
        from rich.text import Text

        label = Text(printable(self.name), style="bold")
        if self.kind:
            label.append(f" {printable(self.kind)}", style="cyan")
        if self.calls > 1 and not self.parts:
            label.append(f" x {self.calls}", style="dim")
        share = f" ({100 * self.macs / whole:.1f} %)" if whole and self.macs else ""
        costs = [
            f"{count(self.params)} params" if self.params else "",
            f"{count(self.macs)} MACs{share}" if self.macs else "",
            f"{count(self.element_ops)} element ops" if self.element_ops and not self.macs else "",
        ]
        told = ", ".join(cost for cost in costs if cost)
        label.append(f"  {told}" if told else "", style="dim")
        return label

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=200, color_system=None, soft_wrap=True).print(self)
        return text.getvalue().rstrip()

    __repr__ = __str__


def tree(profile: Profile, depth: int | None = None) -> Branch:
    """The rows gathered by module, down to `depth` names."""
    kinds = {} if profile.graph is None else {call.name: call.kind for call in profile.graph.calls}
    paths = [(_path(row.name), row) for row in profile.layers]
    return _branch(profile.name, (), paths, kinds, depth)


def _path(name: str) -> tuple[str, ...]:
    module = split_address(name)[0]
    return tuple(module.split(".")) if module else ()


def _branch(
    name: str,
    at: tuple[str, ...],
    rows: Sequence[tuple[tuple[str, ...], LayerRow]],
    kinds: dict[str, str],
    depth: int | None,
) -> Branch:
    below: dict[str, list[tuple[tuple[str, ...], LayerRow]]] = {}
    for path, row in rows:
        if len(path) > len(at):
            below.setdefault(path[len(at)], []).append((path, row))
    parts = (
        ()
        if depth is not None and len(at) >= depth
        else tuple(_branch(part, (*at, part), inside, kinds, depth) for part, inside in below.items())
    )
    own = [row for path, row in rows if path == at]
    if parts and any(row.macs or row.params for row in own):
        parts = (*parts, _summed("(between)", "", own, own, ()))
    kind = kinds.get(".".join(at), own[-1].kind if own else "")
    return _summed(name, kind, [row for _, row in rows], own, parts)


def _summed(
    name: str, kind: str, every: Sequence[LayerRow], own: Sequence[LayerRow], parts: tuple[Branch, ...]
) -> Branch:
    return Branch(
        name=name,
        kind=kind,
        params=sum(row.params for row in every),
        macs=sum(row.macs for row in every),
        element_ops=sum(row.element_ops for row in every),
        parts=parts,
        calls=sum(row.calls for row in own),
    )
