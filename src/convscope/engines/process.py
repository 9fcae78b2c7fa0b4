"""The engine of worker processes: each is fed one task at a time, may be killed at any moment, and is replaced.

A worker is started as a program of its own (`convscope.engines.worker`), not forked and not by importing the caller's
script again: a notebook and a script without a main guard work alike. One thread of the driver talks to each worker;
outcomes are handed to the caller in the caller's thread.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any

from convscope.engines.base import RETRIES, OnResult, OnRetry, Reply, Task, checked, settle
from convscope.errors import EngineError, RequestError

STARTS = 3  # times that a worker may end before it is ready, as one that is killed does
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Processes:
    """Runs tasks in worker processes of this machine.

    Args:
        workers: how many; as many as this process may use processors by default.
        threads: of each worker's numerical libraries.

    Raises:
        RequestError: a number is not positive.

    Example:
        >>> def show(outcome): print(outcome.key, outcome.value)
        >>> Processes(1).run("math:sqrt", [Task("a", 4.0)], show)
        a 2.0
    """

    name = "process"
    shares_disk = True

    def __init__(self, workers: int | None = None, threads: int = 1) -> None:
        self.workers = cores() if workers is None else workers
        self.threads = threads
        for name, value in (("workers", self.workers), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}={value!r} must be a whole number, 1 or more.")

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
        if not tasks:
            return
        crew = _Crew(function, min(self.workers, len(tasks)), self.threads)
        try:
            for task in tasks:
                crew.inbox.put(task)
            left = len(tasks)
            while left:
                task, reply = crew.next_reply()
                after = settle(task, reply, retries)
                if isinstance(after, Task):
                    if on_retry is not None:
                        on_retry(after)
                    crew.inbox.put(after)
                else:
                    left -= 1
                    on_result(after)
        finally:
            crew.stop()


class _Crew:
    """The workers of one run, each with the thread that feeds it."""

    def __init__(self, function: str, count: int, threads: int) -> None:
        self.function, self.threads = function, threads
        self.inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.outbox: queue.Queue[tuple[Task, Reply] | EngineError] = queue.Queue()
        self.guard = threading.Lock()
        self.stopping = False
        self.workers: dict[int, _Worker] = {}
        self.feeders = [
            threading.Thread(target=self._feed, args=(place,), name=f"convscope worker {place}", daemon=True)
            for place in range(count)
        ]
        for feeder in self.feeders:
            feeder.start()

    def next_reply(self) -> tuple[Task, Reply]:
        while True:
            try:
                got = self.outbox.get(timeout=0.5)  # not for ever: Windows would not hear Ctrl-C
            except queue.Empty:
                continue
            if isinstance(got, EngineError):
                raise got
            return got

    def stop(self) -> None:
        """Ends every worker at once, whatever it is doing, and waits for their threads."""
        with self.guard:
            self.stopping = True
            for worker in self.workers.values():
                worker.kill()
        for _ in self.feeders:
            self.inbox.put(None)
        for feeder in self.feeders:
            feeder.join()

    def _feed(self, place: int) -> None:
        """One worker's thread: a task to it, its reply back; a new worker where the last one died."""
        worker: _Worker | None = None
        try:
            worker = self._hire(place)
            while worker is not None and (task := self.inbox.get()) is not None:
                reply = worker.ask(self.function, task.payload)
                if reply is None:
                    reply = Reply("failed", None, worker.death())
                    worker.close()
                    worker = self._hire(place)
                if not self.stopping:
                    self.outbox.put((task, reply))
        except EngineError as error:
            self.outbox.put(error)
        except Exception as error:  # a payload that cannot be sent, no more processes to be had
            self.outbox.put(EngineError(f"a worker cannot be used: {type(error).__name__}: {error}."))
        finally:
            if worker is not None:
                worker.close()

    def _hire(self, place: int) -> _Worker | None:
        """A worker that said it is ready; None when the crew is being stopped."""
        for attempt in range(STARTS):
            with self.guard:
                if self.stopping:
                    return None
                worker = self.workers[place] = _Worker(self.threads)
            if worker.ready() or self.stopping:
                return worker
            reason = worker.death()
            worker.close()
            if attempt + 1 == STARTS:
                raise EngineError(
                    f"a worker process ended {STARTS} times before it was ready: {reason}; check that "
                    f"{sys.executable!r} can import convscope, and that memory is left."
                )
        return None


class _Worker:
    """One process and the pipes to it."""

    def __init__(self, threads: int) -> None:
        path = os.pathsep.join(os.path.abspath(place) if place else os.getcwd() for place in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, **dict.fromkeys(_THREADS, str(threads))}
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        group: dict[str, Any] = {}  # Ctrl-C is for the driver, which then ends the workers
        if sys.platform == "win32":
            group["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            group["start_new_session"] = True
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "convscope.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment,
            **group,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.tasks: IO[bytes] = self.process.stdin
        self.replies: IO[bytes] = self.process.stdout

    def ready(self) -> bool:
        return self._receive() == "ready"

    def ask(self, function: str, payload: Any) -> Reply | None:
        """The reply to a task, or None where the worker died over it."""
        data = pickle.dumps((function, payload))
        try:
            self.tasks.write(data)
            self.tasks.flush()
        except OSError:
            return None
        reply = self._receive()
        return reply if isinstance(reply, Reply) else None

    def _receive(self) -> Any:
        try:
            return pickle.load(self.replies)
        except (EOFError, OSError, pickle.UnpicklingError):  # it ended, maybe within a reply
            return None

    def death(self) -> str:
        """Why it ended, with the last that it said."""
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:  # it lives, and what it says makes no sense
            self.kill()
            code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            reason = f"its worker process was ended by {name}"
            reason += ", as the system does when memory runs out" if name == "SIGKILL" else ""
        else:
            reason = f"its worker process ended with exit code {code}"
        self.said.seek(0, os.SEEK_END)
        self.said.seek(max(0, self.said.tell() - 2000))
        lines = self.said.read().decode(errors="replace").split("\n")
        last = " ".join(next((line for line in reversed(lines) if line.strip()), "").split())
        return f"{reason} ({last[:200]})" if last else reason

    def kill(self) -> None:
        self.process.kill()  # does nothing to a process that has been waited for

    def close(self) -> None:
        self.kill()
        self.process.wait()
        for stream in (self.tasks, self.replies, self.said):
            try:
                stream.close()
            except OSError:  # what was not flushed to a process that is gone
                continue
