"""The pages of the report. Each is one entry here, one template and, where it is interactive, one script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convscope.errors import UnknownName


@dataclass(frozen=True)
class Contents:
    """What there is to show.

    Args:
        out: The report's folder.
        atlas: The atlas manifest, or None.
        index: What the scripts read of it (`site.index.write_index`), or None.
        looks: One plain value for each photograph looked at.
        convolution: What `algorithms.survey` measured, or None.
        layers: Whether the folder holds what was measured of the layers.
        changes: Whether it holds comparisons.
        studies: Name -> what `StudyResult.to_dict()` gives, of studies that were trained.
        answers: What `convscope ask` kept there, in the order of the questions.
    """

    out: Path
    atlas: dict[str, Any] | None = None
    index: dict[str, Any] | None = None
    looks: tuple[dict[str, Any], ...] = ()
    convolution: dict[str, Any] | None = None
    layers: bool = False
    changes: bool = False
    studies: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    answers: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Page:
    """One page of the report.

    Args:
        name: Stem of the file, `NAME.html`; `index` is the first page.
        title: What the navigation calls it.
        template: File in `site/templates`.
        context: The values its template reads, or None where there is nothing to show: then the page and its
            entry in the navigation are left out.
        scripts: Files of `site/assets` it runs, after `common.js`.
        styles: Style sheets there, after `style.css`.
    """

    name: str
    title: str
    template: str
    context: Callable[[Contents], dict[str, Any] | None]
    scripts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.name}.html"


PAGES: list[Page] = []


def register(page: Page) -> Page:
    """Adds a page at the end of the navigation.

    Raises:
        UnknownName: Another page has that name.
    """
    if any(page.name == other.name for other in PAGES):
        raise UnknownName(
            f"page name={page.name!r} is already registered; give the new page a name of its own."
        )
    PAGES.append(page)
    return page


def credits(contents: Contents) -> list[dict[str, Any]]:
    """Whom the pictures and the data behind the network are due to."""
    if contents.atlas is None:
        return []
    found = list(contents.atlas.get("attributions") or [])
    source = str(contents.atlas["net"]["source"]).removeprefix("rewrite of ").removeprefix("embedded:")
    if source in ("fashion", "fashion-decoder"):
        from convscope.data.fashion import credit  # lazy: it imports torch

        found.append(credit())
    return found


def _overview(contents: Contents) -> dict[str, Any] | None:
    if contents.atlas is None:
        return None
    stages = [
        layer for layer in contents.atlas["layers"] if layer.get("role") == "stage" and layer.get("shape")
    ]
    return {"stages": stages or contents.atlas["layers"]}


def _filters(contents: Contents) -> dict[str, Any] | None:
    return None if contents.atlas is None else {}


def _layers(contents: Contents) -> dict[str, Any] | None:
    return {} if contents.layers else None


def _changes(contents: Contents) -> dict[str, Any] | None:
    return {} if contents.changes else None


def _studies(contents: Contents) -> dict[str, Any] | None:
    if not contents.studies:
        return None
    from convscope.site import studies  # lazy: it draws charts

    shown = [studies.shown(name, study) for name, study in contents.studies.items()]
    return {"studies": shown, "settled": studies.key(shown)}


def _answers(contents: Contents) -> dict[str, Any] | None:
    if not contents.answers:
        return None
    from convscope.site import answers  # lazy: it draws charts

    return {
        "answers": [answers.shown(one) for one in contents.answers],
        "refused": answers.refused(contents.out),
    }


def _look(contents: Contents) -> dict[str, Any] | None:
    return {"looks": contents.looks} if contents.looks else None


_ABOUTS = {
    "direct": "PyTorch’s own",
    "im2col": "unfolded, one matrix product",
    "fft": "in the frequency domain",
    "winograd": "by Winograd’s minimal filtering",
}


def _convolution(contents: Contents) -> dict[str, Any] | None:
    if contents.convolution is None:
        return None
    from convscope.site import charts  # lazy: altair is slow to import, and few reports have this page

    return {
        "survey": contents.convolution,
        "charts": charts.of_survey(contents.convolution),
        "abouts": _ABOUTS,
    }


register(Page("index", "Overview", "overview.html", _overview, ("overview.js",)))
register(Page("filters", "Filters", "filters.html", _filters, ("charts.js", "panel.js", "filters.js")))
register(
    Page("layers", "Layers", "layers.html", _layers, ("flow.js", "roofline.js", "sights.js", "layers.js"))
)
register(
    Page(
        "changes",
        "Changes",
        "changes.html",
        _changes,
        ("front.js", "growth.js", "changes.js"),
        ("changes.css",),
    )
)
register(Page("studies", "Studies", "studies.html", _studies, (), ("answers.css", "studies.css")))
register(Page("answers", "Answers", "answers.html", _answers, (), ("answers.css",)))
register(Page("look", "Look", "look.html", _look, ("look.js",)))
register(Page("convolution", "Convolution", "convolution.html", _convolution))
