"""What a study keeps: each finished run, whole or not at all, in a folder that a killed study goes on with.

    FOLDER/records/runs/KEY.json   one for each finished run; see `RunConfig.key`
    FOLDER/records/costs/KEY.json  what a variant costs, training apart
    FOLDER/results.json            all of it in one file, without times; rewritten when the study ends or is interrupted
    FOLDER/results.sqlite          the same as tables
    FOLDER/timings.jsonl           what happened, and how long it took

Runs are named by all that they depend on, so that a folder may be gone on with under a changed design: seeds or levels
that were added are trained, all others are taken as they are. Only one driver writes to a folder at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convscope.store import Store

RUNS, COSTS = "runs", "costs"
RESULTS, TABLES, LOG, CHECKPOINTS = "results.json", "results.sqlite", "timings.jsonl", "checkpoints"


class Record:
    """The finished runs of a study, on disk or, without a folder, in memory.

    Args:
        folder: made if missing; None keeps everything in memory.
        fresh: throw away what the folder holds.

    Raises:
        StoreMismatch: the folder holds something else than a study.
        StoreError: another process writes there, or the folder cannot be used.

    Example:
        >>> with Record() as record:
        ...     record.put("runs", "a1", {"accuracy": 0.8})
        ...     record.found("runs", ["a1", "b2"])
        {'a1': {'accuracy': 0.8}}
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, fresh: bool = False) -> None:
        identity = {"kind": "study"}
        self._store = None if folder is None else Store.open(folder, identity, fresh=fresh, log=LOG)
        if self._store is not None and fresh:
            shutil.rmtree(self._store.folder / CHECKPOINTS, ignore_errors=True)
        self._kept: dict[str, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path | None:
        """Where it is; None in memory."""
        return None if self._store is None else self._store.folder

    @property
    def damaged(self) -> int:
        """Finished runs that were found damaged and are gone."""
        pieces = () if self._store is None else self._store.damaged
        return sum(piece.startswith(f"{RUNS}/") for piece in pieces)

    def put(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        """Keeps what is finished: once this returns, it is on disk."""
        if self._store is None:
            self._kept[f"{kind}/{key}"] = dict(content)
        else:
            self._store.put(f"{kind}/{key}", content)

    def found(self, kind: str, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Of these keys, what is finished."""
        if self._store is None:
            return {key: self._kept[f"{kind}/{key}"] for key in keys if f"{kind}/{key}" in self._kept}
        finished = self._store.finished()
        return {key: self._store.get(f"{kind}/{key}") for key in keys if f"{kind}/{key}" in finished}

    def write(self, name: str, data: bytes | str) -> None:
        """A file that is made from what is finished; nowhere, in memory."""
        if self._store is not None:
            self._store.write(name, data)

    def log(self, **event: Any) -> None:
        """What happened; a time belongs here and nowhere else."""
        if self._store is None:
            self._events.append(event)
        else:
            self._store.log(**event)

    def events(self) -> list[dict[str, Any]]:
        """The log, oldest first."""
        return self._events if self._store is None else list(self._store.events())

    def checkpoint(self, key: str) -> Path | None:
        """Where an unfinished run may keep what it has; None in memory."""
        return None if self.folder is None else self.folder / CHECKPOINTS / f"{key}.pt"

    def close(self) -> None:
        """Frees the folder."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
