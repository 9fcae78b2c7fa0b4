"""Options that several verbs share, as the command line shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

WORK = Group("Work", sort_key=1)
MODEL = Group("Model", sort_key=2)
OUTPUT = Group("Output", sort_key=3)
Flag = Annotated[bool, Parameter(show_default=False)]
OutFlag = Annotated[bool, Parameter(show_default=False, group=OUTPUT)]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded and run.

    Attributes:
        weights: Trained weights: a .safetensors, .pt or .pth file, or 'hub' to download the published ones.
        input: Input size: 224, 320x360 (height x width) or 1x28x28 (channels first).
        mean: Normalization of the input, one number a channel, by commas: 0.485,0.456,0.406.
        std: The same, for the scale.
        labels: A text file with one class name a line.
        trust: Load files that can run code: pickled modules, TorchScript, .pt2.
        random: Go on with untrained weights, whose pictures are noise.
        list_layers: Only list the layers of MODEL.
        seed: Every random choice follows from it.
        threads: CPU threads; all by default.
        device: cpu, cuda, cuda:1, mps; the fastest at hand by default.
    """

    weights: str | None = None
    input: str | None = None
    mean: str | None = None
    std: str | None = None
    labels: Path | None = None
    trust: Flag = False
    random: Flag = False
    list_layers: Flag = False
    seed: int = 0
    threads: int | None = None
    device: str | None = None


@Parameter(name="*", group=WORK)
@dataclass(frozen=True)
class AtlasOptions:
    """Which units are drawn, and how.

    Attributes:
        layers: Which layers, by commas, with * and ?; a spread over the depth by default.
        channels: Which channels of each layer: 3, 0:8, 1,5,9 or all; a few of each by default.
        all: Every channel of every convolution.
        data: Photographs for natural examples: a file or a folder; a dozen embedded ones by default.
        steps: At most so many optimizer steps a picture.
        quick: Fewer pictures and fewer steps, for a first impression.
        fresh: Throw away what the folder holds, instead of going on with it.
    """

    layers: str | None = None
    channels: str | None = None
    all: Flag = False
    data: Path | None = None
    steps: int | None = None
    quick: Flag = False
    fresh: Flag = False


@Parameter(name="*", group=WORK)
@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and which rows are shown in what order.

    Attributes:
        layers: Only rows of these layers, by commas, with * and ?.
        sort: Most expensive first, by a column: macs, params, element_ops, activation_bytes, seconds, ...
        depth: One row for all layers whose names begin with the same so many parts.
        batch: So many images at once.
        backward: Count the gradients' MACs too.
        latency: Time every layer and the whole.
        memory: Measure the peak of the memory.
        consistency: Measure how predictions hold under shifts, turns, scalings and noise.
        border: Measure how far padding reaches, and how strongly.
        health: Look for dead channels.
        all: All of these.
        data: Images for consistency, border and health: a file or a folder; embedded ones by default.
    """

    layers: str | None = None
    sort: str | None = None
    depth: int | None = None
    batch: int | None = None
    backward: Flag = False
    latency: Flag = False
    memory: Flag = False
    consistency: Flag = False
    border: Flag = False
    health: Flag = False
    all: Flag = False
    data: Path | None = None


@Parameter(name="*", group=WORK)
@dataclass(frozen=True)
class CompareOptions:
    """What is compared.

    Attributes:
        data: Images: a file, or a folder (of class folders for accuracy); embedded ones by default.
        limit: At most so many images.
        features: Units to draw in both: auto, or LAYER:CHANNELS, several by semicolons: conv1:0,3;conv2:0:4.
        border: Also measure what padding changes.
        consistency: Also measure how predictions hold under shifts.
        all: Both of these, and whatever else there is.
        quick: Only count and run the images: no latency, memory, receptive field.
        cost: Of more than two networks, what is to be low: macs, params or latency.
    """

    data: Path | None = None
    limit: int | None = None
    features: str | None = None
    border: Flag = False
    consistency: Flag = False
    all: Flag = False
    quick: Flag = False
    cost: str = "macs"


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class OutputOptions:
    """How results are told.

    Attributes:
        json: Print one JSON document on stdout.
        debug: Show the traceback of an error.
    """

    json: Flag = False
    debug: Flag = False


MODEL_DEFAULT, ATLAS_DEFAULT, OUTPUT_DEFAULT = ModelOptions(), AtlasOptions(), OutputOptions()
MEASURE_DEFAULT, COMPARE_DEFAULT = MeasureOptions(), CompareOptions()
