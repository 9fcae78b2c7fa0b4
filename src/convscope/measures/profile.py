"""A profile: what every layer of a network costs and sees, one row a layer call, with the network's totals.

Values only. `convscope.measures.measure` makes them, `profile_table` prints them, `profile_diff` compares two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from convscope.errors import RequestError, UnknownLayer, nearest
from convscope.graph.structure import Graph, Shape, split_address
from convscope.measures.receptive_field import ReceptiveField

if TYPE_CHECKING:
    from convscope.measures.profile_columns import Column
    from convscope.measures.profile_diff import ProfileDiff
    from convscope.measures.profile_table import Branch

MEASURES = ("latency", "memory", "consistency", "border", "health")  # optional, each a file of its own


@dataclass(frozen=True)
class LayerRow:
    """What one call of one layer costs and sees.

    A row is a call of a module without submodules, or what a module with submodules does itself, between them:
    a residual addition, attention, a functional activation. Every operation belongs to one row, so that rows
    sum to the totals.

    Attributes:
        name: the address of the call: dotted module name, with `#k` where the module is called several times;
            "" is the network itself.
        kind: class name of the module.
        functional: whether it is what a module with submodules does between them.
        in_shapes, out_shapes: of the tensors the call took and returned, as they ran, batch included.
        kernel, stride, padding, dilation: of its convolution or pooling, one number an axis; None where it
            has none, or several that differ.
        groups: of its convolution.
        params: parameters that its operations are the first to read.
        shared_params: parameters it reads that stand in the row of an earlier call.
        weight_bytes: memory of `params`.
        macs: multiply-accumulates.
        backward_macs: of the two gradients; None unless asked for.
        element_ops: operations on elements beside the multiply-accumulates; see `count_rules`.
        activation_bytes: new memory that its operations made; views and in-place operations make none.
        peak_bytes: the most memory that activations, the network's input among them, take while it runs.
        training_bytes: what it adds to the memory that a backward pass needs; None where not measured.
        moved_bytes: what its operations read and write, each tensor once an operation.
        receptive_field: of the first tensor it returns; None where there is none, for the reason in `no_field`.
        no_field: why there is no receptive field, or "".
        ops: operator name -> how often it ran.
        uncounted: those of them whose cost is not known, likewise.
        calls: how many calls the row sums up; more than 1 after `Profile.group`.
        members: names of the rows it sums up; () where it is none but itself.
    """

    name: str
    kind: str
    functional: bool = False
    in_shapes: tuple[Shape, ...] = ()
    out_shapes: tuple[Shape, ...] = ()
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None
    params: int = 0
    shared_params: int = 0
    weight_bytes: int = 0
    macs: int = 0
    backward_macs: int | None = None
    element_ops: int = 0
    activation_bytes: int = 0
    peak_bytes: int = 0
    training_bytes: int | None = None
    moved_bytes: int = 0
    receptive_field: ReceptiveField | None = None
    no_field: str = ""
    ops: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
    calls: int = 1
    members: tuple[str, ...] = ()

    @property
    def in_shape(self) -> Shape:
        """Shape of the first tensor it takes, batch included; () where it takes none."""
        return self.in_shapes[0] if self.in_shapes else ()

    @property
    def out_shape(self) -> Shape:
        """Shape of the first tensor it returns, batch included; () where it returns none."""
        return self.out_shapes[0] if self.out_shapes else ()

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity: operations (2 x MACs + element operations) a byte moved; None for no bytes."""
        return (2 * self.macs + self.element_ops) / self.moved_bytes if self.moved_bytes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "functional": self.functional,
            "in": list(self.in_shape),
            "out": list(self.out_shape),
            "kernel": _listed(self.kernel),
            "stride": _listed(self.stride),
            "padding": _listed(self.padding),
            "dilation": _listed(self.dilation),
            "groups": self.groups,
            "params": self.params,
            "shared_params": self.shared_params,
            "weight_bytes": self.weight_bytes,
            "macs": self.macs,
            "backward_macs": self.backward_macs,
            "element_ops": self.element_ops,
            "activation_bytes": self.activation_bytes,
            "peak_bytes": self.peak_bytes,
            "training_bytes": self.training_bytes,
            "moved_bytes": self.moved_bytes,
            "intensity": self.intensity,
            "receptive_field": None if self.receptive_field is None else self.receptive_field.to_dict(),
            "no_field": self.no_field,
            "ops": dict(self.ops),
            "uncounted": dict(self.uncounted),
            "calls": self.calls,
        }


def _listed(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else list(values)


@dataclass(frozen=True)
class Totals:
    """What the whole network costs in one forward pass on the example input.

    Attributes:
        params: parameters of the network, each once, used or not.
        unused_params: those of them that no operation of the pass read.
        macs, backward_macs, element_ops, moved_bytes: sums over the layers.
        weight_bytes: memory of the parameters and buffers, each once.
        activation_bytes: the most memory that activations take at one moment of an inference, the input
            included, each tensor from the operation that makes it until Python lets go of it; a workspace
            inside an operation is not in it.
        peak_layer: the row in which that moment is.
        training_bytes: what a forward pass with gradients keeps for the backward pass, parameters and buffers
            left out; None where not measured.
    """

    params: int
    unused_params: int
    macs: int
    backward_macs: int | None
    element_ops: int
    moved_bytes: int
    weight_bytes: int
    activation_bytes: int
    peak_layer: str
    training_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """What every layer of a network costs and sees; prints as a table, in a notebook as HTML.

    Attributes:
        name: the network's.
        source: how the network can be loaded again, where that is known.
        inputs: shapes of the tensors it was fed, batch included; all numbers are for this batch.
        dtype, device: of the first input.
        layers: one row for each call, in the order in which they finished.
        totals: of the whole network, whichever rows are shown.
        uncounted: operator name -> how often it ran, of operators whose cost is not known.
        notes: what the reader should know.
        graph: the recorded pass.
        partial: whether `filter` left rows out.
        latency, memory, consistency, border, health: the optional measures, None where not asked for. Each
            has `to_dict()`, and `layers` (row name -> its own row) where it says something of layers.
    """

    name: str
    source: str
    inputs: tuple[Shape, ...]
    dtype: str
    device: str
    layers: tuple[LayerRow, ...]
    totals: Totals
    uncounted: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    graph: Graph | None = None
    partial: bool = False
    latency: Any = None
    memory: Any = None
    consistency: Any = None
    border: Any = None
    health: Any = None

    @property
    def batch(self) -> int:
        """First size of the first input."""
        return self.inputs[0][0] if self.inputs and self.inputs[0] else 1

    def layer(self, name: str) -> LayerRow:
        """The row of a name.

        Raises:
            UnknownLayer: there is no such row.
        """
        for row in self.layers:
            if row.name == name:
                return row
        names = [row.name for row in self.layers]
        raise UnknownLayer(f"layer {name!r} is no row of the profile{nearest(name, names)}")

    # -- rows chosen and put in order ------------------------------------------------------------------------

    def sort(self, key: str = "macs", *, ascending: bool = False) -> Profile:
        """The rows in another order, by default the most expensive first; rows without a value come last.

        Args:
            key: a column: "macs", "params", "element_ops", "activation_bytes", "peak_bytes", "intensity", "name",
                "seconds", ...
            ascending: the smallest first.

        Raises:
            RequestError: there is no such column.

        Example:
            >>> from torch import nn
            >>> from convscope import measure
            >>> p = measure(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3), nn.ReLU()), input="3x8x8")
            >>> [row.name for row in p.sort("macs").layers]
            ['1', '0', '2']
        """
        column = self._column(key)
        values = [(column.of(self, row), row) for row in self.layers]
        known = [(value, row) for value, row in values if value is not None]
        known.sort(key=lambda pair: pair[0], reverse=not ascending)
        unknown = [row for value, row in values if value is None]
        return replace(self, layers=(*(row for _, row in known), *unknown))

    def filter(
        self,
        names: str | Sequence[str] = "*",
        *,
        kind: str = "*",
        where: Callable[[LayerRow], bool] | None = None,
    ) -> Profile:
        """Some of the rows; the totals stay those of the whole network.

        Args:
            names: one or several shell globs, of which a row's name must match one; `*` also matches dots, and the
                name of a module stands for all that is inside it.
            kind: a glob for the class name.
            where: further says of each row whether it stays.

        Raises:
            UnknownLayer: a glob of names matches no row.

        Example:
            >>> from torch import nn
            >>> from convscope import measure
            >>> p = measure(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3)), input="3x8x8")
            >>> [row.name for row in p.filter(kind="Conv*", where=lambda row: row.params > 20).layers]
            ['2']
        """
        globs = [names] if isinstance(names, str) else list(names)
        known = [row.name for row in self.layers]
        for glob in globs:
            if glob != "*" and not any(_matches(name, glob) for name in known):
                raise UnknownLayer(f"layer {glob!r} matches no row of the profile{nearest(glob, known)}")
        kept = tuple(
            row
            for row in self.layers
            if any(_matches(row.name, glob) for glob in globs)
            and fnmatchcase(row.kind, kind)
            and (where is None or where(row))
        )
        return replace(self, layers=kept, partial=self.partial or len(kept) < len(self.layers))

    def group(self, depth: int) -> Profile:
        """One row for all rows whose names begin with the same `depth` names.

        Raises:
            RequestError: depth is negative.

        Example:
            >>> from torch import nn
            >>> from convscope import measure
            >>> block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
            >>> p = measure(nn.Sequential(block, nn.Flatten()), input="3x8x8").group(1)
            >>> [(row.name, row.kind, row.macs, row.element_ops) for row in p.layers]
            [('0', 'Sequential', 768, 256), ('1', 'Flatten', 0, 0)]
        """
        from convscope.measures.profile_group import grouped

        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise RequestError(f"depth={depth!r} must be a number of names from 0 on, such as 1")
        return replace(self, layers=grouped(self.layers, depth, self.graph))

    def joined(self, measure: str, name: str) -> Any:
        """What an optional measure says of a row; None where it was not asked for, or says nothing of it."""
        layers = getattr(getattr(self, measure), "layers", None)
        return layers.get(name) if isinstance(layers, Mapping) else None

    def __sub__(self, other: Profile) -> ProfileDiff:
        """What this network costs more than another, layer by layer."""
        if not isinstance(other, Profile):
            return NotImplemented
        from convscope.measures.profile_diff import difference

        return difference(self, other)

    def _column(self, key: str) -> Column:
        from convscope.measures.profile_columns import columns

        known = {column.key: column for column in columns(self, brief=False)}
        if key not in known:
            hint = nearest(key, known) or f"; it has {', '.join(known)}"
            raise RequestError(f"key={key!r} is no column of the profile{hint}")
        return known[key]

    # -- shown -----------------------------------------------------------------------------------------------

    def tree(self, depth: int | None = None) -> Branch:
        """The rows gathered by module; prints as a tree.

        Args:
            depth: how many names deep; all by default.
        """
        from convscope.measures.profile_table import tree

        return tree(self, depth)

    def to_csv(self) -> str:
        """All columns with their numbers in full, a header line first."""
        from convscope.measures.profile_table import to_csv

        return to_csv(self)

    def to_markdown(self) -> str:
        """The table as Markdown."""
        from convscope.measures.profile_table import to_markdown

        return to_markdown(self)

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text; what is not a finite number becomes null."""
        return json.dumps(_finite(self.to_dict()), indent=indent, allow_nan=False)

    def __rich__(self) -> Any:
        from convscope.measures.figures import to_rich
        from convscope.measures.profile_table import sheet

        return to_rich([sheet(self)])

    def __str__(self) -> str:
        from convscope.measures.figures import to_text
        from convscope.measures.profile_table import sheet

        return to_text([sheet(self)], width=1000)

    def __repr__(self) -> str:
        totals = self.totals
        return f"Profile({self.name!r}, {len(self.layers)} layers, {totals.params:,} parameters, {totals.macs:,} MACs)"

    def _repr_html_(self) -> str:
        from convscope.site import notebook

        return notebook.html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; the optional measures whole, and their figures in the rows."""
        from convscope.measures.profile_columns import columns

        beside = [column for column in columns(self, brief=False) if column.measure]
        layers = [
            row.to_dict() | {column.key: column.of(self, row) for column in beside} for row in self.layers
        ]
        asked = [name for name in MEASURES if getattr(self, name) is not None]
        return {
            "model": self.name,
            "source": self.source,
            "input": list(self.inputs[0]) if self.inputs else [],
            "inputs": [list(shape) for shape in self.inputs],
            "batch": self.batch,
            "dtype": self.dtype,
            "device": self.device,
            "totals": self.totals.to_dict(),
            "layers": layers,
            "uncounted": [{"op": name, "count": count} for name, count in self.uncounted.items()],
            "notes": list(self.notes),
            "partial": self.partial,
            **{name: getattr(self, name).to_dict() for name in asked},
        }


def _matches(name: str, glob: str) -> bool:
    """Of a module called several times, the bare name matches every call; a name alone also all that is inside."""
    module = split_address(name)[0]
    return fnmatchcase(name, glob) or fnmatchcase(module, glob) or module.startswith(f"{glob}.")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
