"""Writes what was measured of each rule into its page, between two marks; runs nothing.

    python benchmarks/rules_pages.py docs/rules

The records are those beside this file: rules-cpu.json, and of a few rules more in rewrites-cpu.json and
rewrites-dense-cpu.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convscope.timing import duration

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- made by benchmarks/rules_pages.py -->", "<!-- end of what it made -->"
Record = dict[str, Any]

NETWORKS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "vgg16": "VGG-16",
    "fashion": "Fashion-MNIST network",
    "fashion-decoder": "Fashion-MNIST decoder",
}
WAYS = {
    "data-aware": "fitted to images",
    "data-free": "nearest weights",
    "data-free, batch norms matched": "the same, batch norms matched",
    "truncation": "largest weights",
}


def records() -> dict[str, Record]:
    """All of them, by the names of their files."""
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("rules-cpu", "rewrites-cpu", "rewrites-dense-cpu")
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown; columns of figures stand to the right."""
    rule = ["---" if at < words else "---:" for at in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


# ---------------------------------------------------------------- figures


def tiny(value: float) -> str:
    """An error.

    >>> tiny(0.0), tiny(3.21e-7), tiny(0.1234), tiny(12.3)
    ('0', '3e-7', '0.123', '12.3')
    """
    if value == 0:
        return "0"
    return f"{value:.0e}".replace("e-0", "e-") if value < 1e-4 else f"{value:.3g}"


def share(value: float) -> str:
    """A percentage with one digit, all of it without.

    >>> share(0.8567), share(1.0)
    ('85.7 %', '100 %')
    """
    return "100 %" if value == 1 else f"{100 * value:.1f} %"


def times(before: float, after: float) -> str:
    """How many times as much.

    >>> times(100, 100), times(100, 250), times(300, 100), times(100, 99)
    ('same', '× 2.50', '× 0.333', '× 0.990')
    """
    if before == after:
        return "same"
    return "× " + (f"{after / before:.3g}" if after / before >= 10 else f"{after / before:#.3g}")


def scored(row: Record, key: str) -> str:
    """What a network is worth."""
    told = row[key]
    if "top-1" in told:
        return share(told["top-1"])
    return f"{told['PSNR']:.1f} dB" if "PSNR" in told else "–"


# ---------------------------------------------------------------- tables


def measured(rows: Sequence[Record]) -> list[str]:
    """The table that every page has, and what was refused."""
    done = [row for row in rows if row.get("changed")]
    parts = []
    if done:
        header = (
            "network", "rule", "class", "layers", "parameters", "MACs", "time", "error", "score",
        )  # fmt: skip
        parts.append(table(header, [cells(row) for row in done], words=3))
    parts += refusals(rows)
    return parts


def cells(row: Record) -> tuple[str, ...]:
    rule = f"`{row['rule']}`"
    if row["images fitted to"]:
        rule += f", fitted to {row['images fitted to']} images"
    if row["prepare"]:
        rule += f" of the network {row['prepare']}"
    before, after = scored(row, "before"), scored(row, "after") if "after" in row else "–"
    value = "–" if after == "–" else after if before == after else f"{before} → {after}"
    time = "–"
    if "time" in row:
        low, high = row["time"]["low"], row["time"]["high"]
        time = "same" if low <= 1 <= high else times(1, row["time"]["median"])
    return (
        NETWORKS[row["network"]], rule, row["exactness"], str(row["changed"]), times(*row["params"]),
        times(*row["macs"]), time, tiny(row["error of the output"]) if "error of the output" in row else "–", value,
    )  # fmt: skip


def refusals(rows: Sequence[Record]) -> list[str]:
    """What was left as it is, and why: each reason once a network, with the rules it is about where they are not all."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        reasons = [
            f"{count} {'layer' if count == 1 else 'layers'}, {reason}."
            for reason, count in row.get("refused", {}).items()
        ]
        if "refused all" in row:
            reasons = [row["refused all"].partition(": ")[2].replace(f"{row['rule']} found", "it found")]
        for reason in reasons:
            found.setdefault((row["network"], reason), []).append(f"`{row['rule']}`")
    lines = []
    for (network, reason), about in found.items():
        every = {f"`{row['rule']}`" for row in rows if row["network"] == network}
        told = "" if set(about) == every else ", " + ", ".join(dict.fromkeys(about))
        lines.append(f"- {NETWORKS[network]}{told}: {reason}")
    return ["Left as they are:\n\n" + "\n".join(lines)] if lines else []


def told(rows: Sequence[Record]) -> str:
    """How it was measured, in a paragraph."""
    parts = []
    counts = {row["network"]: row["images"] for row in rows if "images" in row}
    for name, what in (
        ("efficientnet_lite0", "photographs, one a class"),
        ("vgg16", "photographs (it has no classifier here: its last map is compared)"),
        ("fashion", "test images"),
        ("fashion-decoder", "noisy test images, scored by peak signal to noise"),
    ):
        if name in counts:
            parts.append(f"{NETWORKS[name]} on {counts[name]:,} {what}")
    if not parts:
        return ""
    threads = rows[0]["machine"]["threads"]
    return (
        "; ".join(parts)
        + ". *error*: length of the difference of the outputs over the length of the outputs, in "
        f"float32. *time*: one image, {threads} thread{'s' * (threads > 1)}, before and after in turn, "
        f"{rows[0]['machine']['cpu']['model']}; *same* where the 95 % interval holds 1."
    )


def lowrank(record: Record, rule: str) -> list[str]:
    """Both networks at the same budgets, every way to choose weights."""
    parts = []
    for network, text in (
        ("fashion", "right, calibrated on 1,000 training images and scored on 2,000 test images"),
        (
            "vgg16",
            "distance of the last map from the right one over the right one's length, 100 photographs, fitted to 100 others",
        ),
    ):
        found = {key: row for key, row in record["lowrank"].items() if key.startswith(f"{network}/{rule}/")}
        if not found:
            continue
        rows = sorted(found.items(), key=lambda item: -float(item[0].rpartition("/")[2]))
        ways = [way for way in WAYS if way in rows[0][1]["ways"]]
        accuracy = rows[0][1]["score"] == "accuracy"
        show = share if accuracy else tiny
        lines = [
            (
                f"{100 * float(key.rpartition('/')[2]):.0f} %",
                *(show(row["ways"][way]["score"]) for way in ways),
            )
            for key, row in rows
        ]
        before = f"; {share(rows[0][1]['base'])} before" if accuracy else ""
        parts.append(
            f"{NETWORKS[network]} at budgets of MACs: {text}{before}.\n\n"
            + table(("MACs left", *(WAYS[way] for way in ways)), lines)
        )
    return parts


def dense(record: Record, _: str) -> list[str]:
    """All windows at once against cutting them out."""
    rows = []
    for key, row in record["dense"].items():
        if "ratio of macs" in row:
            off = row["largest difference, of the maximum"]
            rows.append(
                (
                    "no" if key.startswith("valid") else "yes", str(row["window"]), str(row["stride"]), f"{row['windows']:,}",
                    f"{row['ratio of macs']:.1f} ×", f"{row['times faster than windows']['median']:.1f} ×",
                    tiny(off) + (", rounding" if off < 1e-5 else " of the maximum"),
                )
            )  # fmt: skip
    head = record["dense"]["head"]
    threads = head["machine"]["threads"]
    return [
        f"VGG-16 with its fully-connected head (random weights), a 512×512 image, {threads} threads, against "
        "windows cut out, eight at a time:\n\n"
        + table(("layers pad", "window", "stride", "windows", "MACs saved", "time saved", "difference"), rows)
        + f"\n\nAt 224 its outputs differ by {tiny(head['largest difference, of the maximum'])}, and it takes "
        f"{duration(head['times']['after']['median'])} where it took {duration(head['times']['before']['median'])}."
    ]  # fmt: skip


def sizes(record: Record, _: str) -> list[str]:
    """The ways to take another size."""
    row = record["sizes"]["lite0"]
    made, size = ("×".join(map(str, row[key])) for key in ("made_for", "size"))
    lines = [
        (
            f"`{way['how']}`",
            share(way["accuracy"]),
            share(way["agreement"]),
            f"{way['macs'] / 1e6:,.0f} M",
            duration(way["latency"]["median"]),
        )
        for way in sorted(row["rows"], key=lambda way: -way["accuracy"])
    ]
    own = row["correct at its own size"] / row["images"]
    return [
        f"EfficientNet-Lite0, made for {made}, on {row['images']} photographs of {size}, {row['machine']['threads']} thread; "
        f"{share(own)} right at its own size, on the centre of the same photographs:\n\n"
        + table(("how", "right", "agrees with resize", "MACs", "time"), lines)
    ]


MORE = {
    "separable": (lowrank, "rewrites-cpu"),
    "bottleneck": (lowrank, "rewrites-cpu"),
    "convolutionalize": (dense, "rewrites-dense-cpu"),
    "input_size": (sizes, "rewrites-dense-cpu"),
}


def section(name: str, given: dict[str, Record]) -> str:
    """What stands between the marks of a page."""
    rows = [row for row in given["rules-cpu"].values() if row["page"] == name]
    rows.sort(key=lambda row: list(NETWORKS).index(row["network"]))
    parts = [told(rows), *measured(rows)]
    if name in MORE:
        make, record = MORE[name]
        parts += make(given[record], name)
    return "\n\n".join(filter(None, parts))


def replaced(page: str, name: str, given: dict[str, Record]) -> str:
    """The page with what the records say of its rule between the marks.

    Raises:
        ValueError: it has not these two marks.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(
            f"{name}: the page must hold {BEGIN} once and behind it {END} once; put them where the tables go"
        )
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{section(name, given)}\n\n{END}{after}"


def main() -> None:
    """All pages of a folder that have the marks."""
    given = records()
    for path in sorted(Path(sys.argv[1]).glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if BEGIN in page:
            path.write_text(replaced(page, path.stem, given), encoding="utf-8")


if __name__ == "__main__":
    main()
