"""What padding does to each layer: the values, and how they print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from convscope.measures.visits import border_distance

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False)
class BorderLayer:
    """What padding does to one layer.

    Attributes:
        layer: its name, with `#k` where the module is called several times.
        grid: number of positions along each axis.
        share: share of the positions that touch padding, over all paths.
        local_share: the same through local paths alone, where another path sees the whole image; None where none does.
        reach: positions from the border that all touch padding, (before, after) for each axis, through local paths.
        reach_pixels: the same in pixels of the input.
        touched: Tensor [*grid] of bool, through local paths where there are any.
        is_global: whether a path sees the whole image, so that inner positions may change as well.
        covered: whether the picture was extended by all that the layer's features see; None where not measured.
        content: mean share of what the features see in the extended pictures that is their own content rather than
            filled in; None where not measured.
        change_map: Tensor [*grid] of float64: the norm over channels (root mean square over images) of what changes
            when the picture goes on in place of padding, relative to that of the features themselves over all
            positions; None where it cannot be measured, and `note` says why.
        strength: norm of the features that touch padding relative to the same ones without it; None where not measured
            or nothing is touched.
        note: what the reader should know.
    """

    layer: str
    grid: tuple[int, ...]
    share: float
    local_share: float | None
    reach: tuple[tuple[int, int], ...]
    reach_pixels: tuple[tuple[float, float], ...]
    touched: Tensor
    is_global: bool
    covered: bool | None = None
    content: float | None = None
    change_map: Tensor | None = None
    strength: float | None = None
    note: str = ""

    @property
    def change(self) -> float | None:
        """Mean relative change over all positions."""
        return None if self.change_map is None else float(self.change_map.mean())

    @property
    def border_change(self) -> float | None:
        """Mean relative change where padding is touched."""
        if self.change_map is None or not bool(self.touched.any()):
            return None
        return float(self.change_map[self.touched].mean())

    @property
    def interior_change(self) -> float | None:
        """Largest relative change where no local path touches padding: 0 but for rounding in a local network."""
        if self.change_map is None or bool(self.touched.all()):
            return None
        return float(self.change_map[~self.touched].max())

    @property
    def profile(self) -> tuple[float, ...] | None:
        """Mean relative change of the positions at each distance from the border, from the outermost inwards."""
        if self.change_map is None:
            return None
        distance = border_distance(self.grid)
        depths = range(int(distance.max()) + 1)
        return tuple(float(self.change_map[distance == depth].mean()) for depth in depths)

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain values; `maps` adds the maps as nested lists."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "grid": list(self.grid),
            "share": self.share,
            "local_share": self.local_share,
            "reach": [list(pair) for pair in self.reach],
            "reach_pixels": [list(pair) for pair in self.reach_pixels],
            "is_global": self.is_global,
            "covered": self.covered,
            "content": self.content,
            "change": self.change,
            "border_change": self.border_change,
            "interior_change": self.interior_change,
            "strength": self.strength,
            "profile": None if self.profile is None else list(self.profile),
            "note": self.note,
        }
        if maps:
            found["touched"] = self.touched.tolist()
            found["change_map"] = None if self.change_map is None else self.change_map.tolist()
        return found


@dataclass(frozen=True, eq=False)
class Border:
    """What padding does to each layer of a network.

    Attributes:
        layers: by name, in order of running.
        size: the input's size.
        margin: pixels by which the picture was extended on each side, one number an axis; () where not measured.
        data: what was fed.
        samples: how many pictures.
        fill: how pictures too small were gone on with: "reflect", "circular" or "replicate"; "none" where all of them
            were large enough.
        content: mean share of the extended pictures that is their own content rather than filled in.
        left_out: the layers that are not looked at although they compute something, with the reason.
    """

    layers: Mapping[str, BorderLayer]
    size: tuple[int, ...]
    margin: tuple[int, ...]
    data: str
    samples: int
    fill: str
    content: float
    left_out: Mapping[str, str]

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain values; `maps` adds the maps of all layers as nested lists."""
        return {
            "size": list(self.size),
            "margin": list(self.margin),
            "data": self.data,
            "samples": self.samples,
            "fill": self.fill,
            "content": self.content,
            "left_out": dict(self.left_out),
            "layers": {name: row.to_dict(maps=maps) for name, row in self.layers.items()},
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        size = " x ".join(map(str, self.size))
        told = f"what padding does at {size}"
        if self.margin:
            told += f": {self.samples} of {self.data}, extended by {' x '.join(map(str, self.margin))} pixels a side"
            told += "" if self.fill == "none" else f" ({self.content:.0%} own content, the rest {self.fill})"
        table = Table(title=Text(told), title_justify="left")
        table.add_column("layer", overflow="fold")
        for name in (
            "positions",
            "touching",
            "reach",
            "in pixels",
            "change there",
            "inside",
            "overall",
            "strength",
        ):
            table.add_column(name, justify="right")
        table.add_column("note", overflow="fold")
        for row in self.layers.values():
            share = (
                f"{row.share:.1%}"
                if row.local_share is None
                else f"{row.share:.1%} ({row.local_share:.1%} locally)"
            )
            table.add_row(
                Text(row.layer),
                " x ".join(map(str, row.grid)),
                share,
                " ".join(f"{before}/{after}" for before, after in row.reach),
                " ".join(f"{before:g}/{after:g}" for before, after in row.reach_pixels),
                _percent(row.border_change),
                _percent(row.interior_change),
                _percent(row.change),
                _percent(row.strength),
                Text(row.note),
            )
        return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
