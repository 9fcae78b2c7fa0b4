"""Writes the report: static assets, sprite sheets, data scripts, then the pages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.answers.questions import QUESTIONS
from convscope.errors import RequestError, StoreError
from convscope.site import answers, formats, pages
from convscope.site import changes as changes_page
from convscope.site import studies as studies_page
from convscope.site.files import write_if_changed
from convscope.site.index import write_index
from convscope.site.layers import SCRIPT, write_layers
from convscope.site.scripts import safe_json
from convscope.site.sprites import is_inside

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def write(
    out: str | Path,
    *,
    atlas: dict[str, Any] | None = None,
    looks: Sequence[dict[str, Any]] = (),
    convolution: dict[str, Any] | None = None,
    layers: dict[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    studies: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes the report into a folder; cheap enough to be called after every chunk of a running atlas.

    Only what changed is written, and each file in one step, so that a page may stay open meanwhile. What is
    not given is taken from what the folder already holds (`atlas.json`, `data/looks.json`, `convolution.json`,
    `data/layers.js`, `data/changes.js`, `data/studies.json`); answers always are (`answers/`, as `convscope ask` keeps them).

    Args:
        out: The folder that holds the atlas and the pictures of the looks; their paths are relative to it.
        atlas: The atlas manifest.
        looks: What photographs do in the network, one plain value each.
        convolution: What `convscope bench conv` measured.
        layers: What was measured of the layers; see `layers.write_layers`.
        changes: Comparisons of the network with what was made from it; see `changes.write_changes`.
        studies: Studies that were trained; see `studies.write_studies`.

    Returns:
        The path of the first page.

    Raises:
        RequestError: There is nothing to show.
        StoreError: A file cannot be written or a manifest cannot be read.
    """
    out = Path(out)
    atlas = atlas if atlas is not None else _stored(out / "atlas.json")
    kept = list(looks) or _stored(out / "data" / "looks.json") or []
    measured = convolution if convolution is not None else _stored(out / "convolution.json")
    if layers is not None:
        write_layers(out, layers)
    if changes is not None:
        changes_page.write_changes(out, changes)
    if studies is not None:
        studies_page.write_studies(out, studies)
    has_layers, has_changes = (out / SCRIPT).is_file(), (out / changes_page.SCRIPT).is_file()
    trained = _stored(out / studies_page.FILE) or {}
    asked = tuple(answers.stored(out, QUESTIONS))
    if atlas is None and not (kept or measured or has_layers or has_changes or trained or asked):
        raise RequestError(
            f"out={str(out)!r} holds no atlas and no look was given, so that there is nothing to show; "
            "make an atlas there first."
        )
    for asset in sorted((HERE / "assets").iterdir()):
        if asset.suffix in (".css", ".js"):
            write_if_changed(out / "assets" / asset.name, asset.read_bytes())
    if looks:
        write_if_changed(out / "data" / "looks.json", safe_json(list(looks)))
    if convolution is not None:
        write_if_changed(out / "convolution.json", safe_json(convolution))
    index = None if atlas is None else write_index(out, atlas)
    known = pages.Contents(out, atlas, index, tuple(kept), measured, has_layers, has_changes, trained, asked)
    return _write_pages(known)


def paced(out: str | Path, share: float = 0.05) -> Callable[[dict[str, Any]], None]:
    """What an atlas calls after each chunk: writes the report, but spends at most a share of the time.

    Args:
        out: The report's folder.
        share: Part of the running time that may go into writing; with thousands of units chunks are skipped.
            The first chunk and the last state (anything but `running`) are always written.

    Returns:
        A function of the manifest.
    """
    began = time.monotonic()
    spent = 0.0

    def write_now(atlas: dict[str, Any]) -> None:
        nonlocal spent
        now = time.monotonic()
        if spent and atlas["state"] == "running" and spent > share * (now - began):
            return
        write(out, atlas=atlas)
        spent += time.monotonic() - now

    return write_now


def _write_pages(contents: pages.Contents) -> Path:
    contexts = {page.name: page.context(contents) for page in pages.PAGES}
    shown = [page for page in pages.PAGES if contexts[page.name] is not None]
    for page in shown:
        html = _render(page, shown, contexts[page.name] or {}, contents)
        write_if_changed(contents.out / page.file, html)
    first = contents.out / "index.html"
    if shown[0].name != "index":  # a look without an atlas: its page is the first one as well
        write_if_changed(first, _render(shown[0], shown, contexts[shown[0].name] or {}, contents))
    return first


def _render(
    page: pages.Page, shown: Sequence[pages.Page], context: dict[str, Any], contents: pages.Contents
) -> str:
    template = _environment().get_template(page.template)
    credits = pages.credits(contents)
    known = {"atlas": contents.atlas, "index": contents.index, "credits": credits}
    return template.render(page=page, pages=shown, **known, **context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # lazy: `import convscope` stays fast

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    environment.tests["inside"] = is_inside
    return environment


def _stored(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r} cannot be read ({error}); remove it or make the atlas again."
        ) from error
