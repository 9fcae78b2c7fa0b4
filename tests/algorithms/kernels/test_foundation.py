"""Host, compiler, threads and workspace: what every kernel stands on."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from convscope.algorithms.kernels import compile, host, threads, workspace
from convscope.algorithms.kernels.builder import INTS, Module
from convscope.errors import ConvscopeWarning

works = pytest.mark.skipif(
    host.current().refuses() is not None or threads.refuses() is not None, reason="no kernels on this machine"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path))
    yield tmp_path / "kernels"
    compile._live.clear()


def adds(number: int) -> str:
    """A kernel that adds a number to the integer its table points at."""
    module = Module(host.current())
    f = module.function("work", table=INTS)
    place = f.arguments[0].load_pointer("i64")
    place.store_value(place.load_int() + number)
    return module.text()


def outcome(code: compile.Code) -> int:
    value = np.zeros(1, np.int64)
    threads.run(code.address("work"), [value.ctypes.data], 1)
    return int(value[0])


# ---------------------------------------------------------------- host


def test_the_environment_narrows_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_VECTOR", "none")
    assert "neither AVX-512 nor AVX2" in (host.current().refuses() or "")
    monkeypatch.setenv("CONVSCOPE_VECTOR", "avx2")
    assert host.current().width == min(8, host.detect().width)


def test_pretending_ends_with_the_block_and_stays_in_its_thread() -> None:
    before, seen = host.current(), []
    with host.pretend(host.Host("x86-64", "", width=0, registers=0)):
        thread = threading.Thread(target=lambda: seen.append(host.current()))
        thread.start()
        thread.join()
        assert host.current().width == 0
    assert host.current() == before == seen[0]


def test_caches_are_plausible() -> None:
    machine = host.detect()
    assert 8 << 10 <= machine.l1 <= machine.l2 <= machine.l3 <= 4 << 30


# ---------------------------------------------------------------- compiler


@works
def test_code_is_kept_on_disk_and_read_back(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(compile.build(adds(3))) == 3
    (entry,) = cache.iterdir()
    compile._live.clear()
    monkeypatch.setattr(compile, "_compile", lambda *_: pytest.fail("compiled although it is on disk"))
    assert outcome(compile.build(adds(3))) == 3
    assert [entry] == list(cache.iterdir())


@works
def test_the_same_code_is_shared_while_it_lives(cache: Path) -> None:
    first = compile.build(adds(4))
    assert compile.build(adds(4)) is first
    assert first.bytes > 0


@works
@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[:-1],
        lambda good: good[:60] + bytes([good[60] ^ 1]) + good[61:],
        lambda good: good.replace(b"code 1", b"code 2"),
        lambda good: os.urandom(5000),
    ],
    ids=["empty", "cut", "one bit", "another version", "noise"],
)
def test_a_damaged_entry_is_built_again(cache: Path, damage: object) -> None:
    compile.build(adds(5))
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    compile._live.clear()
    entry.write_bytes(damage(good))  # type: ignore[operator]
    assert outcome(compile.build(adds(5))) == 5
    assert entry.read_bytes()[: len(compile.MAGIC)] == compile.MAGIC
    assert len(entry.read_bytes()) == len(good)


@works
def test_an_entry_under_another_key_is_not_run(cache: Path) -> None:
    compile.build(adds(6))
    (six,) = cache.iterdir()
    seven = cache / f"{compile._key(adds(7), host.current())}.o"
    seven.write_bytes(six.read_bytes())
    compile._live.clear()
    assert outcome(compile.build(adds(7))) == 7


@works
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_an_entry_of_another_user_is_not_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile.build(adds(8))
    (entry,) = cache.iterdir()
    os.chown(entry, 12345, -1)
    compile._live.clear()
    built = []
    original = compile._compile
    monkeypatch.setattr(compile, "_compile", lambda *given: built.append(1) or original(*given))
    assert outcome(compile.build(adds(8))) == 8
    assert built == [1]
    assert entry.stat().st_uid == os.geteuid()


@works
def test_the_key_knows_text_and_processor(cache: Path) -> None:
    machine = host.current()
    narrow = host.Host("x86-64-v3", "+avx2,+fma", 8, 16)
    keys = {compile._key(adds(1), machine), compile._key(adds(2), machine), compile._key(adds(1), narrow)}
    assert len(keys) == 3


@works
def test_old_entries_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "KEPT", 2)
    for number in range(4):
        compile.build(adds(10 + number))
        for entry in cache.iterdir():
            os.utime(entry, (entry.stat().st_mtime - 10,) * 2)
    assert {entry.stem for entry in cache.iterdir()} == {
        compile._key(adds(number), host.current()) for number in (12, 13)
    }


@works
def test_a_folder_that_cannot_be_written_costs_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "file"))
    compile._warn.cache_clear()
    with pytest.warns(ConvscopeWarning, match="set CONVSCOPE_CACHE"):
        assert outcome(compile.build(adds(20))) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert outcome(compile.build(adds(20))) == 20
    compile._warn.cache_clear()


@works
def test_many_threads_build_the_same_text(cache: Path) -> None:
    results: list[int] = []
    builders = [
        threading.Thread(target=lambda: results.append(outcome(compile.build(adds(30))))) for _ in range(8)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert results == [30] * 8


# ---------------------------------------------------------------- threads


def test_a_torch_without_the_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.torch, "__file__", "/nowhere/torch/__init__.py")
    threads._find.cache_clear()
    try:
        assert "is not there to ask" in (threads.refuses() or "")
        with pytest.raises(RuntimeError, match="no kernel can run"):
            threads.pool()
    finally:
        threads._find.cache_clear()


def test_threads_follow_torch() -> None:
    assert threads.count() == torch.get_num_threads()


# ---------------------------------------------------------------- workspace


@pytest.fixture
def empty() -> Iterator[None]:
    workspace.release()
    yield
    workspace.release()


@pytest.mark.parametrize(("size", "step"), [(1, 64), (1000, 64), (3 << 20, 2 << 20)])
def test_memory_begins_where_it_should(size: int, step: int) -> None:
    block = workspace.aligned(size, zero=True)
    assert block.data_ptr() % step == 0
    assert block.shape == (size,)
    assert not block.any()


def test_blocks_are_used_again_but_never_twice_at_once(empty: None) -> None:
    with workspace.borrow(5000) as first, workspace.borrow(5000) as second:
        assert first != second
    assert workspace.held() == 10000
    with workspace.borrow(4000) as again:
        assert again in (first, second)
        assert workspace.held() == 5000
    workspace.release()
    assert workspace.held() == 0


def test_a_larger_block_takes_the_place_of_a_small_one(empty: None) -> None:
    for size in (1000, 2000, 3000):
        with workspace.borrow(size):
            pass
    assert workspace.held() == 3000


def test_what_waits_is_bounded(empty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "LIMIT", 10_000)
    with workspace.borrow(8000), workspace.borrow(7000), workspace.borrow(20_000):
        pass
    assert workspace.held() <= 10_000


def test_a_block_comes_back_after_an_error(empty: None) -> None:
    with pytest.raises(KeyError), workspace.borrow(640):
        raise KeyError
    assert workspace.held() == 640
