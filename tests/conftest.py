"""Every test runs on clean ground and fails if it, or convscope, leaves a trace.

- Each call of a public verb, from any test, must leave the global random state, grad mode, default dtype and
  the module it was given (hooks, grads, weights, train/eval flags) as they were: see `_traceless`.
- Each test must leave no thread, no open file of its own, nothing in the current folder, `tiny` untouched.

`tiny` is a small trained network (see tests/tiny.py), `make_net` wraps a module of the test's own.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis.configuration import set_hypothesis_home_dir
from torch import nn

import convscope
from convscope.models import InputSpec, Net

ROOT = Path(__file__).parents[1]

# before any thread of torch's starts: small networks run fastest, and repeat best, on one
torch.set_num_threads(1)

set_hypothesis_home_dir(ROOT / ".hypothesis")  # not under the current folder, which tests change
hypothesis.settings.register_profile("convscope", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("convscope")

VERBS = (
    "convscope.models:load",
    "convscope.models:as_net",
    "convscope.graph.record:record",
    "convscope.measures.measure:measure",
    "convscope.measures.receptive_field:receptive_field",
    "convscope.measures.border:border_effect",
    "convscope.measures.visits:visits",
    "convscope.measures.effective_field:effective_receptive_field",
    "convscope.measures.latency:latency",
    "convscope.measures.memory:peak_memory",
    "convscope.rewrites.rewrite:rewrite",
    "convscope.rewrites.recipe:rebuild",
    "convscope.rewrites.compare:compare",
    "convscope.features.visualize:visualize",
    "convscope.features.atlas:atlas",
    "convscope.features.look:look",
    "convscope.studies.finetune:finetune",
    "convscope.studies.study:study",
    "convscope.answers.ask:ask",
    "convscope.tour:look",
    "convscope.tour:report",
)


# ---------------------------------------------------------------- what must not change


def _global_state() -> dict[str, Any]:
    name, keys, position, gauss, cached = np.random.get_state()
    return {
        "torch random state": torch.get_rng_state().numpy().tobytes(),
        "numpy random state": (name, keys.tobytes(), position, gauss, cached),
        "python random state": random.getstate(),
        **_modes(),
    }


def _modes() -> dict[str, Any]:
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "thread count": torch.get_num_threads(),
        "global module hooks": sum(
            len(hooks)
            for name, hooks in vars(nn.modules.module).items()
            if name.startswith("_global_") and "hooks" in name
        ),
    }


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _module_state(module: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, part in module.named_modules():
        state[f"training of {name!r}"] = part.training
        state[f"hooks of {name!r}"] = [len(getattr(part, hooks, None) or ()) for hooks in _HOOKS]
        state[f"class of {name!r}"] = type(part)
        state[f"forward of {name!r}"] = vars(part).get("forward")
    for name, buffer in module.named_buffers():
        state[f"version of {name!r}"] = None if buffer.is_inference() else buffer._version
    for name, parameter in module.named_parameters():
        state[f"requires_grad of {name!r}"] = parameter.requires_grad
        state[f"grad of {name!r}"] = (
            id(parameter.grad) if parameter.is_leaf and parameter.grad is not None else None
        )
        is_lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
        state[f"version of {name!r}"] = None if is_lazy or parameter.is_inference() else parameter._version
    return state


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def _traceless(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb, with an assertion that neither success nor an exception leaves a trace."""

    @functools.wraps(verb)
    def checked(*args: Any, **kwargs: Any) -> Any:
        subject = args[0] if args else next(iter(kwargs.values()), None)
        module = subject.module if isinstance(subject, Net) else subject
        parts = _module_state(module) if isinstance(module, nn.Module) else {}
        before = _global_state() | parts
        try:
            result = verb(*args, **kwargs)
        except BaseException as error:
            if traces := _changed(before, _global_state() | (_module_state(module) if parts else {})):
                raise AssertionError(
                    f"{verb.__name__} failed and left a changed {', '.join(traces)}"
                ) from error
            raise
        traces = _changed(before, _global_state() | (_module_state(module) if parts else {}))
        assert not traces, f"{verb.__name__} left a changed {', '.join(traces)}"
        return result

    checked.is_checked = True  # type: ignore[attr-defined]
    return checked


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _wrap_verbs() -> None:
    """In the defining modules and in those that imported the verb by name before the tests began."""
    for home in VERBS:
        module_name, verb = home.split(":")
        if not _exists(module_name):
            continue
        original = getattr(importlib.import_module(module_name), verb)
        if hasattr(original, "is_checked"):  # test_habits.py imports this file once more
            continue
        checked = _traceless(original)
        for name, module in list(sys.modules.items()):
            if name.startswith("convscope") and vars(module).get(verb) is original:
                setattr(module, verb, checked)


_wrap_verbs()
# kept on first use, which must not be in a test that has put something else in their place
for public in convscope.__all__:
    getattr(convscope, public)


# ---------------------------------------------------------------- every test


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the user's settings or caches, reaches a hub, or prints colours."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME", "HF_HOME"):
            patch.setenv(name, str(home))
        for name in ("NO_COLOR", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _clean_ground(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The same random state for every test in any order, an empty current folder, and no trace afterwards."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before, threads, files = _modes(), _threads(), _open_files()
    tiny_before = [_module_state(net.module) | {"weights": net.sha256} for net in _TINY]
    yield
    traces = _changed(before, _modes())
    for net, state in zip(_TINY, tiny_before, strict=False):
        traces += [
            f"tiny: {key}" for key in _changed(state, _module_state(net.module) | {"weights": net.sha256})
        ]
    traces += [f"thread {name}" for name in _left(_threads, threads)]
    traces += [f"open file {name}" for name in _left(_open_files, files)]
    traces += [f"file {name} in the current folder" for name in sorted(os.listdir(folder))]
    assert not traces, "the test left behind: " + "; ".join(traces)


def _left(look: Callable[[], set[str]], before: set[str]) -> list[str]:
    """What is new and does not go away by itself within a second."""
    for attempt in range(20):
        new = look() - before
        if not new:
            return []
        if attempt == 0:
            gc.collect()
        time.sleep(0.05)
    return sorted(new)


def _threads() -> set[str]:
    """Python's own threads; those of torch that once ran Python code show as dummies and cannot be ended."""
    return {
        f"{thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not isinstance(thread, threading._DummyThread)
    }


def _open_files() -> set[str]:
    """Regular files this process holds open under pytest's own temporary folders."""
    if not os.path.isdir("/proc/self/fd"):
        return set()
    found = set()
    for handle in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:  # it was the descriptor of the listing itself
            continue
        if "pytest-of-" in target:
            found.add(target)
    return found


# ---------------------------------------------------------------- networks

_TINY: list[Net] = []  # filled when first asked for, then watched by every test


@pytest.fixture(scope="session")
def tiny() -> Net:
    """A trained network for 3x32x32 pictures of 8 classes: conv1, bn1, relu1, pool, conv2, ..., gap, fc."""
    from tiny import train

    net, accuracy = train()
    assert accuracy > 0.9
    _TINY.append(net)
    return net


@pytest.fixture
def make_net() -> Callable[..., Net]:
    """make_net(module, shape) -> Net, for a module of the test's own, in eval mode."""

    def make(module: nn.Module, shape: tuple[int, ...] = (3, 32, 32), **known: Any) -> Net:
        return Net(module.eval(), InputSpec(shape=shape), **{"name": "net", **known})

    return make


@pytest.fixture(scope="session")
def pages() -> ModuleType:
    """What runs the code of documentation pages: `tools/pages.py`."""
    folder = str(ROOT / "tools")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("pages")
    finally:
        sys.path.remove(folder)
