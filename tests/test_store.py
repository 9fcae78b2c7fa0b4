"""The store: what is finished survives a kill, a full disk and a damaged file; all else is done again."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import convscope.store
from convscope.errors import StoreError, StoreMismatch
from convscope.store import LOCK, Store, atomic_write, checked_name

IDENTITY = {"net": {"sha256": "ab12", "input": [3, 32, 32]}, "settings": {"steps": 8, "seed": 0}}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under the folder, by its path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- pieces


def test_put_get_and_resume(tmp_path: Path) -> None:
    with Store.open(tmp_path / "deep" / "out", IDENTITY) as store:
        assert store.finished() == set()
        store.put("chunk-0", {"value": 1.5, "shape": (3, 4)}, {"images/000/1-0.webp": b"one"})
        store.put("layer/3", {"none": None})
    with Store.open(tmp_path / "deep" / "out", IDENTITY) as store:
        assert store.finished() == {"chunk-0", "layer/3"}
        assert store.get("chunk-0") == {"value": 1.5, "shape": [3, 4]}
        assert store.damaged == {}
        assert (store.folder / "images/000/1-0.webp").read_bytes() == b"one"
        assert repr(store) == f"Store({str(store.folder)!r}, 2 finished, 0 damaged)"


def test_the_record_handed_out_is_a_copy(tmp_path: Path) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        store.put("a", {"list": [1]})
        store.get("a")["list"].append(2)
        assert store.get("a") == {"list": [1]}


def test_a_piece_put_again_replaces_its_files(tmp_path: Path) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        store.put("a", {"try": 1}, {"one.bin": b"1", "two.bin": b"2"})
        store.put("a", {"try": 2}, {"two.bin": b"22"})
    with Store.open(tmp_path, IDENTITY) as store:
        assert store.get("a") == {"try": 2}
        assert not (tmp_path / "one.bin").exists()
        assert (tmp_path / "two.bin").read_bytes() == b"22"


def test_two_equal_runs_leave_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Store.open(tmp_path / name, IDENTITY) as store:
            store.put("x", {"value": 0.1}, {"x.bin": b"x"})
            store.write("manifest.json", "{}")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_closed_store_refuses_work(tmp_path: Path) -> None:
    store = Store.open(tmp_path, IDENTITY)
    store.close()
    store.close()
    for use in (lambda: store.put("a", {}), lambda: store.write("a", b""), lambda: store.log(event="x")):
        with pytest.raises(StoreError, match=r"store of .* is closed; open it again"):
            use()


def test_missing_piece_is_named(tmp_path: Path) -> None:
    with Store.open(tmp_path, IDENTITY) as store, pytest.raises(StoreError, match="piece 'a' is not in"):
        store.get("a")


# ---------------------------------------------------------------- identity


def test_another_identity_is_refused_with_what_differs(tmp_path: Path) -> None:
    Store.open(tmp_path, IDENTITY).close()
    other = {"net": {"sha256": "ff", "input": [3, 32, 32]}, "settings": {"steps": 16, "colour": "none"}}
    with pytest.raises(StoreMismatch) as caught:
        Store.open(tmp_path, other)
    message = str(caught.value)
    assert "net.sha256 (there 'ab12', now 'ff')" in message
    assert "settings.steps (there 8, now 16)" in message
    assert "settings.colour (there absent, now 'none')" in message
    assert "settings.seed (there 0, now absent)" in message
    assert message.endswith("choose another folder, or start afresh with fresh=True (--fresh).")


def test_tuples_and_lists_are_one_identity(tmp_path: Path) -> None:
    Store.open(tmp_path, {"shape": (3, 8)}).close()
    Store.open(tmp_path, {"shape": [3, 8]}).close()


def test_fresh_removes_what_the_store_made_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with Store.open(tmp_path, IDENTITY) as store:
        store.put("a", {}, {"images/a.bin": b"a"})
        store.log(event="done")
    with Store.open(tmp_path, {"other": 1}, fresh=True) as store:
        assert store.finished() == set()
        assert list(store.events()) == []
    assert set(contents(tmp_path)) == {"mine.txt", "store.json", LOCK}
    Store.open(tmp_path, {"other": 1}).close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged or was not made by convscope"),
        ("[1]", "is damaged or was not made by convscope"),
        ('{"format": 99, "identity": {}}', "has format 99, this convscope writes 1"),
    ],
)
def test_a_folder_of_someone_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreMismatch, match=message):
        Store.open(tmp_path, IDENTITY)
    Store.open(tmp_path, IDENTITY, fresh=True).close()
    Store.open(tmp_path, IDENTITY).close()


# ---------------------------------------------------------------- damage


def _spoil_content(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"AAAb")


def _spoil_length(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"AAA")


def _spoil_missing(folder: Path) -> None:
    (folder / "a.bin").unlink()


def _spoil_record(folder: Path) -> None:
    path = folder / "records/a.json"
    path.write_text(path.read_text().replace('"value": 7', '"value": 8'))


def _spoil_cut(folder: Path) -> None:
    path = folder / "records/a.json"
    path.write_text(path.read_text()[:50])


def _spoil_escape(folder: Path) -> None:
    """A record made by hand, whose checksum fits, that points out of the folder."""
    body = {"piece": "a", "record": {}, "files": {"../outside": {"bytes": 0, "sha256": ""}}}
    text = json.dumps({**body, "sha256": convscope.store._digest(body)})
    (folder / "records/a.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_spoil_content, "the file a.bin does not match its checksum"),
        (_spoil_length, "the file a.bin has another length"),
        (_spoil_missing, "the file a.bin is missing"),
        (_spoil_record, "the record does not match its checksum"),
        (_spoil_cut, "the record cannot be read"),
        (_spoil_escape, "the record cannot be read"),
    ],
)
def test_damage_is_found_told_and_done_again(tmp_path: Path, spoil: Any, reason: str) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        store.put("a", {"value": 7}, {"a.bin": b"AAAA"})
        store.put("b", {"value": 8}, {"b.bin": b"BBBB"})
    spoil(tmp_path)
    with Store.open(tmp_path, IDENTITY) as store:
        assert store.finished() == {"b"}
        assert store.damaged == {"a": reason}
        assert [(event["piece"], event["reason"]) for event in store.events()] == [("a", reason)]
        store.put("a", {"value": 7}, {"a.bin": b"AAAA"})
        assert store.damaged == {}
    with Store.open(tmp_path, IDENTITY) as store:
        assert store.finished() == {"a", "b"}


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", ".hidden", "a\\b", "C:x", "a\nb", "a\0b",
     "é", "nul.txt", "x/con", "dot.", "x" * 121, "<img src=x onerror=alert(1)>", "-rf", "~root"],
)  # fmt: skip
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="file name .* cannot be stored"):
        checked_name(name)
    with Store.open(tmp_path / "in", IDENTITY) as store:
        with pytest.raises(StoreError, match="piece name .* cannot be stored"):
            store.put(name, {})
        with pytest.raises(StoreError, match="file name .* cannot be stored"):
            store.put("a", {}, {name: b""})
        with pytest.raises(StoreError, match="file name .* cannot be stored"):
            store.write(name, b"")
        assert store.finished() == set()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@given(st.text(max_size=40))
def test_a_name_that_passes_stays_in_the_folder(name: str) -> None:
    root = Path("/somewhere/out")
    try:
        checked_name(name)
    except StoreError:
        return
    inside = Path(os.path.normpath(root / name))
    assert inside != root
    assert inside.is_relative_to(root)
    assert inside == root / name


@pytest.mark.parametrize(
    "name", ["store.json", "records/a.json", "RECORDS/a.json", "log.jsonl", "Store.json"]
)
def test_names_of_the_store_itself_are_kept(tmp_path: Path, name: str) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        for use in (lambda: store.put("a", {}, {name: b""}), lambda: store.write(name, b"")):
            with pytest.raises(StoreError, match="is kept for the store itself; choose another"):
                use()


def test_a_file_belongs_to_one_piece(tmp_path: Path) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        store.put("a", {}, {"x.bin": b"1"})
        with pytest.raises(StoreError, match=r"file name 'X.bin' is already used by piece 'a'"):
            store.put("b", {}, {"X.bin": b"2"})
        with pytest.raises(StoreError, match="already used"):
            store.put("c", {}, {"y.bin": b"2", "Y.bin": b"2"})
        with pytest.raises(StoreError, match=r"a part ends in '.json'; name it otherwise"):
            store.put("a.json/b", {})


# ---------------------------------------------------------------- values

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(), PLAIN, max_size=4),
    st.dictionaries(st.sampled_from("abc"), st.binary(max_size=64)),
)
def test_what_goes_in_comes_out(record: dict[str, Any], files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with Store.open(folder, {}) as store:
            store.put("p", record, files)
        with Store.open(folder, {}) as store:
            assert store.damaged == {}
            assert store.get("p") == record
            assert {name: Path(folder, name).read_bytes() for name in files} == files


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"units": [{"activation": float("nan")}]},
            r"record of piece 'a'.units\[0\].activation is nan \(float\)",
        ),
        ({"x": float("inf")}, "x is inf"),
        ({"x": Path("y")}, r"PosixPath|WindowsPath"),
        ({1: 2}, "has a key that is not text"),
    ],
)
def test_values_that_json_cannot_carry_are_named(tmp_path: Path, record: Any, message: str) -> None:
    with Store.open(tmp_path, IDENTITY) as store, pytest.raises(StoreError, match=message):
        store.put("a", record)


def test_the_log_keeps_whole_lines(tmp_path: Path) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        store.log(event="chunk", seconds=1.25)
    with (tmp_path / "log.jsonl").open("a") as handle:
        handle.write('{"event": "to')  # a kill in the middle of a line
    with Store.open(tmp_path, IDENTITY) as store:
        store.log(event="again")
        events = list(store.events())
    assert [event["event"] for event in events] == ["chunk", "again"]
    assert events[0]["seconds"] == 1.25
    assert set(events[0]) == {"time", "event", "seconds"}


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for index in range(5):
            store.put(f"{number}-{index}", {"n": number}, {f"{number}/{index}.bin": bytes([number])})
            store.log(event="put", n=number)

    with Store.open(tmp_path, IDENTITY) as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(store.events())) == 20
    with Store.open(tmp_path, IDENTITY) as store:
        assert len(store.finished()) == 20


# ---------------------------------------------------------------- the system says no


class FullDisk:
    """A disk with room for so many bytes: os.write takes what fits, then ENOSPC, as Linux does."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write_bytes = os.write

    def write(self, handle: int, data: Any) -> int:
        count = min(len(data), self.room)
        if count == 0 and len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= count
        return self.write_bytes(handle, bytes(data[:count]))


@pytest.mark.parametrize("room", [0, 3, 5, 11, 150, 300])
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    with Store.open(tmp_path, IDENTITY) as store:
        store.put("a", {"x": 1}, {"a.bin": b"old"})
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", FullDisk(room).write)
            with pytest.raises(
                StoreError, match=r"cannot write '.*': no space is left on the disk; free some space"
            ):
                store.put("b", {"y": 2}, {"images/b.bin": b"12345", "images/c.bin": b"678901"})
            assert store.finished() == {"a"}
            assert contents(tmp_path) == before
        store.put("b", {"y": 2}, {"images/b.bin": b"12345"})
    with Store.open(tmp_path, IDENTITY) as store:
        assert store.finished() == {"a", "b"}


def test_a_failed_flush_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Store.open(tmp_path, IDENTITY) as store:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="Input/output error; check the disk"):
            store.put("a", {}, {"a.bin": b"1"})
        with pytest.raises(StoreError, match="Input/output error"):
            store.write("manifest.json", "{}")
        assert set(contents(tmp_path)) == {"store.json", LOCK}


def test_ctrl_c_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    with Store.open(tmp_path, IDENTITY) as store:
        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put("a", {}, {"a.bin": b"1"})
        assert set(contents(tmp_path)) == {"store.json", LOCK}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        Store.open(tmp_path / "out", IDENTITY)
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        atomic_write(tmp_path / "out" / "x", b"")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere; needs POSIX modes")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission is denied; choose a folder"):
        Store.open(tmp_path / "out", IDENTITY)
    tmp_path.chmod(0o700)


def test_atomic_write_replaces_and_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = atomic_write(tmp_path / "x.txt", "é\n")
        assert path.read_bytes() == b"\xc3\xa9\n"
        atomic_write(path, b"new", sync=False)
        assert path.read_bytes() == b"new"
        assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


# ---------------------------------------------------------------- processes


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Store.open(tmp_path, IDENTITY):
        with pytest.raises(
            StoreError, match=rf"another convscope \(process {os.getpid()}\); wait until it ends"
        ):
            Store.open(tmp_path, IDENTITY)
        code = "import sys; from convscope.store import Store; Store.open(sys.argv[1], {})"
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert f"is being written by another convscope (process {os.getpid()})" in other.stderr
    Store.open(tmp_path, IDENTITY).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    store = Store.open(tmp_path, IDENTITY)
    started = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path / "forked")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (started.stdout, started.stderr) == ("free\n", "")
    store.close()


FORKING = """
import os, sys
from convscope.store import Store
store = Store.open(sys.argv[1], {})
from_child, to_parent = os.pipe()
from_parent, to_child = os.pipe()
if os.fork() == 0:
    os.close(to_child)
    os.write(to_parent, b"x")
    os.read(from_parent, 1)  # until the parent ends
    os._exit(0)
os.read(from_child, 1)
os.close(store._lock)  # what the system does when the parent is killed
store._lock = None
Store.open(sys.argv[1], {}).close()
print("free")
"""

WORKER = """
import hashlib, sys
from convscope.store import Store
with Store.open(sys.argv[1], {"settings": 1}) as store:
    print("open", flush=True)
    for index in range(40):
        piece = f"chunk-{index:04d}"
        if piece in store.finished():
            continue
        files = {f"images/{index}/{n}.bin": hashlib.sha256(bytes([index, n])).digest() * 9 for n in range(4)}
        store.put(piece, {"index": index}, files)
        store.log(event="chunk", index=index)
        store.write("manifest.json", str(len(store.finished())))
"""


def _run_worker(folder: Path, kill_after: float | None) -> int:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    if kill_after is not None:
        time.sleep(kill_after)
        worker.send_signal(signal.SIGKILL)
    _, errors = worker.communicate(timeout=60)
    assert not errors
    return worker.returncode


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_random_moments_equals_uninterrupted(tmp_path: Path) -> None:
    began = time.monotonic()
    assert _run_worker(tmp_path / "whole", None) == 0
    whole = time.monotonic() - began
    moments = random.Random(5)
    killed = sum(_run_worker(tmp_path / "cut", moments.uniform(0, whole / 4)) != 0 for _ in range(6))
    assert killed
    assert _run_worker(tmp_path / "cut", None) == 0
    with Store.open(tmp_path / "cut", {"settings": 1}) as store:
        assert store.damaged == {}
        assert len(store.finished()) == 40
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    expected.pop("log.jsonl"), found.pop("log.jsonl")
    assert found == expected


def test_leftover_temporaries_are_removed_and_only_those(tmp_path: Path) -> None:
    Store.open(tmp_path, IDENTITY).close()
    (tmp_path / "images").mkdir()
    left = tmp_path / "images" / ".convscope-0123456789abcdef.tmp"
    mine = tmp_path / "images" / ".convscope-notes.tmp"
    left.touch()
    mine.touch()
    Store.open(tmp_path, IDENTITY).close()
    assert not left.exists()
    assert mine.exists()
