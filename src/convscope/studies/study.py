"""`study`: every run of a design on any engine, kept as it finishes, gone on with after whatever ended it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from convscope import engines
from convscope.engines import RETRIES, Engine, Outcome, Task
from convscope.errors import ConvscopeError, RequestError, StoreError
from convscope.models import InputSpec, _kept_rng
from convscope.studies import costs, design_file, fit, given, sql
from convscope.studies.data import Data, dataset
from convscope.studies.design import Design, data_arguments
from convscope.studies.network import network
from convscope.studies.plan import Planned, RunConfig, configure, digest, plan
from convscope.studies.record import COSTS, RESULTS, RUNS, TABLES, Record
from convscope.studies.results import Cost, Run, StudyResult, VariantResult, latencies
from convscope.studies.run import remember, training
from convscope.studies.version import code_version

RUN = "convscope.studies.run:run"
PUBLISHED = 30.0  # seconds after which what is finished is written again as one file, at least
_SHARE = 100  # times as long as that took, at least
Event: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[Event], None]


def study(
    design: Design | Mapping[str, Any] | str | os.PathLike[str],
    data: str | Mapping[str, Any] | Data | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    engine: str | Engine = "process",
    workers: int | None = None,
    address: str | None = None,
    quick: bool = False,
    fresh: bool = False,
    retries: int = RETRIES,
    latency: bool = True,
    progress: Progress | None = None,
) -> StudyResult:
    """Trains every variant of a design at every seed and compares them.

    With a folder, each run is kept the moment it is finished. Ended by anything (Ctrl-C, kill -9 of this process or of a
    worker, the power) and called again, the study trains only what is missing, and every number is the one that an
    uninterrupted study gives. Under a changed design (more seeds, more levels) runs that it shares are taken as they are.

    Args:
        design: the path of a TOML file; or the same as a mapping; or a `convscope.studies.design.Design`, which says what
            may stand in them.
        data: a source of `dataset`, or a mapping of its arguments, in place of the design's; or a `Data`, which only
            engine "inline" can use.
        out: the folder of the record; None keeps it in memory.
        engine: "process" (worker processes of this machine), "inline" (in this one), "ray", or an engine; the results are
            the same.
        workers: how many runs at a time; by default as many as there are processors.
        address: of the Ray cluster.
        quick: two seeds and a fourth of the budget, for a first impression.
        fresh: throw away what the folder holds.
        retries: further attempts that a run gets whose worker died or that failed; then it is reported.
        latency: time each variant on this machine, once the trainings are over.
        progress: called with {"done", "total", "rate" (runs a second), "seconds_left", "best", "failed", "damaged"} as
            runs end; "best" is {"label", "metric", "mean", "runs"} or None, "damaged" counts records that could not be
            read and are made again.

    Returns:
        What was found; runs that failed are listed in it.

    Raises:
        RequestError, UnknownName: the design, the data or an argument makes no sense.
        StoreError: another study writes to the folder, or it cannot be written.
        EngineError: no worker can be started.
        KeyboardInterrupt: Ctrl-C; what is finished is kept.

    Example:
        >>> sizes = {
        ...     "base": "convscope.studies.networks:small_cnn",
        ...     "factors": {"kernel_size": [1, 3]},
        ...     "arguments": {"width": 2},
        ...     "budget": {"epochs": 1},
        ...     "seeds": 2,
        ...     "data": {"source": "fashion", "limit": 200, "test_limit": 100},
        ... }
        >>> study(sizes, engine="inline", latency=False)
        StudyResult('study', 2 variants, 4 of 4 runs, 0 failed)
    """
    began = time.perf_counter()
    wanted = _design(design)
    if quick:
        wanted = wanted.quick()
    hired = engines.get(engine, workers, address, gpus=float(wanted.device.startswith("cuda")))
    found, about = _data(wanted, data)
    if hired.name != "inline" and "source" not in about:
        raise RequestError(
            f"data is an object, which engine {hired.name!r} cannot send to its workers; give its source, or take "
            "engine='inline'."
        )
    with Record(out, fresh=fresh) as record:
        work = _Study(wanted, found, about, record, hired, retries, progress)
        work.check()
        work.count_costs()
        try:
            work.train()
        except BaseException:
            with contextlib.suppress(StoreError):  # what ended the study is what matters
                work.publish()
            raise
        work.publish()
        if latency and work.done:
            work.time_variants()
        return work.result(time.perf_counter() - began)


def _design(design: Any) -> Design:
    if isinstance(design, Design):
        return design
    return Design.from_dict(design) if isinstance(design, Mapping) else design_file.read(design)


def _data(design: Design, data: str | Mapping[str, Any] | Data | None) -> tuple[Data, dict[str, Any]]:
    """The data, and what a run has to know about it."""
    if isinstance(data, Data):
        found, arguments = data, {}
    else:
        given = data_arguments(data)
        assert design.data is None or isinstance(design.data, Mapping)
        arguments = dict(given if given is not None else design.data or {})
        if not arguments:
            raise RequestError(
                "the study has no data; give data='fashion' or the path of yours, or name it in the design."
            )
        found = dataset(**arguments)
    remember(found)
    for name in ("source", "test"):  # workers may begin in another folder
        if os.path.exists(arguments.get(name) or ""):
            arguments[name] = os.path.abspath(arguments[name])
    return found, {**arguments, "hash": found.hash}


class _Study:
    """One call of `study` under way."""

    def __init__(
        self,
        design: Design,
        data: Data,
        about: Mapping[str, Any],
        record: Record,
        engine: Engine,
        retries: int,
        progress: Progress | None,
    ) -> None:
        self.design, self.data, self.about, self.record = design, data, about, record
        self.engine, self.retries, self.progress = engine, retries, progress
        self.variants = design.variants()
        self.planned = plan(design, about)
        self.damaged = record.damaged
        self.spec: InputSpec | None = None if data.kind == "text" else data.input
        self.done: dict[str, dict[str, Any]] = {}  # key of a run -> its record
        self.costs: dict[int, dict[str, Any]] = {}
        self.failed: dict[str, Outcome] = {}
        self.began, self.finished_now = 0.0, 0
        self.publish_next = time.perf_counter() + PUBLISHED
        self.places: dict[
            str, list[int]
        ] = {}  # key of a run -> its variants, more than one where they come to the same
        for run in self.planned:
            self.places.setdefault(run.config.key, []).append(run.variant)
        self.sums: dict[int, tuple[float, int]] = {}  # variant -> sum of its scores, their number
        self.metric = ""

    def check(self) -> None:
        """What is wrong with all runs is said at once, before anything is started."""
        if self.engine.name != "ray":  # whose machines may have what this one lacks
            fit.check_device(self.design.device)
        for place in range(len(self.variants)):
            training(self._config(place))

    def _config(self, place: int) -> RunConfig:
        return configure(self.design, self.variants[place], self.design.all_seeds[0], self.about)

    def _built(self, place: int) -> tuple[nn.Module, InputSpec | None]:
        config = self._config(place)
        with _kept_rng(config.seed):
            return network(config, self.spec, self.data.arguments)

    def _network_key(self, place: int) -> str:
        """A hash of all that the network of a variant depends on, training and seed apart."""
        config = self._config(place).to_dict()
        parts = {name: config[name] for name in ("base", "arguments", "rules", "code")}
        return digest({**parts, "shape": list(self.data.shape), "classes": len(self.data.classes)})[:24]

    # -- the work --------------------------------------------------------------------------------------------

    def count_costs(self) -> None:
        """Costs of each variant; one that cannot be built has none, and its runs will say why."""
        keys = {place: self._network_key(place) for place in range(len(self.variants))}
        known = self.record.found(COSTS, keys.values())
        reasons = []
        for place, key in keys.items():
            if key not in known:
                try:
                    module, spec = self._built(place)
                    fit.check_network(module, spec, self.data, self.design.base)
                except ConvscopeError as error:
                    reasons.append(error)
                    continue
                known[key] = {"key": key, **costs.count(module, spec)}
                self.record.put(COSTS, key, known[key])
            self.costs[place] = known[key]
        if reasons and not self.costs:
            raise reasons[0]  # no variant can be built, or none fits the data: the base is wrong

    def train(self) -> None:
        """All runs that are not finished, in order; each is kept as it ends."""
        keys = {
            run.config.key: run for run in self.planned
        }  # variants that come to the same share their runs
        self.done = self.record.found(RUNS, keys)
        for key in self.done:
            self._count(key)
        left = [key for key in keys if key not in self.done]
        function, more = RUN, dict[str, Any]()
        if given.is_given(self.design.base) and self.engine.name != "inline":
            function, more = given.RUN, {"given": given.packed(self.design.base)}
        tasks = [Task(key, self._payload(keys[key].config) | more) for key in left]
        self.began = time.perf_counter()
        self._tell()
        self.record.log(event="start", engine=self.engine.name, runs=len(left), of=len(keys))
        self.engine.run(function, tasks, self._finish, retries=self.retries, on_retry=self._retry)

    def _payload(self, config: RunConfig) -> dict[str, Any]:
        checkpoint = self.record.checkpoint(config.key) if self.engine.shares_disk else None
        return {
            "config": config.to_dict(),
            "checkpoint": None if checkpoint is None else str(checkpoint.absolute()),
        }

    def _finish(self, outcome: Outcome) -> None:
        if outcome.failure is None:
            result = outcome.value["result"]
            self.record.put(RUNS, outcome.key, result)
            self.done[outcome.key] = result
            self._count(outcome.key)
            if (checkpoint := self.record.checkpoint(outcome.key)) is not None:
                Path(checkpoint).unlink(missing_ok=True)
        else:
            self.failed[outcome.key] = outcome
        self.finished_now += 1
        times = outcome.value["times"] if outcome.failure is None else {}
        self.record.log(
            event="run",
            key=outcome.key,
            failure=outcome.failure,
            attempts=outcome.attempts,
            seconds=round(outcome.seconds, 4),
            **times,
        )
        if time.perf_counter() >= self.publish_next:
            self.publish()
        self._tell()

    def _retry(self, task: Task) -> None:
        self.record.log(event="retry", key=task.key, reason=task.reasons[-1])

    def time_variants(self) -> None:
        """Latency of every variant, unless this machine has timed all of them before."""
        places = {cost["key"]: place for place, cost in self.costs.items()}
        if not costs.missing(places, latencies(self.record.events())):
            return
        modules = {key: self._built(place)[0] for key, place in places.items()}
        example = self.data.validation.batch(torch.arange(1))[0]
        example = example if self.spec is None else self.spec.normalize(example)
        for key, found in costs.time_each(modules, example, self.design.threads).items():
            self.record.log(event="latency", key=key, latency=found)

    # -- what is told ----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        if self.progress is None:
            return
        total = len(self.places)
        done = len(self.done) + len(self.failed)
        passed = time.perf_counter() - self.began
        rate = self.finished_now / passed if self.finished_now and passed > 0 else 0.0
        self.progress(
            {
                "done": done,
                "total": total,
                "rate": rate,
                "seconds_left": (total - done) / rate if rate else None,
                "best": self._best(),
                "failed": len(self.failed),
                "damaged": self.damaged,
            }
        )

    def _count(self, key: str) -> None:
        """A finished run into the sums that the best so far is told from."""
        scores = self.done[key]["scores"]
        if not scores:
            return
        self.metric = next(name for name in ("validation", "test", "train") if name in scores)
        for place in self.places[key]:
            total, count = self.sums.get(place, (0.0, 0))
            self.sums[place] = total + scores[self.metric], count + 1

    def _best(self) -> dict[str, Any] | None:
        """The variant with the highest mean so far, by validation where there is one."""
        if not self.sums:
            return None
        place = max(self.sums, key=lambda place: self.sums[place][0] / self.sums[place][1])
        total, count = self.sums[place]
        label = self.variants[place].label
        return {"label": label, "metric": self.metric, "mean": total / count, "runs": count}

    def publish(self) -> None:
        """What is finished, as files, which `--show` reads while the study runs or after it was killed."""
        began = time.perf_counter()
        result = self.result(0.0)
        self.record.write(RESULTS, json.dumps(result.content(), indent=1, allow_nan=False) + "\n")
        self.record.write(TABLES, sql.database(result))
        ended = time.perf_counter()
        self.publish_next = ended + max(PUBLISHED, _SHARE * (ended - began))

    def result(self, seconds: float) -> StudyResult:
        """What is finished."""
        timed = latencies(self.record.events())
        runs: dict[int, list[Run]] = {place: [] for place in range(len(self.variants))}
        failed = []
        for planned in self.planned:
            key = planned.config.key
            if key in self.done:
                runs[planned.variant].append(_run(planned, self.done[key]))
            elif key in self.failed:
                failed.append(_failure(planned, self.failed[key]))
        variants = []
        for place, variant in enumerate(self.variants):
            cost = self.costs.get(place)
            if cost is not None:
                field = cost["receptive_field"]
                cost = {**cost, "receptive_field": None if field is None else tuple(field)}
            variants.append(
                VariantResult(
                    variant.values,
                    variant.label,
                    None if cost is None else Cost(**cost, latency=timed.get(cost["key"])),
                    tuple(sorted(runs[place], key=lambda run: run.seed)),
                )
            )
        base = code_version(self.design.base, any(variant.rules for variant in self.variants))
        return StudyResult(
            self.design,
            {**self.data.to_dict(), **({"values": True} if self.data.values else {})},
            base,
            tuple(variants),
            tuple(failed),
            self.record.folder,
            seconds,
        )


def _run(planned: Planned, found: Mapping[str, Any]) -> Run:
    return Run(planned.variant, planned.config.seed, planned.config.key, **found)


def _failure(planned: Planned, outcome: Outcome) -> dict[str, Any]:
    return {
        "variant": planned.variant,
        "seed": planned.config.seed,
        "key": planned.config.key,
        "reason": outcome.failure,
        "attempts": outcome.attempts,
    }
