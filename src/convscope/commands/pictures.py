"""`convscope report`, `atlas`, `visualize` and `look`: pictures of what units look for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import convscope
from convscope.commands.arguments import (
    atlas_settings,
    channels_of,
    edge_of,
    given,
    load_net,
    names_a_model,
    run_settings,
)
from convscope.commands.options import (
    ATLAS_DEFAULT,
    MODEL_DEFAULT,
    OUTPUT,
    OUTPUT_DEFAULT,
    WORK,
    AtlasOptions,
    Flag,
    ModelOptions,
    OutFlag,
    OutputOptions,
)
from convscope.commands.progress import progress_of
from convscope.commands.terminal import LINE, kept, open_page, plain, print_result, print_table, say, words_of
from convscope.errors import RequestError


def report(
    model: str | None = None,
    /,
    *,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("report"),
    answers: Annotated[Literal["quick", "full", "none"], Parameter(group=WORK)] = "quick",
    studies: Annotated[Path | None, Parameter(group=WORK)] = None,
    open: OutFlag = False,
    work: AtlasOptions = ATLAS_DEFAULT,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """Make pages that show what the filters of MODEL look for; they open in any browser, offline.

    The pages are there from the first pictures on and fill while the work goes on. A run that was
    interrupted goes on where it stopped.

    Args:
        model: The network; the embedded EfficientNet-Lite0 by default.
        out: The folder to write.
        answers: How to ask every question that convscope ask knows, for a page of answers.
        studies: A folder of study records for the pages of studies and answers; those that ship by default.
        open: Open the first page in the browser.
    """
    net = load_net(model, loading, output)
    with progress_of(kept(out)) as progress:
        settings = atlas_settings(work, loading) | {"open": open, "answers": answers, "studies": studies}
        made = convscope.report(net, out, progress=progress, **settings)
    return _tell_atlas(made.atlas, made.to_dict(), str(made.page), output, _next_look(model))


def atlas(
    model: str | None = None,
    /,
    *,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("atlas"),
    engine: Annotated[str, Parameter(group=WORK)] = "inline",
    workers: Annotated[int | None, Parameter(group=WORK)] = None,
    address: Annotated[str | None, Parameter(group=WORK)] = None,
    work: AtlasOptions = ATLAS_DEFAULT,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """Draw many units of MODEL into a folder, with their scores in one JSON manifest.

    A run that was interrupted goes on where it stopped.

    Args:
        model: The network; the embedded EfficientNet-Lite0 by default.
        out: The folder to write.
        engine: inline (this process), process (workers of one thread each) or ray (a cluster).
        workers: Batches drawn at a time; as many as there are processors by default.
        address: Of the Ray cluster, such as auto; one of this machine by default.
    """
    net = load_net(model, loading, output)
    with progress_of(kept(out)) as progress:
        spread: dict[str, Any] = {"engine": engine, "workers": workers, "address": address}
        made = convscope.atlas(net, out, progress=progress, **spread, **atlas_settings(work, loading))
    return _tell_atlas(made, made.to_dict(), str(made.manifest), output, _next_report(out))


def visualize(
    model: str | None = None,
    layer: str | None = None,
    /,
    *,
    channels: Annotated[str | None, Parameter(group=WORK)] = None,
    size: Annotated[str, Parameter(group=WORK)] = "auto",
    steps: Annotated[int | None, Parameter(group=WORK)] = None,
    seeds: Annotated[int, Parameter(group=WORK)] = 1,
    data: Annotated[str | None, Parameter(group=WORK)] = None,
    quick: Annotated[Flag, Parameter(group=WORK)] = False,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("pictures"),
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """Draw what chosen channels of one layer look for, as PNG files.

    With one argument it is the LAYER, of the embedded EfficientNet-Lite0.

    Args:
        model: The network.
        layer: A layer by its dotted name; NAME#1 is its second call.
        channels: Which channels: 3, 0:8 or 1,5,9; the first eight by default.
        size: Edge of the pictures in pixels, or auto: as large as the unit sees.
        steps: At most so many optimizer steps a picture.
        seeds: So many pictures of each channel, from different starts.
        data: Photographs to score against: a file or a folder, or 'photographs' for the embedded ones.
        quick: A quarter of the steps, for a first impression.
        out: The folder to write.
    """
    if layer is None and not loading.list_layers and not names_a_model(model):
        model, layer = None, model
    wanted, edge = channels_of(channels), edge_of(size)
    net = load_net(model, loading, output)
    if layer is None:
        raise RequestError("no layer was given; name one, or see them all with --list-layers.")
    settings = given(data=data, steps=32 if quick and steps is None else steps)
    with progress_of() as progress:
        shown = convscope.visualize(
            net,
            layer,
            wanted,
            size=edge,
            seeds=seeds,
            progress=progress,
            **settings,
            **run_settings(loading),
        )
    paths = _save(shown, out)
    rows = [unit | {"path": path} for unit, path in zip(_plain_units(shown), paths, strict=True)]
    _print_units(rows, output)
    if shown.interrupted:
        raise KeyboardInterrupt(f"the {len(rows)} pictures that were finished are in {out}")
    say(f"Next: convscope report {words_of(model)}--open   (the whole network, natural examples beside)")
    return 1 if rows and all(row["status"] == "nan" for row in rows) else 0


def look(
    model: str | None = None,
    photo: str | None = None,
    /,
    *,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("look"),
    open: OutFlag = False,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
) -> int:
    """Show what one photograph does in the network: classes, feature maps, units, evidence.

    With one argument it is the PHOTO, in the embedded EfficientNet-Lite0.

    Args:
        model: The network.
        photo: An image file, or the name of an embedded photograph, such as chelsea.
        out: The folder to write the page to.
        open: Open the page in the browser.
    """
    if photo is None and not loading.list_layers and not names_a_model(model):
        model, photo = None, model
    net = load_net(model, loading, output)
    if photo is None:
        raise RequestError("no photograph was given; name an image file, as in `convscope look cat.jpg`.")
    with progress_of() as progress:
        result = convscope.look(net, photo, out=out, progress=progress, **run_settings(loading))
    page = out / "index.html"
    print_result(plain(result.to_dict()) | {"page": str(page)} if output.json else str(page))
    say(f"Next: convscope report {words_of(model)}--open   (what every filter looks for)")
    if open:
        open_page(page)
    return 0


def _next_report(out: Path) -> str:
    """The same command line with another verb: it takes the finished pictures from the same folder."""
    words = [word for word in LINE.get() if word not in ("atlas", "--json", "--fresh")]
    folder = [] if any(word.split("=")[0] == "--out" for word in words) else ["--out", str(out)]
    return f"{shlex.join(['convscope', 'report', *words, *folder])} --open   (the same as pages)"


def _next_look(model: str | None) -> str:
    return f"convscope look {words_of(model)}PHOTO.jpg --open   (a photograph of yours in this network)"


def _save(shown: Any, out: Path) -> list[str | None]:
    """One PNG a picture; a dead unit has none."""
    from convscope.site.notebook import image_of
    from convscope.store import atomic_write

    paths: list[str | None] = []
    for unit, image in zip(shown.units, shown.images, strict=True):
        if unit.status in ("dead", "nan"):
            paths.append(None)
            continue
        # a layer's name is the model's own text: no part of it may become a path
        layer = re.sub(r"[^A-Za-z0-9._-]", "-", unit.layer).lstrip(".-")[:80] or "layer"
        path = out / f"{layer}-{unit.channel:05d}-{unit.seed}.png"
        paths.append(str(atomic_write(path, image_of(image))))
    return paths


def _plain_units(shown: Any) -> list[dict[str, Any]]:
    units: list[dict[str, Any]] = plain([unit.to_dict() for unit in shown.units])
    return units


def _print_units(rows: list[dict[str, Any]], output: OutputOptions) -> None:
    if output.json:
        print_result(rows)
        return
    header = ("layer", "channel", "seed", "activation", "status", "path")
    shown = [[f"{v:.4g}" if isinstance(v := row[name], float) else v for name in header] for row in rows]
    print_table(header, [["-" if cell is None else str(cell) for cell in cells] for cells in shown])


def _tell_atlas(made: Any, facts: dict[str, Any], text: str, output: OutputOptions, following: str) -> int:
    print_result(plain(facts) if output.json else text)
    lost = f", {made.dead} dead, {made.failed} failed" if made.dead or made.failed else ""
    say(f"{made.done} of {made.units} units in {made.seconds:.0f} s{lost}")
    say(f"Next: {following}")
    return 1 if made.units and made.failed == made.units else 0
