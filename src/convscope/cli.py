"""The command line: parses, calls the API, prints. Nothing is computed here.

Data goes to stdout, progress and advice to stderr; `--json` prints exactly one JSON document. Exit codes:
0 done, 1 the work failed, 2 the request was wrong, 130 interrupted. torch is imported only once a verb runs,
so that `convscope --help` is quick.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

import convscope
from convscope.errors import BadInput, ConvscopeError, ConvscopeWarning, RequestError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from convscope.models import Net

_WORK = Group("Work", sort_key=1)
_MODEL = Group("Model", sort_key=2)
_OUTPUT = Group("Output", sort_key=3)

_LINE: ContextVar[tuple[str, ...]] = ContextVar("_LINE", default=())  # the words of the running command

Flag = Annotated[bool, Parameter(show_default=False)]
OutFlag = Annotated[bool, Parameter(show_default=False, group=_OUTPUT)]

app = App(
    name="convscope",
    help="See what every filter of a convolutional network looks for, and what every layer costs and sees.",
    help_epilogue="MODEL: none for the embedded EfficientNet-Lite0, or timm:NAME, torchvision:NAME, "
    "recipe:FOLDER, package.module:factory.",
    version=convscope.__version__,
    help_flags=["--help", "-h"],
    version_flags=["--version"],
    group_parameters=_WORK,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)


@Parameter(name="*", group=_MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded and run.

    Attributes:
        weights: Trained weights: a .safetensors, .pt or .pth file, or 'hub' to download the published ones.
        input: Input size: 224, 320x360 (height x width) or 1x28x28 (channels first).
        mean: Normalization of the input, one number a channel, by commas: 0.485,0.456,0.406.
        std: The same, for the scale.
        labels: A text file with one class name a line.
        trust: Load files that can run code: pickled modules, TorchScript, .pt2.
        random: Go on with untrained weights, whose pictures are noise.
        list_layers: Only list the layers of MODEL.
        seed: Every random choice follows from it.
        threads: CPU threads; all by default.
        device: cpu, cuda, cuda:1, mps; the fastest at hand by default.
    """

    weights: str | None = None
    input: str | None = None
    mean: str | None = None
    std: str | None = None
    labels: Path | None = None
    trust: Flag = False
    random: Flag = False
    list_layers: Flag = False
    seed: int = 0
    threads: int | None = None
    device: str | None = None


@Parameter(name="*", group=_WORK)
@dataclass(frozen=True)
class AtlasOptions:
    """Which units are drawn, and how.

    Attributes:
        layers: Which layers, by commas, with * and ?; a spread over the depth by default.
        channels: Which channels of each layer: 3, 0:8, 1,5,9 or all; a few of each by default.
        all: Every channel of every convolution.
        data: Photographs for natural examples: a file or a folder; a dozen embedded ones by default.
        steps: At most so many optimizer steps a picture.
        quick: Fewer pictures and fewer steps, for a first impression.
        fresh: Throw away what the folder holds, instead of going on with it.
    """

    layers: str | None = None
    channels: str | None = None
    all: Flag = False
    data: Path | None = None
    steps: int | None = None
    quick: Flag = False
    fresh: Flag = False


@Parameter(name="*", group=_WORK)
@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and which rows are shown in what order.

    Attributes:
        layers: Only rows of these layers, by commas, with * and ?.
        sort: Most expensive first, by a column: macs, params, element_ops, activation_bytes, seconds, ...
        depth: One row for all layers whose names begin with the same so many parts.
        batch: So many images at once.
        backward: Count the gradients' MACs too.
        latency: Time every layer and the whole.
        memory: Measure the peak of the memory.
        consistency: Measure how predictions hold under shifts, turns, scalings and noise.
        border: Measure how far padding reaches, and how strongly.
        health: Look for dead channels.
        all: All of these.
        data: Images for consistency, border and health: a file or a folder; embedded ones by default.
    """

    layers: str | None = None
    sort: str | None = None
    depth: int | None = None
    batch: int | None = None
    backward: Flag = False
    latency: Flag = False
    memory: Flag = False
    consistency: Flag = False
    border: Flag = False
    health: Flag = False
    all: Flag = False
    data: Path | None = None


@Parameter(name="*", group=_WORK)
@dataclass(frozen=True)
class CompareOptions:
    """What is compared.

    Attributes:
        data: Images: a file, or a folder (of class folders for accuracy); embedded ones by default.
        limit: At most so many images.
        features: Units to draw in both: auto, or LAYER:CHANNELS, several by semicolons: conv1:0,3;conv2:0:4.
        border: Also measure what padding changes.
        consistency: Also measure how predictions hold under shifts.
        all: Both of these, and whatever else there is.
        quick: Only count and run the images: no latency, memory, receptive field.
        cost: Of more than two networks, what is to be low: macs, params or latency.
    """

    data: Path | None = None
    limit: int | None = None
    features: str | None = None
    border: Flag = False
    consistency: Flag = False
    all: Flag = False
    quick: Flag = False
    cost: str = "macs"


@Parameter(name="*", group=_OUTPUT)
@dataclass(frozen=True)
class OutputOptions:
    """How results are told.

    Attributes:
        json: Print one JSON document on stdout.
        debug: Show the traceback of an error.
    """

    json: Flag = False
    debug: Flag = False


_MODEL_DEFAULT, _ATLAS_DEFAULT, _OUTPUT_DEFAULT = ModelOptions(), AtlasOptions(), OutputOptions()
_MEASURE_DEFAULT, _COMPARE_DEFAULT = MeasureOptions(), CompareOptions()


# ---------------------------------------------------------------- verbs


@app.default
def overview() -> int:
    """What there is to do, and three commands to begin with."""
    say = _console(stderr=False).print
    say(f"[bold]convscope {convscope.__version__}[/]: see what every filter of a convolutional net looks for")
    say("  [cyan]report[/]      an atlas of the network as pages that open in any browser, offline")
    say(
        "  [cyan]atlas[/]       pictures and scores of many units; [cyan]visualize[/] of chosen channels of a layer"
    )
    say(
        "  [cyan]look[/]        what one photograph does in it; [cyan]measure[/] what every layer costs and sees"
    )
    say(
        "  [cyan]rewrite[/]     another kernel, padding, pool, ..., with proof; [cyan]compare[/] two networks side by side"
    )
    say(
        "  [cyan]ask[/]         what designers ask, answered by measuring; [cyan]bench conv[/] FFT or Winograd, here"
    )
    say("Try next [dim](each takes --help; --list-layers names the layers of a model)[/]:")
    say("  [green]convscope report --open[/]                       the embedded ImageNet network")
    say("  [green]convscope visualize blocks.4.2 --channels 0:8[/] eight of its filters as PNG files")
    say("  [green]convscope look PHOTO.jpg --open[/]               a photograph of yours in that network")
    return 0


@app.command
def report(
    model: str | None = None,
    /,
    *,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("report"),
    answers: Annotated[Literal["quick", "full", "none"], Parameter(group=_WORK)] = "quick",
    studies: Annotated[Path | None, Parameter(group=_WORK)] = None,
    open: OutFlag = False,
    work: AtlasOptions = _ATLAS_DEFAULT,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
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
    net = _load(model, loading, output)
    with _progress(_kept(out)) as progress:
        settings = _atlas_settings(work, loading) | {"open": open, "answers": answers, "studies": studies}
        made = convscope.report(net, out, progress=progress, **settings)
    return _tell_atlas(made.atlas, made.to_dict(), str(made.page), output, _next_look(model))


@app.command
def atlas(
    model: str | None = None,
    /,
    *,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("atlas"),
    engine: Annotated[str, Parameter(group=_WORK)] = "inline",
    workers: Annotated[int | None, Parameter(group=_WORK)] = None,
    address: Annotated[str | None, Parameter(group=_WORK)] = None,
    work: AtlasOptions = _ATLAS_DEFAULT,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
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
    net = _load(model, loading, output)
    with _progress(_kept(out)) as progress:
        spread: dict[str, Any] = {"engine": engine, "workers": workers, "address": address}
        made = convscope.atlas(net, out, progress=progress, **spread, **_atlas_settings(work, loading))
    return _tell_atlas(made, made.to_dict(), str(made.manifest), output, _next_report(out))


@app.command
def visualize(
    model: str | None = None,
    layer: str | None = None,
    /,
    *,
    channels: Annotated[str | None, Parameter(group=_WORK)] = None,
    size: Annotated[str, Parameter(group=_WORK)] = "auto",
    steps: Annotated[int | None, Parameter(group=_WORK)] = None,
    seeds: Annotated[int, Parameter(group=_WORK)] = 1,
    data: Annotated[str | None, Parameter(group=_WORK)] = None,
    quick: Annotated[Flag, Parameter(group=_WORK)] = False,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("pictures"),
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
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
    if layer is None and not loading.list_layers and not _names_a_model(model):
        model, layer = None, model
    wanted, edge = _channels(channels), _edge(size)
    net = _load(model, loading, output)
    if layer is None:
        raise RequestError("no layer was given; name one, or see them all with --list-layers.")
    settings = _given(data=data, steps=32 if quick and steps is None else steps)
    with _progress() as progress:
        shown = convscope.visualize(
            net,
            layer,
            wanted,
            size=edge,
            seeds=seeds,
            progress=progress,
            **settings,
            **_run_settings(loading),
        )
    paths = _save(shown, out)
    rows = [unit | {"path": path} for unit, path in zip(_plain_units(shown), paths, strict=True)]
    _print_units(rows, output)
    if shown.interrupted:
        raise KeyboardInterrupt(f"the {len(rows)} pictures that were finished are in {out}")
    _say(f"Next: convscope report {_words(model)}--open   (the whole network, natural examples beside)")
    return 1 if rows and all(row["status"] == "nan" for row in rows) else 0


@app.command
def look(
    model: str | None = None,
    photo: str | None = None,
    /,
    *,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("look"),
    open: OutFlag = False,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
) -> int:
    """Show what one photograph does in the network: classes, feature maps, units, evidence.

    With one argument it is the PHOTO, in the embedded EfficientNet-Lite0.

    Args:
        model: The network.
        photo: An image file, or the name of an embedded photograph, such as chelsea.
        out: The folder to write the page to.
        open: Open the page in the browser.
    """
    if photo is None and not loading.list_layers and not _names_a_model(model):
        model, photo = None, model
    net = _load(model, loading, output)
    if photo is None:
        raise RequestError("no photograph was given; name an image file, as in `convscope look cat.jpg`.")
    with _progress() as progress:
        result = convscope.look(net, photo, out=out, progress=progress, **_run_settings(loading))
    page = out / "index.html"
    _print(_plain(result.to_dict()) | {"page": str(page)} if output.json else str(page))
    _say(f"Next: convscope report {_words(model)}--open   (what every filter looks for)")
    if open:
        _open(page)
    return 0


@app.command
def measure(
    model: str | None = None,
    /,
    *,
    tree: OutFlag = False,
    csv: OutFlag = False,
    markdown: OutFlag = False,
    work: MeasureOptions = _MEASURE_DEFAULT,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
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
    net = _load(model, loading, output)
    with _progress(what="images") as progress:
        found = convscope.measure(_moved(net, loading), progress=progress, **_measure_settings(work, loading))
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
    _say(f"Next: {_next_measure(model, work)}")
    return 0


@app.command
def rewrite(
    model: str | None = None,
    /,
    *,
    rule: Annotated[list[str], Parameter(group=_WORK)],
    where: Annotated[str, Parameter(group=_WORK)] = "*",
    data: Annotated[Path | None, Parameter(group=_WORK)] = None,
    limit: Annotated[int, Parameter(group=_WORK)] = 256,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("rewritten"),
    onnx: OutFlag = False,
    pt2: OutFlag = False,
    no_page: OutFlag = False,
    open: OutFlag = False,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
) -> int:
    """Apply a design choice to MODEL, verify what it did, and save the result with its recipe and a page.

    Afterwards recipe:OUT is a MODEL like any other, and OUT/changes.html shows what the rewrite costs and keeps.

    Args:
        model: The network; the embedded EfficientNet-Lite0 by default.
        rule: What to do: kernel_size:5, padding:reflect, separable:rank=2,where=layer3.*; several in turn.
        where: The layers it is about: names with * and ?, kind:Conv2d, macs > 5 %.
        data: Unlabelled images that rules fit to: a file or a folder.
        limit: At most so many images.
        out: The folder to write.
        onnx: Also write model.onnx, verified in onnxruntime.
        pt2: Also write model.pt2 (torch.export), verified.
        no_page: Leave out the page, and the comparison behind it.
        open: Open the page in the browser.
    """
    net = _load(model, loading, output)
    images = None if data is None else str(data)
    made = convscope.rewrite(net, " | ".join(rule), where, images, limit=limit, seed=loading.seed)
    folder = made.save(out, onnx=onnx, pt2=pt2)
    if output.json:
        _print(_plain(made.to_dict() | {"path": str(folder)}))
    else:
        heads, cells = made.table()
        _print_table(heads, cells)
    _say(f"{_escape(repr(made))}, saved in {_escape(str(folder))}")
    if made.done and not no_page:
        with _progress(what="images") as progress:
            found = convscope.compare(
                net,
                made,
                images,
                limit=limit,
                features="auto",
                seed=loading.seed,
                random=loading.random,
                progress=progress,
            )
        _page(found, folder, open)
    place = shlex.quote(f"recipe:{folder}")
    _say(f"Next: convscope compare {_words(model) or 'embedded '}{place}   (what it changed)")
    return 0 if made.done else 1


@app.command
def compare(
    a: str,
    b: str,
    /,
    *others: str,
    work: CompareOptions = _COMPARE_DEFAULT,
    markdown: OutFlag = False,
    out: Annotated[Path | None, Parameter(group=_OUTPUT)] = None,
    open: OutFlag = False,
    loading: ModelOptions = _MODEL_DEFAULT,
    output: OutputOptions = _OUTPUT_DEFAULT,
) -> int:
    """Two networks side by side: what they cost, what they answer, and where they begin to differ.

    With more than two, each is compared with the first, by cost and quality. --weights and the other options of
    loading are for A, and --input for all.

    Args:
        a: A network, such as embedded, fashion or timm:resnet18.
        b: Another, such as recipe:FOLDER.
        others: More of them.
        markdown: Print Markdown, for a pull request.
        out: A folder for a page that draws all of it, with pictures of units where the networks changed.
        open: Open the page in the browser.
    """
    if markdown and output.json:
        raise RequestError("--markdown and --json were given together; ask for one.")
    first = _moved(_load(a, loading, output), loading)
    plain = replace(loading, weights=None, mean=None, std=None, labels=None, list_layers=False)
    rest = [_moved(_load(name, plain, output), loading) for name in (b, *others)]
    settings: dict[str, Any] = _given(
        data=None if work.data is None else str(work.data),
        limit=work.limit,
        features=_features(work.features),
    ) | {"seed": loading.seed, "random": loading.random}
    if out is not None and not work.quick:
        settings = {"features": "auto", "latency": True, **settings}
    if work.quick:
        settings |= {"latency": False, "memory": False, "fields": False}
    settings |= {name: True for name in ("border", "consistency", "all") if getattr(work, name)}
    with _progress(what="images") as progress:
        if others:
            from convscope.rewrites.compare import compare_all

            found: Any = compare_all(first, rest, cost=work.cost, progress=progress, **settings)
        else:
            found = convscope.compare(first, rest[0], progress=progress, **settings)
    if output.json:
        _print(_plain(found.to_dict(pictures=True) if not others else found.to_dict()))
    elif markdown:
        print(found.to_markdown(), end="")
    else:
        _console(stderr=False).print(found)
    if out is not None:
        _page(found, out, open)
    return 0


_ASK = "Answer a question about CNN design by measuring MODEL, your images and this machine."
_STUDY = "Train every variant of DESIGN at every seed, compare them, and say which one to take."
app.command("convscope.commands.ask:ask", help=_ASK)  # imported when it is called
app.command("convscope.commands.study:study", help=_STUDY)

bench = App(
    name="bench",
    help="Measure this machine.",
    help_epilogue="",
    help_flags=["--help", "-h"],
    version_flags=[],
    group_parameters=_WORK,
    default_parameter=Parameter(negative=()),
)
app.command(bench)


@bench.command
def conv(
    *,
    out: Annotated[Path, Parameter(group=_OUTPUT)] = Path("bench"),
    open: OutFlag = False,
    quick: Flag = False,
    fresh: Flag = False,
    threads: int | None = None,
    device: str = "cpu",
    output: OutputOptions = _OUTPUT_DEFAULT,
) -> int:
    """FFT or Winograd, when? Time every convolution algorithm here, as a page with charts and JSON.

    Takes three minutes on two cores. A run that was interrupted goes on where it stopped.

    Args:
        out: The folder to write.
        open: Open the page in the browser.
        quick: Fewer points, in 40 seconds.
        fresh: Throw away what the folder holds of an earlier run.
        threads: CPU threads; all by default.
        device: cpu or cuda.
    """
    if threads is not None:
        _set_threads(threads)
    from convscope import tour

    with _progress(_kept(out), "points") as progress:
        made = tour.bench_convolution(
            out, quick=quick, device=_device(device) or "cpu", fresh=fresh, progress=progress
        )
    if not output.json:
        _console(stderr=True).print(made.survey)
    _print(_plain(made.to_dict()) if output.json else str(made.page))
    if open:
        _open(made.page)
    return 0


# ---------------------------------------------------------------- from options to arguments


def _load(model: str | None, options: ModelOptions, output: OutputOptions) -> Net:
    """The Net that the options describe; with --list-layers, prints its layers and ends there."""
    if options.threads is not None:
        _set_threads(options.threads)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for package.module:factory; last, so that nothing is shadowed
    labels = None if options.labels is None else _read_lines(options.labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvscopeWarning)
        net = convscope.load(
            model,
            input=options.input,
            weights=options.weights,
            trust=options.trust,
            labels=labels,
            seed=options.seed,
        )
        if options.mean is not None or options.std is not None:
            spec = net.input
            known = _given(mean=_numbers("mean", options.mean), std=_numbers("std", options.std))
            net = convscope.load(net, input=replace(spec, **known))
    told = [str(warning.message) for warning in caught if issubclass(warning.category, ConvscopeWarning)]
    for text in dict.fromkeys(
        [*told, *(note for note in net.warnings if not any(note in line for line in told))]
    ):
        _say(f"[yellow]warning:[/] {_escape(text)}")
    if options.list_layers:
        _print_layers(net, output)
        raise SystemExit(0)
    return net


def _names_a_model(text: str | None) -> bool:
    """Whether a lone argument is a MODEL rather than a layer or a photograph."""
    if text is None:
        return False
    from convscope._sources import EMBEDDED

    is_scheme = bool(re.match(r"[A-Za-z_][\w.]*:(?!pre$|post$)", text)) and not os.path.exists(text)
    return (
        is_scheme or text in ("embedded", *EMBEDDED) or text.endswith((".pt", ".pth", ".pt2", ".safetensors"))
    )


def _run_settings(options: ModelOptions) -> dict[str, Any]:
    return _given(device=_device(options.device)) | {"seed": options.seed, "random": options.random}


def _atlas_settings(work: AtlasOptions, options: ModelOptions) -> dict[str, Any]:
    if work.all and work.layers is not None:
        raise RequestError(
            "--all and --layers were both given; --all is every convolution, so leave one out."
        )
    layers = "all" if work.all else work.layers.split(",") if work.layers else None
    channels = "all" if work.channels == "all" else _channels(work.channels)
    data = None if work.data is None else str(work.data)
    chosen = _given(layers=layers, channels=channels, data=data, steps=work.steps)
    return chosen | _run_settings(options) | {"quick": work.quick, "fresh": work.fresh}


def _measure_settings(work: MeasureOptions, options: ModelOptions) -> dict[str, Any]:
    names = ("backward", "latency", "memory", "consistency", "border", "health", "all")
    data = None if work.data is None else str(work.data)
    chosen = {name: getattr(work, name) for name in names} | {"seed": options.seed}
    return chosen | _given(batch=work.batch, data=data)


def _moved(net: Net, options: ModelOptions) -> Net:
    """The network, which is ours alone, on the device asked for."""
    device = _device(options.device)
    if device is not None:
        net.module.to(device)
    return net


def _given(**values: Any) -> dict[str, Any]:
    """What was asked for; the rest keeps the API's own defaults."""
    return {name: value for name, value in values.items() if value is not None}


def _device(text: str | None) -> str | None:
    """The device asked for, checked; a CUDA device where there is one and nothing was asked."""
    import torch

    if text is None:
        return "cuda" if torch.cuda.is_available() else None
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
        reason = str(error).splitlines()[0].rstrip(".")
        raise RequestError(
            f"device {text!r} cannot be used ({reason}); leave --device out, or give cpu."
        ) from error
    return text


def _set_threads(count: int) -> None:
    if count < 1:
        raise RequestError(f"--threads {count} must be at least 1; leave it out for all cores.")
    import torch

    torch.set_num_threads(count)


def _channels(text: str | None) -> list[int] | None:
    """Channels from "3", "1,5,9", "0:8", "0:64:8", or several of these by commas."""
    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)|(\d*):(\d+)(?::(\d+))?)\s*", part, flags=re.ASCII)
        numbers = match and [int(number) if number else None for number in match.groups()]
        if not numbers or numbers[3] == 0:
            raise RequestError(
                f"--channels {text!r} must be numbers or ranges START:END, such as 3, 1,5,9 or 0:8."
            )
        one, start, end, step = numbers
        chosen += [one] if one is not None else range(start or 0, end or 0, step or 1)
    if not chosen:
        raise RequestError(f"--channels {text!r} is empty; START:END goes from START to END - 1.")
    return list(dict.fromkeys(chosen))


def _features(text: str | None) -> dict[str, list[int]] | str | None:
    """Layer -> channels from "conv1:0,3;conv2:0:4"; "auto" as it is."""
    if text is None or text == "auto":
        return text
    found: dict[str, list[int]] = {}
    for part in text.split(";"):
        layer, _, channels = part.strip().partition(":")
        wanted = _channels(channels) if layer and channels else None
        if wanted is None:
            raise RequestError(
                f"--features {text!r} must be auto or LAYER:CHANNELS, such as conv1:0,3 or conv2:0:4."
            )
        found.setdefault(layer, []).extend(wanted)
    return found


def _edge(text: str) -> str | int | tuple[int, int]:
    """Canvas from "auto", "128" or "96x128" (height x width)."""
    match = re.fullmatch(r"auto|(\d{1,5})(?:x(\d{1,5}))?", text, flags=re.ASCII)
    if not match:
        raise RequestError(
            f"--size {text!r} must be auto, pixels such as 128, or HEIGHTxWIDTH such as 96x128."
        )
    height, width = match.groups()
    return "auto" if height is None else int(height) if width is None else (int(height), int(width))


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(
            f"--{name} {text!r} must be numbers by commas, one a channel, such as 0.5,0.5,0.5."
        ) from None


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--labels {str(path)!r} cannot be read as text: {error}; give one name a line."
        ) from error


def _next_report(out: Path) -> str:
    """The same command line with another verb: it takes the finished pictures from the same folder."""
    words = [word for word in _LINE.get() if word not in ("atlas", "--json", "--fresh")]
    folder = [] if any(word.split("=")[0] == "--out" for word in words) else ["--out", str(out)]
    return f"{shlex.join(['convscope', 'report', *words, *folder])} --open   (the same as pages)"


def _next_look(model: str | None) -> str:
    return f"convscope look {_words(model)}PHOTO.jpg --open   (a photograph of yours in this network)"


def _next_measure(model: str | None, work: MeasureOptions) -> str:
    if not (work.latency or work.all):
        return f"convscope measure {_words(model)}--latency   (the time of every layer, and what bounds it)"
    return f"convscope look {_words(model)}PHOTO.jpg --open   (what a photograph of yours does in it)"


def _words(model: str | None) -> str:
    return "" if model is None else f"{shlex.quote(model)} "


# ---------------------------------------------------------------- results


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
    units: list[dict[str, Any]] = _plain([unit.to_dict() for unit in shown.units])
    return units


def _page(found: Any, out: Path, open: bool) -> None:
    """The page that draws a comparison."""
    from convscope import tour

    page = tour.changes(found, out)
    _say(f"{_escape(str(page))} shows what changed")
    if open:
        _open(page)


def _print_units(rows: list[dict[str, Any]], output: OutputOptions) -> None:
    if output.json:
        _print(rows)
        return
    header = ("layer", "channel", "seed", "activation", "status", "path")
    shown = [[f"{v:.4g}" if isinstance(v := row[name], float) else v for name in header] for row in rows]
    _print_table(header, [["-" if cell is None else str(cell) for cell in cells] for cells in shown])


def _print_layers(net: Net, output: OutputOptions) -> None:
    """Every layer that runs, in the order of the run, with the channels there are to look at."""
    from convscope.graph import record

    graph = record(net)
    often = {call.name for call in graph.calls if call.index}
    rows = [
        {
            "layer": f"{call.name}#{call.index}" if call.name in often else call.name,
            "kind": call.kind,
            "shape": list(call.out_shapes[0][1:]) if call.out_shapes else [],
        }
        for call in graph.calls
        if call.name
    ]
    if output.json:
        _print(rows)
        return
    cells = [[str(row["layer"]), str(row["kind"]), "x".join(map(str, row["shape"]))] for row in rows]
    _print_table(("layer", "kind", "output"), cells)


def _tell_atlas(made: Any, facts: dict[str, Any], text: str, output: OutputOptions, following: str) -> int:
    _print(_plain(facts) if output.json else text)
    lost = f", {made.dead} dead, {made.failed} failed" if made.dead or made.failed else ""
    _say(f"{made.done} of {made.units} units in {made.seconds:.0f} s{lost}")
    _say(f"Next: {following}")
    return 1 if made.units and made.failed == made.units else 0


def _tell_profile(found: Any, depth: int | None, tree: bool) -> None:
    """The table, or the tree, and whole measures below it; what there is to know goes to stderr."""
    from convscope.measures import profile_table

    if tree:
        print(found.tree(depth))
    else:
        heads, cells = profile_table.table(found)
        _print_table(heads, cells)
    for name in ("latency", "memory", "consistency"):
        result = getattr(found, name)
        if result is not None:
            print()
            _console(stderr=False).print(f"latency: {result.total}" if name == "latency" else result)
    _say(f"{_escape(profile_table.heading(found))}", *map(_escape, profile_table.remarks(found)))


def _kept(out: Path) -> str:
    return f"what is finished is kept in {out}; the same command goes on from there"


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        _say(f"no browser could be started; open {page} yourself")


def _plain(value: Any) -> Any:
    """Values as JSON can carry them: what is not a finite number becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


# ---------------------------------------------------------------- talking


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def _say(*lines: str) -> None:
    """Advice and news, to stderr; rich markup, so text that is not ours goes through `_escape`."""
    console = _console(stderr=True)
    for line in lines:
        console.print(line)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(_visible(text))


def _visible(text: str) -> str:
    """Names come from the model: what would steer the terminal is replaced by a mark."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _print(data: Any) -> None:
    """The result, to stdout: text, or one JSON document, a list with one line for each item."""
    if isinstance(data, str):
        print(data)
    elif isinstance(data, list) and data:
        print("[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in data) + "\n]")
    else:
        print(json.dumps(data, indent=2, allow_nan=False))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns by spaces, never cut short, so that grep and awk work on them; numbers, whose title ends in ">", to
    the right.
    """
    right = [title.endswith(">") for title in header]
    titles = [title.removesuffix(">") for title in header]
    lines = [[_visible(cell) for cell in cells] for cells in (titles, *rows)]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(header))]
    for cells in lines:
        columns = zip(cells, widths, right, strict=True)
        placed = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
        print("  ".join(placed).rstrip())


Report = Callable[[dict[str, Any]], None]


@contextmanager
def _progress(kept: str = "nothing was finished yet", what: str = "units") -> Iterator[Report]:
    """A bar on a terminal, a line now and then elsewhere; Ctrl-C inside is told what is kept."""
    console = _console(stderr=True)
    try:
        if console.is_terminal:
            with _bar(console, what) as tell:
                yield tell
        else:
            yield _Lines(what)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(kept) from stop


@contextmanager
def _bar(console: Console, what: str = "units") -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what + "  {task.fields[pace]}  {task.fields[layer]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, layer="", pace="")

        def tell(event: dict[str, Any]) -> None:
            layer = _visible(str(event.get("layer") or ""))
            progress.update(
                task, completed=event["done"], total=event["total"], layer=layer, pace=_pace(event)
            )

        yield tell


class _Lines:
    """Progress where there is no terminal: at most a line every ten seconds."""

    def __init__(self, what: str = "units", every: float = 10.0) -> None:
        self.what, self.every, self.last = what, every, time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            print(
                f"{event['done']} of {event['total']} {self.what}, {_pace(event)}",
                file=sys.stderr,
                flush=True,
            )


def _pace(event: dict[str, Any]) -> str:
    rate, left = event.get("rate") or 0.0, event.get("seconds_left")
    pace = f"{rate:.2f} a second"
    return pace if left is None else f"{pace}, {int(left) // 60}:{int(left) % 60:02d} left"


# ---------------------------------------------------------------- entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the entry point of `convscope` and `python -m convscope`.

    Args:
        argv: the words after the program's name; those of this process by default.

    Returns:
        The exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _LINE.set(tuple(words))
    try:
        with _restored():
            code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
            return int(code or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt as stop:
        _say(f"Interrupted: {_escape(str(stop) or 'nothing was finished yet')}.")
        return 130
    except BrokenPipeError:  # the reader of stdout left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except CycloptsError as error:
        return _fail(words, error, 2, _misread(words, error))
    except ConvscopeError as error:
        return _fail(words, error, error.exit_code, str(error))
    except Exception as error:  # a mistake of ours or of the model's own code: told, never hidden
        said = f"{type(error).__name__}: {error}"
        return _fail(words, error, 1, f"{said}; this was not expected: --debug shows where it happened.")


def _misread(words: Sequence[str], error: CycloptsError) -> str:
    """What was wrong with the command line, and where to look."""
    place, path = app, ["convscope"]
    for word in words:
        verbs = [] if word.startswith("-") else [name for name in place if not name.startswith("-")]
        if not verbs:
            break
        if word not in verbs:
            unknown = " ".join([*path[1:], word])
            hint = nearest(word, verbs) or f"; see them all with {' '.join(path)} --help."
            return f"{unknown!r} is no command{hint}"
        place, path = place[word], [*path, word]
    where = f"see {' '.join(path)} --help."
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(map(repr, error.unused_tokens or ()))} is one argument too many; {where}"
    return f"{str(error).strip().rstrip('.?')}; {where}"


def _fail(words: Sequence[str], error: Exception, code: int, message: str) -> int:
    """One sentence on stderr, and with --json the same as the one document on stdout."""
    if "--debug" in words:
        traceback.print_exception(error)
    _say(f"[bold red]error:[/] {_escape(message)}")
    if "--json" in words:
        _print({"error": message, "kind": type(error).__name__})
    return code


@contextmanager
def _restored() -> Iterator[None]:
    """For callers of `main` inside a larger program: thread count and import path are as before."""
    torch, path = sys.modules.get("torch"), list(sys.path)
    threads = torch.get_num_threads() if torch else None
    try:
        yield
    finally:
        sys.path[:] = path
        if torch and threads is not None:
            torch.set_num_threads(threads)
