"""Freed memory stays with the process while `kept()` lasts, and goes back afterwards: counted in page faults."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from convscope import _heap

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(_heap._glibc() is None, reason="only glibc's malloc is told what to keep")

SIZE = 48 << 20  # bytes: above every threshold that malloc sets itself
PAGES = SIZE // 4096


def tries() -> list[int]:
    """Page faults of allocating a block, writing to it and freeing it, some times."""
    found = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(SIZE, dtype=torch.uint8).fill_(1)
        found.append(int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
    return found


def faults() -> int:
    """The least of some tries: a small object behind the freed block makes the next one go elsewhere, now and then."""
    return min(tries())


def huge_pages() -> bool:
    """Whether the system backs the block with huge pages, which hides the faults."""
    return faults() < PAGES // 2


def test_memory_is_kept_and_given_back() -> None:
    if huge_pages():
        pytest.skip("huge pages: a block costs few page faults anyway")
    with _heap.kept():
        assert faults() < PAGES // 20
        with _heap.kept():
            assert faults() < PAGES // 20
        assert faults() < PAGES // 20  # the inner one is not the last out
    assert max(tries()) > PAGES // 2  # a hole that other tests left in the heap may serve the later ones


def test_it_is_given_back_after_an_exception() -> None:
    with pytest.raises(KeyboardInterrupt), _heap.kept():
        raise KeyboardInterrupt
    assert _heap._users == 0


def test_threads_may_overlap() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with _heap.kept():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with _heap.kept():
        assert _heap._users == 2
    assert _heap._users == 1
    leave.set()
    thread.join()
    assert _heap._users == 0


def test_a_hold_lasts_as_long_as_it_lives_and_so_does_a_copy() -> None:
    hold = _heap.Hold()
    copies = [copy.deepcopy(hold), pickle.loads(pickle.dumps(hold))]
    assert _heap._users == 3
    del hold
    assert _heap._users == 2
    del copies
    assert _heap._users == 0


def test_a_function_keeps_its_signature() -> None:
    @_heap.kept()
    def add(a: int, b: int = 2) -> int:
        assert _heap._users == 1
        return a + b

    assert add(1) == 3
    assert _heap._users == 0


def test_where_there_is_no_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heap, "_glibc", lambda: None)
    with _heap.kept():
        assert _heap._users == 0
    hold = _heap.Hold()
    assert _heap._users == 0
    del hold
    assert _heap._users == 0
