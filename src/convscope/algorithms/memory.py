"""What was measured once is remembered: one small file for each question, in a folder of the user's cache.

    ~/.cache/convscope/choices/3f0c....json     {"format", "key", "value", "sha256"}

The folder is `CONVSCOPE_CACHE` where that is set, else the platform's place for caches. A file is written whole
or not at all, so that any number of processes and threads may share the folder. One that is damaged, foreign or
of another format counts as absent, and the next answer replaces it. Nothing breaks where nothing can be written:
the answer then lives as long as the process, and a warning says so once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

from convscope.errors import ConvscopeWarning, StoreError
from convscope.store import atomic_write

FORMAT = 1
KEPT = 4096  # files in the folder, and answers in the process; the oldest make room


def folder() -> Path:
    """Where convscope keeps what it can make again.

    Example:
        >>> import os
        >>> os.environ["CONVSCOPE_CACHE"] = "/tmp/elsewhere"
        >>> folder().as_posix()
        '/tmp/elsewhere'
        >>> del os.environ["CONVSCOPE_CACHE"]
    """
    if named := os.environ.get("CONVSCOPE_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "convscope"


class Memory:
    """Answers by key, in the process and on disk.

    A key is a dict of plain values that holds everything the answer depends on; an answer is a dict of plain
    values.

    Args:
        name: the folder's name under `folder()`.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     os.environ["CONVSCOPE_CACHE"] = place
        ...     Memory("doubles").put({"of": 21}, {"is": 42})
        ...     print(Memory("doubles").get({"of": 21}), Memory("doubles").get({"of": 4}))
        ...     del os.environ["CONVSCOPE_CACHE"]
        {'is': 42} None
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._known: OrderedDict[Path, dict[str, Any]] = OrderedDict()
        self._guard = threading.Lock()
        self._told = False

    def path(self, key: dict[str, Any]) -> Path:
        """The file that holds the answer, or would."""
        return folder() / self.name / f"{_digest(key)[:32]}.json"

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The answer, or None where there is none that can be trusted."""
        path = self.path(key)
        with self._guard:
            if path in self._known:
                return self._known[path]
        value = _read(path, key)
        if value is not None:
            self._keep(path, value)
        return value

    def put(self, key: dict[str, Any], value: dict[str, Any]) -> None:
        """Remembers an answer; where the disk refuses, only in this process."""
        path = self.path(key)
        value = json.loads(json.dumps(value))  # as a reader will see it
        self._keep(path, value)
        body = {"format": FORMAT, "key": key, "value": value}
        try:
            atomic_write(path, json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n", sync=False)
            _make_room(path.parent)
        except StoreError as error:
            self._tell(error)

    def forget(self) -> None:
        """Forgets what the process knows; the disk keeps its own."""
        with self._guard:
            self._known.clear()

    def _keep(self, path: Path, value: dict[str, Any]) -> None:
        with self._guard:
            self._known[path] = value
            while len(self._known) > KEPT:
                self._known.popitem(last=False)

    def _tell(self, error: StoreError) -> None:
        with self._guard:
            told, self._told = self._told, True
        if not told:
            warnings.warn(
                f"what was measured is forgotten when the process ends: {error} "
                "The folder is chosen by the environment variable CONVSCOPE_CACHE.",
                ConvscopeWarning,
                stacklevel=4,
            )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
        body = {name: content[name] for name in ("format", "key", "value")}
        if content["sha256"] != _digest(body) or body["format"] != FORMAT:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # absent, torn, or not ours
        return None
    value: dict[str, Any] = body["value"]
    return value if _digest(body["key"]) == _digest(key) and isinstance(value, dict) else None


def _make_room(place: Path) -> None:
    """The oldest files go once there are too many; another process may be at it too."""
    try:
        names = [entry for entry in os.scandir(place) if entry.name.endswith((".json", ".tmp"))]
        if len(names) <= KEPT:
            return
        for entry in sorted(names, key=lambda entry: entry.stat().st_mtime)[: len(names) - KEPT * 7 // 8]:
            os.unlink(entry.path)
    except FileNotFoundError:  # the other process was quicker
        return
    except OSError as error:
        raise StoreError(f"cannot tidy {str(place)!r}: {error.strerror or error}; remove it.") from error
