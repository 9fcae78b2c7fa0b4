"""`convscope measure`: what every layer costs and sees."""

from __future__ import annotations

from typing import Any

import convscope
from convscope.commands.arguments import load_net, measure_settings, moved
from convscope.commands.options import (
    MEASURE_DEFAULT,
    MODEL_DEFAULT,
    OUTPUT_DEFAULT,
    MeasureOptions,
    ModelOptions,
    OutFlag,
    OutputOptions,
)
from convscope.commands.progress import progress_of
from convscope.commands.terminal import console_of, escape, print_table, say, words_of
from convscope.errors import RequestError


def measure(
    model: str | None = None,
    /,
    *,
    tree: OutFlag = False,
    csv: OutFlag = False,
    markdown: OutFlag = False,
    work: MeasureOptions = MEASURE_DEFAULT,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """What every layer of MODEL costs and sees: parameters, MACs, memory, receptive field, and more.

    Untrained weights do for that. Everything is counted from one recorded forward pass.

    Args:
        model: The network; the embedded EfficientNet-Lite0 by default.
        tree: Print a tree of modules.
        csv: Print all columns as CSV.
        markdown: Print the table as Markdown.
    """
    shapes = {"--tree": tree, "--csv": csv, "--markdown": markdown, "--json": output.json}
    if sum(shapes.values()) > 1:
        given = " and ".join(name for name, is_given in shapes.items() if is_given)
        raise RequestError(f"{given} were given together; ask for one.")
    net = load_net(model, loading, output)
    with progress_of(what="images") as progress:
        found = convscope.measure(moved(net, loading), progress=progress, **measure_settings(work, loading))
    if work.layers is not None:
        found = found.filter([name.strip() for name in work.layers.split(",")])
    found = found if work.depth is None or tree else found.group(work.depth)
    found = found if work.sort is None else found.sort(work.sort, ascending=work.sort in ("name", "kind"))
    if output.json:
        print(found.to_json())
    elif csv or markdown:
        print(found.to_csv() if csv else found.to_markdown(), end="")
    else:
        _tell_profile(found, work.depth if tree else None, tree)
    say(f"Next: {_next_measure(model, work)}")
    return 0


def _next_measure(model: str | None, work: MeasureOptions) -> str:
    if not (work.latency or work.all):
        return f"convscope measure {words_of(model)}--latency   (the time of every layer, and what bounds it)"
    return f"convscope look {words_of(model)}PHOTO.jpg --open   (what a photograph of yours does in it)"


def _tell_profile(found: Any, depth: int | None, tree: bool) -> None:
    """The table, or the tree, and whole measures below it; what there is to know goes to stderr."""
    from convscope.measures import profile_table

    if tree:
        print(found.tree(depth))
    else:
        heads, cells = profile_table.table(found)
        print_table(heads, cells)
    for name in ("latency", "memory", "consistency"):
        result = getattr(found, name)
        if result is not None:
            print()
            console_of(stderr=False).print(f"latency: {result.total}" if name == "latency" else result)
    say(f"{escape(profile_table.heading(found))}", *map(escape, profile_table.remarks(found)))
