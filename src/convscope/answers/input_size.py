"""Images of another size than the network was made for: every way to take them, what each loses and costs.

The new size is to the network's own as 320x360 is to 256x256. Refitting the last layer on features of the new size stands
for fine-tuning the last layers: it starts from the trained weights and is solved, not searched, so that no seed matters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.running import captured
from convscope.answers.verdicts.input_size import (
    anywhere,
    loses,
    picture,
    refit_table,
    runs_table,
    statement,
    table,
    tuned,
)
from convscope.data import fashion as clothes
from convscope.data import images as pictures
from convscope.data.fashion import LABELS
from convscope.measures.figures import share
from convscope.models import Net
from convscope.rewrites.input_size import InputSize
from convscope.rewrites.input_sizes import input_sizes
from convscope.rewrites.paired import difference
from convscope.rewrites.rewrite import rewrite

PARTS = ("ways", "detail", "sizes", "refitted")

_OTHER = "{net} has no global pool, so that {other} was run at other sizes"
_GROWTH = (320 / 256, 360 / 256)
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    net = asked.net
    ways = asked.part("ways", lambda: _ways(asked, net), data=True, timed=True)
    detail = asked.part("detail", lambda: _detail(asked, net), data=True)
    pooled, own = net, True
    if not _is_pooled(ways):
        pooled, own = asked.example("embedded"), False
    runs = asked.part("sizes", lambda: _sizes(asked, pooled, own), net=pooled, data=own)
    fashion = asked.example("fashion")
    refitted = asked.part("refitted", lambda: _refitted(fashion, asked.quick), net=fashion)
    return Draft(
        statement=statement(net, ways, detail),
        findings=(loses(detail, ways), tuned(refitted), anywhere(runs)),
        tables=(table(ways), runs_table(runs), refit_table(refitted)),
        pictures=(picture(detail),),
        notes=() if own else (fill(_OTHER, {"net": net.name, "other": pooled.name}),),
        data=ways["source"],
    )


def _grown(net: Net) -> tuple[int, int]:
    """The new size."""
    (height, width), (down, right) = net.input.size, _GROWTH
    return round(height * down), round(width * right)


def _is_pooled(ways: dict[str, Any]) -> bool:
    """Whether the network ran at the new size as it is, and gave what it gives at its own."""
    return any("as it is" in note for row in ways["rows"] if row["how"] == "native" for note in row["notes"])


# ---------------------------------------------------------------- measured


def _pictures(asked: Asked, net: Net, size: tuple[int, int], limit: int) -> tuple[Tensor, Tensor | None, str]:
    """Images in [0, 1] of a size, their classes where known, and what they are."""
    if isinstance(asked.data, Tensor):
        x = functional.interpolate(asked.data[:limit].float(), size, mode="bicubic", antialias=True)
        return net.input.denormalize(x), None, f"{len(x):,} images of a tensor"
    if asked.data is None and net.input.shape == (1, 28, 28):
        x, labels = clothes("test")
        grown = functional.interpolate(x[:limit], size, mode="bicubic", antialias=True).clamp(0, 1)
        return (
            grown,
            labels[:limit] if net.labels == LABELS else None,
            f"{len(grown):,} test images of Fashion-MNIST, enlarged",
        )
    spec = net.input.with_size(*size)
    batches = list(pictures(asked.data, limit=limit).batches(spec, 16))
    seen = asked.images(net, limit)
    return torch.cat([batch.images for batch in batches]), seen.labels, seen.source


def _ways(asked: Asked, net: Net) -> dict[str, Any]:
    """Every way of `InputSize` on the same images."""
    size = _grown(net)
    limit = min(asked.limit(net), 256 if asked.quick else 1000)
    images, labels, source = _pictures(asked, net, size, limit)
    x = net.input.with_size(*size).normalize(images).to(net.input.dtype)
    known = None if labels is None else labels.tolist()
    made = input_sizes(net, *size, x, known, budget=0.5 if asked.quick else 3.0)
    return made.to_dict() | {"source": source, "net": net.name}


def _detail(asked: Asked, net: Net) -> dict[str, Any]:
    """What is gone after resizing to the network's size and back, or after cutting the centre out."""
    size = _grown(net)
    images, _, _ = _pictures(asked, net, size, 12)
    small = functional.interpolate(images, net.input.size, mode="bilinear", antialias=True)
    back = functional.interpolate(small, size, mode="bicubic").clamp(0, 1)
    blurred = functional.avg_pool2d(functional.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    fine = (images - blurred).square().mean((1, 2, 3))
    gone = (images - back).square().mean((1, 2, 3))
    return {
        "lost": float(gone.sum() / fine.sum().clamp(min=1e-12)),
        "any": float(gone.max()) > 1e-6,
        "cut": max(0.0, 1 - net.input.size[0] * net.input.size[1] / (size[0] * size[1])),
        "before": images[0],
        "after": back[0],
        "size": size,
        "own": net.input.size,
        "images": len(images),
    }


def _sizes(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """The network as it is at other sizes: whether it runs, and how often it answers as at its own."""
    limit = 12 if asked.quick else 64
    module = net.copy()
    rows = []
    base = None
    for scale in sorted(_SCALES, key=lambda value: value != 1.0):
        size = tuple(max(1, round(n * scale)) for n in net.input.size)
        row: dict[str, Any] = {"scale": scale, "size": size}
        data = asked.data if own and not isinstance(asked.data, Tensor) else None
        if (
            net.input.shape == (1, 28, 28)
            or net.input.channels not in (1, 3)
            or isinstance(asked.data, Tensor)
        ):
            x = asked.images(net, limit, own=own).x
            x = functional.interpolate(x, size, mode="bilinear", antialias=True)
        else:
            spec = net.input.with_size(*size)
            x = torch.cat([spec.normalize(b.images) for b in pictures(data, limit=limit).batches(spec, 4)])
        try:
            with torch.no_grad():
                y = torch.cat([module(part.to(net.input.dtype)) for part in x.split(4)])
        except Exception as error:  # the network's own code, given sizes it was not made for
            rows.append(row | {"reason": " ".join(str(error).split())[:120]})
            continue
        base = y if base is None else base
        row["same"] = (
            share((y.argmax(1) == base.argmax(1))[:, None]).to_dict() if y.shape == base.shape else None
        )
        rows.append(row | {"shape": list(y.shape[1:]), "as_own": y.shape == base.shape})
    return {"net": net.name, "rows": sorted(rows, key=lambda row: row["scale"]), "images": len(x)}


def _refitted(net: Net, quick: bool) -> dict[str, Any]:
    """The embedded classifier at the new size: its last layer refitted on features there, against resizing and cropping."""
    size = _grown(net)
    made = {how: rewrite(net, InputSize(*size, how)).net for how in ("resize", "crop", "native")}
    count = 500 if quick else 2000
    sets = {}
    for split in ("train", "test"):
        images, labels = clothes(split)
        grown = functional.interpolate(images[:count], size, mode="bicubic", antialias=True).clamp(0, 1)
        sets[split] = net.input.with_size(*size).normalize(grown), labels[:count]
    right: dict[str, Tensor] = {}
    for how, one in made.items():
        with torch.no_grad():
            scores = torch.cat([one.module(part) for part in sets["test"][0].split(100)])
        right[how] = scores.argmax(1) == sets["test"][1]
    right["native, last layer refitted"] = (
        _refit(made["native"], *sets["train"], sets["test"][0]) == sets["test"][1]
    )
    best = max(("resize", "crop"), key=lambda how: int(right[how].sum()))
    tuned, other = right["native, last layer refitted"], right[best]
    gain = difference(int((other & ~tuned).sum()), int((tuned & ~other).sum()), len(tuned))
    rows = [{"how": how, "accuracy": share(hits[:, None]).to_dict()} for how, hits in right.items()]
    return {
        "net": net.name,
        "size": size,
        "rows": rows,
        "best": best,
        "gain": gain.to_dict(),
        "images": count,
    }


def _refit(native: Net, x: Tensor, labels: Tensor, tried: Tensor) -> Tensor:
    """Classes of `tried` by the network whose last layer was fitted to x: regularized towards its own weights."""
    last = [name for name, part in native.module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)][
        -1
    ]
    part = native.module.get_submodule(last)
    assert isinstance(part, nn.Conv2d | nn.Linear)
    assert part.bias is not None
    features = []
    for images in (x, tried):
        taken = [captured(native, piece, [last], torch.float32)[last][0] for piece in images.split(100)]
        features.append(torch.cat(taken).flatten(2).mean(2) if taken[0].ndim == 4 else torch.cat(taken))
    own = part.weight.detach().flatten(1)
    weight, bias = own.clone().requires_grad_(True), part.bias.detach().clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (
            functional.cross_entropy(features[0] @ weight.T + bias, labels)
            + 0.1 * (weight - own).square().sum()
        )
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (features[1] @ weight.detach().T + bias.detach()).argmax(1)
