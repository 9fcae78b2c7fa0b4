"""`convscope rewrite` and `compare`: design choices with proof, networks side by side."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import convscope
from convscope.commands.arguments import features_of, given, load_net, moved
from convscope.commands.options import (
    COMPARE_DEFAULT,
    MODEL_DEFAULT,
    OUTPUT,
    OUTPUT_DEFAULT,
    WORK,
    CompareOptions,
    ModelOptions,
    OutFlag,
    OutputOptions,
)
from convscope.commands.progress import progress_of
from convscope.commands.terminal import (
    console_of,
    escape,
    open_page,
    plain,
    print_result,
    print_table,
    say,
    words_of,
)
from convscope.errors import RequestError


def rewrite(
    model: str | None = None,
    /,
    *,
    rule: Annotated[list[str], Parameter(group=WORK)],
    where: Annotated[str, Parameter(group=WORK)] = "*",
    data: Annotated[Path | None, Parameter(group=WORK)] = None,
    limit: Annotated[int, Parameter(group=WORK)] = 256,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("rewritten"),
    onnx: OutFlag = False,
    pt2: OutFlag = False,
    no_page: OutFlag = False,
    open: OutFlag = False,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
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
    net = load_net(model, loading, output)
    images = None if data is None else str(data)
    made = convscope.rewrite(net, " | ".join(rule), where, images, limit=limit, seed=loading.seed)
    folder = made.save(out, onnx=onnx, pt2=pt2)
    if output.json:
        print_result(plain(made.to_dict() | {"path": str(folder)}))
    else:
        heads, cells = made.table()
        print_table(heads, cells)
    say(f"{escape(repr(made))}, saved in {escape(str(folder))}")
    if made.done and not no_page:
        with progress_of(what="images") as progress:
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
    say(f"Next: convscope compare {words_of(model) or 'embedded '}{place}   (what it changed)")
    return 0 if made.done else 1


def compare(
    a: str,
    b: str,
    /,
    *others: str,
    work: CompareOptions = COMPARE_DEFAULT,
    markdown: OutFlag = False,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    open: OutFlag = False,
    loading: ModelOptions = MODEL_DEFAULT,
    output: OutputOptions = OUTPUT_DEFAULT,
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
    first = moved(load_net(a, loading, output), loading)
    bare = replace(loading, weights=None, mean=None, std=None, labels=None, list_layers=False)
    rest = [moved(load_net(name, bare, output), loading) for name in (b, *others)]
    settings: dict[str, Any] = given(
        data=None if work.data is None else str(work.data),
        limit=work.limit,
        features=features_of(work.features),
    ) | {"seed": loading.seed, "random": loading.random}
    if out is not None and not work.quick:
        settings = {"features": "auto", "latency": True, **settings}
    if work.quick:
        settings |= {"latency": False, "memory": False, "fields": False}
    settings |= {name: True for name in ("border", "consistency", "all") if getattr(work, name)}
    with progress_of(what="images") as progress:
        if others:
            from convscope.rewrites.compare import compare_all

            found: Any = compare_all(first, rest, cost=work.cost, progress=progress, **settings)
        else:
            found = convscope.compare(first, rest[0], progress=progress, **settings)
    if output.json:
        print_result(plain(found.to_dict(pictures=True) if not others else found.to_dict()))
    elif markdown:
        print(found.to_markdown(), end="")
    else:
        console_of(stderr=False).print(found)
    if out is not None:
        _page(found, out, open)
    return 0


def _page(found: Any, out: Path, open: bool) -> None:
    """The page that draws a comparison."""
    from convscope import tour

    page = tour.changes(found, out)
    say(f"{escape(str(page))} shows what changed")
    if open:
        open_page(page)
