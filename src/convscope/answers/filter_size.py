"""The size of filters: what larger ones cost in the network asked, how far they see, and what trained studies say of accuracy.

Costs are those of the network with its kernels exchanged by `rules.KernelSize`; accuracies are read from study records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope import timing
from convscope.answers.asked import Asked, needs_channels
from convscope.answers.base import Chart, Draft, Finding, Verdict, fill, found, unstudied
from convscope.answers.contrasts import Studied, by_interval, depends, interval, studied
from convscope.answers.evidence import trained
from convscope.answers.layers import convolutions, profile_of
from convscope.errors import BadInput, ConvscopeError
from convscope.measures.figures import Sheet
from convscope.measures.measure import measure
from convscope.measures.receptive_field import receptive_field
from convscope.models import Net
from convscope.rewrites.kernel_size import KernelSize
from convscope.rewrites.rewrite import rewrite

PARTS = ("network", "valid", "stacks", "shapes")

_SIZES = (1, 3, 5, 7, 9, 11)
_SMALL, _LARGE = 3, 7  # what studies compare
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
    learned = studied(asked, {str(k): {"kernel_size": k} for k in (1, 3, 5, 7, 11)})
    return Draft(
        statement=_statement(network, learned),
        findings=tuple(findings(asked, network, valid, stacks, shapes, learned)),
        tables=tuple(_tables(network, valid, stacks, learned)),
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
    made, rows = {}, []
    for size in _SIZES:
        try:
            made[size] = rewrite(net, KernelSize(size, where=where), seed=asked.seed).net
        except ConvscopeError as error:
            rows.append({"size": size, "reason": str(error)})
    x = net.input.example(1, seed=asked.seed)
    budget = 1.5 if asked.quick else 15.0
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
        times = timing.measure(runs, budget=0.5 if quick else 3.0, grain=0.002)
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
        times = timing.measure(runs, budget=0.5 if quick else 3.0, grain=0.002)
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
        rows.append(
            {
                "side": n,
                "whole": functional.conv2d(x, whole).numel(),
                "padded": functional.conv2d(x, whole, padding="same").numel(),
                "point": functional.conv2d(x, point).numel(),
            }
        )
    return {"rows": rows}


# ---------------------------------------------------------------- told


def findings(
    asked: Asked,
    network: dict[str, Any],
    valid: dict[str, Any],
    stacks: dict[str, Any],
    shapes: dict[str, Any],
    learned: Studied | None,
) -> list[Finding]:
    """The verdicts, from the figures and the records."""
    small, large = {"kernel_size": _SMALL}, {"kernel_size": _LARGE}
    return [
        _faster(network, valid),
        _fits(learned),
        _fine(asked, network),
        _fewer(network),
        _context(asked, network),
        _one_value(shapes),
        depends(
            asked,
            "S7",
            "a study of 3x3 against 7x7 filters on objects of 14 and of 28 pixels in a frame of 28",
            first=small,
            second=large,
            here={"object_size": 14},
            there={"object_size": 28},
            places=("on small objects", "on large ones"),
        ),
        _resolution(
            depends(
                asked,
                "S8",
                "a study of 3x3 against 7x7 filters on the same images at 14 and at 28 pixels",
                first=small,
                second=large,
                here={"resolution": "28"},
                there={"resolution": "14"},
                places=("at 28 pixels", "at 14"),
            )
        ),
        _deep(
            network,
            depends(
                asked,
                "S9",
                "a study of 3x3 against 7x7 filters with one and with three layers a stage; and the kernels of the network",
                first=small,
                second=large,
                here={"depth": 3},
                there={"depth": 1},
                places=("with three layers a stage", "with one"),
            ),
        ),
        _stacked(asked, stacks),
    ]


def _measured(network: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in network["rows"] if "params" in row]


def _spread(network: dict[str, Any]) -> dict[str, Any]:
    """The smallest and the largest size, as figures."""
    rows = _measured(network)
    first, last = rows[0], rows[-1]
    return {
        "net": network["net"],
        "small": first["size"],
        "large": last["size"],
        "time": last["ratio"]["median"] / first["ratio"]["median"],
        "memory": last["bytes"] / first["bytes"],
        "params": last["params"] / first["params"],
        "macs": last["macs"] / max(first["macs"], 1),
        "step": last["step"]["median"] / first["step"]["median"],
    }


def _faster(network: dict[str, Any], valid: dict[str, Any]) -> Finding:
    """S1, with padding in the network and without in a layer."""
    rows, told = _measured(network), _spread(network)
    faster = rows[-1]["ratio"]["high"] < rows[0]["ratio"]["low"] and told["memory"] < 1
    cheap = [
        row
        for row in valid["rows"][1:]
        if row["macs"] < valid["rows"][0]["macs"] and row["ratio"]["high"] < 1
    ]
    dear = max(valid["rows"], key=lambda row: row["macs"])
    told |= {"side": valid["side"], "dear": dear["size"], "from_": cheap[0]["size"] if cheap else None}
    test = (
        "{net} with all its kernels of {small} to {large}, sizes of maps kept, timed here, weights and activations counted; "
        "and one unpadded layer on a map of {side}"
    )
    say = (
        "From {small}x{small} to {large}x{large} the network took {time:x} the time and {memory:x} the memory. Unpadded, the "
        "layer costs most at {dear}x{dear}"
    )
    if faster:
        return found("S1", True, test, say + ".", **told)
    if cheap:
        say += " and less than with 3x3 from {from_}x{from_} on, where few positions are left."
        when = "the map is not padded and the kernel nearly covers it ({from_} of {side} pixels)"
        return found("S1", Verdict.WHEN, test, say, when=when, **told)
    return found("S1", False, test, say + ", and no larger kernel is cheaper than 3x3.", **told)


def _fits(learned: Studied | None) -> Finding:
    """S2: the training accuracy, and the gap to the test, of small and large filters."""
    test = "a study of filter sizes: training accuracy of 3x3 less that of 11x11, and the gap to the test of both"
    if learned is None:
        return unstudied("S2", test)
    under = learned.score({("3", "train"): 1.0, ("11", "train"): -1.0})
    over = learned.score(
        {("3", "train"): 1.0, ("3", "test"): -1.0, ("11", "train"): -1.0, ("11", "test"): 1.0}
    )
    if under is None or over is None:
        return unstudied("S2", test)
    told = {
        "study": learned.study,
        "small": learned.mean("3", "train"),
        "large": learned.mean("11", "train"),
        **interval(under),
        "gap": 100 * ((learned.mean("3", "train") or 0) - (learned.mean("3", "test") or 0)),
        "gap_large": 100 * ((learned.mean("11", "train") or 0) - (learned.mean("11", "test") or 0)),
        "more": interval(over)["points"],
        "more_low": interval(over)["low"],
        "more_high": interval(over)["high"],
    }
    say = (
        "In the study {study}, 3x3 reached {small:.1%} in training and 11x11 {large:.1%} ({points:+.2f} points, {low:+.2f} to "
        "{high:+.2f}); from training to test 3x3 lost {gap:.2f} points and 11x11 {gap_large:.2f} ({more:+.2f} points, "
        "{more_low:+.2f} to {more_high:+.2f}), over {seeds} seeds."
    )
    signs = [_sign(under.low, under.high), _sign(over.low, over.high)]
    if signs == [1, 1]:
        return found("S2", True, test, say, **told)
    if -1 in signs:
        return found("S2", False, test, say, **told)
    when = "{seeds} seeds tell at most one of the two halves"
    return found("S2", Verdict.OPEN, test, say, when=when, **told)


def _sign(low: float | None, high: float | None) -> int:
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _fine(asked: Asked, network: dict[str, Any]) -> Finding:
    """S3: small things by a study, large patterns by what a position sees."""
    test = "a study of 3x3 against 7x7 filters on objects of 14 pixels; and what the last layer of {net} sees with 3x3"
    test = fill(test, {"net": network["net"]})
    made = trained(
        asked,
        "S3",
        test,
        first={"kernel_size": _SMALL, "object_size": 14},
        second={"kernel_size": _LARGE, "object_size": 14},
    )
    fields = {row["size"]: row["field"] for row in _measured(network)}
    if _SMALL not in fields or not made.figures:
        return made
    figures = {"field": fields[_SMALL], "input": network["input"], "last": network["last"]}
    misses = min(a / b for a, b in zip(figures["field"], figures["input"], strict=True)) < 1
    text = " With 3x3 a position of {last} sees {field} of {input} pixels, so that large patterns "
    text += "are missed." if misses else "are not missed at that depth."
    verdict, when = made.verdict, made.when
    if verdict is Verdict.HOLDS and not misses:
        verdict, when = Verdict.WHEN, "the layers are too few to see all of the image"
    return Finding(
        made.claim, made.test, {**made.figures, **figures}, verdict, made.sentence + fill(text, figures), when
    )


def _fewer(network: dict[str, Any]) -> Finding:
    """S4: parameters, and times forward and in training."""
    rows, told = _measured(network), _spread(network)
    sizes = [row["params"] for row in rows]
    told["slower"] = ", ".join(
        f"{small['size']}x{small['size']}"
        for small, large in zip(rows, rows[1:], strict=False)
        if small["ratio"]["low"] > large["ratio"]["high"]
    )
    test = "{net} with all its kernels of {small} to {large}: parameters, and times of a pass and of a pass with gradients, here"
    say = (
        "From {large}x{large} down to {small}x{small} there are {params:x} fewer parameters and {macs:x} fewer MACs; it ran "
        "{time:x} as fast and took {step:x} less time with gradients."
    )
    fewer = all(a < b for a, b in zip(sizes, sizes[1:], strict=False))
    faster = (
        rows[0]["ratio"]["high"] < rows[-1]["ratio"]["low"]
        and rows[0]["step"]["high"] < rows[-1]["step"]["low"]
    )
    if fewer and faster and told["slower"]:
        when = "the smaller size is not {slower}, which ran slower than the next"
        return found("S4", Verdict.WHEN, test, say, when=when, **told)
    return found("S4", fewer and faster, test, say, **told)


def _context(asked: Asked, network: dict[str, Any]) -> Finding:
    """S5: what a position sees, and by a study how much noise costs."""
    test = "what a position of the last layer sees, by kernel size; and a study of 3x3 against 7x7 filters on noisy images"
    made = depends(
        asked,
        "S5",
        test,
        first={"kernel_size": _SMALL},
        second={"kernel_size": _LARGE},
        here={"noise": 0.5},
        there={"noise": 0.0},
        places=("on noisy images", "on clean ones"),
    )
    rows = _measured(network)
    figures = {
        "first": rows[0]["size"],
        "last": rows[-1]["size"],
        "near": rows[0]["field"],
        "far": rows[-1]["field"],
        "grows": all(a["field"][0] < b["field"][0] for a, b in zip(rows, rows[1:], strict=False)),
    }
    text = "With {first}x{first} a position sees {near} pixels, with {last}x{last} {far}. "
    verdict, when = made.verdict, made.when
    if not figures["grows"]:
        verdict, when = Verdict.NOT, ""
    elif verdict is Verdict.NOT:
        verdict, when = (
            Verdict.WHEN,
            "context is meant: noise cost the larger filters no more than the smaller ones",
        )
    return Finding(
        made.claim, made.test, {**made.figures, **figures}, verdict, fill(text, figures) + made.sentence, when
    )


def _one_value(shapes: dict[str, Any]) -> Finding:
    """S6."""
    rows = shapes["rows"]
    told = {
        "tried": len(rows),
        "one": sum(row["whole"] == 1 for row in rows),
        "kept": sum(row["point"] == row["side"] ** 2 for row in rows),
        "padded": sum(row["padded"] == row["side"] ** 2 for row in rows),
    }
    test = "kernels as large as their map, and 1x1, on maps of {tried} sizes, by torch's own convolution"
    say = (
        "Unpadded, {one} of {tried} kernels of the map's size left one value; padded to the same size, {padded} of {tried} left "
        "as many as there were; 1x1 kept all of {kept}."
    )
    if told["one"] == told["kept"] == told["tried"]:
        return found(
            "S6",
            Verdict.WHEN,
            test,
            say,
            when="the map is not padded, and one value a filter is meant",
            **told,
        )
    return found("S6", False, test, say, **told)


def _resolution(made: Finding) -> Finding:
    """S8 says two things: that small filters gain with the resolution, and that large ones do."""
    if made.verdict is Verdict.HOLDS:
        when = "it is the half that says: high-resolution input wants small filters"
    elif made.verdict is Verdict.NOT:
        when = "it is the half that says: large images want large filters"
    else:
        return made
    return Finding(made.claim, made.test, made.figures, Verdict.WHEN, made.sentence, when)


def _deep(network: dict[str, Any], made: Finding) -> Finding:
    """S9: beside the study, the kernels that the network has."""
    figures = {"net": network["net"], "kernels": ", ".join(map(str, network["own"]))}
    text = " Kernels larger than 1x1 in {net} are {kernels} wide."
    return Finding(
        made.claim,
        made.test,
        {**made.figures, **figures},
        made.verdict,
        made.sentence + fill(text, figures),
        made.when,
    )


def _stacked(asked: Asked, stacks: dict[str, Any]) -> Finding:
    """S10: accuracy by a study; costs and reach beside."""
    test = "a study of one 5x5 against two 3x3 layers, each with its activation; counted and timed on {channels} channels"
    made = trained(
        asked,
        "S10",
        fill(test, stacks),
        first={"block": "two 3x3"},
        second={"block": "one 5x5"},
        margin=0.01,
    )
    rows = {row["name"]: row for row in stacks["rows"]}
    figures: dict[str, Any] = {}
    for one, many, word in (("one 5x5", "two 3x3", "five"), ("one 7x7", "three 3x3", "seven")):
        figures |= {
            f"{word}_macs": rows[many]["macs"] / rows[one]["macs"],
            f"{word}_time": stacks["ratios"][one]["median"],
            f"{word}_same": rows[many]["field"] == rows[one]["field"],
        }
    text = (
        " Two 3x3 do {five_macs:.2f} of the MACs of one 5x5 and took {five_time:.2f} of its time; three {seven_macs:.2f} and "
        "{seven_time:.2f} of one 7x7"
    )
    text += "; they see as many pixels." if figures["five_same"] and figures["seven_same"] else "."
    return Finding(
        made.claim,
        made.test,
        {**made.figures, **figures},
        made.verdict,
        made.sentence + fill(text, figures),
        made.when,
    )


def _statement(network: dict[str, Any], learned: Studied | None) -> str:
    told = _spread(network)
    say = (
        "From {small}x{small} to {large}x{large} the kernels of {net} cost {params:x} the parameters, {macs:x} the MACs and {time:x} "
        "the time on this machine. "
    )
    scores = _scores(learned)
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


def _scores(learned: Studied | None) -> Mapping[str, tuple[float, float]]:
    """Size -> mean accuracy on test and training."""
    if learned is None:
        return {}
    pairs = {name: (learned.mean(name), learned.mean(name, "train")) for name in learned.variants}
    return {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}


def _tables(
    network: dict[str, Any], valid: dict[str, Any], stacks: dict[str, Any], learned: Studied | None
) -> list[Sheet]:
    rows = tuple(
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
    heads = ("kernels", "parameters>", "MACs>", "memory>", "time>", "with gradients, of 3x3>", "sees>")
    tables = [Sheet(f"{network['net']} with all kernels of one size", heads, rows)]
    if learned is not None:
        rows = tuple(
            (f"{name}x{name}", f"{100 * train:.1f} %", f"{100 * test:.1f} %", f"{100 * (train - test):.1f}")
            for name, (test, train) in _scores(learned).items()
        )
        heads = ("kernels", "training>", "test>", "gap, points>")
        tables.append(Sheet(f"accuracy in the study {learned.study}, mean over seeds", heads, rows))
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
    tables.append(Sheet(title, ("layers", "parameters>", "MACs>", "sees>", "time>"), rows))
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
    tables.append(Sheet(title, ("kernel", "positions>", "MACs>", "time, of 3x3>"), rows))
    return tables


def _charts(network: dict[str, Any], valid: dict[str, Any], learned: Studied | None) -> tuple[Chart, ...]:
    rows = _measured(network)
    base = next(row for row in rows if row["size"] == network["base"])
    series = {
        "time": [(float(row["size"]), row["ratio"]["median"]) for row in rows],
        "MACs": [(float(row["size"]), row["macs"] / max(base["macs"], 1)) for row in rows],
        "parameters": [(float(row["size"]), row["params"] / base["params"]) for row in rows],
    }
    title = f"what the kernels of {network['net']} cost"
    charts = [
        Chart("costs", title, "kernel size", f"multiple of {network['base']}x{network['base']}", series, "y")
    ]
    unpadded = {"MACs": [(float(row["size"]), float(row["macs"])) for row in valid["rows"]]}
    charts.append(Chart("unpadded", "an unpadded layer on a map of 28", "kernel size", "MACs", unpadded))
    scores = _scores(learned)
    if scores:
        curves = {
            split: [(float(name), 100 * scores[name][place]) for name in scores]
            for place, split in enumerate(("test", "training"))
        }
        charts.append(
            Chart("accuracy", "accuracy in the study on record", "kernel size", "accuracy, %", curves)
        )
    return tuple(charts)
