"""What an engine is: it calls one function on many tasks, somewhere, and hands each outcome back as it comes.

The function is named by text, "package.module:function", and takes one payload of plain values: that is all that has to
travel to a worker process or to another machine. A task that raises, or whose worker dies, is tried again a bounded
number of times and then reported as failed; one that a `RequestError` refuses would be refused again, and is not.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from convscope.errors import RequestError

RETRIES = 2


@dataclass(frozen=True)
class Task:
    """One independent piece of work.

    Attributes:
        key: its name, unlike every other's.
        payload: what the function is called with: plain values.
        reasons: why earlier attempts failed, oldest first.
    """

    key: str
    payload: Any
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What one call came to.

    Attributes:
        kind: "done"; "failed", which may go well another time; "refused", which will not.
        value: what the function returned.
        reason: what went wrong.
        seconds: the call took.
    """

    kind: Literal["done", "failed", "refused"]
    value: Any = None
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        key: the task's.
        value: what the function returned; None where it failed.
        failure: why the last attempt failed, or None.
        attempts: how often it was tried.
        seconds: the last attempt took, on its worker.
    """

    key: str
    value: Any
    failure: str | None
    attempts: int
    seconds: float


OnResult = Callable[[Outcome], None]
OnRetry = Callable[[Task], None]


class Engine(Protocol):
    """Where tasks run.

    Attributes:
        name: "inline", "process" or "ray".
        shares_disk: whether the workers see the same files as the caller, under the same names.
    """

    name: str
    shares_disk: bool

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""

    def run(
        self,
        function: str,
        tasks: Sequence[Task],
        on_result: OnResult,
        *,
        retries: int = RETRIES,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Calls the function on every task; returns when each has its outcome.

        Args:
            function: "package.module:function", importable where the work runs.
            tasks: what to call it on, begun in this order.
            on_result: called with each outcome, in the caller's thread, in the order they end.
            retries: further attempts a task gets.
            on_retry: called with each task that is about to be tried again.

        Raises:
            EngineError: the engine itself cannot work: no worker starts, the cluster is gone.
            KeyboardInterrupt: Ctrl-C; every worker has been stopped.
        """


def find(function: str) -> Callable[[Any], Any]:
    """The function that a text names.

    Raises:
        RequestError: there is none.

    Example:
        >>> find("math:sqrt")(9.0)
        3.0
    """
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(
            f"function {function!r} cannot be imported ({type(error).__name__}: {error}); name it as "
            "package.module:function, in a package that the workers have too."
        ) from error
    if not callable(found):
        raise RequestError(f"function {function!r} is {type(found).__name__}, which cannot be called.")
    return found


def call(function: str, payload: Any) -> Reply:
    """One attempt; whatever the function raises becomes a reply, but for what is meant to end the process."""
    began = time.perf_counter()
    try:
        value = find(function)(payload)
    except RequestError as error:
        return Reply("refused", None, str(error), time.perf_counter() - began)
    except Exception as error:  # the work is the caller's, and may raise anything
        text = " ".join(str(error).split()) or "no message"
        return Reply("failed", None, f"{type(error).__name__}: {text}", time.perf_counter() - began)
    return Reply("done", value, "", time.perf_counter() - began)


def settle(task: Task, reply: Reply, retries: int) -> Outcome | Task:
    """The outcome of a task after a reply, or the task to try again.

    Example:
        >>> settle(Task("a", 1), Reply("failed", reason="no luck"), retries=1)
        Task(key='a', payload=1, reasons=('no luck',))
    """
    attempts = len(task.reasons) + 1
    if reply.kind == "failed" and attempts <= retries:
        return replace(task, reasons=(*task.reasons, reply.reason))
    failure = None if reply.kind == "done" else reply.reason
    return Outcome(task.key, reply.value, failure, attempts, reply.seconds)


def checked(tasks: Sequence[Task], retries: int) -> None:
    """Refuses what no engine can run.

    Raises:
        RequestError: two tasks share a key, or `retries` is negative.
    """
    if retries < 0:
        raise RequestError(f"retries={retries} must be 0 or more.")
    seen: set[str] = set()
    for task in tasks:
        if task.key in seen:
            raise RequestError(f"two tasks have the key {task.key!r}; give each its own.")
        seen.add(task.key)
