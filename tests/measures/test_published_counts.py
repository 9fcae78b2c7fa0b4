"""Parameters and MACs of torchvision's classification weights, as their metadata publish them; on the meta device.

The default suite takes one model a family; `make sweep` takes every entry and writes docs/sweep-counts.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convscope import measure
from convscope._torchvision import torchvision
from convscope.measures.profile import Profile

TABLE = Path(__file__).parents[2] / "docs" / "sweep-counts.md"
FAMILIES = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
    mobilenet_v3_large mobilenet_v3_small regnet_y_400mf resnet50 resnext50_32x4d shufflenet_v2_x0_5
    squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2
""".split()  # noqa: SIM905

# Published GMACs are rounded to three decimals, which of these is more than 0.5 %: 0.0565 is told as 0.057.
ROUNDED = {"mobilenet_v3_small", "shufflenet_v2_x0_5"}


@dataclass(frozen=True)
class Entry:
    """One entry of one weights enum, with what was counted."""

    name: str
    weights: str
    size: int
    published: tuple[int, float]
    params: int
    gmacs: float
    seconds: float

    @property
    def error(self) -> float:
        return self.gmacs / self.published[1] - 1

    @property
    def is_right(self) -> bool:
        if self.name in ROUNDED:
            return self.params == self.published[0] and round(self.gmacs, 3) == self.published[1]
        return self.params == self.published[0] and abs(self.error) < 0.005


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules are built without values; regnet works its widths out with tensors, which need theirs."""
    from torchvision.models.regnet import BlockParams

    original: Any = BlockParams.__dict__["from_init_params"]

    def with_values(cls: type, *args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return original.__func__(cls, *args, **kwargs)

    BlockParams.from_init_params = classmethod(with_values)
    try:
        with torch.device("meta"):
            yield
    finally:
        BlockParams.from_init_params = original


def build(name: str, size: int) -> nn.Module:
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name == "googlenet":  # its published weights come without the two heads for training
        options["aux_logits"] = False
    if name.startswith("vit_"):
        options["image_size"] = size
    with on_meta():
        return torchvision().models.get_model(name, **options).eval()


def entries(names: list[str], **settings: Any) -> Iterator[tuple[Entry, Profile]]:
    models = torchvision().models
    for name in names:
        for weights in models.get_model_weights(name):
            began = time.perf_counter()
            (size,) = weights.transforms().crop_size
            p = measure(build(name, size), input=(3, size, size), **settings)
            published = weights.meta["num_params"], weights.meta["_ops"]
            seconds = time.perf_counter() - began
            yield (
                Entry(name, weights.name, size, published, p.totals.params, p.totals.macs / 1e9, seconds),
                p,
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family(name: str) -> None:
    for entry, p in entries([name], fields=False, training=False):
        assert entry.is_right, entry
        assert not p.uncounted
        assert sum(row.params for row in p.layers) + p.totals.unused_params == p.totals.params


@pytest.mark.sweep
@pytest.mark.timeout(600)
def test_every_entry_within_two_minutes() -> None:
    models = torchvision().models
    found = []
    for entry, p in entries(models.list_models(module=models)):
        found.append(entry)
        assert not p.uncounted, (entry, p.uncounted)
        assert all(row.receptive_field is not None or row.no_field for row in p.layers)
    TABLE.write_text(table(found), "utf-8")
    assert not [entry for entry in found if not entry.is_right]
    assert sum(entry.seconds for entry in found) < 120


def table(found: list[Entry]) -> str:
    worst = max((entry for entry in found if entry.name not in ROUNDED), key=lambda entry: abs(entry.error))
    lines = [
        "# Parameters and MACs of torchvision's classification models",
        "",
        "Made by `make sweep` (`tests/measures/test_published_counts.py`), on the meta device: every weights entry that",
        "torchvision publishes with its number of parameters and GMACs (there called GFLOPs). *Published* GMACs are",
        f"rounded to three decimals, which explains {' and '.join(sorted(ROUNDED))}; of all others",
        f"{worst.name} is off most, by {100 * worst.error:+.2f} %. {len(found)} entries in "
        f"{sum(entry.seconds for entry in found):.0f} s, building, receptive fields and training memory included.",
        "",
        "| model | weights | input | parameters | published | GMACs | published | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for e in found:
        cells = (e.name, e.weights, str(e.size), f"{e.params:,}", f"{e.published[0]:,}", f"{e.gmacs:.4f}")
        lines.append(f"| {' | '.join(cells)} | {e.published[1]} | {100 * e.error:+.2f} % |")
    return "\n".join(lines) + "\n"
