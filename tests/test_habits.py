"""The guards of conftest.py bite: each kind of trace is seen."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import conftest
from convscope.models import Net


def _hook(net: Net) -> None:
    net.module.register_forward_hook(lambda *_: None)


def _grad(net: Net) -> None:
    net.module(net.input.example()).sum().backward()


def _weight(net: Net) -> None:
    with torch.no_grad():
        next(net.module.parameters()).add_(1)


TRACES: dict[str, Callable[[Net], Any]] = {
    "torch random state": lambda net: torch.rand(1),
    "numpy random state": lambda net: np.random.rand(),
    "python random state": lambda net: random.random(),
    "hooks of": _hook,
    "grad of": _grad,
    "version of": _weight,
    "training of": lambda net: net.module.train(),
    "requires_grad of": lambda net: net.module.requires_grad_(False),
}


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("fails", [False, True])
def test_a_verb_that_leaves_a_trace_is_caught(trace: str, fails: bool, make_net: Callable[..., Net]) -> None:
    net = make_net(nn.Conv2d(3, 4, 3))

    def verb(net: Net) -> None:
        TRACES[trace](net)
        if fails:
            raise ValueError("it failed")

    with pytest.raises(AssertionError, match=f"changed .*{trace}"):
        conftest._traceless(verb)(net)


def test_modes_threads_and_files_are_seen(tmp_path: Path) -> None:
    before = conftest._modes(), conftest._threads(), conftest._open_files()
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait, name="forgotten")
    thread.start()
    with torch.no_grad(), (tmp_path / "open").open("w"):
        assert conftest._changed(before[0], conftest._modes()) == ["grad mode"]
        assert conftest._open_files() - before[2] or not Path("/proc").exists()
    assert [name.split()[0] for name in conftest._threads() - before[1]] == ["forgotten"]
    wait.set()
    thread.join()
    assert not conftest._left(conftest._threads, before[1])


def test_tiny_is_trained_and_finds_its_classes(tiny: Net) -> None:
    from tiny import LABELS, SPEC, pictures

    images, target = pictures(64, seed=7)
    with torch.no_grad():
        right = tiny.module(SPEC.normalize(images)).argmax(1) == target  # [64]
    assert right.float().mean() > 0.9
    assert tiny.labels == LABELS
    assert not tiny.module.training
