"""The engine of a Ray cluster: a thousand runs on many machines, with the same tasks as two worker processes.

Ray is an extra (`pip install "convscope[ray]"`) and is imported only here, when asked for. Its workers need convscope and
whatever package the function lives in; results come back to the driver, which alone writes files.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from convscope.engines.base import RETRIES, OnResult, OnRetry, Reply, Task, call, checked, settle
from convscope.errors import EngineError, RequestError

_AHEAD = 2  # tasks handed to the cluster for each place: one that runs, one that waits for the place


def _ray() -> Any:
    return importlib.import_module("ray")


class Ray:
    """Runs tasks on a Ray cluster.

    Args:
        address: of a running cluster, such as "auto" or "ray://host:10001"; None starts one on this machine, which
            ends with the run. A cluster that this process already uses is used, and left running.
        workers: how many tasks run at a time; by default as many as the cluster has processors.
        gpus: that a task takes, beside one processor.

    Raises:
        RequestError: Ray is not installed, or `workers` is not positive.
    """

    name = "ray"
    shares_disk = False

    def __init__(self, address: str | None = None, workers: int | None = None, gpus: float = 0.0) -> None:
        try:
            _ray()
        except ImportError as error:
            raise RequestError(
                "engine 'ray' needs Ray, which is not installed; run pip install 'convscope[ray]', or take engine "
                "'process'."
            ) from error
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise RequestError(f"workers={workers!r} must be a whole number, 1 or more.")
        self.address, self.asked, self.gpus = address, workers, gpus

    @property
    def workers(self) -> int:
        """Tasks that run at a time: those asked for, or those the connected cluster has processors for."""
        processors = self._processors()
        return min(self.asked or processors, processors)

    def _processors(self) -> int:
        ray = _ray()
        if not ray.is_initialized():
            return self.asked or 1
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(
        self,
        function: str,
        tasks: Sequence[Task],
        on_result: OnResult,
        *,
        retries: int = RETRIES,
        on_retry: OnRetry | None = None,
    ) -> None:
        """See `Engine.run`."""
        checked(tasks, retries)
        if tasks:
            with _kept_random():  # Ray draws names and ports from Python's own generator
                self._run(function, tasks, on_result, retries, on_retry)

    def _run(
        self,
        function: str,
        tasks: Sequence[Task],
        on_result: OnResult,
        retries: int,
        on_retry: OnRetry | None,
    ) -> None:
        ray = _ray()
        joined = not ray.is_initialized()
        if joined:
            self._join()
        running: dict[Any, Task] = {}
        try:
            # Ray's own retries are off: ours count both a worker that dies and a function that raises
            remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=0)(call)
            waiting, most = deque(tasks), self.workers
            if most == self._processors():  # else those ahead would run at once, more than were asked for
                most *= _AHEAD
            while waiting or running:
                while waiting and len(running) < most:
                    task = waiting.popleft()
                    running[remote.remote(function, task.payload)] = task
                for ended in _ended(list(running)):
                    task = running.pop(ended)
                    after = settle(task, _reply(ended), retries)
                    if isinstance(after, Task):
                        waiting.append(after)
                        if on_retry is not None:
                            on_retry(after)
                    else:
                        on_result(after)
        finally:
            _leave(list(running), joined)

    def _join(self) -> None:
        ray = _ray()
        here: dict[str, Any] = {}
        if self.address is None:  # one on this machine: its workers find what this process finds
            path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
            here = {"num_cpus": self.asked, "include_dashboard": False}
            here["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        try:
            ray.init(
                address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here
            )
        except Exception as error:  # Ray raises its own, and those of its network library
            raise EngineError(
                f"the Ray cluster at address={self.address!r} cannot be used ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); start one with 'ray start --head', or leave out the address."
            ) from error


@contextmanager
def _kept_random() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _ended(running: list[Any]) -> list[Any]:
    ray = _ray()
    try:
        ended, _ = ray.wait(running, num_returns=1, timeout=None, fetch_local=True)
        more, _ = ray.wait(running, num_returns=len(running), timeout=0, fetch_local=True)
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"the Ray cluster is gone ({type(error).__name__}); start it again and go on."
        ) from error
    return list(dict.fromkeys([*ended, *more]))


def _reply(ended: Any) -> Reply:
    """What a task came to; a worker or a machine that died is an attempt that failed."""
    ray = _ray()
    try:
        reply = ray.get(ended)
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:200]
        return Reply("failed", None, f"its Ray worker ended: {type(error).__name__}: {text}")
    assert isinstance(reply, Reply)
    return reply


def _leave(running: list[Any], joined: bool) -> None:
    """Stops what still runs, and the cluster or the connection where this run made it."""
    ray = _ray()
    for task in running:
        ray.cancel(task, force=True)
    if joined:
        ray.shutdown()
