"""Feature visualization against lucent: pictures a second, their worth, time to the same result.

    python benchmarks/features.py --vgg vgg16_features.safetensors --out results.json

One process, one set of threads, both tools on the same networks, layers, channels, picture size and
steps, timed in turn. README.md beside this file says what each figure means.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STEPS = 64  # of the timed runs
DEFAULT = 512  # lucent's default number of steps
BUDGETS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
HELD_OUT = 16  # transforms a score is averaged over
PACKAGES = ("convscope", "torch", "torchvision", "timm", "numpy", "torch-lucent", "kornia")


def arguments() -> argparse.Namespace:
    """The command line; read before torch is imported, because lucent takes any CUDA device it sees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--vgg", type=Path, help="weights of torchvision's vgg16().features, safetensors; else no VGG-16"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; rewritten after every case")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels", type=int, default=8, help="channels a layer, and units a batch")
    parser.add_argument("--judged", type=int, default=8, help="of them, channels whose pictures are judged")
    parser.add_argument(
        "--cases", default="", help="comma-separated parts of case names: 'vgg', 'blocks.1.1'"
    )
    parser.add_argument("--measures", default="speed,quality,overhead", help="which of the three to run")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each tool")
    parser.add_argument(
        "--quick", action="store_true", help="few steps and channels: a smoke run, no figure to quote"
    )
    parser.add_argument("--pictures", type=Path, help="folder for the pictures compared")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return options


if __name__ == "__main__":
    OPTIONS = arguments()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import machine  # noqa: E402
import networks  # noqa: E402
import peer  # noqa: E402
from convscope import load  # noqa: E402
from convscope.features import transform  # noqa: E402
from convscope.features.network import density  # noqa: E402
from convscope.features.objectives import Channel  # noqa: E402
from convscope.features.optimize import Recipe, climb  # noqa: E402
from convscope.features.session import Session, Settings, Wanted, stream  # noqa: E402
from convscope.features.transform import Mover, Robust  # noqa: E402
from convscope.features.visualize import visualize  # noqa: E402
from convscope.graph import record  # noqa: E402
from convscope.models import Net  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One layer of one network."""

    name: str
    net: Net
    layer: str
    channels: tuple[int, ...]
    depth: float  # share of the network's multiply-accumulates up to and with this layer


def cases(options: argparse.Namespace) -> list[Case]:
    """The five layers, or those asked for."""
    chosen: list[tuple[str, Net, str]] = []
    if options.vgg is not None:
        net = networks.vgg(options.vgg)
        chosen += [("vgg16 relu2_2", net, "features.8"), ("vgg16 relu4_3", net, "features.22")]
    lite = load()
    chosen += [
        (f"efficientnet_lite0 {layer}", lite, layer) for layer in ("blocks.1.1", "blocks.3.2", "blocks.5.3")
    ]
    parts = [part for part in options.cases.split(",") if part]
    made = []
    for name, net, layer in chosen:
        if parts and not any(part in name for part in parts):
            continue
        alive = networks.living(net, layer)
        order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(0))
        channels = tuple(sorted(alive[k] for k in order[: options.channels].tolist()))
        made.append(Case(name, net, layer, channels, _depth(net, layer)))
    return made


def _depth(net: Net, layer: str) -> float:
    """Share of the multiply-accumulates of all convolutions that run up to the layer's end."""
    graph = record(net)
    last = graph.call(layer).order
    done = total = 0.0
    for op in graph.ops:
        weight = op.tensors.get("weight")
        if op.name != "aten.convolution" or not isinstance(weight, int):
            continue
        work = math.prod(graph.values[op.outputs[0]].shape) * math.prod(graph.values[weight].shape[1:])
        total += work
        done += work if op.call is None or op.call <= last else 0.0
    return done / total


# -- pictures ------------------------------------------------------------------------------------------


def ours(
    case: Case,
    steps: int,
    device: torch.device,
    *,
    size: Any = peer.SIDE,
    dtype: str = "auto",
    stop: bool = False,
) -> Any:
    """convscope's pictures of the case's channels, one batch, its defaults; all steps run unless `stop`."""
    recipe = Recipe(steps=steps) if stop else Recipe(steps=steps, tolerance=0.0)
    return visualize(
        case.net, case.layer, case.channels, size=size, recipe=recipe, device=device, dtype=dtype,
        batch=len(case.channels), random=True,
    )  # fmt: skip


def theirs(case: Case, steps: int, device: torch.device, channel: int) -> Tensor:
    """lucent's picture of one channel, on a model of its own."""
    return peer.draw(_whole(case.net, device), case.net.input, case.layer, channel, (steps,))[steps]


_WHOLE: dict[tuple[str, str], nn.Module] = {}


def _whole(net: Net, device: torch.device) -> nn.Module:
    """The network as a user hands it to lucent: `model.to(device).eval()`."""
    key = (net.name, device.type)
    if key not in _WHOLE:
        _WHOLE[key] = copy.deepcopy(net.module).to(device).eval()
    return _WHOLE[key]


class Cut(nn.Module):
    """A network that ends at a layer: the same pictures in less time, where time is not measured."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.inner = module

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            raise networks.Reached

        # Behind lucent's own hook, so that it has seen the value.
        self.layer, self.leave = module.get_submodule(layer), leave

    def forward(self, x: Tensor) -> None:
        handle = self.layer.register_forward_hook(self.leave)
        try:
            self.inner(x)
        except networks.Reached:
            pass
        finally:
            handle.remove()


def lucent_pictures(case: Case, thresholds: Sequence[int], device: torch.device) -> dict[int, Tensor]:
    """lucent's pictures: steps -> Tensor [channel, 3, 128, 128]. Drawn on a frozen, truncated copy."""
    module = Cut(copy.deepcopy(case.net.module).requires_grad_(False), case.layer).to(device).eval()
    drawn = [
        peer.draw(module, case.net.input, f"inner.{case.layer}", channel, thresholds, seed=number)
        for number, channel in enumerate(case.channels)
    ]
    return {steps: torch.stack([pictures[steps] for pictures in drawn]) for steps in thresholds}


# -- what a picture is worth ---------------------------------------------------------------------------


class Judge:
    """Scores pictures on the original network in float32.

    A score is the mean activation of the channel after a Gaussian blur of the picture (sigma 1 pixel),
    averaged over 16 random moves that no picture was optimized on and that are the same for both tools.
    """

    def __init__(self, case: Case, device: torch.device, robust: Robust | None = None) -> None:
        self.case, self.device = case, device
        self.module = copy.deepcopy(case.net.module).to(device).eval().requires_grad_(False)
        self.robust = robust or Robust()
        self.moves = transform.draw(self.robust, HELD_OUT, [stream(2**40, case.name, "the judge's moves")])
        self.mover = Mover(self.robust, (peer.SIDE, peer.SIDE), device)

    def held_out(self, pictures: Tensor, fed: int = peer.SIDE) -> list[float]:
        """The score of each picture [channel, 3, 128, 128], fed at `fed` pixels."""
        soft = blur(pictures.to(self.device))
        total = torch.zeros(len(pictures), device=self.device)
        for move in self.moves.to(self.device):
            total += self._activation(self.mover(soft, move.expand(len(soft), -1)), fed)
        return (total / len(self.moves)).tolist()

    def clean(self, pictures: Tensor, fed: int = peer.SIDE) -> list[float]:
        """The mean activation on the picture as it is."""
        return self._activation(pictures.to(self.device), fed).tolist()

    @torch.no_grad()
    def _activation(self, pictures: Tensor, fed: int) -> Tensor:
        """Tensor [channel]: picture k on channel k."""
        x = pictures if fed == pictures.shape[-1] else peer.enlarge(pictures, fed)
        value = networks.truncated(self.module, self.case.layer, self.case.net.input.normalize(x))
        return torch.stack(
            [value[row, channel].mean() for row, channel in enumerate(self.case.channels[: len(x)])]
        )


def blur(pictures: Tensor, sigma: float = 1.0) -> Tensor:
    """A Gaussian blur of pictures [picture, channel, height, width], reflected at the border."""
    reach = math.ceil(4 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1, device=pictures.device).square() / (2 * sigma**2))
    taps = taps / taps.sum()
    flat = pictures.flatten(0, 1)[:, None]
    flat = functional.pad(flat, (reach, reach, reach, reach), mode="reflect")
    flat = functional.conv2d(functional.conv2d(flat, taps[None, None, None]), taps[None, None, :, None])
    return flat.view_as(pictures)


def total_variation(pictures: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels, median over pictures."""
    across = (pictures[..., 1:] - pictures[..., :-1]).abs().flatten(1).mean(1)
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().flatten(1).mean(1)
    return float(((across + down) / 2).median())


# -- measures ------------------------------------------------------------------------------------------


def speed(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second at 128 pixels and the same steps."""
    device = torch.device(options.device)
    steps, rounds = (4, 1) if options.quick else (STEPS, options.rounds)
    count = len(case.channels)
    autos = {"bfloat16", "float32", "auto"}
    runs: dict[str, Callable[[], Any]] = {
        "lucent": lambda: theirs(case, steps, device, case.channels[0]),
        **{dtype: lambda dtype=dtype: ours(case, steps, device, dtype=dtype) for dtype in sorted(autos)},
        "auto size": lambda: ours(case, steps, device, size="auto"),
    }
    theirs(case, 2, device, case.channels[0])  # warm
    for dtype in sorted(autos):
        ours(case, 2, device, dtype=dtype)
    canvas = ours(case, 2, device, size="auto").images.shape[-1]
    times = machine.interleaved(runs, rounds, device)
    chosen = ours(case, 1, device).settings["dtype"]
    result: dict[str, Any] = {
        "steps": steps,
        "size": peer.SIDE,
        "units a batch": count,
        "rounds": rounds,
        "auto dtype": chosen,
        "auto size": canvas,
        "lucent pictures/s": machine.spread([1 / t for t in times["lucent"]]),
    }
    for name in ("auto", "float32", "bfloat16", "auto size"):
        each = [t / count for t in times[name]]
        result[f"convscope pictures/s, {name}"] = machine.spread([1 / t for t in each])
        result[f"times faster, {name}"] = machine.spread(machine.ratios(times["lucent"], each))
    return result


def quality(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """What the pictures are worth at the same steps; how soon convscope's are worth lucent's default ones."""
    device = torch.device(options.device)
    case = replace(case, channels=case.channels[: options.judged])
    thresholds = (4, 8) if options.quick else (STEPS, 128, DEFAULT)
    budgets = (4, 8) if options.quick else BUDGETS
    drawn = lucent_pictures(case, thresholds, device)
    judge, grey = Judge(case, device), Judge(case, device, Robust(border=0.5))
    goal = judge.held_out(drawn[thresholds[-1]], peer.FED)
    made = {steps: ours(case, steps, device).images for steps in sorted({*thresholds, *budgets})}
    return {
        "same steps": {
            steps: _compare(judge, grey, made[steps], drawn[steps]) for steps in thresholds
        },
        "time to lucent's default": _race(case, options, judge, made, goal, thresholds[-1], budgets),
        "pictures are those of the whole network": _same(case, device),
        **_keep(case, options, made, drawn),
    }  # fmt: skip


def _compare(judge: Judge, grey: Judge, own: Tensor, other: Tensor) -> dict[str, Any]:
    mine, his = judge.held_out(own), judge.held_out(other, peer.FED)
    clean, his_clean = judge.clean(own), judge.clean(other, peer.FED)
    # lucent pads the picture with grey to 152 pixels before it enlarges it to 224: that zoom, unpadded.
    zoom = round(peer.FED * peer.SIDE / (peer.SIDE + 24))
    return {
        "held out, convscope": _rounded(mine),
        "held out, lucent": _rounded(his),
        "ratio": _median_ratio(mine, his),
        "ratio of clean figures": _median_ratio(clean, his_clean),
        "ratio, grey border": _median_ratio(grey.held_out(own), grey.held_out(other, peer.FED)),
        f"ratio, lucent's fed at {zoom}": _median_ratio(mine, judge.held_out(other, zoom)),
        "total variation": {
            "convscope": machine.significant(total_variation(own), 3),
            "lucent": machine.significant(total_variation(other), 3),
        },
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [machine.significant(value) for value in values]


def _median_ratio(mine: Sequence[float], his: Sequence[float]) -> dict[str, float]:
    """Over channels; a channel that lucent leaves dead counts as won a hundredfold."""
    quotients = [min(a / b, 100.0) if b > 0 else 100.0 for a, b in zip(mine, his, strict=True)]
    return machine.spread(quotients, 3)


def _race(
    case: Case,
    options: argparse.Namespace,
    judge: Judge,
    made: dict[int, Tensor],
    goal: list[float],
    default: int,
    budgets: Sequence[int],
) -> dict[str, Any]:
    """The fewest steps at which each unit is worth lucent's default picture, and the time that takes."""
    device = torch.device(options.device)
    scores = {budget: judge.held_out(made[budget]) for budget in budgets}
    needed = [
        next((budget for budget in budgets if scores[budget][row] >= goal[row]), None)
        for row in range(len(goal))
    ]
    slice_steps = 4 if options.quick else 16
    rows = {}
    for budget in budgets:
        # lucent's time is proportional to its steps: a slice of its run beside each of ours.
        times = machine.interleaved(
            {
                "lucent": lambda: theirs(case, slice_steps, device, case.channels[0]),
                "convscope": lambda budget=budget: ours(case, budget, device),
            },
            1 if options.quick else 2,
            device,
        )
        whole = [t * default / slice_steps for t in times["lucent"]]
        each = [t / len(case.channels) for t in times["convscope"]]
        rows[budget] = {
            "lucent seconds": machine.significant(statistics.median(whole)),
            "convscope seconds": machine.significant(statistics.median(each)),
            "times less": machine.significant(statistics.median(machine.ratios(whole, each))),
            "median score of lucent's": _median_ratio(scores[budget], goal)["median"],
        }
    gains = sorted(0.0 if budget is None else rows[budget]["times less"] for budget in needed)
    return {
        "lucent steps": default,
        "budgets": rows,
        "steps needed": needed,
        "times less, median unit": machine.significant(statistics.median(gains)),
        "times less, all units": gains,
    }


def _same(case: Case, device: torch.device) -> bool:
    """Whether lucent draws the same on the truncated copy as on the whole network."""
    first = replace(case, channels=case.channels[:1])
    difference = theirs(first, 3, device, first.channels[0]) - lucent_pictures(first, (3,), device)[3][0]
    return bool(difference.abs().max() < 1e-3)


def _keep(
    case: Case, options: argparse.Namespace, made: dict[int, Tensor], drawn: dict[int, Tensor]
) -> dict[str, str]:
    """One sheet a case: rows of lucent's and convscope's pictures; only where --pictures is given."""
    if options.pictures is None:
        return {}
    from PIL import Image

    rows = [(f"lucent {steps}", pictures) for steps, pictures in drawn.items()]
    rows += [(f"convscope {steps}", pictures) for steps, pictures in made.items()]
    sheet = torch.cat(
        [torch.cat(list(functional.pad(pictures, (2, 2, 2, 2), value=1.0)), 2) for _, pictures in rows], 1
    )
    options.pictures.mkdir(parents=True, exist_ok=True)
    path = options.pictures / f"{case.name.replace(' ', '_')}.png"
    Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()).save(path)
    return {"sheet": path.name, "rows of the sheet": ", ".join(name for name, _ in rows)}


def overhead(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Time of a step of the loop over that of the bare forward pass and input gradient."""
    device = torch.device(options.device)
    # a whole short climb: its first steps, in which blocked units are rescued, weigh as they do for a user
    steps, rounds = (2, 2) if options.quick else (32, 2 * options.rounds)
    result: dict[str, Any] = {"units a batch": len(case.channels), "size": peer.SIDE, "rounds": rounds}
    for dtype in ("auto", "float32"):
        recipe = Recipe(steps=steps, tolerance=0.0)
        settings = replace(Settings.default(), recipe=recipe)
        session = Session(case.net, [case.layer], settings, device=device, dtype=dtype)
        name = str(session.network.dtype).removeprefix("torch.")
        if name in result:
            continue
        bare = bare_step(case, session.net.copy(), session.network.dtype, device)
        folded = bare_step(case, copy.deepcopy(session.network.module), session.network.dtype, device)
        size = (peer.SIDE, peer.SIDE)
        wanted = [
            Wanted(case.layer, c, 0, Channel(case.layer, c), Channel(case.layer, c)) for c in case.channels
        ]
        bound = settings.parametrization.bind(3, size, device)
        with session._capture(wanted) as capture:
            task = session._task(wanted, size, bound, capture)
            start = session._start(wanted, size, bound, "noise")
            runs = {
                "loop": lambda task=task, start=start, recipe=recipe: climb(task, start, recipe),
                "bare": lambda bare=bare: repeat(bare, steps),
                "bare, folded": lambda folded=folded: repeat(folded, steps),
            }
            machine.interleaved(runs, 1, device)  # warm
            times = machine.interleaved(runs, rounds, device)
        result[name] = {
            "milliseconds a step": {
                key: machine.spread([1e3 * t / steps for t in values]) for key, values in times.items()
            },
            "over the bare": machine.spread([r - 1 for r in machine.ratios(times["loop"], times["bare"])]),
            "over the bare, folded": machine.spread(
                [r - 1 for r in machine.ratios(times["loop"], times["bare, folded"])]
            ),
        }
    return result


def repeat(step: Callable[[], Any], times: int) -> None:
    """Calls a step so many times."""
    for _ in range(times):
        step()


def bare_step(
    case: Case, module: nn.Module, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """The truncated forward pass and the gradient of the channels' means by a fixed random input."""
    module = (
        module.to(device=device, dtype=dtype)
        .to(memory_format=torch.channels_last)
        .requires_grad_(False)
        .eval()
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(case.channels), 3, peer.SIDE, peer.SIDE, generator=generator).to(
        device=device, dtype=dtype
    )
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    rows = torch.arange(len(case.channels), device=device)
    columns = torch.tensor(case.channels, device=device)

    def step() -> Tensor:
        value = networks.truncated(module, case.layer, x)
        (gradient,) = torch.autograd.grad(value[rows, columns].float().mean((1, 2)).sum(), x)
        return gradient

    return step


# -- the run -------------------------------------------------------------------------------------------

MEASURES = {"speed": speed, "quality": quality, "overhead": overhead}


def main(options: argparse.Namespace) -> None:
    """Runs every measure on every case, and says what came out."""
    torch.set_num_threads(options.threads)
    if options.quick:
        options.channels = min(options.channels, 2)
    report: dict[str, Any] = {
        "benchmark": "features",
        "quick": options.quick,
        "machine": machine.describe(torch.device(options.device), PACKAGES),
        "cases": {},
    }
    for case in cases(options):
        began = time.perf_counter()
        found: dict[str, Any] = {
            "layer": case.layer,
            "channels": list(case.channels),
            "half": "shallow" if case.depth <= 0.5 else "deep",
            "share of multiply-accumulates": machine.significant(case.depth, 3),
            "multiply-accumulates an output": machine.significant(density(record(case.net)), 3),
        }
        for name in options.measures.split(","):
            found[name] = MEASURES[name](case, options)
        found["minutes"] = round((time.perf_counter() - began) / 60, 1)
        found["load after"] = machine.load()
        report["cases"][case.name] = found
        print(f"{case.name}: {json.dumps(found, indent=2)}", flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    if not report["cases"]:
        sys.exit(f"no case matches --cases {options.cases!r}")


if __name__ == "__main__":
    main(OPTIONS)
