"""Engines under studies: what handing out costs, how much faster two workers are, what kills at random moments change.

    python benchmarks/engines.py --parts overhead,speed,kills --out benchmarks/results/engines-cpu.json

Run it where Ray is installed beside convscope for the lines on Ray; without, they are left out and the record says so. Parts
can be run apart: each is added to what the file holds. `--quick` is a smoke run.

overhead: a study of 10,000 runs of 1 s that pass on a virtual clock. Handing out, keeping (every file flushed to disk) and
telling are really done and really timed, and their seconds are added to the clock, in which all workers wait for the driver.
speed: the same short trainings with one worker process, two, two of Ray, and two programs started by hand, each with one
thread, in turn.
kills: a study of short trainings whose driver, worker, or both are killed (SIGKILL) at ten random moments; every file it
leaves, times apart, is compared with that of a study nobody disturbed, and each run is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import machine
from convscope.engines import Outcome, Processes, Reply, Task
from convscope.engines.base import settle
from convscope.studies.design import Design
from convscope.studies.study import study

PACKAGES = ("convscope", "torch", "numpy", "ray")
PARTS = ("overhead", "speed", "kills")
HERE = Path(__file__).resolve()
BASE = "convscope.studies.networks:small_cnn"
GOALS = {"overhead": 0.05, "two workers": 1.8, "ray to process": 0.9}


def toy(payload: dict[str, Any]) -> dict[str, Any]:
    """A result of a training's size, at once."""
    config = payload["config"]
    score = random.Random(repr(config)).random()
    curve = [score * epoch / 20 for epoch in range(20)]
    names = ("step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    result = {
        "scores": {"train": score, "validation": score, "test": score},
        "diverged": False,
        "epoch": 20,
        "steps": 100,
        "macs": 10**9,
        "precision": "float32",
        "curves": dict.fromkeys(names, curve),
    }
    return {"result": result, "times": {"training": 1.0}}


def has_ray() -> bool:
    """Whether Ray can be measured."""
    try:
        import ray  # noqa: F401
    except ImportError:
        return False
    return True


# ---------------------------------------------------------------- overhead


class Virtual:
    """An engine whose workers take one second a task on a clock of their own; what the driver does is timed for real."""

    name, shares_disk = "virtual", True

    def __init__(self, workers: int, sending: float) -> None:
        self.workers, self.sending = (
            workers,
            sending,
        )  # `sending`: seconds of the driver for a task out and back
        self.makespan = self.real = 0.0  # seconds of the clock, and really

    def run(
        self,
        function: str,
        tasks: Sequence[Task],
        on_result: Callable[[Outcome], None],
        *,
        retries: int = 0,
        on_retry: Callable[[Task], None] | None = None,
    ) -> None:
        """See `convscope.engines.Engine.run`."""
        entered = time.perf_counter()
        ending = [(1.0, place) for place in range(min(self.workers, len(tasks)))]
        waiting, free = len(ending), 0.0
        while ending:
            at, place = heapq.heappop(ending)
            outcome = settle(tasks[place], Reply("done", toy(tasks[place].payload), "", 1.0), 0)
            began = time.perf_counter()
            on_result(outcome)  # type: ignore[arg-type]
            free = max(at, free) + time.perf_counter() - began + self.sending
            if waiting < len(tasks):
                heapq.heappush(ending, (free + 1.0, waiting))
                waiting += 1
        self.makespan, self.real = free, time.perf_counter() - entered


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the driver for each run, and what they add to a study of so many runs of one second."""
    runs = 200 if options.quick else 10_000
    tasks = [Task(str(n), {"config": {"seed": n}}) for n in range(min(runs, 3000))]
    sending = _per_task(Processes(2), tasks)
    found: dict[str, Any] = {
        "runs": runs,
        "seconds to send a task and its result": machine.significant(sending),
    }
    if has_ray():
        found["the same, Ray"] = machine.significant(_per_task_ray(tasks))
    for workers in (2, 8, 32):
        design = Design(BASE, {"kernel_size": [1, 3, 5, 7]}, seeds=runs // 4, data="fashion")
        with tempfile.TemporaryDirectory() as folder:
            engine = Virtual(workers, sending)
            began = time.perf_counter()
            done = study(design, out=folder, engine=engine, latency=False).done
            around = time.perf_counter() - began  # all real seconds: planning, keeping, the files at the end
        assert done == runs
        ideal = runs / workers
        rest = around - engine.real  # planning before, files after
        found[f"{workers} workers"] = {
            "driver's seconds in all": machine.significant(around),
            "milliseconds a run": machine.significant(1000 * around / runs),
            "seconds without overhead": ideal,
            "seconds": machine.significant(engine.makespan + rest),
            "overhead": machine.significant((engine.makespan + rest) / ideal - 1),
        }
    return found


def _per_task(engine: Any, tasks: Sequence[Task]) -> float:
    times: list[float] = []
    engine.run(f"{HERE.stem}:toy", tasks, lambda _: times.append(time.perf_counter()))
    return (times[-1] - times[9]) / (len(times) - 10)


def _per_task_ray(tasks: Sequence[Task]) -> float:
    from convscope.engines.cluster import Ray

    return _per_task(Ray(workers=2), tasks)


# ---------------------------------------------------------------- speed


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Runs an hour of each engine while all its workers are busy; beside them two processes without any engine."""
    design = _trainings(options, seeds=8 if options.quick else 20, epochs=1 if options.quick else 12)
    lines: dict[str, Callable[[], list[float]]] = {
        "one worker": lambda: _ends(design, "process", 1),
        "two workers": lambda: _ends(design, "process", 2),
        "two processes by hand": lambda: _by_hand(design),
    }
    if has_ray():
        lines["two workers of Ray"] = lambda: _ends(design, "ray", 2)
    rates: dict[str, list[float]] = {name: [] for name in lines}
    walls: dict[str, list[float]] = {name: [] for name in lines}
    for turn in range(options.rounds):
        for name in list(lines) if turn % 2 == 0 else list(lines)[::-1]:
            began = time.time()
            ended = lines[name]()
            walls[name].append(ended[-1] - began)
            # all are busy from the eighth end (the last worker to start has finished one) to the last but one
            rates[name].append(3600 * (len(ended) - 1 - 8) / (ended[-2] - ended[7]))
    found: dict[str, Any] = {
        name: {
            "runs an hour": machine.spread(rates[name]),
            "seconds with all starts": machine.spread(walls[name]),
        }
        for name in rates
    }
    found["runs"] = len(design.variants()) * len(design.all_seeds)
    pairs = [("two workers", "one worker"), ("two processes by hand", "one worker")]
    pairs += [("two workers of Ray", "two workers")] if has_ray() else []
    for first, second in pairs:
        found[f"{first} to {second}"] = machine.spread(machine.ratios(rates[first], rates[second]))
    return found


def _ends(design: Design, engine: str, workers: int) -> list[float]:
    """When each run of a study ended."""
    ended: list[float] = []

    def note(event: dict[str, Any]) -> None:
        if event["done"]:
            ended.append(time.time())

    study(design, engine=engine, workers=workers, latency=False, progress=note)
    return ended


def _by_hand(design: Design) -> list[float]:
    """The same runs by two programs started at once, half of the seeds each: what the machine gives at most."""
    halves = []
    for half in (0, 1):
        part = json.dumps({**design.to_dict(), "seeds": list(design.all_seeds[half::2])})
        words = [sys.executable, str(HERE), "--ends", "--design", part]
        halves.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        )
    return sorted(float(line) for half in halves for line in half.communicate()[0].split())


def _trainings(options: argparse.Namespace, seeds: int, epochs: float) -> Design:
    return Design(
        BASE,
        {"kernel_size": [3, 5]},
        seeds=seeds,
        budget={"epochs": epochs},
        arguments={"width": 8},
        data={"source": "fashion", "limit": 600, "test_limit": 200},
    )


# ---------------------------------------------------------------- kills


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Ten kills of each kind, on each engine."""
    found: dict[str, Any] = {}
    design = _trainings(options, seeds=4 if options.quick else 20, epochs=0.5)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        study(design, out=whole, engine="inline", latency=False)
        for engine in ["process"] + (["ray"] if has_ray() else []):
            for victim in ("driver", "worker", "both"):
                if options.only and f"{engine} {victim}" not in options.only:
                    continue
                folder = Path(scratch, f"{engine}-{victim}")
                found[f"{engine}, {victim}"] = _killed(options, design, folder, whole, engine, victim)
                print(f"{engine}, {victim}: {found[f'{engine}, {victim}']}", file=sys.stderr, flush=True)
                shutil.rmtree(folder)
    return found


def _killed(
    options: argparse.Namespace, design: Design, folder: Path, whole: Path, engine: str, victim: str
) -> dict[str, Any]:
    chance = random.Random(f"{engine} {victim}")
    moments, starts, outlived = [], 0, 0.0
    wanted = 2 if options.quick else 10
    driver = None
    try:
        while len(moments) < wanted:
            if driver is None or driver.poll() is not None:
                if _finished(folder) == _finished(whole):
                    break
                driver = _start(design, folder, engine)
                starts += 1
                _until(lambda d=driver: d.poll() is not None or _workers(d.pid, engine))
            after = chance.uniform(0, options.latest)
            time.sleep(after)
            if driver.poll() is not None:
                continue
            family = _family(driver.pid)
            workers = _workers(driver.pid, engine)
            if victim in ("worker", "both") and not workers:
                continue
            moments.append(round(after, 3))
            if victim in ("worker", "both"):
                _kill(chance.choice(sorted(workers)))
            if victim in ("driver", "both"):
                _kill(driver.pid)
                driver.wait()
                ended = time.monotonic()
                _until(lambda workers=workers: not any(map(_runs, workers)))
                outlived = max(outlived, time.monotonic() - ended)
                for pid in filter(_runs, family):  # Ray's agents, which stay a minute and hold memory
                    _kill(pid)
        if driver is None or driver.poll() is not None:
            driver = _start(design, folder, engine)
            starts += 1
        code = driver.wait()
    finally:
        if driver is not None and driver.poll() is None:
            driver.kill()
            driver.wait()
    ended = [event for event in _events(folder) if event.get("event") == "run"]
    kept = Counter(event["key"] for event in ended if event["failure"] is None)
    same = _contents(folder) == _contents(whole)
    return {
        "kills": len(moments),
        "seconds into the work": moments,
        "starts of the driver": starts,
        "seconds that a worker outlived its driver": round(outlived, 1),
        "exit code": code,
        "runs": len(kept),
        "kept more than once": sum(count > 1 for count in kept.values()),
        "tried again": sum(event.get("event") == "retry" for event in _events(folder)),
        "every file the same": same,
    }


def _start(design: Design, folder: Path, engine: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(HERE), "--drive", str(folder), "--engine", engine]
    words += ["--design", json.dumps(design.to_dict())]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def drive(options: argparse.Namespace) -> None:
    """The driver that is killed."""
    design = Design.from_dict(json.loads(options.design))
    found = study(design, out=options.drive, engine=options.engine, workers=2, retries=20, latency=False)
    sys.exit(1 if found.failed else 0)


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    skipped = ("timings.jsonl", ".convscope.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in skipped}


def _events(folder: Path) -> list[dict[str, Any]]:
    found = []
    for line in (folder / "timings.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):  # torn by a kill
            found.append(json.loads(line))
    return found


def _finished(folder: Path) -> int:
    records = folder / "records" / "runs"
    return len(list(records.glob("[!.]*.json"))) if records.is_dir() else 0


# ---------------------------------------------------------------- processes


def _family(parent: int) -> list[int]:
    """All processes below one, as `/proc` has them."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(pid)
    found, ahead = [], [parent]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def _workers(driver: int, engine: str) -> list[int]:
    """Those of the family that train at this moment."""
    mark = b"convscope.engines.worker" if engine == "process" else b"ray::call"
    found = []
    for pid in _family(driver):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself a moment ago
        os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    for _ in range(round(seconds / 0.02)):  # looks, not a clock, which goes on where this process is paused
        if true():
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing happened in {seconds:g} s")


# ---------------------------------------------------------------- all of it


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=2, help="turns of the part speed")
    parser.add_argument(
        "--latest", type=float, default=2.5, help="seconds after which a kill happens at the latest"
    )
    parser.add_argument("--only", default="", help="kills to do, such as 'process driver,ray both'")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ends", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="process", help=argparse.SUPPRESS)
    parser.add_argument("--design", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.drive is not None:
        drive(options)
    if options.ends:
        print(*_ends(Design.from_dict(json.loads(options.design)), "inline", 1))
        return
    options.only = list(filter(None, options.only.split(",")))
    found = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"goals": GOALS}
    for part in filter(None, options.parts.split(",")):
        before = found.get(part, {}) if part == "kills" and options.only else {}
        result = {"overhead": overhead, "speed": speed, "kills": kills}[part](options)
        found[part] = {**before, **result}
        found[f"{part}: machine"] = machine.describe(torch.device("cpu"), PACKAGES)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
