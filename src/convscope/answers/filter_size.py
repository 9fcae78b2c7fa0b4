"""The size of filters: what larger ones cost in the network asked, how far they see, and what trained studies say of accuracy.

Costs are those of the network with its kernels exchanged by `rules.KernelSize`; accuracies are read from study records.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import timing
from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Chart, Draft, fill
from convscope.answers.contrasts import Studied
from convscope.answers.layers import convolutions, profile_of
from convscope.answers.verdicts.filter_size import accuracies, findings, learned_sizes, measured, spread
from convscope.errors import BadInput, ConvscopeError
from convscope.measures.figures import Sheet
from convscope.measures.measure import measure
from convscope.measures.receptive_field import receptive_field
from convscope.models import Net
from convscope.rewrites.kernel_size import KernelSize
from convscope.rewrites.rewrite import rewrite

PARTS = ("network", "valid", "stacks", "shapes")

_SIZES = (1, 3, 5, 7, 9, 11)
_STACKS = {"one 5x5": (5, 1), "two 3x3": (3, 2), "one 7x7": (7, 1), "three 3x3": (3, 3)}
_NONE = "net {name!r} has no convolution larger than 1x1, and filter-size is about these; ask another network"


def answer(asked: Asked) -> Draft:
    """See the module."""
    needs_channels(asked.net, asked.question.name)
    if not _spatial(asked.net):
        raise BadInput(_NONE.format(name=asked.net.name))
    network = asked.part("network", lambda: _network(asked), timed=True)
    valid = asked.part("valid", lambda: _valid(asked.quick), timed=True)
    stacks = asked.part("stacks", lambda: _stacks(asked.quick), timed=True)
    shapes = asked.part("shapes", _shapes)
    learned = learned_sizes(asked)
    return Draft(
        statement=_statement(network, learned),
        findings=tuple(findings(asked, network, valid, stacks, shapes, learned)),
        tables=tuple(_tables(network, valid, stacks)),
        charts=_charts(network, valid, learned),
    )


def _spatial(net: Net) -> list[Any]:
    return [conv for conv in convolutions(profile_of(net)) if max(conv.kernel) > 1]


# ---------------------------------------------------------------- measured


def _network(asked: Asked) -> dict[str, Any]:
    """The network with all its spatial kernels of one size, for several: counts, memory, times, what a position sees."""
    net = asked.net
    own = sorted({max(conv.kernel) for conv in _spatial(net)})
    where = ",".join(dict.fromkeys(conv.name.partition("#")[0] for conv in _spatial(net)))
    made: dict[int, Net] = {}
    rows: list[dict[str, Any]] = []
    for size in _SIZES:
        try:
            made[size] = rewrite(net, KernelSize(size, where=where), seed=asked.seed).net
        except ConvscopeError as error:
            rows.append({"size": size, "reason": str(error)})
    x = net.input.example(1, seed=asked.seed)
    budget = 0.6 if asked.quick else 10.0
    with torch.no_grad():
        forward = timing.measure(
            {str(k): _call(one.copy(), x) for k, one in made.items()}, budget=budget, grain=0.002
        )
    backward = timing.measure(
        {str(k): _step(one.copy(), x) for k, one in made.items()}, budget=budget, grain=0.002
    )
    last = _spatial(net)[-1].name.partition("#")[0]
    base = str(min(made, key=lambda k: abs(k - 3)))
    for size, one in made.items():
        totals = profile_of(one).totals
        rows.append(
            {
                "size": size,
                "params": totals.params,
                "macs": totals.macs,
                "bytes": totals.weight_bytes + totals.activation_bytes,
                "time": forward[str(size)].to_dict(),
                "ratio": forward[str(size)].over(forward[base]).to_dict(),
                "step": backward[str(size)].over(backward[base]).to_dict(),
                "field": list(receptive_field(one, last).size),
            }
        )
    rows.sort(key=lambda row: row["size"])
    return {
        "net": net.name,
        "own": own,
        "rows": rows,
        "base": int(base),
        "last": last,
        "input": net.input.size,
    }


def _call(module: nn.Module, x: Tensor) -> Any:
    return lambda: module(x)


def _step(module: nn.Module, x: Tensor) -> Any:
    """Forward and backward, as in training a batch of one."""
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def run() -> None:
        output = module(x)
        first = output if isinstance(output, Tensor) else next(iter(output))
        module.zero_grad()
        first.sum().backward()

    return run


def _valid(quick: bool) -> dict[str, Any]:
    """One unpadded layer on a map of 28: the larger the kernel the fewer positions there are to compute."""
    side, channels = 28, 16
    x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    weights = {k: torch.randn(channels, channels, k, k) for k in (3, 7, 11, 15, 19, 23, 27)}
    with torch.no_grad():
        runs = {str(k): _convolve(x, weight) for k, weight in weights.items()}
        times = timing.measure(runs, budget=0.3 if quick else 3.0, grain=0.002)
        rows = [
            {
                "size": k,
                "positions": functional.conv2d(x, weight).shape[-1] ** 2,
                "macs": functional.conv2d(x, weight)[0, 0].numel() * weight.numel(),
                "ratio": times[str(k)].over(times["3"]).to_dict(),
            }
            for k, weight in weights.items()
        ]
    return {"side": side, "channels": channels, "rows": rows}


def _convolve(x: Tensor, weight: Tensor) -> Any:
    return lambda: functional.conv2d(x, weight)


def _stacks(quick: bool) -> dict[str, Any]:
    """One large kernel and the stack of 3x3 that sees as much: counts and times of layers of 32 channels."""
    channels, side = 32, 28
    x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    made = {}
    for name, (kernel, depth) in _STACKS.items():
        parts: list[nn.Module] = []
        for _ in range(depth):
            parts += [nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.ReLU()]
        made[name] = nn.Sequential(*parts).eval()
    with torch.no_grad():
        runs = {name: _call(module, x) for name, module in made.items()}
        times = timing.measure(runs, budget=0.3 if quick else 3.0, grain=0.002)
    rows = []
    for name, module in made.items():
        totals = measure(module, input=x, fields=False, training=False).totals
        field = receptive_field(module, str(len(module) - 2), input=x).size[0]
        rows.append(
            {
                "name": name,
                "params": totals.params,
                "macs": totals.macs,
                "field": field,
                "time": times[name].to_dict(),
            }
        )
    ratios = {
        one: times[many].over(times[one]).to_dict()
        for one, many in (("one 5x5", "two 3x3"), ("one 7x7", "three 3x3"))
    }
    return {"rows": rows, "ratios": ratios, "channels": channels, "side": side}


def _shapes() -> dict[str, Any]:
    """Sizes that torch's convolutions give for kernels as large as their map, and of 1x1."""
    rows = []
    for n in (3, 5, 7, 14, 28):
        x, whole, point = (torch.empty(1, 1, k, k, device="meta") for k in (n, n, 1))
        room = functional.pad(x, ((n - 1) // 2, n // 2) * 2)
        rows.append(
            {
                "side": n,
                "whole": functional.conv2d(x, whole).numel(),
                "padded": functional.conv2d(room, whole).numel(),
                "point": functional.conv2d(x, point).numel(),
            }
        )
    return {"rows": rows}


# ---------------------------------------------------------------- shown


def _statement(network: dict[str, Any], learned: Studied | None) -> str:
    told = spread(network)
    say = (
        "From {small}x{small} to {large}x{large} the kernels of {net} cost {params:x} the parameters, {macs:x} the MACs and "
        "{time:x} the time on this machine. "
    )
    scores = accuracies(learned)
    if not scores:
        return fill(say + "Which size is the most accurate no study on record tells.", told)
    best = max(scores, key=lambda name: scores[name][0])
    worst = min(scores, key=lambda name: scores[name][0])
    told |= {"best": best, "most": scores[best][0], "worst": worst, "least": scores[worst][0]}
    assert learned is not None
    near = [
        name
        for name in scores
        if (gap := learned.score({(name, "test"): 1.0, (best, "test"): -1.0})) is not None
        and (name == best or (gap.low is not None and gap.low > -0.01))
    ]
    told["choice"] = min(near, key=int)
    say += (
        "In the study on record {best}x{best} is the most accurate on average ({most:.1%}; {worst}x{worst} {least:.1%}), and the "
        "smallest size that loses less than a point for sure is {choice}x{choice}."
    )
    return fill(say, told)


def _tables(network: dict[str, Any], valid: dict[str, Any], stacks: dict[str, Any]) -> list[Sheet]:
    rows: tuple[tuple[str, ...], ...] = tuple(
        (
            f"{row['size']}x{row['size']}",
            f"{row['params']:,}",
            f"{row['macs']:,}",
            fill("{bytes:bytes}", row),
            fill("{median:time} ({low:time} to {high:time})", row["time"]),
            f"{row['step']['median']:.2f}",
            fill("{field}", row),
        )
        if "params" in row
        else (f"{row['size']}x{row['size']}", f"refused: {row['reason']}", *[""] * 5)
        for row in network["rows"]
    )
    heads: tuple[str, ...] = (
        "kernels",
        "parameters>",
        "MACs>",
        "memory>",
        "time>",
        "with gradients, of 3x3>",
        "sees>",
    )
    sheets = [Sheet(f"{network['net']} with all kernels of one size", heads, rows)]
    rows = tuple(
        (
            row["name"],
            f"{row['params']:,}",
            f"{row['macs']:,}",
            str(row["field"]),
            fill("{median:time}", row["time"]),
        )
        for row in stacks["rows"]
    )
    title = f"one large kernel, and the stack that sees as much ({stacks['channels']} channels)"
    sheets.append(Sheet(title, ("layers", "parameters>", "MACs>", "sees>", "time>"), rows))
    rows = tuple(
        (
            f"{row['size']}x{row['size']}",
            f"{row['positions']:,}",
            f"{row['macs']:,}",
            f"{row['ratio']['median']:.2f}",
        )
        for row in valid["rows"]
    )
    title = f"one unpadded layer of {valid['channels']} channels on {valid['side']}x{valid['side']}"
    sheets.append(Sheet(title, ("kernel", "positions>", "MACs>", "time, of 3x3>"), rows))
    return sheets


def _charts(network: dict[str, Any], valid: dict[str, Any], learned: Studied | None) -> tuple[Chart, ...]:
    rows = measured(network)
    base = next(row for row in rows if row["size"] == network["base"])
    series = {
        "time": [(float(row["size"]), row["ratio"]["median"]) for row in rows],
        "MACs": [(float(row["size"]), row["macs"] / max(base["macs"], 1)) for row in rows],
        "parameters": [(float(row["size"]), row["params"] / base["params"]) for row in rows],
    }
    title = f"what the kernels of {network['net']} cost"
    drawn = [
        Chart("costs", title, "kernel size", f"multiple of {network['base']}x{network['base']}", series, "y")
    ]
    unpadded = {"MACs": [(float(row["size"]), float(row["macs"])) for row in valid["rows"]]}
    drawn.append(Chart("unpadded", "an unpadded layer on a map of 28", "kernel size", "MACs", unpadded))
    scores = accuracies(learned)
    if scores:
        curves = {
            split: [(float(name), 100 * scores[name][place]) for name in scores]
            for place, split in enumerate(("test", "training"))
        }
        drawn.append(
            Chart("accuracy", "accuracy in the study on record", "kernel size", "accuracy, %", curves)
        )
    return tuple(drawn)
