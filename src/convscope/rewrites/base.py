"""What a rewrite is made of: rules (what to do), edits (what was done to each layer), exactness (how far it holds).

    rule = KernelSize(5, where="features.*") | FoldBatchNorm()

A rule is a frozen value. It says which layers it is about and how one is replaced; the verifier, not the rule, decides
whether what it claims is true.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from convscope.errors import ConvscopeError, RequestError

if TYPE_CHECKING:
    from convscope.rewrites.work import Site, Work

Exactness = Literal["exact", "exact-interior", "approximate", "reset"]

STRENGTH: tuple[Exactness, ...] = ("exact", "exact-interior", "approximate", "reset")  # strongest claim first


class VerificationError(ConvscopeError):
    """A rewrite claimed an exactness that its outputs do not have: an error of the rule, never to be waved through."""


class Refused(Exception):
    """A rule will not rewrite a layer; the message is the reason, one clause. It becomes an edit without a result."""


@dataclass(frozen=True)
class Change:
    """What a rule puts in a layer's place, and what it claims of it.

    Attributes:
        module: the replacement, in float64 like the layer it replaces; the network's own type comes back at the end.
        exactness: "exact": equal outputs up to rounding, for every input; "exact-interior": equal but within `margin`
            of the borders; "approximate": a closed-form best fit; "reset": new weights, to be trained.
        margin: output positions from each border, (height, width), that may differ.
        grown: output positions added before and after along height and width; negative ones are taken away. The rest is
            compared.
        fixed_size: whether the replacement takes only the input size it was made for.
        resolved: what the rule decided for this layer (a rank, say), by argument name: with these the edit can be made
            again without data.
        seconds: (before, after) median latency, where the rule measured it itself.
        notes: what the reader should know.
    """

    module: nn.Module
    exactness: Exactness
    margin: tuple[int, int] = (0, 0)
    grown: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    fixed_size: bool = False
    resolved: dict[str, Any] = field(default_factory=dict)
    seconds: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edit:
    """What became of one layer under one rule.

    Attributes:
        layer: its dotted name.
        rule: the rule, as text.
        before, after: the layer and what replaced it, as torch prints them; `after` is None where it was refused.
        exactness: the class that was claimed and verified; None where it was refused.
        error: largest difference of the layer's outputs in float64, relative to the largest output, over all inputs
            tried (inside the margin, where there is one).
        rms_error: root mean square of the difference, relative to that of the output.
        params, macs: (before, after) of the layer at the network's input size; None where it was not counted.
        seconds: (before, after) median latency, where it was asked for.
        margin: output positions from each border that may differ.
        fixed_size: whether the layer takes only the size of input it was made for.
        grid: where the network gives a finer map now, (height, width) steps between the positions that it gave before;
            "exact" is said of these.
        resolved: what the rule decided for this layer.
        reason: why it was refused, or None.
        notes: what the reader should know.
        step: place of the rule among those applied, from 0.
    """

    layer: str
    rule: str
    before: str
    after: str | None = None
    exactness: Exactness | None = None
    error: float | None = None
    rms_error: float | None = None
    params: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    seconds: tuple[float, float] | None = None
    margin: tuple[int, int] = (0, 0)
    fixed_size: bool = False
    grid: tuple[int, int] = (1, 1)
    resolved: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    notes: tuple[str, ...] = ()
    step: int = 0

    @property
    def refused(self) -> bool:
        """Whether the layer was left as it is."""
        return self.exactness is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **dataclasses.asdict(self),
            "notes": list(self.notes),
            "margin": list(self.margin),
            "grid": list(self.grid),
        }


@dataclass(frozen=True)
class Rule:
    """Base of all rules: a frozen value with a name, composable with `|`.

    Args:
        where: the layers it is about, on top of what it can handle: names and globs, kinds, measured properties; see
            `convscope.rewrites.select`.
    """

    name: ClassVar[str] = ""
    one_size: ClassVar[bool] = False  # whether what it claims holds at the network's own input size only

    where: str = field(default="*", kw_only=True)

    def __or__(self, other: Rule) -> Chain:
        if not isinstance(other, Rule):
            return NotImplemented
        return Chain((*links(self), *links(other)))

    def apply(self, work: Work) -> None:
        """Edits the private copy; what is refused is put on record, not raised."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Its arguments that differ from the defaults, `where` last."""
        found = {}
        for each in sorted(dataclasses.fields(self), key=lambda each: each.name == "where"):
            value = getattr(self, each.name)
            if each.default is dataclasses.MISSING or value != each.default:
                found[each.name] = value
        return found

    def __str__(self) -> str:
        from convscope.rewrites.text import written

        return written(self)


@dataclass(frozen=True)
class LayerRule(Rule):
    """A rule that replaces layers one by one."""

    kinds: ClassVar[tuple[type[nn.Module], ...]] = ()

    def apply(self, work: Work) -> None:
        """Replaces every layer it handles, in the order they ran."""
        sites = work.again(work.sites(self.kinds, self.where))
        gathered = self.gather(work, sites)
        for site in sites:
            work.attempt(self, dataclasses.replace(site, gathered=gathered.get(site.layer)))

    def gather(self, work: Work, sites: Sequence[Site]) -> Mapping[str, Any]:
        """What a data-aware rule needs to know of the layers' inputs, by layer, from one pass over the images.

        It reaches `replace` as `site.gathered`. Nothing by default.
        """
        return {}

    def replace(self, site: Site) -> Change:
        """The replacement for one layer.

        Raises:
            Refused: the layer cannot be rewritten; says why.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Chain(Rule):
    """Several rules, one after the other; each sees what the ones before it made."""

    name: ClassVar[str] = "chain"

    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if not self.rules:
            raise RequestError("a chain of rules needs at least one rule.")

    def apply(self, work: Work) -> None:
        """Each is run, and verified, by itself."""
        for rule in self.rules:
            work.run(rule)

    def __str__(self) -> str:
        return " | ".join(map(str, self.rules))


def links(rule: Rule) -> tuple[Rule, ...]:
    """The rules a chain is made of; a rule alone is its own only link."""
    return rule.rules if isinstance(rule, Chain) else (rule,)


REGISTRY: dict[str, type[Rule]] = {}


def register(rule: type[Rule]) -> type[Rule]:
    """Makes a rule known by its name, for the command line and recipes.

    Raises:
        RequestError: another rule has that name.
    """
    if not rule.name or REGISTRY.get(rule.name, rule) is not rule:
        raise RequestError(f"rule name {rule.name!r} is empty or taken; give the rule a name of its own.")
    REGISTRY[rule.name] = rule
    return rule
