"""What a study found: scores of every variant over its seeds, differences to the baseline, effect beside cost.

Values only; `study` makes them, `choice` decides on them, `tables` prints them and turns them into SQL.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.errors import RequestError, UnknownName, nearest
from convscope.studies.design import Design, Level
from convscope.studies.record import LOG, RESULTS
from convscope.studies.statistics import Difference, Mean, holm, mean_of, paired

if TYPE_CHECKING:
    from rich.table import Table

    from convscope.studies.choice import Choice

FORMAT = 1
METRICS = ("test", "validation", "train")
COSTS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        variant: place in the study's variants.
        seed: its own.
        key: its name in the record.
        scores: split ("train", "validation", "test") -> accuracy, at most 1; empty where the training diverged.
        diverged: whether the loss left all bounds.
        epoch: whose weights were scored.
        steps, macs: what the training took.
        precision: of its passes.
        curves: name -> one value an epoch; None where it was not a number.
    """

    variant: int
    seed: int
    key: str
    scores: Mapping[str, float]
    diverged: bool = False
    epoch: int = 0
    steps: int = 0
    macs: float = 0.0
    precision: str = "float32"
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a variant costs when it is used, for one input.

    Attributes:
        key: a hash of all that the network depends on: under it the log keeps its latency.
        params: parameters.
        macs: multiply-accumulates; None where they cannot be counted.
        receptive_field: of the last convolution, one number of pixels an axis; None where there is none.
        note: why something is missing, or "".
        latency: {"median", "low", "high"} in seconds with the conditions, or None where it was not measured.
    """

    key: str
    params: int
    macs: int | None = None
    receptive_field: tuple[int, ...] | None = None
    note: str = ""
    latency: Mapping[str, Any] | None = None

    def of(self, kind: str) -> float:
        """The cost of a kind, one of `COSTS`; infinite where it is not known."""
        if kind == "latency":
            return math.inf if self.latency is None else float(self.latency["median"])
        value = getattr(self, kind)
        return math.inf if value is None else float(value)


@dataclass(frozen=True)
class VariantResult:
    """One variant with its runs.

    Attributes:
        values: factor -> level.
        label: the same as text.
        cost: what it costs; None where it could not even be built.
        runs: those that finished, by seed.
    """

    values: Mapping[str, Level]
    label: str
    cost: Cost | None
    runs: tuple[Run, ...]

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> accuracy."""
        return {run.seed: run.scores[metric] for run in self.runs if metric in run.scores}

    @property
    def diverged(self) -> int:
        """How many of the runs diverged; they have no scores, and means are those of the others."""
        return sum(run.diverged for run in self.runs)


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult:
    """The outcome of a study; prints as a table.

    Attributes:
        design: what was compared.
        data: what it was trained on: plain values.
        code: what it was made with: plain values.
        variants: in the order of `design.variants()`.
        failed: runs that could not be finished: {"variant", "seed", "reason", "attempts"}.
        folder: the record, or None.
        seconds: this call took; a study that was gone on with counts only what was left.
    """

    design: Design
    data: Mapping[str, Any]
    code: Mapping[str, Any]
    variants: tuple[VariantResult, ...]
    failed: tuple[Mapping[str, Any], ...] = ()
    folder: Path | None = None
    seconds: float = 0.0

    @cached_property
    def baseline(self) -> int:
        """Place of the variant that others are compared with."""
        return [dict(variant.values) for variant in self.variants].index(self.design.reference)

    @property
    def done(self) -> int:
        """Runs that finished."""
        return sum(len(variant.runs) for variant in self.variants)

    @property
    def planned(self) -> int:
        """Runs that the design has."""
        return len(self.variants) * len(self.design.all_seeds)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The splits that there are scores of; the first one is what tables show."""
        return tuple(m for m in METRICS if any(variant.scores(m) for variant in self.variants))

    def checked(self, metric: str | None) -> str:
        """A metric that there is.

        Raises:
            RequestError: no run has finished.
            UnknownName: there is no such metric.
        """
        if not self.metrics:
            raise RequestError("no run of the study has finished, so that there is nothing to compare.")
        if metric is None:
            return self.metrics[0]
        if metric not in self.metrics:
            raise UnknownName(
                f"metric={metric!r} must be one of {', '.join(self.metrics)}{nearest(metric, self.metrics)}"
            )
        return metric

    # -- statistics ------------------------------------------------------------------------------------------

    def means(self, metric: str | None = None) -> tuple[Mean | None, ...]:
        """For each variant the mean over its seeds with its interval; None where no run finished."""
        name = self.checked(metric)
        return tuple(
            mean_of(list(scores.values())) if (scores := variant.scores(name)) else None
            for variant in self.variants
        )

    def against(self, place: int, other: int, metric: str | None = None) -> Difference | None:
        """How much a variant differs from another, paired by seed; None where no seed has both."""
        name = self.checked(metric)
        first, second = self.variants[place].scores(name), self.variants[other].scores(name)
        shared = [seed for seed in first if seed in second]
        return paired([first[s] for s in shared], [second[s] for s in shared]) if shared else None

    def differences(self, metric: str | None = None) -> tuple[Difference | None, ...]:
        """For each variant its difference to the baseline, the p values corrected by Holm for their number."""
        found = [
            None if place == self.baseline else self.against(place, self.baseline, metric)
            for place in range(len(self.variants))
        ]
        tested = [place for place, difference in enumerate(found) if difference and difference.p is not None]
        values = [difference.p for difference in found if difference and difference.p is not None]
        for place, adjusted in zip(tested, holm(values), strict=True):
            difference = found[place]
            assert difference is not None
            found[place] = replace(difference, adjusted_p=adjusted)
        return tuple(found)

    def pareto(self, cost: str = "macs", metric: str | None = None) -> tuple[int, ...]:
        """Places of the variants that none other beats in both mean and cost, the cheapest first."""
        means = self.means(metric)
        points = [
            (self.cost(place, cost), -mean.mean, place)
            for place, mean in enumerate(means)
            if mean is not None
        ]
        best, kept = math.inf, []
        for _, lost, place in sorted(point for point in points if math.isfinite(point[0])):
            if lost < best:
                best = lost
                kept.append(place)
        return tuple(kept)

    def cost(self, place: int, kind: str = "macs") -> float:
        """A cost of a variant; infinite where it is not known.

        Raises:
            UnknownName: there is no such cost.
        """
        if kind not in COSTS:
            raise UnknownName(f"cost={kind!r} must be one of {', '.join(COSTS)}{nearest(kind, COSTS)}")
        found = self.variants[place].cost
        return math.inf if found is None else found.of(kind)

    def choose(self, cost: str = "macs", margin: float = 0.01, metric: str | None = None) -> Choice:
        """Which variant to take: see `convscope.studies.choice.choose`."""
        from convscope.studies.choice import choose

        return choose(self, cost, margin, metric)

    def curve(self, place: int, name: str = "validation_accuracy") -> tuple[Mean | None, ...]:
        """A learning curve of a variant: at each epoch the mean over its seeds; None where no run has a value.

        Raises:
            UnknownName: the runs have no curve of that name.
        """
        curves = [run.curves for run in self.variants[place].runs]
        known = dict.fromkeys(known for each in curves for known in each)
        if curves and name not in known:
            raise UnknownName(f"curve {name!r} must be one of {', '.join(known)}{nearest(name, known)}")
        epochs = itertools.zip_longest(*(each.get(name, ()) for each in curves))
        found = [[value for value in values if value is not None] for values in epochs]
        return tuple(mean_of(values) if values else None for values in found)

    # -- kept and shown --------------------------------------------------------------------------------------

    def content(self) -> dict[str, Any]:
        """All that was found, as plain values, without times: the same for the same runs, whoever made them."""
        return {
            "format": FORMAT,
            "kind": "study",
            "design": self.design.to_dict(),
            "data": dict(self.data),
            "code": dict(self.code),
            "variants": [_variant_dict(variant) for variant in self.variants],
            "failed": [dict(failure) for failure in self.failed],
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `content`, latencies, and the summary that follows from it."""
        from convscope.studies.tables import summary

        plain = self.content()
        for entry, variant in zip(plain["variants"], self.variants, strict=True):
            latency = None if variant.cost is None else variant.cost.latency
            entry["latency"] = None if latency is None else dict(latency)
        return plain | {"summary": summary(self)}

    @classmethod
    def from_record(cls, path: str | os.PathLike[str]) -> StudyResult:
        """A study's result from its folder, or from its `results.json` alone (which knows no latencies).

        Raises:
            RequestError: there is no such file, or it is not what a study writes.
        """
        file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["kind"] != "study" or content["format"] != FORMAT:
                raise RequestError(
                    f"{str(file)!r} is a {content['kind']!r} of format {content['format']!r}; this convscope reads "
                    f"studies of format {FORMAT}."
                )
            timed = latencies(events(file.parent / LOG))
            return cls(
                Design.from_dict(content["design"]),
                content["data"],
                content["code"],
                tuple(_variant_of(place, entry, timed) for place, entry in enumerate(content["variants"])),
                tuple(content["failed"]),
                file.parent,
            )
        except OSError as error:
            raise RequestError(
                f"the study {str(file)!r} cannot be read: {error.strerror}; give the folder that convscope study wrote."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"the study {str(file)!r} is damaged or was not made by convscope ({type(error).__name__})."
            ) from error

    def table(self, metric: str | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column names, those of numbers with ">" behind, and a row a variant: accuracies in percent."""
        from convscope.studies.tables import columns, rows

        return columns(self), rows(self, metric)

    def __repr__(self) -> str:
        return (
            f"StudyResult({self.design.name!r}, {len(self.variants)} variants, {self.done} of {self.planned} runs, "
            f"{len(self.failed)} failed)"
        )

    def __rich__(self) -> Table:
        from convscope.studies.tables import rich_table

        return rich_table(self)

    def _repr_html_(self) -> str:
        from convscope.studies.tables import html

        return html(self)


def _variant_dict(variant: VariantResult) -> dict[str, Any]:
    cost = None
    if variant.cost is not None:
        cost = {name: value for name, value in asdict(variant.cost).items() if name != "latency"}
        cost["receptive_field"] = cost["receptive_field"] and list(cost["receptive_field"])
    runs = [{k: v for k, v in asdict(run).items() if k != "variant"} for run in variant.runs]
    return {"values": dict(variant.values), "label": variant.label, "cost": cost, "runs": runs}


def _variant_of(place: int, entry: Mapping[str, Any], timed: Mapping[str, Any]) -> VariantResult:
    cost = entry["cost"]
    if cost is not None:
        field_ = cost["receptive_field"]
        cost = Cost(**{**cost, "receptive_field": None if field_ is None else tuple(field_)})
        cost = replace(cost, latency=timed.get(cost.key))
    runs = tuple(Run(variant=place, **run) for run in entry["runs"])
    return VariantResult(entry["values"], entry["label"], cost, runs)


def events(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that are whole."""
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def latencies(log: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Key of a network -> its latency as last measured."""
    return {event["key"]: event["latency"] for event in log if event.get("event") == "latency"}
