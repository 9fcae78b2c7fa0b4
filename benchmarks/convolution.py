"""Convolution algorithms against torch and its peers, on layers and whole networks, with everything prepared.

    python benchmarks/convolution.py --parts winograd,fft,auto --out results.json --chart results.svg

Everything that is compared is timed in one process, in turn, on the same data and number of threads. Each part is
written to the JSON file as soon as it is done, and added to what the file holds. README.md beside this file says what
each figure means.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTS = ("winograd", "peers", "vgg", "fft", "auto", "cuda")
PACKAGES = ("convscope", "torch", "llvmlite", "onnxruntime", "openvino", "fft-conv-pytorch", "numpy")


def arguments() -> argparse.Namespace:
    """The command line; read before torch is imported, for the variables that it reads then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts",
        default="winograd,peers,vgg,fft,auto",
        help=f"of {', '.join(PARTS)}, by commas; '' runs none and shows what --out holds",
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; rewritten after every part, other parts in it stay"
    )
    parser.add_argument("--chart", type=Path, help="SVG file: what the JSON file holds, as a chart")
    parser.add_argument(
        "--threads", default="2", help="numbers of threads by commas: each is run, and an axis"
    )
    parser.add_argument("--cases", default="", help="only layers whose name holds one of these, by commas")
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on the timed rounds of a layer")
    parser.add_argument("--quick", action="store_true", help="a smoke run, no figure to quote")
    options = parser.parse_args()
    options.parts = [part for part in options.parts.split(",") if part]
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"--parts {','.join(unknown)}: there are {', '.join(PARTS)}")
    options.threads = [int(count) for count in options.threads.split(",")]
    if "cuda" not in options.parts:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return options


if __name__ == "__main__":
    OPTIONS = arguments()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import contestants  # noqa: E402
import machine  # noqa: E402
from contestants import LAST, Layer, Run, Stack  # noqa: E402
from convscope import algorithms, timing  # noqa: E402
from convscope.algorithms.chooser import GAIN, Choice, choose, forget  # noqa: E402
from convscope.algorithms.problem import Problem  # noqa: E402

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
TILES = ("F(2,3)", "F(4,3)", "F(6,3)")


def winograd_layers() -> list[Layer]:
    """3x3 at stride 1 as in VGG (64 at 224, 128 at 112, ...) and ResNet (64 at 56, 128 at 28, ...)."""
    sizes = {64: (224, 112, 56), 128: (112, 56, 28), 256: (56, 28, 14), 512: (28, 14)}
    return [Layer(n, c, c, size) for n in (1, 8) for c, row in sizes.items() for size in row]


def fft_layers() -> list[Layer]:
    """Dense layers of 64 channels at 56x56, depthwise ones of 192 and 384 at 56x56 and 112x112."""
    dense = [Layer(1, 64, 64, 56, k) for k in (7, 11, 15, 21, 31, 41, 51)]
    depthwise = [
        Layer(1, c, c, size, k, depthwise=True) for c in (192, 384) for size in (56, 112) for k in (31, 51)
    ]
    return [*dense, *depthwise]


def varied_layers() -> list[Layer]:
    """Sixty layers of all kinds: classifiers, detectors, mobile networks, wide kernels."""
    made = [
        Layer(n, c, c, s)
        for n, c, s in ((1, 64, 112), (1, 64, 56), (1, 128, 28), (1, 256, 14), (1, 512, 7), (4, 256, 28))
    ]
    made += [
        Layer(1, c, k, s)
        for c, k, s in ((3, 64, 224), (64, 128, 56), (32, 96, 80), (48, 40, 65), (96, 17, 31), (512, 256, 19))
    ]
    made += [
        Layer(1, c, k, s, 1)
        for c, k, s in ((64, 256, 56), (256, 64, 56), (512, 128, 28), (1024, 256, 14), (96, 24, 112))
    ]
    made += [
        Layer(1, 3, 64, 224, 7, 2),
        Layer(1, 3, 32, 224, 3, 2),
        Layer(1, 128, 128, 56, 3, 2),
        Layer(1, 256, 512, 28, 1, 2),
    ]
    made += [
        Layer(1, 64, 64, s, k)
        for s, k in (
            (56, 5),
            (28, 5),
            (112, 5),
            (56, 7),
            (28, 7),
            (56, 9),
            (56, 11),
            (28, 15),
            (56, 21),
            (56, 31),
        )
    ]
    made += [Layer(n, c, c, 56, 5) for n, c in ((1, 32), (1, 128), (4, 64))]
    made += [Layer(1, 64, 64, 56, 3, dilation=d) for d in (2, 4)] + [Layer(1, 256, 256, 28, 3, dilation=2)]
    made += [
        Layer(1, c, c, s, 3, depthwise=True) for c, s in ((32, 112), (96, 56), (192, 28), (576, 14), (960, 7))
    ]
    made += [Layer(1, c, c, s, 5, depthwise=True) for c, s in ((72, 56), (240, 28), (672, 14))]
    made += [Layer(1, 96, 96, 112, 3, 2, depthwise=True), Layer(1, 240, 240, 56, 5, 2, depthwise=True)]
    made += [Layer(1, c, c, s, 7, depthwise=True) for c, s in ((96, 56), (192, 28), (384, 14), (768, 7))]
    made += [Layer(1, 128, 128, s, k, depthwise=True) for s, k in ((56, 13), (28, 21), (56, 31), (112, 31))]
    made += [Layer(1, 384, 384, 56, 31, depthwise=True)]
    made += [Layer(8, 64, 64, 56), Layer(8, 128, 128, 28), Layer(2, 320, 320, 32), Layer(2, 128, 128, 64, 1)]
    return made


# ---------------------------------------------------------------- figures


def close(output: object, exact: Tensor) -> float:
    """Largest difference from the exact result, relative to its maximum."""
    if isinstance(output, Tensor):
        y = output
    else:  # a list, or OpenVINO's dict of arrays
        y = torch.from_numpy(output[0])  # type: ignore[index]
    return machine.significant(((y.cpu().double() - exact).abs().max() / exact.abs().max()).item(), 3)


def exactly(layer: Layer, x: Tensor, weight: Tensor, few: int = 4) -> Tensor:
    """The first output channels of the first image in float64, for a look at the error."""
    inputs = x[:1].double()
    groups = layer.groups
    if groups > 1:
        inputs, groups = inputs[:, :few], few
    settings = layer.settings | {"groups": groups}
    return F.conv2d(inputs, weight[:few].double(), None, **settings)


def told(times: dict[str, timing.Timing], errors: dict[str, float], ours: Sequence[str]) -> dict[str, Any]:
    """A row: times, errors, and how many times as fast as each other contestant ours are."""
    row: dict[str, Any] = {name: {"ms": _ms(each), "error": errors.get(name)} for name, each in times.items()}
    torch_best = min(
        (name for name in times if name.startswith("torch c")),
        key=lambda name: times[name].median,
        default=None,
    )
    for name in ours:
        against = {other: times[other].over(times[name]).to_dict() for other in times if other not in ours}
        if torch_best is not None:
            against["faster layout"] = times[torch_best].over(times[name]).to_dict()
        row[name]["times as fast as"] = against
    return row


def _ms(times: timing.Timing) -> dict[str, float]:
    return {key: timing.significant(1e3 * getattr(times, key)) for key in ("median", "low", "high")}


def gains(rows: dict[str, Any], ours: str, against: str) -> dict[str, float]:
    """Layer -> median ratio."""
    found = {name: row.get(ours, {}).get("times as fast as", {}).get(against) for name, row in rows.items()}
    return {name: each["median"] for name, each in found.items() if each}


def timed(runs: dict[str, Run], seconds: float, *, settle: float = 0.0) -> dict[str, timing.Timing]:
    """All in turn; what is hopelessly slow beside the fastest drops out after three rounds."""

    def drop(samples: Any) -> list[str]:
        best = min(min(each) for each in samples.values())
        return [name for name, each in samples.items() if len(each) >= 3 and min(each) > max(8 * best, 0.2)]

    return timing.measure(
        runs, rounds=40, budget=seconds, least=5, warmup=2, grain=1e-3, settle=settle, drop=drop,
        dtype=torch.float32,
    )  # fmt: skip


def checked(layer: Layer, runs: dict[str, Run], x: Tensor, weight: Tensor) -> dict[str, float]:
    """Errors of all; a contestant that computes something else ends the benchmark."""
    exact = exactly(layer, x, weight)
    errors = {}
    for name, run in runs.items():
        output = run()
        y = output if isinstance(output, Tensor) else torch.from_numpy(output[0])  # type: ignore[index]
        errors[name] = close(y[:1, : exact.shape[1]], exact)
        assert errors[name] < 1e-3, f"{name} is wrong on {layer.name}: {errors[name]}"
    return errors


# ---------------------------------------------------------------- parts


def winograd(options: argparse.Namespace) -> dict[str, Any]:
    """Winograd, each tile, against torch in both layouts and oneDNN with prepacked weights."""
    rows = {}
    for layer in chosen(winograd_layers(), options):
        x, weight = layer.data()
        last = x.contiguous(memory_format=LAST)
        runs = contestants.eager(layer, x, weight) | {
            "oneDNN prepacked": contestants.prepacked(layer, x, weight)
        }
        for tile in TILES:
            runs[f"winograd {tile}"] = contestants.planned(layer, last, weight, f"winograd:{tile}")
        errors = checked(layer, runs, x, weight)
        ours = [name for name in runs if name.startswith("winograd")]
        rows[layer.name] = told(timed(runs, options.seconds), errors, ours)
        say(layer.name, rows[layer.name], "winograd F(4,3)")
    best = {
        name: max(gains({name: row}, f"winograd {t}", "faster layout")[name] for t in TILES)
        for name, row in rows.items()
    }
    layout, packed = (
        gains(rows, "winograd F(4,3)", other) for other in ("faster layout", "oneDNN prepacked")
    )
    return {
        "layers": rows,
        "goals": [
            goal("F(4,3) over the faster of torch's layouts, geometric mean", 2.8, timing.geometric_mean(layout.values())),
            goal("F(4,3) over oneDNN with prepacked weights, geometric mean", 2.5, timing.geometric_mean(packed.values())),
            goal(f"least over the faster layout, F(4,3), at {min(layout, key=layout.__getitem__)}", 1.8, min(layout.values())),
            goal("best tile over the faster layout, geometric mean", 2.8, timing.geometric_mean(best.values())),
            *worst_error(rows, {"winograd F(2,3)": 2e-6, "winograd F(4,3)": 8e-6, "winograd F(6,3)": 8e-5}),
        ],
    }  # fmt: skip


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """Whole layers, bias and ReLU included, against what else a CPU user would pick."""
    layers = [layer for layer in winograd_layers() if layer.batch == 1]
    rows = {}
    for layer in chosen(layers, options):
        stack = Stack.of([layer.filters], layer.channels)
        x, _ = layer.data()
        rows[layer.name] = against_peers(stack, x, options.seconds)
        say(layer.name, rows[layer.name], "convscope")
    others = sorted({other for row in rows.values() for other in row["convscope"]["times as fast as"]})
    return {
        "layers": rows,
        "goals": [
            goal(
                f"over {other}, geometric mean",
                None,
                timing.geometric_mean(gains(rows, "convscope", other).values()),
            )
            for other in others
        ],
    }


def vgg(options: argparse.Namespace) -> dict[str, Any]:
    """The convolutions of VGG-16, with ReLU and pooling, at 224 x 224."""
    rows = {}
    for batch in (1,) if options.quick else (1, 8):
        x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        name = f"VGG-16, batch {batch}"
        rows[name] = against_peers(Stack.of(VGG, 3), x, 10 * options.seconds)
        say(name, rows[name], "convscope")
    return {
        "layers": rows,
        "goals": [
            goal(f"{name} over {other}", None, each["median"])
            for name, row in rows.items() for other, each in row["convscope"]["times as fast as"].items()
        ],
    }  # fmt: skip


def against_peers(stack: Stack, x: Tensor, seconds: float) -> dict[str, Any]:
    """torch eager and compiled, onnxruntime, OpenVINO, convscope on one stack; errors against float64."""
    last = x.contiguous(memory_format=LAST)
    plain, laid = stack.module(), stack.module().to(memory_format=LAST)  # type: ignore[call-overload]
    model = stack.onnx(x)
    runs: dict[str, Run] = {
        "torch contiguous": lambda: plain(x),
        "torch channels_last": lambda: laid(last),
        "torch.compile": contestants.compiled(stack.module(), x),
        "onnxruntime": contestants.onnxruntime(model, x),
        "OpenVINO": contestants.openvino(model, x),
        "convscope": stack.planned(last, "auto"),
    }
    exact = stack.module().double()(x[:1].double())
    errors = {}
    for name, run in runs.items():
        output = run()
        y = output if isinstance(output, Tensor) else torch.from_numpy(output[0])  # type: ignore[index]
        errors[name] = close(y[:1], exact)
        assert errors[name] < 1e-3, f"{name} is wrong: {errors[name]}"
    return told(timed(runs, seconds, settle=0.01), errors, ["convscope"])


def fft(options: argparse.Namespace) -> dict[str, Any]:
    """FFT against torch in both layouts and fft-conv-pytorch, dense and depthwise, wide kernels."""
    rows = {}
    for layer in chosen(fft_layers(), options):
        x, weight = layer.data()
        runs = contestants.eager(layer, x, weight)
        with torch.no_grad():
            runs["fft-conv-pytorch"] = contestants.fft_conv(layer, x, weight)
        for layout, each in (("contiguous", x), ("channels_last", x.contiguous(memory_format=LAST))):
            runs[f"fft {layout}"] = contestants.planned(layer, each, weight, "fft")
        errors = checked(layer, runs, x, weight)
        rows[layer.name] = told(timed(runs, options.seconds), errors, ["fft contiguous", "fft channels_last"])
        say(layer.name, rows[layer.name], "fft channels_last")

    def best(against: str) -> dict[str, float]:
        both = [gains(rows, f"fft {layout}", against) for layout in ("contiguous", "channels_last")]
        return {name: max(each[name] for each in both if name in each) for name in {**both[0], **both[1]}}

    layout, peer = best("faster layout"), best("fft-conv-pytorch")
    dense = {
        n: r for n, r in layout.items() if "depthwise" not in n and int(n.split()[1].split("x")[0]) >= 31
    }
    depthwise = {name: ratio for name, ratio in layout.items() if "depthwise" in name}
    return {
        "layers": rows,
        "goals": [
            *lowest("dense, k >= 31, over the faster layout, least", 5.0, dense),
            *lowest("depthwise, k >= 31, over the faster layout, least", 1.2, depthwise),
            *lowest("over fft-conv-pytorch, least", 5.0, peer),
            *worst_error(rows, {"fft contiguous": 2e-6, "fft channels_last": 2e-6}),
        ],
    }


def auto(options: argparse.Namespace) -> dict[str, Any]:
    """`auto` on varied layers, in the layout that suits torch better, against direct in both."""
    rows, spent = {}, 0.0
    for layer in chosen(varied_layers(), options):
        x, weight = layer.data()
        runs = contestants.eager(layer, x, weight)
        first = timing.measure(runs, rounds=3, budget=0.2)
        layout = min(first, key=lambda name: first[name].median).removeprefix("torch ")
        given = x.contiguous(memory_format=LAST) if layout == "channels_last" else x
        problem = Problem.of(x, weight, **layer.settings)
        choice = choose(problem, layout=layout)
        spent += choice.spent
        runs["auto"] = contestants.planned(layer, given, weight, "auto")
        errors = checked(layer, runs, x, weight)
        row = told(timed(runs, options.seconds / 2), errors, ["auto"])
        rows[layer.name] = row | {"choice": chosen_by(choice), "layout": layout}
        say(layer.name, row, "auto", choice.name)
    ratios = {name: row["auto"]["times as fast as"]["faster layout"] for name, row in rows.items()}
    slow = {n: r for n, r in ratios.items() if r["high"] < 0.97 and direct_ms(rows[n]) >= 1.0}
    faster = [each["median"] for name, each in ratios.items() if rows[name]["choice"]["a faster one exists"]]
    found: list[dict[str, Any]] = [
        goal("layers of 1 ms or more wholly below 0.97x of direct", 0, len(slow), at_most=True)
        | {"layers": slow}
    ]
    if faster:
        found.append(
            goal(
                f"over direct on the {len(faster)} where a faster one exists, geometric mean",
                1.2,
                timing.geometric_mean(faster),
            )
        )
    found.append(
        goal(
            "over direct on all, geometric mean",
            None,
            timing.geometric_mean(r["median"] for r in ratios.values()),
        )
    )
    return {"layers": rows, "goals": found, "seconds spent choosing": round(spent, 1)}


def chosen_by(choice: Choice) -> dict[str, Any]:
    """What was chosen, and whether anything beat direct when it was measured."""
    timed_ = [each for each in choice.tried if each.seconds is not None]
    direct = min((e.seconds.median for e in timed_ if e.algorithm == "direct" and e.seconds), default=0.0)
    others = [each.seconds.median for each in timed_ if each.algorithm != "direct" and each.seconds]
    return {
        "name": choice.name,
        "why": choice.reason,
        "seconds spent": round(choice.spent, 2),
        "a faster one exists": bool(others) and min(others) * GAIN < direct,
    }


def direct_ms(row: dict[str, Any]) -> float:
    return min(row[f"torch {layout}"]["ms"]["median"] for layout in ("contiguous", "channels_last"))


def cuda(options: argparse.Namespace) -> dict[str, Any]:
    """The same layers on a CUDA device, cuDNN's own benchmark on, TF32 off."""
    if not torch.cuda.is_available():
        raise SystemExit("part cuda: no CUDA device is at hand; leave the part out.")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = {}
    for layer in chosen([*winograd_layers(), *fft_layers()], options):
        x, weight = layer.data("cuda")
        runs = contestants.eager(layer, x, weight)
        for name in ("winograd", "fft", "auto"):
            if (
                name == "auto"
                or algorithms.ALGORITHMS[name].refuses(Problem.of(x, weight, **layer.settings)) is None
            ):
                runs[name] = contestants.planned(layer, x, weight, name)
        errors = checked(layer, runs, x.cpu(), weight.cpu())
        times = timing.measure(
            runs, rounds=40, budget=options.seconds, warmup=3, grain=1e-3, device="cuda", dtype=torch.float32
        )
        rows[layer.name] = told(times, errors, [name for name in runs if not name.startswith("torch")])
        say(layer.name, rows[layer.name], "auto")
    over = gains(rows, "auto", "faster layout")
    wins = sum(ratio <= GAIN for ratio in over.values())
    return {
        "layers": rows,
        "gpu": torch.cuda.get_device_name(),
        "goals": [
            goal("auto over cuDNN, geometric mean", None, timing.geometric_mean(over.values())),
            goal(f"layers of {len(over)} on which cuDNN is not beaten", None, wins),
        ],
    }


RUN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "winograd": winograd, "peers": peers, "vgg": vgg, "fft": fft, "auto": auto, "cuda": cuda,
}  # fmt: skip


# ---------------------------------------------------------------- goals


def goal(what: str, wanted: float | None, reached: float, *, at_most: bool = False) -> dict[str, Any]:
    """A line of the table of goals; without a wanted figure it is only told."""
    reached = machine.significant(reached, 3)
    met = None if wanted is None else reached <= wanted if at_most else reached >= wanted
    return {"goal": what, "wanted": wanted, "reached": reached, "met": met}


def lowest(what: str, wanted: float, ratios: dict[str, float]) -> list[dict[str, Any]]:
    """The least of some ratios as a goal, and where it is; their geometric mean beside."""
    if not ratios:
        return []
    where = min(ratios, key=ratios.__getitem__)
    return [
        goal(f"{what}, at {where}", wanted, ratios[where]),
        goal(f"{what.rsplit(',', 1)[0]}, geometric mean", None, timing.geometric_mean(ratios.values())),
    ]


def worst_error(rows: dict[str, Any], limits: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Errors against float64, relative to the output's maximum."""
    for name, limit in limits.items():
        errors = [row[name]["error"] for row in rows.values() if name in row and row[name]["error"]]
        if errors:
            yield goal(f"largest error of {name}", limit, max(errors), at_most=True)


# ---------------------------------------------------------------- running and writing


def chosen(layers: Sequence[Layer], options: argparse.Namespace) -> list[Layer]:
    """Those asked for; every fifth in a smoke run."""
    wanted = [part for part in options.cases.split(",") if part]
    some = [layer for layer in layers if not wanted or any(part in layer.name for part in wanted)]
    return some[::5] if options.quick else some


def say(name: str, row: dict[str, Any], ours: str, more: str = "") -> None:
    """A line on stderr for each layer."""
    ratios = row[ours]["times as fast as"]
    figures = ", ".join(f"{each['median']:.2f}x {other}" for other, each in ratios.items())
    print(f"  {name:34} {row[ours]['ms']['median']:9.3f} ms  {figures}  {more}", file=sys.stderr, flush=True)


@contextmanager
def own_memory() -> Iterator[None]:
    """What `auto` remembers from other runs does not count here."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSCOPE_CACHE"] = folder
        forget()
        yield


def write(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        from convscope.store import atomic_write

        atomic_write(path, json.dumps(found, indent=1) + "\n")


def main(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"parts": {}}
    if options.out is not None and options.out.exists():
        found = json.loads(options.out.read_text())
    for threads in options.threads:
        torch.set_num_threads(threads)
        for part in options.parts:
            print(f"{part}, {threads} thread{'s' if threads > 1 else ''}", file=sys.stderr, flush=True)
            with own_memory(), torch.inference_mode(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="torch._inductor")
                result = RUN[part](options)
            facts = {"machine": machine.describe(torch.device("cuda" if part == "cuda" else "cpu"), PACKAGES)}
            found["parts"].setdefault(part, {})[str(threads)] = facts | {"quick": options.quick} | result
            write(options.out, found)
    for part in options.parts or found["parts"]:
        for threads, result in found["parts"][part].items():
            print(f"{part}, {threads} threads:")
            for each in result["goals"]:
                mark = {True: "reached", False: "MISSED", None: ""}[each["met"]]
                wanted = "" if each["wanted"] is None else f"wanted {each['wanted']:g}"
                print(f"  {each['goal']:90} {each['reached']:<10g} {wanted:14} {mark}")
    if options.chart is not None:
        from chart import draw

        draw(found, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main(OPTIONS))
