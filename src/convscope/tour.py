"""Composes what a user sees in the end: the report of a network, the pages of a photograph and of a benchmark.

Runs the measures and pictures in order and hands them to `site`, which draws. Computes nothing itself.
"""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from convscope import site
from convscope._changes import ChangesPage, written
from convscope._layers import LayersPage
from convscope.algorithms.survey import Survey, machine, measure_all
from convscope.answers.ask import ask
from convscope.data import Images
from convscope.errors import UnknownName, nearest
from convscope.features.atlas import Atlas
from convscope.features.atlas import atlas as draw_atlas
from convscope.features.look import Look
from convscope.features.look import look as look_at
from convscope.features.visualize import Progress
from convscope.models import InputLike, Net, as_net
from convscope.rewrites.compare_several import Comparisons
from convscope.rewrites.compare_table import Comparison
from convscope.store import Store
from convscope.studies.choice import Choice
from convscope.studies.results import StudyResult
from convscope.studies.shelf import made_here, records

Asking: TypeAlias = Literal["quick", "full", "none"]
_EMBEDDED = "embedded:efficientnet_lite0"  # what `load` gives where nothing is asked for
_OTHER_CODE = "Made by other code than is installed here; the figures are those of the record."


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        page: its first page.
        atlas: the pictures in it.
    """

    page: Path
    atlas: Atlas

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.atlas.to_dict() | {"page": str(self.page)}

    def __repr__(self) -> str:
        return f"Report({str(self.page)!r}, {self.atlas.done} units)"

    def _repr_html_(self) -> str:
        return self.atlas._repr_html_()


def report(
    net: Net | nn.Module,
    out: str | os.PathLike[str] = "report",
    *,
    input: InputLike | None = None,
    data: str | Images | None = None,
    layers: str | Sequence[str] = "auto",
    channels: str | int | Sequence[int] | None = None,
    photo: str | None = "auto",
    measures: bool = True,
    changes: bool = True,
    answers: Asking = "quick",
    studies: str | os.PathLike[str] | None = None,
    open: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """Makes pages that show what the filters of a network look for, and what its layers cost and see.

    The pages are valid from the first finished batch on and fill while the work goes on; called again after an
    interruption it continues.

    Args:
        net: a Net, or a module with `input=`.
        out: the folder; its `index.html` opens in any browser, offline.
        input: what to feed a plain module.
        data: images for natural crops; the embedded photographs by default.
        layers, channels: see `atlas`.
        photo: an image to look at on a page of its own; "auto" is an embedded one where the input is in colour.
        measures: whether to measure the layers, for a page of their own: what each costs and sees, how long it
            takes here, what padding and shifts do to it.
        changes: whether to try a few rewrites, for a page that shows what each costs and keeps.
        answers: how to ask every question about the design of CNNs, for a page of their own: "quick" (two or three
            minutes), "full" or "none". Each is asked of the network; where that is the embedded default and no data is
            given, of the embedded network that suits it, as `convscope.ask` does.
        studies: a folder of study records for the page of studies and the answers; those that ship by default.
        open: open the first page in the browser as soon as it stands.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.
        **settings: see `atlas`.

    Raises:
        StoreMismatch, UntrainedWeights, RequestError: see `atlas`.
        UnknownName: `answers` is none of the three.

    Example:
        >>> import tempfile, torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     few = {"channels": 2, "steps": 4, "photo": None, "measures": False, "changes": False, "answers": "none"}
        ...     made = report(net, folder, input=torch.zeros(1, 3, 32, 32), **few)
        >>> made.page.name, made.atlas.failed
        ('index.html', 0)
    """
    if answers not in get_args(Asking):
        known = get_args(Asking)
        raise UnknownName(
            f"answers={answers!r} must be one of {', '.join(known)}{nearest(str(answers), known)}"
        )
    net = as_net(net, input)
    folder = Path(out)
    trained = _told(dict(records(None if studies is None else Path(studies))))
    refresh = site.paced(folder)
    shown = False

    common = {name: settings[name] for name in ("quick", "fresh", "seed", "device") if name in settings}
    random = settings.get("random", False)
    with (
        LayersPage(net, folder, data=data, **common) as page,
        ChangesPage(net, folder, data=data, random=random, **common) as tried,
    ):

        def on_chunk(manifest: dict[str, Any]) -> None:
            nonlocal shown
            if measures:
                page.begin()
            if changes:
                tried.begin()
            refresh(manifest)
            if open and not shown:
                shown = True
                webbrowser.open((folder / "index.html").resolve().as_uri())

        made = draw_atlas(
            net, folder, layers, channels, data, progress=progress, on_chunk=on_chunk, **settings
        )
        looks = []
        image = _photo(net) if photo == "auto" else photo
        if image is not None:
            seen = look_at(
                net, image, seed=settings.get("seed", 0), device=settings.get("device"), random=True
            )
            looks.append(_linked(seen.save(folder), made.content))
        if changes:
            tried.begin()
        first = site.write(folder, atlas=made.content, looks=looks, studies=trained)
        if measures:
            page.finish([layer["name"] for layer in made.content["layers"]], _teller(made, progress))
        if changes:
            tried.finish(_teller(made, progress))
    if answers != "none":
        asked: Any = {name: settings[name] for name in ("fresh", "seed") if name in settings}
        asked |= {"quick": answers == "quick", "studies": studies, "out": folder}
        subject = None if net.source == _EMBEDDED and data is None else net
        ask("all", subject, data, progress=_asking(folder, _teller(made, progress)), **asked)
        first = site.write(folder)
    return Report(first, made)


def _asking(folder: Path, tell: Callable[[str], None]) -> Progress:
    """Tells what is measured, and writes the page whenever the next question begins."""
    begun = ""

    def told(event: dict[str, Any]) -> None:
        nonlocal begun
        question = event["layer"].partition(":")[0]
        if begun and question != begun:
            site.write(folder)
        begun = question
        tell(event["layer"])

    return told


def _told(studies: Mapping[str, StudyResult]) -> dict[str, dict[str, Any]]:
    """Studies as the site draws them."""
    return {
        name: result.to_dict() | {"made_with": "" if made_here(result) else _OTHER_CODE}
        for name, result in studies.items()
    }


def studied(found: StudyResult, out: str | os.PathLike[str], choice: Choice | None = None) -> Path:
    """Writes the page of one study.

    Args:
        found: what `convscope.study` gave.
        out: the folder, such as that of its record; one that holds a report gets the page added.
        choice: what it says to take, by another cost or margin than usual.

    Returns:
        The page.

    Raises:
        StoreError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     studied(dict(records())["pooling"], folder).name
        'studies.html'
    """
    folder = Path(out)
    told = _told({found.design.name: found})
    if choice is not None:
        told[found.design.name]["summary"]["choice"] = choice.to_dict()
    return site.write(folder, studies=told).parent / "studies.html"


def _teller(made: Atlas, progress: Progress | None) -> Callable[[str], None]:
    """Tells what is measured where the units were told, all of which are there by now."""

    def tell(what: str) -> None:
        if progress is not None:
            event = {"done": made.done, "total": made.units, "rate": 0.0, "seconds_left": 0.0}
            progress({**event, "layer": f"measuring {what}"})

    return tell


def look(
    net: Net | nn.Module,
    image: str | os.PathLike[str] | Tensor | Any,
    *,
    out: str | os.PathLike[str] | None = None,
    input: InputLike | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Look:
    """Shows what one photograph does in a network, and with `out=` writes it as a page.

    Args:
        net: a Net, or a module with `input=`.
        image: a file, the name of an embedded photograph, a PIL image, or Tensor [channel, height, width] in [0, 1].
        out: a folder for the page; one that holds an atlas of the network gets the page added.
        input: what to feed a plain module.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.
        **settings: see `convscope.features.look.look`.

    Raises:
        BadInput, UnknownName, UnknownLayer: see `convscope.features.look.look`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
        >>> seen = look(net, "coffee", input=torch.zeros(1, 3, 64, 64), pictures_of=False)
        >>> seen.kernels.shape
        torch.Size([4, 3, 5, 5])
    """
    seen = look_at(net, image, input=input, progress=progress, **settings)
    if out is not None:
        site.write(Path(out), looks=[seen.save(out)])
    return seen


def changes(found: Comparison | Comparisons, out: str | os.PathLike[str] = "changes") -> Path:
    """Writes the page that draws a comparison, or several with the same network.

    Args:
        found: what `convscope.compare` gave, or `compare_all`.
        out: the folder; one that holds a report gets the page added.

    Returns:
        The page.

    Raises:
        StoreError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from convscope import compare
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     changes(compare(net, net, input="3x16x16", latency=False, memory=False), folder).name
        'changes.html'
    """
    folder = Path(out)
    return site.write(folder, changes=written(folder, found)).parent / "changes.html"


@dataclass(frozen=True)
class Bench:
    """A benchmark that was run, and its page.

    Attributes:
        page: opens in any browser, offline.
        survey: the figures; prints as a table.
    """

    page: Path
    survey: Survey

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.survey.to_dict() | {"page": str(self.page)}

    def __repr__(self) -> str:
        return f"Bench({str(self.page)!r}, {self.survey.done} points)"


def bench_convolution(
    out: str | os.PathLike[str] = "bench",
    *,
    quick: bool = False,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Bench:
    """Answers "FFT or Winograd, when?" for this machine: every convolution algorithm, measured, as a page and JSON.

    What is measured is kept point by point: called again after an interruption it continues.

    Args:
        out: the folder; its `convolution.html` is the page and `convolution.json` the figures. One that holds a
            report gets the page added.
        quick: fewer points, in 40 seconds on two cores instead of three minutes.
        device: "cpu" or "cuda".
        fresh: throw away what the folder holds of an earlier run.
        progress: called with {"done", "total", "rate", "seconds_left", "layer"}.

    Raises:
        StoreMismatch: the folder holds figures of another machine, thread count or version.
        StoreError: the folder cannot be written.

    Example:
        >>> made = bench_convolution("bench", quick=True)  # doctest: +SKIP
        >>> print(made.survey)  # doctest: +SKIP
    """
    folder = Path(out)
    identity = {"measures": "convolution", "quick": quick, **machine(device)}
    with Store.open(folder / "convolution", identity, fresh=fresh) as store:
        known = {name: store.get(name) for name in store.finished()}
        survey = None
        try:
            for latest in measure_all(
                quick=quick, device=device, known=known, keep=store.put, progress=progress
            ):
                survey = latest
        finally:  # on Ctrl-C too: a page of what was finished
            if survey is not None:
                page = site.write(folder, convolution=survey.to_dict())
    assert survey is not None
    return Bench(page.parent / "convolution.html", survey)


def _photo(net: Net) -> str | None:
    """The embedded photograph a report looks at."""
    return "chelsea" if net.input.channels == 3 else None


def _linked(seen: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """The look with links to the units that the atlas drew."""
    names = {layer["index"]: layer["name"] for layer in manifest["layers"]}
    drawn = {(names[unit["layer"]], unit["channel"]): unit["id"] for unit in reversed(manifest["units"])}
    rows = [row for layer in seen["layers"] for row in layer["maps"]] + seen["units"]
    for row in rows:
        row["unit"] = drawn.get((row["layer"], row["channel"]))
    return seen
