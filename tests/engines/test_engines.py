"""Every engine gives every task its outcome, whatever becomes of the worker."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convscope import engines
from convscope.engines import Engine, Outcome, Task
from convscope.errors import EngineError, RequestError, UnknownName

ACT = "engine_work:act"
TESTS = Path(__file__).parents[1]
HAS_RAY = importlib.util.find_spec("ray") is not None
NAMES = ["inline", "process", pytest.param("ray", marks=pytest.mark.skipif(not HAS_RAY, reason="needs ray"))]


def outcomes(engine: Engine, payloads: dict[str, tuple[str, object]], retries: int = 1) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}

    def keep(outcome: Outcome) -> None:
        assert outcome.key not in found
        found[outcome.key] = outcome

    engine.run(ACT, [Task(key, payload) for key, payload in payloads.items()], keep, retries=retries)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_returns_raises_and_refuses(name: str) -> None:
    payloads = {str(number): ("return", number) for number in range(5)}
    payloads |= {"bad": ("raise", "no  luck"), "wrong": ("refuse", "this cannot be")}
    found = outcomes(engines.get(name), payloads)
    assert [found[str(number)].value for number in range(5)] == list(range(5))
    assert all(found[str(number)].attempts == 1 for number in range(5))
    assert (found["bad"].failure, found["bad"].attempts) == ("ValueError: no luck", 2)
    assert (found["wrong"].failure, found["wrong"].attempts) == ("this cannot be", 1)


def test_inline_keeps_the_order() -> None:
    order: list[str] = []
    again: list[Task] = []
    tasks = [Task("a", ("raise", "x")), Task("b", ("return", 1))]
    engines.Inline().run(ACT, tasks, lambda o: order.append(o.key), retries=2, on_retry=again.append)
    assert order == ["a", "b"]
    assert [task.reasons for task in again] == [("ValueError: x",), ("ValueError: x",) * 2]


def test_a_dead_worker_is_replaced_and_its_task_tried_again(tmp_path: Path) -> None:
    payloads = {
        "once": ("fail once", str(tmp_path / "count")),
        "exit": ("exit", 7),
        "kill": ("kill", signal.SIGKILL),
        **{str(number): ("return", number) for number in range(4)},
    }
    found = outcomes(engines.Processes(2), payloads)
    assert (found["once"].value, found["once"].attempts) == ("xx", 2)
    assert found["exit"].failure == "its worker process ended with exit code 7 (last words)"
    assert found["kill"].failure.startswith("its worker process was ended by SIGKILL")
    assert found["kill"].attempts == 2
    assert [found[str(number)].value for number in range(4)] == list(range(4))


def test_a_result_that_cannot_be_sent_is_a_failure() -> None:
    found = outcomes(engines.Processes(1), {"a": ("lambda", None), "b": ("return", 1)})
    assert found["a"].failure.startswith("the result cannot be sent to the driver")
    assert found["b"].value == 1


def test_workers_have_the_threads_they_are_given() -> None:
    found: list[Outcome] = []
    engines.Processes(1, threads=3).run("os:getenv", [Task("a", "OMP_NUM_THREADS")], found.append)
    assert found[0].value == "3"


def test_what_on_result_raises_ends_the_run() -> None:
    def fail(outcome: Outcome) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        engines.Processes(1).run(ACT, [Task(str(n), ("return", n)) for n in range(3)], fail)


def test_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(
        EngineError, match="a worker process ended 3 times before it was ready: its worker process ended"
    ):
        outcomes(engines.Processes(2), {"a": ("return", 1)})


def test_a_worker_killed_while_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from convscope.engines import process

    born = process._Worker.__init__
    lives: list[int] = []

    def frail(self: process._Worker, threads: int) -> None:
        born(self, threads)
        lives.append(self.process.pid)
        if len(lives) < 3:
            self.kill()

    monkeypatch.setattr(process._Worker, "__init__", frail)
    assert outcomes(engines.Processes(1), {"a": ("return", 1)})["a"].value == 1
    assert len(lives) == 3


def test_an_unknown_function_is_refused_for_each_task() -> None:
    found: list[Outcome] = []
    engines.Inline().run("engine_work:nothing", [Task("a", 1)], found.append)
    engines.Inline().run("engine_work:Path.x", [Task("b", 1)], found.append)
    assert "function 'engine_work:nothing' cannot be imported" in str(found[0].failure)
    assert found[0].attempts == 1


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(RequestError, match="two tasks have the key 'a'; give each its own"):
        engines.Inline().run(ACT, [Task("a", 1), Task("a", 2)], print)
    with pytest.raises(RequestError, match="retries=-1 must be 0 or more"):
        engines.Inline().run(ACT, [], print, retries=-1)
    with pytest.raises(
        UnknownName, match="engine='proces' must be one of inline, process, ray; did you mean"
    ):
        engines.get("proces")
    with pytest.raises(RequestError, match="workers=0 must be a whole number, 1 or more"):
        engines.get("process", workers=0)
    with pytest.raises(RequestError, match="threads=True must be a whole number"):
        engines.Processes(1, threads=True)
    with pytest.raises(RequestError, match="workers=2 must be 1 for the engine 'inline'"):
        engines.get("inline", workers=2)
    with pytest.raises(
        RequestError, match="address='auto' is for the engine 'ray', and the engine is 'process'"
    ):
        engines.get("process", address="auto")
    with pytest.raises(RequestError, match="workers and address belong to an engine given by name"):
        engines.get(engines.Inline(), workers=2)
    with pytest.raises(RequestError, match="function 'math:pi' is float, which cannot be called"):
        engines.find("math:pi")


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_ray_that_is_missing_is_named() -> None:
    with pytest.raises(RequestError, match="run pip install 'convscope\\[ray\\]', or take engine 'process'"):
        engines.get("ray")


_DRIVER = """
import sys
from convscope import engines
tasks = [engines.Task(str(n), ("wait", sys.argv[1])) for n in range(4)]
try:
    engines.Processes(2).run("engine_work:act", tasks, print)
except KeyboardInterrupt:
    sys.exit(17)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 17), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_driver(tmp_path: Path, number: int, code: int) -> None:
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    workers = _wait_for(lambda: [int(p.name) for p in tmp_path.iterdir()], lambda found: len(found) == 2)
    driver.send_signal(number)
    assert driver.wait(10) == code
    _wait_for(lambda: [pid for pid in workers if _runs(pid)], lambda left: not left)


def _wait_for(look, enough, seconds: float = 10.0):  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < until, found
        time.sleep(0.02)
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
