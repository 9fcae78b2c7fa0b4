"""A study's result as an SQLite database: four tables that join on `variant`, the place in the design's order."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convscope.studies.results import StudyResult

_SCHEMA = """
create table variants (variant integer primary key, label text not null, levels text not null, params integer,
    macs integer, receptive_field text, baseline integer not null);
create table runs (variant integer not null references variants, seed integer not null, key text not null,
    diverged integer not null, epoch integer, steps integer, macs real, primary key (variant, seed));
create table scores (variant integer not null, seed integer not null, metric text not null, accuracy real not null,
    primary key (variant, seed, metric));
create table curves (variant integer not null, seed integer not null, name text not null, epoch integer not null,
    value real, primary key (variant, seed, name, epoch));
create table failures (variant integer not null, seed integer not null, reason text not null, attempts integer not null,
    primary key (variant, seed));
"""


def database(result: StudyResult) -> bytes:
    """The content of a database file: the same for the same runs.

    `levels` and `receptive_field` are JSON; `scores` and `curves` have a row for each number.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(_SCHEMA)
        for table, rows in _tables(result).items():
            for row in rows:
                marks = ", ".join("?" * len(row))
                connection.execute(f"insert into {table} values ({marks})", row)  # the names are ours
        connection.commit()
        return connection.serialize()
    finally:
        connection.close()


def _tables(result: StudyResult) -> dict[str, Iterable[tuple[Any, ...]]]:
    return {
        "variants": _variants(result),
        "runs": (
            (run.variant, run.seed, run.key, int(run.diverged), run.epoch, run.steps, run.macs)
            for variant in result.variants
            for run in variant.runs
        ),
        "scores": (
            (run.variant, run.seed, metric, accuracy)
            for variant in result.variants
            for run in variant.runs
            for metric, accuracy in run.scores.items()
        ),
        "curves": (
            (run.variant, run.seed, name, epoch, value)
            for variant in result.variants
            for run in variant.runs
            for name, values in run.curves.items()
            for epoch, value in enumerate(values, start=1)
        ),
        "failures": ((f["variant"], f["seed"], f["reason"], f["attempts"]) for f in result.failed),
    }


def _variants(result: StudyResult) -> Iterator[tuple[Any, ...]]:
    for place, variant in enumerate(result.variants):
        cost = variant.cost
        field = (
            None if cost is None or cost.receptive_field is None else json.dumps(list(cost.receptive_field))
        )
        params, macs = (None, None) if cost is None else (cost.params, cost.macs)
        levels = json.dumps(dict(variant.values))
        yield place, variant.label, levels, params, macs, field, int(place == result.baseline)
