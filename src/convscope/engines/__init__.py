"""Where independent pieces of work run: in this process, in worker processes, on a Ray cluster.

    engine = engines.get("process", workers=2)
    engine.run("package.module:function", [Task("a", 1), Task("b", 2)], on_result=print)

Three files do the work and know nothing of one another: `inline`, `process` (with `worker`, its other side), `cluster`.
`base` says what they have in common.
"""

from __future__ import annotations

from convscope.engines.base import RETRIES, Engine, Outcome, Reply, Task, call, find
from convscope.engines.inline import Inline
from convscope.engines.process import Processes, cores
from convscope.errors import RequestError, UnknownName, nearest

__all__ = [
    "RETRIES",
    "Engine",
    "Inline",
    "Outcome",
    "Processes",
    "Reply",
    "Task",
    "call",
    "cores",
    "find",
    "get",
]

NAMES = ("inline", "process", "ray")


def get(
    engine: str | Engine, workers: int | None = None, address: str | None = None, *, gpus: float = 0.0
) -> Engine:
    """The engine of a name.

    Args:
        engine: "inline" (one task after another in this process), "process" (worker processes of this machine),
            "ray" (a Ray cluster), or an engine, which is given back.
        workers: how many tasks run at a time; by default as many as there are processors, here or in the cluster.
        gpus: that each task needs: Ray shows a task no other.
        address: of the Ray cluster, such as "auto" or "ray://host:10001"; a cluster of this machine by default.

    Raises:
        UnknownName: there is no such engine.
        RequestError: an argument makes no sense for it, or Ray is not installed.

    Example:
        >>> get("process", workers=3).workers
        3
    """
    if not isinstance(engine, str):
        if workers is not None or address is not None:
            raise RequestError("workers and address belong to an engine given by name; leave them out.")
        return engine
    if engine not in NAMES:
        raise UnknownName(f"engine={engine!r} must be one of {', '.join(NAMES)}{nearest(engine, NAMES)}")
    if address is not None and engine != "ray":
        raise RequestError(f"address={address!r} is for the engine 'ray', and the engine is {engine!r}.")
    if engine == "ray":
        from convscope.engines.cluster import Ray

        return Ray(address, workers, gpus=gpus)
    if engine == "process":
        return Processes(workers)
    if workers not in (None, 1):
        raise RequestError(f"workers={workers!r} must be 1 for the engine 'inline'; take engine 'process'.")
    return Inline()
