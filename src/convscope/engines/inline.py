"""The engine without workers: one task after another, in the calling thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from convscope.engines.base import RETRIES, OnResult, OnRetry, Task, call, checked, settle


class Inline:
    """Runs tasks in this process, one at a time: nothing to start, and a debugger sees everything.

    Example:
        >>> Inline().run("math:sqrt", [Task("a", 4.0), Task("b", -1.0)], lambda outcome: print(outcome.value), retries=0)
        2.0
        None
    """

    name = "inline"
    workers = 1
    shares_disk = True

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
        waiting = deque(tasks)
        while waiting:
            task = waiting.popleft()
            after = settle(task, call(function, task.payload), retries)
            if isinstance(after, Task):
                waiting.appendleft(after)
                if on_retry is not None:
                    on_retry(after)
            else:
                on_result(after)
