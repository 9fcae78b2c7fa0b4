"""The one resumable store: a folder of results that survives kill -9, a full disk and a damaged file.

The work is cut into *pieces*. `put` writes a piece's files first and its record last; the record's rename is
the commit point, so a piece is either finished or as if it had never been started. On the next `open` every
record is checked against the SHA-256 of its files; a piece that fails is listed in `damaged` and done again.

    FOLDER/store.json           the identity: which model and settings these results belong to
    FOLDER/records/PIECE.json   one per finished piece: its record and the checksums of its files
    FOLDER/log.jsonl            what happened and how long it took; never compared, never a result
    FOLDER/.convscope.lock      held by the one process that writes here

A file is written beside its target under a temporary name, flushed to disk, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convscope.errors import StoreError, StoreMismatch

FORMAT = 1
IDENTITY = "store.json"
RECORDS = "records"
LOCK = ".convscope.lock"

_TEMPORARY = re.compile(r"\.convscope-[0-9a-f]{16}\.tmp")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._#+=@-]{0,119}")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


# ---------------------------------------------------------------- files


def atomic_write(path: str | os.PathLike[str], data: bytes | str, *, sync: bool = True) -> Path:
    """Write a whole file so that a reader, or a kill, sees the old content or the new, never a part.

    Args:
        path: the target; missing parent folders are made.
        data: the content; text is written as UTF-8 with the newlines it has.
        sync: wait until the disk has it. False is for pages that can be drawn again.

    Returns:
        The path written.

    Raises:
        StoreError: no space, no permission, or any other refusal by the system. Nothing half-written remains.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(atomic_write(f"{folder}/deep/note.txt", "hello").read_text())
        hello
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        temporary = _write_temporary(target, data, sync=sync)
        os.replace(temporary, target)
        if sync:
            _sync_folder(target.parent)
    except OSError as error:
        raise _refused(target, error) from error
    finally:
        _discard(temporary)
    return target


def _write_temporary(target: Path, data: bytes | str, *, sync: bool) -> Path:
    """The content under a temporary name beside the target (a rename must not cross file systems)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".convscope-{secrets.token_hex(8)}.tmp"
    view = memoryview(data.encode() if isinstance(data, str) else data)
    try:
        # not tempfile: its files are private (0600), a report is meant to be shared as the umask says
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            while view:
                view = view[os.write(handle, view) :]
            if sync:
                os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:  # Ctrl-C too must leave nothing behind
        _discard(temporary)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows has no such call, and needs none."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _discard(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):  # it was renamed, never made, or the folder is gone: all the same
            path.unlink()


def _refused(path: Path, error: OSError) -> StoreError:
    """An OSError as one sentence that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, remedy = (
            "no space is left on the disk",
            "free some space, or choose another folder, and run again",
        )
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason, remedy = "permission is denied", "choose a folder that you may write to"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        reason, remedy = "a file stands where a folder is needed, or the reverse", "choose another folder"
    else:
        reason, remedy = (
            error.strerror or str(error),
            "check the disk, or choose another folder, and run again",
        )
    return StoreError(f"cannot write {str(path)!r}: {reason}; {remedy}.")


def checked_name(name: str, what: str = "file") -> str:
    """A relative path that is safe on every system, or an error: names may come from an untrusted model.

    Example:
        >>> checked_name("images/003/00017-0.webp")
        'images/003/00017-0.webp'
    """
    for segment in name.split("/"):
        stem = segment.split(".")[0].lower()
        if not _SEGMENT.fullmatch(segment) or segment.endswith(".") or stem in _WINDOWS_DEVICES:
            raise StoreError(
                f"{what} name {name!r} cannot be stored: parts between '/' must be 1 to 120 letters, digits "
                f"or '._#+=@-', begin with a letter, digit or '_', and name no device; number it instead."
            )
    return name


# ---------------------------------------------------------------- JSON


def _plain(value: Any, where: str) -> Any:
    """Value as JSON can carry it (tuples become lists), or an error that names the place."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)  # numpy's float64 is a float too
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
        raise StoreError(
            f"{where} has a key that is not text: JSON needs text keys; convert them with str()."
        )
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise StoreError(
        f"{where} is {value!r} ({type(value).__name__}), which JSON cannot carry; "
        f"store a finite number, text, a list, a dict or None."
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two identities, in the order of the new one, one clause a key."""
    before, now = _flat(old), _flat(new)

    def show(flat: dict[str, Any], key: str) -> str:
        text = repr(flat[key]) if key in flat else "absent"
        return text if len(text) <= 60 else text[:57] + "..."

    return [
        f"{key} (there {show(before, key)}, now {show(now, key)})"
        for key in {**now, **before}
        if key not in before or key not in now or before[key] != now[key]
    ]


# ---------------------------------------------------------------- lock

_held: set[int] = set()  # descriptors of the locks this process holds


def _forget_locks_in_child() -> None:
    """A forked worker shares the lock; it must not keep it when its parent is killed."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks_in_child)


def _try_lock(handle: int) -> bool:
    """Take the system's lock, freed when this process ends, kill -9 included; False if another has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 20, os.SEEK_SET)  # far from the text, which others may then still read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(folder: Path) -> int:
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _try_lock(handle):
            with contextlib.suppress(OSError, ValueError):
                holder = f" (process {int(path.read_text())})"
                raise _busy(folder, holder)
            raise _busy(folder, "")
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            os.close(handle)
            raise
        warnings.warn(
            f"the file system of {str(folder)!r} has no locks: let only one convscope write there at a time.",
            RuntimeWarning,
            stacklevel=4,
        )
    except BaseException:
        os.close(handle)
        raise
    _held.add(handle)
    with contextlib.suppress(OSError):  # who holds it is a courtesy, and the disk may be full
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def _busy(folder: Path, holder: str) -> StoreError:
    return StoreError(
        f"the folder {str(folder)!r} is being written by another convscope{holder}; "
        f"wait until it ends, stop it, or choose another folder."
    )


def _unlock(handle: int) -> None:
    _held.discard(handle)
    try:
        os.ftruncate(handle, 0)  # two runs that made the same results leave the same files
    finally:
        os.close(handle)  # frees the lock


# ---------------------------------------------------------------- the store


class Store:
    """A folder of finished pieces; open it with `Store.open`, as a context manager.

    Attributes:
        folder: where the results are.
        identity: what they belong to, as plain values.
        damaged: piece -> why it could not be trusted when the folder was opened; it is to be done again.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], log: str, lock: int) -> None:
        """Use `Store.open`."""
        self.folder = folder
        self.identity = identity
        self.damaged: dict[str, str] = {}
        self._log = folder / checked_name(log, "log")
        self._lock: int | None = lock
        self._guard = threading.RLock()
        self._records: dict[str, dict[str, Any]] = {}  # piece -> the whole record as on disk
        self._owner: dict[str, str] = {}  # file name, case folded -> piece

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        fresh: bool = False,
        log: str = "log.jsonl",
    ) -> Store:
        """Open a folder to write results of one model and one setting, or go on where a killed run stopped.

        Args:
            folder: made if missing.
            identity: plain values: what the results belong to (settings, hash of the weights, versions).
            fresh: throw away the results that are there.
            log: name of the log in the folder.

        Returns:
            The store, locked for this process until `close` or the end of the `with` block.

        Raises:
            StoreMismatch: the folder holds results of another identity, and `fresh` was not given.
            StoreError: another process writes there, or the folder cannot be used.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with Store.open(folder, {"steps": 8}) as store:
            ...         store.put("chunk-0", {"activation": 1.5}, {"images/0.bin": b"picture"})
            ...     with Store.open(folder, {"steps": 8}) as store:
            ...         print(sorted(store.finished()), store.get("chunk-0"))
            ['chunk-0'] {'activation': 1.5}
        """
        path = Path(folder)
        plain: dict[str, Any] = _plain(identity, "identity")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise _refused(path, error) from error
        try:
            store = cls(path, plain, log, lock)
            store._enter(fresh=fresh)
        except BaseException:
            _unlock(lock)
            raise
        return store

    @classmethod
    def open_cache(
        cls, folder: str | os.PathLike[str], identity: Mapping[str, Any], *, fresh: bool = False
    ) -> Store:
        """As `open`, for what can be measured again at any time: results of another identity are thrown away.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with Store.open_cache(folder, {"network": "a"}) as store:
            ...         store.put("latency", {"ms": 2.0})
            ...     with Store.open_cache(folder, {"network": "b"}) as store:
            ...         print(store.finished())
            set()
        """
        try:
            return cls.open(folder, identity, fresh=fresh)
        except StoreMismatch:
            return cls.open(folder, identity, fresh=True)

    def _enter(self, *, fresh: bool) -> None:
        """Under the lock: check whose folder it is, tidy up, read what is finished."""
        identity_file = self.folder / IDENTITY
        if identity_file.exists() and not fresh:
            self._check_identity(identity_file)
        try:
            self._remove_temporaries()
            self._read_records()
            if fresh:
                self._forget_all()
            self._end_torn_line()
        except OSError as error:
            raise _refused(self.folder, error) from error
        if fresh or not identity_file.exists():
            content = {"format": FORMAT, "identity": self.identity}
            atomic_write(identity_file, json.dumps(content, indent=1) + "\n")
        for piece, reason in self.damaged.items():
            self.log(event="damaged", piece=piece, reason=reason)

    def _check_identity(self, path: Path) -> None:
        afresh = "choose another folder, or start afresh with fresh=True (--fresh)"
        try:
            there = json.loads(path.read_bytes())
            version, identity = there["format"], there["identity"]
        except OSError as error:
            raise StoreError(f"cannot read {str(path)!r}: {error.strerror}; {afresh}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreMismatch(
                f"{str(path)!r} is damaged or was not made by convscope; {afresh}."
            ) from error
        if version != FORMAT:
            raise StoreMismatch(
                f"{str(path)!r} has format {version!r}, this convscope writes {FORMAT}; {afresh}."
            )
        if identity != self.identity:
            differing = _differences(identity, self.identity)
            rest = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise StoreMismatch(
                f"the folder {str(self.folder)!r} holds results of another model or other settings: "
                f"{', '.join(differing[:4])}{rest}; {afresh}."
            )

    def _remove_temporaries(self) -> None:
        """What a killed write left. Only names of this store's own making are touched."""
        for parent, _, names in os.walk(self.folder):
            for name in names:
                if _TEMPORARY.fullmatch(name):
                    Path(parent, name).unlink()

    def _read_records(self) -> None:
        folder = self.folder / RECORDS
        for path in sorted(folder.rglob("*.json")):
            piece = path.relative_to(folder).as_posix().removesuffix(".json")
            try:
                content = json.loads(path.read_bytes())
                reason = self._defect(piece, content)
            except (ValueError, KeyError, TypeError, AttributeError, StoreError):
                reason = "the record cannot be read"
            if reason:
                self.damaged[piece] = reason
                path.unlink()
            else:
                self._remember(piece, content)

    def _defect(self, piece: str, content: dict[str, Any]) -> str | None:
        """Why a record on disk cannot be trusted, or None."""
        body = {key: content[key] for key in ("piece", "record", "files")}
        if content["sha256"] != _digest(body) or body["piece"] != piece:
            return "the record does not match its checksum"
        for name, expected in body["files"].items():
            path = self.folder / checked_name(name)
            if not path.is_file():
                return f"the file {name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"the file {name} has another length"
            with path.open("rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != expected["sha256"]:
                    return f"the file {name} does not match its checksum"
        return None

    def _remember(self, piece: str, content: dict[str, Any]) -> None:
        self._records[piece] = content
        for name in content["files"]:
            self._owner[name.casefold()] = piece

    def _forget(self, piece: str) -> None:
        """Remove a piece, files first: cut short, it is found damaged, never whole with foreign files."""
        content = self._records.pop(piece, None)
        for name in content["files"] if content else ():
            self._owner.pop(name.casefold(), None)
            (self.folder / name).unlink(missing_ok=True)
        self._record_path(piece).unlink(missing_ok=True)

    def _forget_all(self) -> None:
        for piece in list(self._records):
            self._forget(piece)
        self.damaged.clear()
        self._log.unlink(missing_ok=True)

    def _record_path(self, piece: str) -> Path:
        return self.folder / RECORDS / f"{piece}.json"

    def _end_torn_line(self) -> None:
        """A kill in the middle of a log line must not spoil the next one."""
        if self._log.exists() and self._log.stat().st_size:
            with self._log.open("rb+") as handle:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    handle.write(b"\n")

    # -- what callers use

    def finished(self) -> set[str]:
        """The names of the pieces that need not be done again."""
        with self._guard:
            return set(self._records)

    def get(self, piece: str) -> dict[str, Any]:
        """The record of a finished piece, as given to `put` (tuples come back as lists).

        Raises:
            StoreError: the piece is not finished.
        """
        with self._guard:
            if piece not in self._records:
                raise StoreError(f"piece {piece!r} is not in {str(self.folder)!r}; ask finished() first.")
            record: dict[str, Any] = json.loads(json.dumps(self._records[piece]["record"]))
            return record

    def put(self, piece: str, record: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> None:
        """Commit a piece: its files, then its record. A piece put before is replaced.

        Args:
            piece: its name; '/' makes folders.
            record: plain values (finite numbers, text, lists, dicts, None).
            files: path under the folder -> content; a path belongs to one piece.

        Raises:
            StoreError: the system refuses (no space, no permission), a name is unsafe or taken, or a value is
                not plain. The piece is then not finished, and none of its files is left.
        """
        files = files or {}
        checked_name(piece, "piece")
        if any(segment.endswith(".json") for segment in piece.split("/")):
            raise StoreError(
                f"piece name {piece!r} cannot be stored: a part ends in '.json'; name it otherwise."
            )
        content = self._content(piece, record, files)
        with self._guard:
            self._check_open()
            self._check_names(piece, files)
            try:
                self._forget(piece)
            except OSError as error:
                raise _refused(self.folder, error) from error
            self._write_files(files)
            try:
                atomic_write(self._record_path(piece), json.dumps(content, indent=1) + "\n")
            except BaseException:
                for name in files:
                    _discard(self.folder / name)
                raise
            self._remember(piece, content)
            self.damaged.pop(piece, None)

    def _content(self, piece: str, record: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
        body = {
            "piece": piece,
            "record": _plain(record, f"record of piece {piece!r}"),
            "files": {
                checked_name(name): {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in files.items()
            },
        }
        return {**body, "sha256": _digest(body)}

    def _check_names(self, piece: str, files: Mapping[str, bytes]) -> None:
        seen: set[str] = set()
        for name in files:
            key = name.casefold()  # macOS and Windows take 'A' and 'a' for one file
            self._check_reserved(name)
            owner = self._owner.get(key, piece)
            if owner != piece or key in seen:
                raise StoreError(
                    f"file name {name!r} is already used by piece {owner!r}; give each its own name."
                )
            seen.add(key)

    def _check_reserved(self, name: str) -> None:
        first = name.split("/")[0].casefold()
        if first in (IDENTITY, RECORDS, self._log.name.casefold()):
            raise StoreError(f"file name {name!r} is kept for the store itself; choose another.")

    def _write_files(self, files: Mapping[str, bytes]) -> None:
        """All under temporary names, then all renamed; on any failure none is left."""
        written: dict[Path, Path] = {}  # target -> temporary
        renamed: list[Path] = []
        target = self.folder
        try:
            for name, data in files.items():
                target = self.folder / name
                written[target] = _write_temporary(target, data, sync=True)
            for target, temporary in written.items():
                os.replace(temporary, target)
                renamed.append(target)
            for folder in {target.parent for target in written}:
                _sync_folder(folder)
        except BaseException as error:
            for leftover in (*written.values(), *renamed):
                _discard(leftover)
            if isinstance(error, OSError):
                raise _refused(target, error) from error
            raise

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a file that belongs to no piece (a manifest, a page), atomically.

        Raises:
            StoreError: the name is unsafe, or the system refuses.
        """
        checked_name(name)
        self._check_reserved(name)
        with self._guard:
            self._check_open()
            return atomic_write(self.folder / name, data)

    def log(self, **event: Any) -> None:
        """Append one line to the log: the time (UTC) and the given plain values.

        Raises:
            StoreError: a value is not plain, or the system refuses.
        """
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        line = json.dumps({"time": stamp, **_plain(event, "event")}) + "\n"
        with self._guard:
            self._check_open()
            try:
                handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    os.write(handle, line.encode())  # one call, so that a line is whole or missing
                finally:
                    os.close(handle)
            except OSError as error:
                raise _refused(self._log, error) from error

    def events(self) -> Iterator[dict[str, Any]]:
        """The lines of the log, oldest first; a line torn by a kill is left out."""
        if self._log.exists():
            for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def _check_open(self) -> None:
        if self._lock is None:
            raise StoreError(f"the store of {str(self.folder)!r} is closed; open it again with Store.open.")

    def close(self) -> None:
        """Free the folder for another process; closing twice does no harm."""
        with self._guard:
            if self._lock is not None:
                lock, self._lock = self._lock, None
                _unlock(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, {len(self._records)} finished, {len(self.damaged)} damaged)"
