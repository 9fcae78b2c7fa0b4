"""Writes the record of `rewrites_speed.py` into the page of the rule, as a table and a picture; runs nothing.

python benchmarks/rewrites_speed_page.py docs
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

Rows = Mapping[str, Any]

RECORD = Path(__file__).parent / "results" / "rewrites-speed-cpu.json"
BEGIN, END = "<!-- made by benchmarks/rewrites_speed_page.py -->", "<!-- end of the table -->"
OURS = "convscope"
NETWORKS = {
    "vgg16": "VGG-16",
    "resnet50": "ResNet-50",
    "inception_v3": "Inception-v3",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
COLOURS = ("#d4570a", "#afb8c1", "#8c959f", "#0969da", "#1a7f37", "#8250df")  # ours first
SAYS = (
    "How many times as fast as torch four networks run, one image and eight at a time: convscope and others"
)


def records() -> Rows:
    """The rows in the order of the page."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["speed"]
    keys = [f"{name}, batch {batch}" for name in NETWORKS for batch in (1, 8)]
    return {key: rows[key] for key in keys if key in rows}


def titled(key: str) -> tuple[str, str]:
    """The network's name and the images a call.

    >>> titled("resnet50, batch 8")
    ('ResNet-50', '8')
    """
    name, _, batch = key.partition(", batch ")
    return NETWORKS[name], batch


def section(rows: Rows) -> str:
    """The record as Markdown."""
    first = next(iter(rows.values()))
    others = list(first["times as fast as"])
    header = ["network", "images", OURS, *others, "largest error"]
    lines = [
        header,
        ["---", *["---:"] * (len(header) - 1)],
        *(_cells(key, rows[key], others) for key in rows),
    ]
    facts = first["machine"]
    versions = facts["versions"] | first["peers"]
    told = (
        f"Milliseconds a call, in brackets how many times as fast {OURS} is, all timed in turn: {facts['cpu']['model']}, "
        f"{facts['threads']} threads, torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, "
        f"OpenVINO {versions['openvino']}. *largest error*: against float64, relative to the largest output; "
        "torch's in brackets."
    )
    return "\n".join([told, "", *("| " + " | ".join(line) + " |" for line in lines), "", *_forms(rows)])


def _cells(key: str, row: Mapping[str, Any], others: list[str]) -> list[str]:
    name, batch = titled(key)
    theirs = [
        f"{row['times'][each]['median']:.3g} ({row['times as fast as'][each]['median']:.2f}×)"
        for each in others
    ]
    errors = [f"{row['errors'][each]:.0e}".replace("e-0", "e-") for each in (OURS, "torch")]
    return [name, batch, f"**{row['times'][OURS]['median']:.3g}**", *theirs, f"{errors[0]} ({errors[1]})"]


def _forms(rows: Rows) -> list[str]:
    """How many layers took which algorithm."""
    found = []
    for key, row in rows.items():
        taken = Counter(each["algorithm"] for layer, each in row["layers"].items() if layer)
        name, batch = titled(key)
        listed = ", ".join(f"{count} {form}" for form, count in taken.most_common())
        found.append(f"- {name}, {batch} at a time: {listed}.")
    return ["Taken, by how many layers:", "", *found]


def picture(rows: Rows) -> str:
    """Bars: times as fast as torch."""
    contestants = list(next(iter(rows.values()))["times"])
    left, scale, bar, gap = 150, 130, 13, 22
    height = 44 + len(rows) * (bar * len(contestants) + gap)
    parts, x, y = [], 12.0, 40
    for colour, name in zip(COLOURS, contestants, strict=True):
        parts.append(f'<rect x="{x:.1f}" y="8" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 15, 18, name, 11))
        x += 36 + 6.2 * len(name)
    for key, row in rows.items():
        name, batch = titled(key)
        middle = y + bar * len(contestants) / 2
        parts.append(_text(12, middle, name, 14))
        parts.append(_text(12, middle + 16, f"{batch} image{'s' if batch != '1' else ''}", 12))
        for colour, each in zip(COLOURS, contestants, strict=True):
            times = row["times"]["torch"]["median"] / row["times"][each]["median"]
            parts.append(
                f'<rect x="{left}" y="{y}" width="{scale * times:.1f}" height="{bar - 2}" fill="{colour}"/>'
            )
            parts.append(_text(left + scale * times + 5, y + 10, f"{times:.2f}", 11))
            y += bar
        y += gap
    line = f'<line x1="{left + scale}" x2="{left + scale}" y1="34" y2="{height - 24}" stroke="#59636e" stroke-dasharray="3 3"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" width="720" height="{height}" role="img" '
        f'aria-label="{escape(SAYS)}"><rect width="720" height="{height}" rx="6" fill="#ffffff"/>{"".join(parts)}{line}</svg>\n'
    )


def _text(x: float, y: float, words: str, size: int) -> str:
    font = "font-family=\"'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif\""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="#1f2328" {font}>{escape(words)}</text>'


def replaced(page: str, rows: Rows) -> str:
    """A page with the record between the marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the page has no place for the table: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section(rows)}\n\n{END}{after}"


def main() -> None:
    """Fills the page and draws the picture."""
    docs, rows = Path(sys.argv[1]), records()
    page = docs / "rules" / "algorithm.md"
    page.write_text(replaced(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    drawn = docs / "images" / "rules" / "algorithm.svg"
    drawn.parent.mkdir(parents=True, exist_ok=True)
    drawn.write_text(picture(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
