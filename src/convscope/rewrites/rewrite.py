"""`rewrite`: a rule applied to a private copy of a network, verified, on record."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from convscope.errors import RequestError
from convscope.models import InputLike, Net, as_net, preserved
from convscope.rewrites.base import STRENGTH, Edit, Exactness, Rule, links
from convscope.rewrites.calibrate import Calibration
from convscope.rewrites.recipe import structure_of
from convscope.rewrites.text import parse
from convscope.rewrites.work import Work

if TYPE_CHECKING:
    from rich.table import Table


_HEADS = ("layer", "rule", "exactness", "error>", "params>", "MACs>")


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A rewritten network and the record of what was done to it.

    Attributes:
        net: the new network, with the input it takes now; the one it was made from is untouched.
        base: the network it was made from.
        rule: what was applied.
        edits: one record a layer the rule was about, refusals included.
        data: what the images were that it was fitted to, or None.
        where: the layers it was about, on top of what the rules say.
    """

    net: Net
    base: Net
    rule: Rule
    edits: tuple[Edit, ...]
    data: dict[str, Any] | None = None
    where: str = "*"

    @property
    def done(self) -> tuple[Edit, ...]:
        """The edits that were made."""
        return tuple(edit for edit in self.edits if not edit.refused)

    @property
    def refused(self) -> tuple[Edit, ...]:
        """The layers that were left as they are, each with its reason."""
        return tuple(edit for edit in self.edits if edit.refused)

    @cached_property
    def exactness(self) -> Exactness:
        """The weakest class of all edits; "exact" where nothing was changed."""
        return max(
            (edit.exactness for edit in self.edits if edit.exactness), key=STRENGTH.index, default="exact"
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """How to make it again: plain values."""
        from convscope.rewrites.recipe import recipe_of

        return recipe_of(self)

    def save(self, path: str | PathLike[str], *, onnx: bool = False, pt2: bool = False) -> Path:
        """Writes the network into a folder: `model.safetensors` and `recipe.json`; `load("recipe:FOLDER")` reads it.

        Args:
            path: the folder; it is made where it does not exist.
            onnx: also write `model.onnx`, verified by running it in onnxruntime; needs `convscope[onnx]`.
            pt2: also write `model.pt2` (torch.export), verified by running it.

        Returns:
            The folder.

        Raises:
            RequestError: a file stands in the folder's place, or the extra is missing.
            ModelError: the network cannot be exported, or the export gives other outputs.
            StoreError: the system refuses to write.

        Example:
            >>> import tempfile, torch, convscope
            >>> made = rewrite(convscope.load("fashion"), "kernel_size:5", where="block1.conv1")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     again = convscope.load(f"recipe:{made.save(folder)}")
            >>> again.sha256 == made.net.sha256
            True
        """
        from convscope.rewrites.recipe import save

        return save(self, path, onnx=onnx, pt2=pt2)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rule": str(self.rule),
            "base": self.base.to_dict(),
            "net": self.net.to_dict(),
            "exactness": self.exactness,
            "data": self.data,
            "edits": [edit.to_dict() for edit in self.edits],
        }

    def __repr__(self) -> str:
        return f"Rewrite({str(self.rule)!r}, {len(self.done)} edits, {len(self.refused)} refused, {self.exactness})"

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"{self.rule}: {self.exactness}"), title_justify="left")
        for head in _HEADS:
            table.add_column(head.removesuffix(">"), justify="right" if head.endswith(">") else "left")
        for edit in self.edits:
            table.add_row(*map(Text, _cells(edit)))
        return table

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column names, those of numbers with ">" behind, and a row an edit."""
        return _HEADS, [_cells(edit) for edit in self.edits]

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{head.removesuffix('>')}</th>" for head in _HEADS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(edit)) + "</tr>"
            for edit in self.edits
        )
        return f"<table><caption>{escape(repr(self))}</caption><tr>{heads}</tr>{rows}</table>"


def _cells(edit: Edit) -> tuple[str, ...]:
    if edit.refused:
        return edit.layer, edit.rule, f"refused: {edit.reason}", "", "", ""
    change = lambda pair: "" if pair is None else f"{pair[0]:,} → {pair[1]:,}"  # noqa: E731
    error = "" if edit.error is None else f"{edit.error:.1e}"
    return edit.layer, edit.rule, str(edit.exactness), error, change(edit.params), change(edit.macs)


def rewrite(
    net: Net | nn.Module,
    rule: Rule | str,
    where: str = "*",
    data: Any = None,
    *,
    input: InputLike | None = None,
    limit: int = 256,
    timed: bool = False,
    seed: int = 0,
) -> Rewrite:
    """Applies a design choice to a trained network, keeps as much of what it learned as mathematics allows, proves it.

    The caller's network is not touched: a deep copy is edited, layer by layer, in eval mode. Each replacement is tried
    beside the layer it replaces in float64, and the network as a whole before and after each rule; a claim that does
    not hold is an error.

    Args:
        net: a Net, or a module with `input=`.
        rule: a rule or several joined by `|`; or their text, such as "kernel_size:5,where=features.*".
        where: the layers it is about, on top of the rule's own `where`.
        data: unlabelled images that data-aware rules fit to and that verification runs on: a file, a folder, `Images`
            or a Tensor [image, channel, height, width] of network input. Without, the data-free method is used, and
            the edit says so.
        input: what to feed a plain module.
        limit: at most so many images.
        timed: measure the latency of each layer before and after.
        seed: of the random inputs.

    Returns:
        The rewrite: `.net`, `.edits`, `.recipe`, `.save(path)`.

    Raises:
        VerificationError: a replacement does not do what its rule claims.
        UnknownName, UnknownLayer, RequestError: the rule or `where` makes no sense for this network.
        ModelError: the network cannot be copied or recorded (scripted, compiled, quantized).

    Example:
        >>> import torch, convscope
        >>> from convscope import rules
        >>> module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
        >>> made = rewrite(module, rules.KernelSize(5), input="3x16x16")
        >>> made
        Rewrite('kernel_size:size=5', 1 edits, 0 refused, exact)
    """
    subject = as_net(net, input)
    chosen = parse(rule) if isinstance(rule, str) else rule
    if not isinstance(chosen, Rule):
        raise RequestError(f"rule={rule!r} must be a rule of convscope.rules, or its text.")
    calibration = Calibration(subject, data, limit, seed)
    with preserved(subject.module):  # new layers draw weights before they are given theirs
        work = Work(subject, where, calibration, timed)
        for one in links(chosen):
            work.run(one)
    if not work.edits:
        kinds = Counter(facts.kind for facts in work.facts().values())
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
        raise RequestError(f"{chosen} found nothing to do in {subject.name}, which runs {listed}.")
    made = dataclasses.replace(
        subject,
        module=work.result(),
        input=work.input,
        name=f"{subject.name}, {chosen}",
        source=f"rewrite of {subject.source}",
    )
    done = Rewrite(made, subject, chosen, tuple(work.edits), calibration.description, where)
    return dataclasses.replace(done, net=dataclasses.replace(made, recipe=structure_of(done)))
