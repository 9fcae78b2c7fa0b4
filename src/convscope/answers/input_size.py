"""Images of another size than the network was made for: every way to take them, what each loses and costs.

The new size is to the network's own as 320x360 is to 256x256. At the new size the last layer is refitted on its features (from
the trained weights, and solved, not searched, so that no seed matters), and the last two are fine-tuned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.answers.asked import Asked, Seen, needs_channels
from convscope.answers.base import Draft, fill
from convscope.answers.running import captured, outputs
from convscope.answers.tuning import LEAST, Lesson, mixed
from convscope.answers.tuning import tuned as tuned_on
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
from convscope.rewrites.input_sizes import input_sizes
from convscope.rewrites.paired import difference

PARTS = ("ways", "detail", "sizes", "refitted")

_OTHER = "{net} has no global pool, so that {other} was run at other sizes"
_STANDS = (
    "no labelled images of {net} were given, or too few to train on: its last layers stand as {other}'s here"
)
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
    learner, learns = _learning(asked, net)
    refitted = asked.part(
        "refitted", lambda: _refitted(asked, learner, learns), net=learner, data=learns, timed=True
    )
    return Draft(
        statement=statement(net, ways, detail, refitted),
        findings=(loses(detail, ways), tuned(refitted), anywhere(runs)),
        tables=(table(ways), runs_table(runs), refit_table(refitted)),
        pictures=(picture(detail),),
        notes=(
            *(() if own else (fill(_OTHER, {"net": net.name, "other": pooled.name}),)),
            *(() if learns else (fill(_STANDS, {"net": net.name, "other": learner.name}),)),
        ),
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


def _learning(asked: Asked, net: Net) -> tuple[Net, bool]:
    """The network whose last layers are trained: the one asked for where enough images are labelled, else an embedded one."""
    if asked.data is None or isinstance(asked.data, Tensor):
        known = net.labels == LABELS and net.input.shape == (1, 28, 28)
    else:
        known = asked.images(net, 1).labels is not None and len(pictures(asked.data)) >= 2 * LEAST
    return (net, True) if known and not isinstance(asked.data, Tensor) else (asked.example("fashion"), False)


def _lesson(asked: Asked, net: Net, own: bool) -> Lesson:
    """Images of the new size, to learn from and to score on."""
    size, count = _grown(net), 400 if asked.quick else 2000
    spec = net.input.with_size(*size)
    if own and asked.data is not None:
        images, labels, source = _pictures(asked, net, size, min(2 * count, max(asked.limit(net), 4 * LEAST)))
        assert labels is not None
        x = spec.normalize(images).to(net.input.dtype)
        return Lesson(
            mixed(x[::2], labels[::2], asked.seed), Seen(x[1::2], labels[1::2], f"every other of {source}")
        )
    sets = []
    for split in ("train", "test"):
        images, labels = (part[:count] for part in clothes(split))
        grown = functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        sets.append((spec.normalize(grown), labels))
    return Lesson(sets[0], Seen(*sets[1], f"{len(sets[1][0]):,} test images of Fashion-MNIST, enlarged"))


def _refitted(asked: Asked, net: Net, own: bool) -> dict[str, Any]:
    """Every way at the new size with labels, then the last layers fitted to it: accuracy and cost of each."""
    taught = _lesson(asked, net, own)
    seen, size = taught.score, _grown(net)
    assert seen.labels is not None
    made = input_sizes(net, *size, seen.x, seen.labels.tolist(), budget=0.5 if asked.quick else 3.0)
    right = {how: classes == seen.labels for how, classes in made.predictions.items()}
    rows = [_told(row.how, right.get(row.how), row.macs, row.latency, row.reason) for row in made.rows]
    native, costs = made.nets.get("native"), next(row for row in made.rows if row.how == "native")
    if native is not None:
        fitted: dict[str, Tensor | str] = {
            "native, last layer refitted": _refit(native, *taught.learn, seen.x),
            "native, last layers fine-tuned": _tuned(asked, native, taught),
        }
        for how, classes in fitted.items():
            reason = classes if isinstance(classes, str) else None
            if isinstance(classes, Tensor):
                right[how] = classes == seen.labels
            rows.append(_told(how, right.get(how), costs.macs, costs.latency, reason))
    best = max(
        (how for how in ("resize", "crop", "pad", "tiles") if how in right),
        key=lambda how: int(right[how].sum()),
    )
    ours = max((how for how in right if "last" in how), key=lambda how: int(right[how].sum()), default=None)
    gain = None
    if ours is not None:
        mine, other = right[ours], right[best]
        gain = difference(int((other & ~mine).sum()), int((mine & ~other).sum()), len(mine)).to_dict()
    told = {"net": net.name, "size": size, "rows": rows, "best": best, "gain": gain, "ours": ours}
    return told | {"images": len(seen.x), "learned": len(taught.learn[0]), "source": seen.source}


def _told(
    how: str, right: Tensor | None, macs: int | None, latency: Any, reason: str | None
) -> dict[str, Any]:
    return {
        "how": how,
        "accuracy": None if right is None else share(right[:, None]).to_dict(),
        "macs": macs,
        "time": None if latency is None else latency.to_dict(),
        "reason": reason,
    }


def _tuned(asked: Asked, native: Net, taught: Lesson) -> Tensor | str:
    """Classes by the network whose last two layers with weights were trained on at the new size; or why they were not."""
    weighty = [
        name for name, part in native.module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    made = tuned_on(asked, native, taught, layers=weighty[-2:], epochs=4 if asked.quick else 10, most=400)
    return made if isinstance(made, str) else outputs(made, taught.score.x).flatten(1).argmax(1)


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
