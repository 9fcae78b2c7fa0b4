"""From options to the arguments of the API: networks, devices, numbers and channels out of text."""

from __future__ import annotations

import os
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import convscope
from convscope.commands.options import AtlasOptions, MeasureOptions, ModelOptions, OutputOptions
from convscope.commands.terminal import escape, print_result, print_table, say
from convscope.errors import BadInput, ConvscopeWarning, RequestError

if TYPE_CHECKING:
    from convscope.models import Net


def load_net(model: str | None, options: ModelOptions, output: OutputOptions) -> Net:
    """The Net that the options describe; with --list-layers, prints its layers and ends there."""
    if options.threads is not None:
        set_threads(options.threads)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for package.module:factory; last, so that nothing is shadowed
    labels = None if options.labels is None else _read_lines(options.labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvscopeWarning)
        net = convscope.load(
            model,
            input=options.input,
            weights=options.weights,
            trust=options.trust,
            labels=labels,
            seed=options.seed,
        )
        if options.mean is not None or options.std is not None:
            spec = net.input
            known = given(mean=_numbers("mean", options.mean), std=_numbers("std", options.std))
            net = convscope.load(net, input=replace(spec, **known))
    told = [str(warning.message) for warning in caught if issubclass(warning.category, ConvscopeWarning)]
    for text in dict.fromkeys(
        [*told, *(note for note in net.warnings if not any(note in line for line in told))]
    ):
        say(f"[yellow]warning:[/] {escape(text)}")
    if options.list_layers:
        _print_layers(net, output)
        raise SystemExit(0)
    return net


def names_a_model(text: str | None) -> bool:
    """Whether a lone argument is a MODEL rather than a layer or a photograph."""
    if text is None:
        return False
    from convscope._sources import EMBEDDED

    is_scheme = bool(re.match(r"[A-Za-z_][\w.]*:(?!pre$|post$)", text)) and not os.path.exists(text)
    return (
        is_scheme or text in ("embedded", *EMBEDDED) or text.endswith((".pt", ".pth", ".pt2", ".safetensors"))
    )


def run_settings(options: ModelOptions) -> dict[str, Any]:
    return given(device=device_of(options.device)) | {"seed": options.seed, "random": options.random}


def atlas_settings(work: AtlasOptions, options: ModelOptions) -> dict[str, Any]:
    if work.all and work.layers is not None:
        raise RequestError(
            "--all and --layers were both given; --all is every convolution, so leave one out."
        )
    layers = "all" if work.all else work.layers.split(",") if work.layers else None
    channels = "all" if work.channels == "all" else channels_of(work.channels)
    data = None if work.data is None else str(work.data)
    chosen = given(layers=layers, channels=channels, data=data, steps=work.steps)
    return chosen | run_settings(options) | {"quick": work.quick, "fresh": work.fresh}


def measure_settings(work: MeasureOptions, options: ModelOptions) -> dict[str, Any]:
    names = ("backward", "latency", "memory", "consistency", "border", "health", "all")
    data = None if work.data is None else str(work.data)
    chosen = {name: getattr(work, name) for name in names} | {"seed": options.seed}
    return chosen | given(batch=work.batch, data=data)


def moved(net: Net, options: ModelOptions) -> Net:
    """The network, which is ours alone, on the device asked for."""
    device = device_of(options.device)
    if device is not None:
        net.module.to(device)
    return net


def given(**values: Any) -> dict[str, Any]:
    """What was asked for; the rest keeps the API's own defaults."""
    return {name: value for name, value in values.items() if value is not None}


def device_of(text: str | None) -> str | None:
    """The device asked for, checked; a CUDA device where there is one and nothing was asked."""
    import torch

    if text is None:
        return "cuda" if torch.cuda.is_available() else None
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
        reason = str(error).splitlines()[0].rstrip(".")
        raise RequestError(
            f"device {text!r} cannot be used ({reason}); leave --device out, or give cpu."
        ) from error
    return text


def set_threads(count: int) -> None:
    if count < 1:
        raise RequestError(f"--threads {count} must be at least 1; leave it out for all cores.")
    import torch

    torch.set_num_threads(count)


def channels_of(text: str | None) -> list[int] | None:
    """Channels from "3", "1,5,9", "0:8", "0:64:8", or several of these by commas."""
    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)|(\d*):(\d+)(?::(\d+))?)\s*", part, flags=re.ASCII)
        numbers = match and [int(number) if number else None for number in match.groups()]
        if not numbers or numbers[3] == 0:
            raise RequestError(
                f"--channels {text!r} must be numbers or ranges START:END, such as 3, 1,5,9 or 0:8."
            )
        one, start, end, step = numbers
        chosen += [one] if one is not None else range(start or 0, end or 0, step or 1)
    if not chosen:
        raise RequestError(f"--channels {text!r} is empty; START:END goes from START to END - 1.")
    return list(dict.fromkeys(chosen))


def features_of(text: str | None) -> dict[str, list[int]] | str | None:
    """Layer -> channels from "conv1:0,3;conv2:0:4"; "auto" as it is."""
    if text is None or text == "auto":
        return text
    found: dict[str, list[int]] = {}
    for part in text.split(";"):
        layer, _, channels = part.strip().partition(":")
        wanted = channels_of(channels) if layer and channels else None
        if wanted is None:
            raise RequestError(
                f"--features {text!r} must be auto or LAYER:CHANNELS, such as conv1:0,3 or conv2:0:4."
            )
        found.setdefault(layer, []).extend(wanted)
    return found


def edge_of(text: str) -> str | int | tuple[int, int]:
    """Canvas from "auto", "128" or "96x128" (height x width)."""
    match = re.fullmatch(r"auto|(\d{1,5})(?:x(\d{1,5}))?", text, flags=re.ASCII)
    if not match:
        raise RequestError(
            f"--size {text!r} must be auto, pixels such as 128, or HEIGHTxWIDTH such as 96x128."
        )
    height, width = match.groups()
    return "auto" if height is None else int(height) if width is None else (int(height), int(width))


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(
            f"--{name} {text!r} must be numbers by commas, one a channel, such as 0.5,0.5,0.5."
        ) from None


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--labels {str(path)!r} cannot be read as text: {error}; give one name a line."
        ) from error


def _print_layers(net: Net, output: OutputOptions) -> None:
    """Every layer that runs, in the order of the run, with the channels there are to look at."""
    from convscope.graph import record

    graph = record(net)
    often = {call.name for call in graph.calls if call.index}
    rows = [
        {
            "layer": f"{call.name}#{call.index}" if call.name in often else call.name,
            "kind": call.kind,
            "shape": list(call.out_shapes[0][1:]) if call.out_shapes else [],
        }
        for call in graph.calls
        if call.name
    ]
    if output.json:
        print_result(rows)
        return
    cells = [[str(row["layer"]), str(row["kind"]), "x".join(map(str, row["shape"]))] for row in rows]
    print_table(("layer", "kind", "output"), cells)
