"""The private copy that rules edit: which layers there are, what goes in their place, what was proved of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convscope import timing
from convscope.errors import RequestError
from convscope.graph import Call, Graph, record
from convscope.measures.measure import measure
from convscope.measures.profile import LayerRow
from convscope.models import InputSpec, Net
from convscope.rewrites import verify
from convscope.rewrites.base import Chain, Change, Edit, Refused, Rule
from convscope.rewrites.calibrate import Calibration


@dataclass(frozen=True)
class Facts:
    """What a selector may ask of a layer; numbers are None where they make no sense."""

    kind: str
    macs: int
    params: int
    in_channels: int | None = None
    out_channels: int | None = None
    kernel: int | None = None
    stride: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Site:
    """A layer that a rule may replace.

    Attributes:
        layer: its dotted name.
        module: the layer itself, in the private copy; not to be changed, only replaced.
        calls: every call of it in the recorded pass, in order.
        work: the copy it belongs to.
        gathered: what the rule's `gather` found out about it, or None.
        settled: what was decided for it when the rewrite was first made (`Change.resolved`), where a recipe is being
            followed; else None. Only the structure counts then: weights come from the file.
    """

    layer: str
    module: nn.Module
    calls: tuple[Call, ...]
    work: Work
    gathered: Any = None
    settled: Mapping[str, Any] | None = None

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of its first input in its first call, batch included."""
        return self.calls[0].in_shapes[0]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of its output in its first call, batch included."""
        return self.calls[0].out_shapes[0]

    @property
    def sizes(self) -> set[tuple[int, ...]]:
        """Height and width of its inputs over all calls."""
        return {call.in_shapes[0][2:] for call in self.calls if call.in_shapes}


class Work:
    """A network under the knife.

    Args:
        net: the network; never changed.
        where: a further selector for all rules.
        calibration: the images that data-aware rules fit to, and a part of which verification runs on.
        timed: whether edits carry latencies.
        settled: to follow a recipe: for each rule in turn, what was decided for each layer that it changed. Nothing is
            verified then, and other layers stay as they are.

    Attributes:
        module: the private copy, in float64 while it is edited, so that what is proved is not rounding.
        dtype: what the network works in, and the result again.
        graph: the pass that the copy makes now.
        edits: the record so far.

    Raises:
        RequestError: the network mixes floating types.
    """

    def __init__(
        self,
        net: Net,
        where: str,
        calibration: Calibration,
        timed: bool = False,
        settled: Sequence[Mapping[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        self.net, self.where, self.calibration, self.timed = net, where, calibration, timed
        self.settled, self.step = settled, -1
        types = {tensor.dtype for tensor in net.module.parameters() if tensor.is_floating_point()}
        if len(types) > 1:
            listed = ", ".join(sorted(str(each).removeprefix("torch.") for each in types))
            raise RequestError(f"{net.name} mixes the types {listed}; bring its weights into one first.")
        self.dtype = types.pop() if types else net.input.dtype
        self.module = net.copy().double()
        self.edits: list[Edit] = []
        self.input = net.input
        self._graph: Graph | None = None
        self._rows: dict[str, LayerRow] | None = None

    # -- what there is -------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """As the copy runs now; recorded anew after every change of structure."""
        if self._graph is None:
            self._graph = record(self.as_net())
        return self._graph

    def as_net(self) -> Net:
        """The copy as a Net of its own, in float64, with the input it takes now."""
        spec = dataclasses.replace(self.input, dtype=torch.float64)
        return dataclasses.replace(self.net, module=self.module, input=spec)

    def result(self) -> nn.Module:
        """The edited copy in the type of the network."""
        return self.module.to(self.dtype)

    @property
    def rows(self) -> Mapping[str, LayerRow]:
        """The profile's row of each layer that runs: of its first call."""
        if self._rows is None:
            profile = measure(self.as_net(), graph=self.graph, fields=False, training=False)
            self._rows = {}
            for row in profile.layers:
                self._rows.setdefault(row.name.partition("#")[0], row)
        return self._rows

    def facts(self) -> dict[str, Facts]:
        """Every layer without submodules that runs, in order."""
        modules = dict(self.module.named_modules())
        found: dict[str, Facts] = {}
        for call in sorted(self.graph.calls, key=lambda call: call.order):
            part = modules.get(call.name)
            if part is None or call.name in found or ".parametrizations." in call.name:
                continue
            if call.is_leaf or set(part._modules) == {"parametrizations"}:  # a layer whose weight is computed
                found[call.name] = _facts(part, self.rows.get(call.name))
        return found

    def sites(self, kinds: tuple[type[nn.Module], ...], where: str) -> list[Site]:
        """The layers of these kinds that both selectors name.

        A layer asked for by its exact name that is of another kind is put on record as refused when it is attempted,
        since it is returned too.

        Raises:
            UnknownLayer, RequestError: see `select`.
        """
        from convscope.rewrites.select import select

        facts = self.facts()
        allowed = set(select(self.where, facts))
        modules = dict(self.module.named_modules())
        exact = {item.strip() for text in (where, self.where) for item in text.split(",")}
        return [
            Site(name, modules[name], self.calls(name), self)
            for name in select(where, facts)
            if name in allowed and (isinstance(modules[name], kinds) or name in exact)
        ]

    @property
    def decided(self) -> Mapping[str, Mapping[str, Any]] | None:
        """Where a recipe is followed: what the present rule decided, by the layer it changed; else None."""
        if self.settled is None:
            return None
        return self.settled[self.step] if self.step < len(self.settled) else {}

    def again(self, sites: Sequence[Site]) -> list[Site]:
        """The sites; where a recipe is followed, those that the present rule changed, with what was decided."""
        decided = self.decided
        if decided is None:
            return list(sites)
        return [
            dataclasses.replace(site, settled=decided[site.layer]) for site in sites if site.layer in decided
        ]

    def calls(self, layer: str) -> tuple[Call, ...]:
        """The calls of a layer, in order."""
        return tuple(sorted((c for c in self.graph.calls if c.name == layer), key=lambda call: call.index))

    # -- what is done --------------------------------------------------------------------------------------

    def run(self, rule: Rule) -> None:
        """Applies a rule, then checks that the network as a whole still is what the edits claim."""
        if not isinstance(rule, Chain):
            self.step += 1
        before, first = self.module, len(self.edits)
        self.module = verify.copied(before)  # what is verified against stays as it is
        self._fresh()
        rule.apply(self)
        if self.settled is not None:
            self._fresh()
            return
        done = [edit for edit in self.edits[first:] if not edit.refused]
        if done:
            verify.network(rule, before, self.module, done, self.net.input, self.input, self.calibration)
        self._fresh()

    def attempt(self, rule: Any, site: Site) -> None:
        """Replaces one layer as the rule says, verified; what is refused is put on record with the reason."""
        try:
            self.check(site, rule.kinds)
            change = rule.replace(site)
        except Refused as reason:
            self.refuse(rule, site.layer, str(reason))
            return
        self.replace(rule, site, change)

    def refuse(self, rule: Rule, layer: str, reason: str) -> None:
        """Puts on record that a layer stays as it is."""
        part = dict(self.module.named_modules()).get(layer)
        self.note(Edit(layer, str(rule), "" if part is None else _brief(part), reason=reason))

    def replace(self, rule: Rule, site: Site, change: Change) -> None:
        """Puts a replacement in a layer's place, wherever the layer hangs, and puts the edit on record.

        Raises:
            VerificationError: the replacement does not do what the change claims.
        """
        self._prove(rule, site, change, {site.layer: (site.module, change.module)})

    def replace_run(
        self,
        rule: Rule,
        layers: Sequence[str],
        modules: Sequence[nn.Module],
        *,
        named: str,
        resolved: Mapping[str, Any] | None = None,
        seconds: tuple[float, float] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Replaces layers that run one after the other, each feeding the next alone, by as many that do the same together.

        They are verified as one, "exact"; `graph.handover` tells whether a pass lets them be taken so.

        Args:
            rule: on whose behalf.
            layers: their names, in the order they run.
            modules: what goes in their places.
            named: the layer that the edit is about.
            resolved, seconds, notes: of the edit.

        Raises:
            VerificationError: the new ones together do something else.
        """
        parts = dict(self.module.named_modules())
        pairs = {name: (parts[name], module) for name, module in zip(layers, modules, strict=True)}
        old = nn.Sequential(*[before for before, _ in pairs.values()])
        site = Site(layers[0], old, self.calls(layers[0]), self)
        change = Change(
            nn.Sequential(*modules), "exact", resolved=dict(resolved or {}), seconds=seconds, notes=notes
        )
        self._prove(rule, site, change, pairs, named)

    def _prove(
        self,
        rule: Rule,
        site: Site,
        change: Change,
        pairs: Mapping[str, tuple[nn.Module, nn.Module]],
        named: str = "",
    ) -> None:
        """Verifies what takes the place of one layer or several, puts it there and on record."""
        named = named or site.layer
        if self.settled is not None:
            for layer, (_, after) in pairs.items():
                self.put(layer, after)
            self.note(Edit(named, str(rule), "", exactness=change.exactness))
            return
        found = verify.layer(rule, site, change, self.calibration)
        rows = [self.rows[layer].macs for layer in pairs if layer in self.rows]
        seconds = change.seconds
        if seconds is None and self.timed:
            seconds = _seconds(site, change)
        edit = Edit(
            layer=named,
            rule=str(rule),
            before=" → ".join(_brief(before) for before, _ in pairs.values()),
            after=" → ".join(_brief(after) for _, after in pairs.values()),
            exactness=change.exactness,
            error=found.error,
            rms_error=found.rms_error,
            params=(_params(site.module), _params(change.module)),
            macs=(sum(rows), _macs(change.module, site)) if rows else None,
            seconds=seconds,
            margin=change.margin,
            fixed_size=change.fixed_size,
            resolved=dict(change.resolved),
            notes=change.notes,
        )
        for layer, (before, after) in pairs.items():
            after.train(before.training)
            self.put(layer, after)
        self.note(edit)

    def put(self, layer: str, module: nn.Module) -> None:
        """Puts a module in a layer's place under every name the layer has, so that no call keeps the old one."""
        self.module = place(self.module, layer, module.double())
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def note(self, edit: Edit) -> None:
        """Puts an edit on record; a rule that changes structure by itself calls this too."""
        self.edits.append(dataclasses.replace(edit, step=max(self.step, 0)))

    def resize(self, input: InputSpec) -> None:
        """From here on the copy takes another input."""
        self.input = input
        self.calibration.resize(input)
        self._fresh()

    def structure_changed(self) -> None:
        """Whatever was recorded of the copy no longer holds."""
        self._fresh()

    def _fresh(self) -> None:
        self._graph, self._rows = None, None

    def check(self, site: Site, kinds: tuple[type[nn.Module], ...]) -> None:
        """What no layer rule can handle.

        Raises:
            Refused: says why.
        """
        part = site.module
        if not isinstance(part, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise Refused(f"it is a {type(part).__name__}, and the rule is about {names}")
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(part, name, None) for name in hooks):
            raise Refused("it carries hooks, which a replacement would lose; remove them first")
        shared = _sharers(self.module, part)
        if shared:
            raise Refused(f"its weights are shared with {shared!r}, and would no longer be")
        if any(not call.in_shapes or not call.out_shapes for call in site.calls):
            raise Refused("it takes or gives no tensor")


def place(network: nn.Module, layer: str, module: nn.Module) -> nn.Module:
    """Puts a module in a layer's place under every name the layer has; returns the network."""
    old = dict(network.named_modules(remove_duplicate=False))[layer]
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = module
    return module if old is network else network


def _facts(part: nn.Module, row: LayerRow | None) -> Facts:
    def largest(name: str) -> int | None:
        value: Any = getattr(part, name, None)
        if isinstance(value, (tuple, list)):
            value = max((n for n in value if isinstance(n, int)), default=None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    return Facts(
        kind=type(part).__name__,
        macs=0 if row is None else row.macs,
        params=_params(part),
        in_channels=largest("in_channels"),
        out_channels=largest("out_channels"),
        kernel=largest("kernel_size"),
        stride=largest("stride"),
        groups=largest("groups"),
    )


def _sharers(module: nn.Module, part: nn.Module) -> str | None:
    """The name of another module that holds one of this module's parameters."""
    own = {id(parameter) for parameter in part.parameters()}
    inside = {id(each) for each in part.modules()}
    for name, other in module.named_modules():
        if id(other) not in inside and any(id(p) in own for p in other._parameters.values() if p is not None):
            return name or "(root)"
    return None


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _brief(module: nn.Module) -> str:
    return " ".join(str(module).split())


def _macs(module: nn.Module, site: Site) -> int:
    """Of the replacement on the layer's own inputs, all tensors as they came."""
    meta = verify.copied(module).to("meta")
    example = tuple(
        torch.empty(shape, device="meta", dtype=torch.float64) for shape in site.calls[0].in_shapes
    )
    return measure(meta, input=example, fields=False, training=False).totals.macs


def _seconds(site: Site, change: Change) -> tuple[float, float]:
    """Median latency of layer and replacement, in turn, in the network's own type."""
    dtype = site.work.dtype
    before, after = verify.copied(site.module).to(dtype), verify.copied(change.module).to(dtype)
    shapes = site.calls[0].in_shapes
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    with torch.no_grad():
        times = timing.measure(
            {"before": lambda: before(*inputs), "after": lambda: after(*inputs)}, budget=0.2
        )
    return times["before"].median, times["after"].median
