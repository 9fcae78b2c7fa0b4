"""Studies that are on record: those that ship, or a folder of them; whether this code made them; single runs trained again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convscope.errors import RequestError
from convscope.studies.data import dataset
from convscope.studies.plan import configure
from convscope.studies.record import RESULTS
from convscope.studies.results import StudyResult
from convscope.studies.run import remember, run
from convscope.studies.version import code_version

SHIPPED = Path(__file__).parents[1] / "data" / "studies"


def records(folder: Path | None = None) -> Iterator[tuple[str, StudyResult]]:
    """The studies on record, by name.

    Args:
        folder: of a study, of folders of studies or of their `results.json` under other names; None for those that ship.

    Raises:
        RequestError: there is no such folder, or a record in it cannot be read.

    Example:
        >>> dict(records())["pooling"].design.seeds
        (0, 1, 2, 3, 4)
    """
    place = SHIPPED if folder is None else folder
    if not place.is_dir():
        raise RequestError(
            f"studies={str(place)!r} is no folder; give one that holds what convscope study wrote."
        )
    if (place / RESULTS).is_file():
        yield place.name, StudyResult.from_record(place)
        return
    for path in sorted(place.iterdir()):
        file = path / RESULTS if path.is_dir() else path
        if file.suffix == ".json" and file.is_file():
            yield path.stem, StudyResult.from_record(file)


def made_here(result: StudyResult) -> bool:
    """Whether the code and versions of here would name the runs of the study as they are named."""
    rewritten = any("rule" in variant.values for variant in result.variants)
    return dict(result.code) == code_version(result.design.base, rewritten)


@dataclass(frozen=True)
class Again:
    """One run of a record, trained again on this machine.

    Attributes:
        variant: its label.
        seed: its own.
        metric: of the scores.
        recorded, here: accuracy.
        spread: of the accuracies that the seeds of the variant reached on record, highest minus lowest.
        same: whether configuration, data and code are those of the record, so that on a processor of the same kind the two
            should be equal to the last bit.
        seconds: it took.
    """

    variant: str
    seed: int
    metric: str
    recorded: float
    here: float
    spread: float
    same: bool
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the two are closer than the seeds of the record are to one another, or equal."""
        return self.here == self.recorded or abs(self.here - self.recorded) <= self.spread

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def again(result: StudyResult, pick: int = 0) -> Again:
    """Trains one run of a record once more, from its configuration alone.

    Args:
        result: of the study; its data must have a source.
        pick: which run: the baseline's, at the seed of this place, counted round.

    Raises:
        RequestError: the study has no such run, or its data had no source.
        BadInput, ModelError: as of the training.

    Example:
        >>> found = again(dict(records())["pooling-head"])  # doctest: +SKIP
        >>> found.here == found.recorded  # doctest: +SKIP
        True
    """
    variant = result.variants[result.baseline]
    runs = [each for each in variant.runs if each.scores]
    if not runs or result.design.data is None:
        raise RequestError(
            f"no run of the study {result.design.name!r} can be trained again: none finished, or its data had no source."
        )
    assert not isinstance(result.design.data, str)
    recorded = runs[pick % len(runs)]
    began = time.perf_counter()
    data = dataset(**result.design.data)
    remember(data)
    planned = result.design.variants()[result.baseline]
    config = configure(result.design, planned, recorded.seed, {**result.design.data, "hash": data.hash})
    scores = run({"config": config.to_dict(), "checkpoint": None})["result"]["scores"]
    metric = next(name for name in ("test", "validation", "train") if name in recorded.scores)
    reached = variant.scores(metric).values()
    return Again(
        variant.label,
        recorded.seed,
        metric,
        recorded.scores[metric],
        scores.get(metric, 0.0),
        max(reached) - min(reached),
        config.key == recorded.key,
        time.perf_counter() - began,
    )
