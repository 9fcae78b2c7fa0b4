"""The tables of a counting record, for the terminal and as Markdown. Needs no peer installed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from convscope.timing import duration

BEGIN, END = "<!-- made by benchmarks/counting.py -->", "<!-- end of what it made -->"


@dataclass(frozen=True)
class Sheet:
    """A table with a line of text before it; columns of figures stand to the right."""

    title: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1  # so many columns hold words

    def rich(self) -> Table:
        table = Table(title=self.title, caption=self.text, title_justify="left", caption_justify="left")
        for number, name in enumerate(self.header):
            table.add_column(name, justify="left" if number < self.words else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ["---" if number < self.words else "---:" for number in range(len(self.header))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)]
        return f"### {self.title}\n\n{self.text}\n\n" + "\n".join(lines) + "\n"


# ---------------------------------------------------------------- what a record holds


def sheets(record: dict[str, Any]) -> list[Sheet]:
    """Those for which the record has the figures."""
    found = []
    if "networks" in record:
        rows = record["networks"]
        found += [figures(rows), fields(rows), times(rows, record["machine"]["networks"])]
    if "probes" in record:
        found.append(difficulties(record["probes"]))
    if "backward" in record:
        found.append(gradients(record["backward"]))
    if "tools" in record:
        found.append(tools(record["tools"]))
    return found


def figures(rows: Sequence[dict[str, Any]]) -> Sheet:
    names = list(rows[0]["tools"])
    wrong = [
        f"{name} on {row['name']} ({percent(said['params'], row['params'])})"
        for row in rows
        for name, said in row["tools"].items()
        if said.get("params") not in (None, row["params"])
    ]
    params = "are off: " + ", ".join(wrong) if wrong else "are torchvision's with every tool that counts them"
    return Sheet(
        "Ten networks of torchvision",
        "MACs by each tool against the right figure, one image. *published*: torchvision's, in units of 10⁹. "
        f"Parameters {params}.",
        ("network", "right", "published", *names),
        tuple(
            (
                f"{row['name']}, {row['input'][-1]} px",
                f"{row['macs']:,}",
                f"{row['published']['gmacs']:.3f}",
                *(cell(row["tools"][name], row["macs"], None) for name in names),
            )
            for row in rows
        ),
    )


def difficulties(rows: Sequence[dict[str, Any]]) -> Sheet:
    names = list(rows[0]["tools"])
    return Sheet(
        "One difficulty each",
        "MACs against the figure by hand; 0 in a row that has MACs is an operation overlooked. †: the tool's own list "
        "of what it left out names the operation. Parameters are told where they are wrong.",
        ("module", "right", *names),
        tuple(
            (
                row["name"],
                f"{row['macs']:,}",
                *(cell(row["tools"][name], row["macs"], row["params"]) for name in names),
            )
            for row in rows
        ),
    )


def gradients(rows: Sequence[dict[str, Any]]) -> Sheet:
    names = list(rows[0]["tools"])
    return Sheet(
        "Gradients",
        "MACs of the gradients of a 1×1 convolution of the image and the layer named, behind it, against the figure "
        "by hand: one product of the first layer, two of the second. The other tools count none; torchlens calls its own an "
        "estimate.",
        ("layer", "right", *names),
        tuple(
            (
                row["name"],
                f"{row['macs']:,}",
                *(cell(row["tools"][name], row["macs"], None) for name in names),
            )
            for row in rows
        ),
    )


def fields(rows: Sequence[dict[str, Any]]) -> Sheet:
    names = [name for name, said in rows[0]["tools"].items() if "field" in said]
    return Sheet(
        "Receptive fields",
        "Size/stride/padding along local paths. The other tools give none.",
        ("network", "layer", "how it is known", "right", *names),
        tuple(
            (
                row["name"],
                f"`{row['field']['layer']}`",
                row["field"]["source"],
                slashed(row["field"]["field"]),
                *(field(row["tools"][name]["field"], row["field"]["field"]) for name in names),
            )
            for row in rows
        ),
        words=3,
    )


def times(rows: Sequence[dict[str, Any]], where: dict[str, Any]) -> Sheet:
    names = list(rows[0]["seconds"])
    names.sort(key=lambda name: (name != "a forward pass", not name.startswith("convscope")))
    return Sheet(
        "Time",
        "Median of a call, in turn in one process, "
        f"{where['threads']} threads, {where['cpu']['model']}. convscope by default also measures the memory of a "
        "training step, in a second pass, and receptive fields.",
        ("network", *names),
        tuple(
            (
                row["name"],
                *(
                    duration(row["seconds"][name]["median"]) if name in row["seconds"] else "–"
                    for name in names
                ),
            )
            for row in rows
        ),
    )


def tools(rows: Sequence[dict[str, Any]]) -> Sheet:
    return Sheet(
        "The tools",
        "*without weights*: whether a network on the meta device is counted. *different afterwards*: what is not as it was, "
        "after a call on a network in train mode.",
        (
            "tool",
            "version",
            "its figure",
            "parameters",
            "receptive field",
            "without weights",
            "different afterwards",
        ),
        tuple(
            (
                row["name"],
                row["version"] or "not installed",
                row["unit"],
                yes(row["params"]),
                yes(row["field"]),
                "no" if "error" in row["meta"] else "yes",
                ", ".join(row["leaves"]) or "nothing",
            )
            for row in rows
        ),
        words=7,
    )


def speed(record: dict[str, Any]) -> str:
    """The two figures of `convscope measure`, in a few sentences."""
    resnet, meta = record["resnet50"], record["meta"]
    said = meta["models"]
    failed = [name for name, row in said.items() if "error" in row]
    off = [name for name, row in said.items() if "error" not in row and not agrees(row)]
    return (
        "resnet50 with random weights loaded, measured and printed takes "
        f"{duration(resnet['first call of a process']['median'])} in a fresh process, imports apart, and "
        f"{duration(resnet['load, measure and print']['median'])} from then on, where a forward pass takes "
        f"{duration(resnet['a forward pass']['median'])}. "
        f"torchvision's {len(said)} classification networks, built on the meta device and measured one after the "
        f"other, take {meta['seconds']:.0f} s. {_listed(failed, 'Failed')} {_listed(off, 'Other than published')}"
    )


def agrees(row: dict[str, Any]) -> bool:
    """Whether parameters are those published, and MACs within 0.5 % or the rounding of the published figure."""
    gmacs = row["published"]["gmacs"]
    return row["params"] == row["published"]["params"] and (
        abs(row["macs"] / 1e9 - gmacs) <= max(0.005 * gmacs, 0.0005)
    )


def _listed(names: Sequence[str], what: str) -> str:
    return f"{what}: {', '.join(names) or 'none'}."


# ---------------------------------------------------------------- cells


def cell(said: dict[str, Any], macs: int, params: int | None) -> str:
    """A tool's figure against the right one."""
    if "error" in said:
        return "fails"
    text = percent(said["macs"], macs)
    if said["macs"] != macs and said.get("says so"):
        text += " †"
    if "second call" in said:
        text += f" (second call {percent(said['second call']['macs'], macs)})"
    if params is not None and said["params"] not in (None, params):
        text += f"; parameters {percent(said['params'], params)}"
    return text


def percent(value: int, right: int) -> str:
    """How far a figure is off.

    >>> percent(100, 100), percent(103, 100), percent(350, 100), percent(0, 100), percent(7, 0), percent(99998, 100000)
    ('exact', '+3.0 %', '3.5 ×', '0', '7', '−0.0020 %')
    """
    if value == right:
        return "exact"
    if value == 0 or right == 0:
        return f"{value:,}"
    if value >= 2 * right:
        return f"{value / right:.3g} ×"
    off = 100 * (value / right - 1)
    digits = max(0, 1 - math.floor(math.log10(abs(off))))
    return f"{off:+.{digits}f} %".replace("-", "−")


def field(said: dict[str, Any], right: Sequence[int]) -> str:
    if "error" in said:
        return "fails"
    if said["field"] is None:
        return said["remark"] or "the whole image"
    text = "exact" if said["field"] == list(right) else slashed(said["field"])
    return text + (", and the whole image through gates" if said["whole"] else "")


def slashed(numbers: Sequence[int]) -> str:
    return "/".join(map(str, numbers))


def yes(value: bool) -> str:
    return "yes" if value else "no"


# ---------------------------------------------------------------- all of it


def line(row: dict[str, Any]) -> str:
    """A network in a line, while the others are still running."""
    return ", ".join(
        f"{name} {cell(said, row['macs'], row['params'])}" for name, said in row["tools"].items()
    )


def show(record: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 220)
    for sheet in sheets(record):
        console.print(sheet.rich(), "")
    if "speed" in record:
        console.print(speed(record["speed"]))


def markdown(record: dict[str, Any]) -> str:
    parts = [sheet.markdown() for sheet in sheets(record)]
    if "speed" in record:
        parts.append(speed(record["speed"]) + "\n")
    return "\n".join(parts)


def replaced(page: str, record: dict[str, Any]) -> str:
    """The page with the tables of this record between its two marks."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(
            f"the page must hold {BEGIN} once and behind it {END} once; put them where the tables go"
        )
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{markdown(record)}\n{END}{after}"
