"""The flow of a network as bands of boxes: the whole in one, then the inside of each stage, block and unit.

A band shows the direct members of one module, laid out by `layered`; a box with something inside opens a band of
its own. Modules that only hold most of the network are opened from the start, and long chains are cut into runs, so
that the first band of any network fits a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convscope.site.layered import draw

FEW = 16  # boxes that a band may grow to by opening what holds most of the network
MOST = 24  # boxes of a band; longer ones are cut into runs
SMALL = 2  # parts: a module of so few is a box without a band
TALL, OP = 44.0, 26.0  # height of a box, and side of an operation's
SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "cat": "cat", "bmm": "·", "mm": "·", "matmul": "·"}


@dataclass
class Member:
    """A box of a band: a module, one of its own operations, or a run of several.

    Attributes:
        name: address of the module; of an operation, the module it ran in; "" for a run and the network.
        label, kind: what stands in the box.
        first, last: its parts.
        shape: of its result, without the batch.
        is_op: whether it is an operation.
        members: what is inside.
    """

    name: str
    label: str
    kind: str
    first: int
    last: int
    shape: tuple[int, ...] = ()
    is_op: bool = False
    members: list[Member] = field(default_factory=list)

    @property
    def parts(self) -> int:
        return self.last - self.first + 1


def flow(wiring: Mapping[str, Any], kinds: Mapping[str, str], cost: Mapping[str, float]) -> dict[str, Any]:
    """All bands of a network, as plain values that the page draws.

    Args:
        wiring: parts, edges and ends, as `graph.wiring.Wiring.to_dict()` has them.
        kinds: address -> class name of modules that hold others.
        cost: address -> multiply-accumulates, or any other cost, sums over what is inside included.

    Returns:
        `bands` (key -> band; "" is the first), and `open`: addresses of the modules whose inside stands in the band
        above theirs.
    """
    parts = wiring["parts"]
    opened: list[str] = []
    top = _members(parts, kinds, 0, len(parts) - 1, ())
    _open_large(top, opened)
    bands: dict[str, Any] = {}
    waiting: list[tuple[str, str, list[Member]]] = [("", "", top)]
    while waiting:
        key, prefix, members = waiting.pop()
        members = _runs(members, prefix)
        bands[key] = _band(key, members, wiring, cost, waiting)
    return {"bands": bands, "open": opened}


def _members(
    parts: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, str],
    first: int,
    last: int,
    inside: tuple[str, ...],
) -> list[Member]:
    """Direct members of the module that `inside` ends with; its parts are those from `first` to `last`."""
    depth, found = len(inside), []
    prefix = f"{inside[-1]}." if inside else ""
    at = first
    while at <= last:
        part = parts[at]
        stop = at
        if len(part["inside"]) > depth:
            name = part["inside"][depth]
            while stop < last and parts[stop + 1]["inside"][depth : depth + 1] == [name]:
                stop += 1
            member = Member(name, _short(name, prefix), kinds.get(name, ""), at, stop, _shape(parts[stop]))
            if stop - at + 1 > SMALL:
                member.members = _members(parts, kinds, at, stop, (*inside, name))
                while len(member.members) == 1 and member.members[0].members:  # nothing to see but its inside
                    member.members = member.members[0].members
            elif stop == at and not part["is_op"]:  # a wrapper of one layer
                member.name, member.kind = part["name"], part["kind"]
        else:
            label = SIGNS.get(part["kind"], part["kind"]) if part["is_op"] else _short(part["name"], prefix)
            member = Member(part["name"], label, part["kind"], at, at, _shape(part), bool(part["is_op"]))
        found.append(member)
        at = stop + 1
    return found


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) or "(network)"


def _shape(part: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(part["shape"][1:])


def _open_large(members: list[Member], opened: list[str]) -> None:
    """Puts the inside of what holds more than half of the network in its place, as long as the band stays short."""
    total = sum(member.parts for member in members)
    while True:
        large = next((m for m in members if m.members and 2 * m.parts > total), None)
        if large is None or len(members) - 1 + len(large.members) > FEW:
            return
        place = members.index(large)
        if len(members) > 1:
            for inner in large.members:
                inner.label = inner.name if inner.label[:1].isdecimal() else inner.label
        members[place : place + 1] = large.members
        opened.append(large.name)


def _runs(members: list[Member], prefix: str) -> list[Member]:
    """Members, or where there are too many of them, runs of neighbours: of one resolution if that is few enough."""
    if len(members) <= MOST:
        return members
    cuts = [0]
    for k in range(1, len(members)):
        before, here = members[k - 1].shape[1:], members[k].shape[1:]
        if before and here and before != here:
            cuts.append(k)
    if (
        not 1 < len(cuts) <= MOST
        or max(b - a for a, b in zip(cuts, [*cuts[1:], len(members)], strict=True)) > 4 * MOST
    ):
        side = max(2, -(-len(members) // FEW))
        cuts = list(range(0, len(members), side))
    found = []
    for start, stop in zip(cuts, [*cuts[1:], len(members)], strict=True):
        inner = members[start:stop]
        if len(inner) == 1:
            found += inner
            continue
        named = [member.label for member in inner if not member.is_op] or [member.label for member in inner]
        label = named[0] if len(named) == 1 else f"{named[0]} … {named[-1]}"
        found.append(Member("", label, "", inner[0].first, inner[-1].last, inner[-1].shape, False, inner))
    return found


def _band(
    key: str,
    members: Sequence[Member],
    wiring: Mapping[str, Any],
    cost: Mapping[str, float],
    waiting: list[tuple[str, str, list[Member]]],
) -> dict[str, Any]:
    """One band; those inside its boxes go into `waiting`."""
    first, last = members[0].first, members[-1].last
    owner = {part: k + 1 for k, member in enumerate(members) for part in range(member.first, member.last + 1)}
    end = len(members) + 1
    edges: set[tuple[int, int]] = set()
    for source, target in wiring["edges"]:
        a, b = owner.get(source, 0 if source < first else end), owner.get(target, end)
        if a != b and (source <= last and target >= first) and (a, b) != (0, end):
            edges.add((a, b))
    edges.update((owner[part], end) for part in wiring["ends"] if part in owner)
    shown = [_box(member) for member in members]
    drawing = draw([(8.0, 8.0), *((box["w"], box["h"]) for box in shown), (8.0, 8.0)], sorted(edges))
    for number, (box, member, place) in enumerate(zip(shown, members, drawing.boxes[1:-1], strict=True)):
        box["x"], box["y"] = place.x, place.y
        box["cost"] = _cost(member, cost)
        if member.members:
            box["band"] = f"{key}/{number}"
            waiting.append((box["band"], member.name, member.members))
    ports = [(place.x + 4, place.y + 4) for place in (drawing.boxes[0], drawing.boxes[-1])]
    return {
        "w": drawing.width,
        "h": drawing.height,
        "boxes": shown,
        "lines": list(drawing.lines),
        "ports": ports,
    }


def _box(member: Member) -> dict[str, Any]:
    """What is written in a box, and how large it is; a name too long for it keeps its end."""
    under = member.kind if not member.members else _pixels(member.shape)
    if member.is_op:
        wide = OP if len(member.label) < 2 else 12 + 6.6 * len(member.label)
        return {
            "name": member.name,
            "label": member.label,
            "under": "",
            "op": True,
            "w": wide,
            "h": OP,
            "band": None,
        }
    label = member.label if len(member.label) <= 18 else "…" + member.label[-17:]
    under = under if len(under) <= 20 else under[:19] + "…"
    wide = max(44.0, 18 + max(7.3 * len(label), 6.1 * len(under)))
    return {
        "name": member.name,
        "label": label,
        "under": under,
        "op": False,
        "w": round(wide, 1),
        "h": TALL,
        "band": None,
    }


def _pixels(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _cost(member: Member, cost: Mapping[str, float]) -> float:
    if member.name and not member.is_op:
        return cost.get(member.name, 0.0)
    return sum(_cost(inner, cost) for inner in member.members)
