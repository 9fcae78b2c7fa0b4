"""`study`: nothing finished is lost, nothing runs twice, and the end is the same however often it was ended before."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import convscope
from convscope.commands.study import said
from convscope.errors import BadInput, ModelError, RequestError, StoreError, StoreMismatch, UnknownName
from convscope.store import Store
from convscope.studies import given
from convscope.studies import run as runs
from convscope.studies import study as studies
from convscope.studies.data import dataset
from convscope.studies.design import Design
from convscope.studies.plan import plan
from convscope.studies.results import StudyResult
from convscope.studies.study import study

TESTS = Path(__file__).parents[1]
RESULTS = ("results.json", "results.sqlite")


def calls(folder: Path) -> list[str]:
    """What the toy runs were called with, in order."""
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def kept(folder: Path) -> dict[str, bytes]:
    """Every file of a record but the log of times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "timings.jsonl"]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".convscope.lock"
    }


def test_engines_give_the_same_study(toy: Path, sizes: Design, tmp_path: Path) -> None:
    first = study(sizes, out=tmp_path / "a", engine="inline", latency=False)
    second = study(sizes, out=tmp_path / "b", engine="process", workers=2, latency=False)
    in_memory = study(sizes, engine="inline", latency=False)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    assert first.content() == second.content() == in_memory.content()
    assert (in_memory.folder, first.folder) == (None, tmp_path / "a")
    assert StudyResult.from_record(tmp_path / "a").content() == first.content()
    assert len(list((toy / "workers").iterdir())) >= 2
    assert first.data["sha256"] == dataset("fashion", limit=200, test_limit=50).hash


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_ray_gives_the_same_study(toy: Path, sizes: Design, tmp_path: Path) -> None:
    study(sizes, out=tmp_path / "a", engine="inline", latency=False)
    study(sizes, out=tmp_path / "b", engine="ray", workers=2, latency=False)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    assert len(calls(toy)) == 24


def test_results_are_those_of_the_runs(toy: Path, sizes: Design) -> None:
    from engine_work import toy_run

    result = study(sizes, engine="inline", latency=False)
    assert (result.done, result.planned, result.failed) == (12, 12, ())
    about = {**dict(sizes.data), "hash": result.data["sha256"]}
    for planned in plan(sizes, about):
        expected = toy_run({"config": planned.config.to_dict()})["result"]
        run = result.variants[planned.variant].runs[planned.config.seed]
        assert (run.key, run.scores, run.curves) == (
            planned.config.key,
            expected["scores"],
            expected["curves"],
        )
    cost = result.variants[1].cost
    assert (cost.receptive_field, cost.latency) == ((8, 8), None)
    assert (cost.params, cost.macs) == _counted({"kernel_size": 3, "width": 2})


def _counted(arguments: dict[str, Any]) -> tuple[int, int]:
    from convscope.studies.networks import small_cnn

    totals = convscope.measure(small_cnn(**arguments), input="1x28x28").totals
    return totals.params, totals.macs


def test_progress_tells_how_far_it_is(toy: Path, sizes: Design) -> None:
    events: list[dict[str, Any]] = []
    study(sizes, engine="inline", latency=False, progress=events.append)
    assert [event["done"] for event in events] == list(range(13))
    assert {event["total"] for event in events} == {12}
    assert events[0]["best"] is None
    assert events[0]["seconds_left"] is None
    middle, last = events[6], events[-1]
    assert middle["seconds_left"] == pytest.approx(6 / middle["rate"])
    assert (last["seconds_left"], last["failed"]) == (0, 0)
    assert (last["best"]["label"], last["best"]["runs"]) == ("kernel_size=5", 4)


def test_more_seeds_and_levels_train_only_what_is_new(toy: Path, sizes: Design, tmp_path: Path) -> None:
    study(replace(sizes, seeds=2), out=tmp_path / "a", engine="inline", latency=False)
    assert len(calls(toy)) == 6
    wider = replace(sizes, factors={"kernel_size": [1, 3, 5, 7]}, seeds=3, baseline={"kernel_size": 5})
    result = study(wider, out=tmp_path / "a", engine="inline", latency=False)
    assert len(calls(toy)) == 12 == len(set(calls(toy)))
    assert result.content() == study(wider, engine="inline", latency=False).content()
    before = len(calls(toy))
    study(wider, out=tmp_path / "a", engine="inline", latency=False)
    assert len(calls(toy)) == before
    study(wider, out=tmp_path / "a", engine="inline", latency=False, fresh=True)
    assert len(calls(toy)) == before + 12


def test_a_run_that_fails_is_tried_again_then_reported_then_tried_by_the_next_study(
    toy: Path, sizes: Design, tmp_path: Path
) -> None:
    odd = replace(sizes, factors={"kernel_size": [3, 11]}, seeds=2)
    result = study(odd, out=tmp_path / "a", engine="inline", retries=1, latency=False)
    assert (result.done, len(result.failed)) == (2, 2)
    assert {key: result.failed[0][key] for key in ("variant", "seed", "reason", "attempts")} == {
        "variant": 1,
        "seed": 0,
        "reason": "ValueError: no luck with 11",
        "attempts": 2,
    }
    assert Counter(calls(toy))["{'width': 2, 'kernel_size': 11} 0"] == 2
    assert result.differences() == (None, None)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["failed"][1]["seed"] == 1
    study(odd, out=tmp_path / "a", engine="inline", retries=0, latency=False)
    assert Counter(calls(toy))["{'width': 2, 'kernel_size': 11} 0"] == 3
    assert Counter(calls(toy))["{'width': 2, 'kernel_size': 3} 0"] == 1


def test_ctrl_c_keeps_what_is_finished(toy: Path, sizes: Design, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["done"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(sizes, out=tmp_path / "a", engine="process", workers=2, latency=False, progress=stop)
    assert StudyResult.from_record(tmp_path / "a").done == 5
    study(sizes, out=tmp_path / "a", engine="inline", latency=False)
    study(sizes, out=tmp_path / "b", engine="inline", latency=False)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


_DRIVER = """
import json, sys
from convscope.studies import study as studies
from convscope.studies.design import Design
studies.RUN = "engine_work:toy_run"
design = Design.from_dict(json.loads(sys.argv[2]))
studies.study(design, out=sys.argv[1], engine="process", workers=2, latency=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_driver_and_workers_may_be_killed(
    toy: Path, sizes: Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver killed in the middle; then workers killed under the driver that goes on."""
    monkeypatch.setenv("TOY_SECONDS", "0.05")
    sizes = replace(sizes, seeds=8)
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    words = [sys.executable, "-c", _DRIVER, str(tmp_path / "a"), json.dumps(sizes.to_dict())]
    driver = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path})
    records = tmp_path / "a" / "records" / "runs"
    _until(lambda: len(_names(records)) >= 5)
    driver.kill()
    driver.wait()
    before = set(_names(records))
    assert 5 <= len(before) < 24
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        old = set(_names(toy / "workers"))
        while not over.wait(0.15) and len(killed) < 3:
            for name in set(_names(toy / "workers")) - old - {str(os.getpid())}:
                old.add(name)
                killed.append(int(name))
                os.kill(int(name), signal.SIGKILL)
                break

    killer = threading.Thread(target=kill)
    killer.start()
    study(sizes, out=tmp_path / "a", engine="process", workers=2, latency=False, retries=5)
    over.set()
    killer.join()
    assert len(killed) == 3
    assert before <= set(_names(records))
    counted = Counter(calls(toy))
    assert len(counted) == 24
    assert sum(counted.values()) <= 24 + 2 + len(killed)  # what was in flight when its driver or worker died
    monkeypatch.delenv("TOY_SECONDS")
    study(sizes, out=tmp_path / "b", engine="inline", latency=False)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


def _names(folder: Path) -> list[str]:
    return (
        [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    )


def _until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_driver_at_a_time(toy: Path, sizes: Design, tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "a", {"kind": "study"}),
        pytest.raises(StoreError, match=f"is being written by another convscope .process {os.getpid()}."),
    ):
        study(sizes, out=tmp_path / "a", engine="inline")
    with Store.open(tmp_path / "b", {"kind": "atlas"}):
        pass
    with pytest.raises(StoreMismatch, match="holds results of another model or other settings"):
        study(sizes, out=tmp_path / "b", engine="inline")


def test_what_makes_no_sense_is_said_before_anything_runs(toy: Path, sizes: Design) -> None:
    with pytest.raises(RequestError, match="the study has no data; give data='fashion'"):
        study(replace(sizes, data=None), engine="inline")
    with pytest.raises(
        UnknownName, match="data has no argument 'lim'; did you mean 'limit'.*it takes source, "
    ):
        study(replace(sizes, data={"source": "fashion", "lim": 5}), engine="inline")
    with pytest.raises(RequestError, match="data is an object, which engine 'process' cannot send"):
        study(sizes, dataset("fashion", limit=100, test_limit=20), engine="process")
    with pytest.raises(RequestError, match="training=.* cannot be made .*unexpected keyword argument 'rate'"):
        study(replace(sizes, training={"rate": 1}), engine="inline")
    with pytest.raises(UnknownName, match="has no argument 'kernel'; did you mean 'kernel_size'"):
        study(replace(sizes, factors={"kernel": [1]}, baseline={}), engine="inline")
    with pytest.raises(UnknownName, match="cannot import 'convscope.studies.network_'|has no|cannot import"):
        study(replace(sizes, base="convscope.studies.networks_:small_cnn"), engine="inline")
    with pytest.raises(RequestError, match="device='cuda:977' is not there: torch finds [0-9]+ of that kind"):
        study(replace(sizes, device="cuda:977"), engine="inline")
    with pytest.raises(BadInput, match=r"outputs of shape \[2, 1\] where the data needs \[2, 1, 28, 28\]"):
        study(sizes, {"source": "fashion-denoise", "limit": 50, "test_limit": 5}, engine="inline")
    with pytest.raises(ModelError, match=r"failed in layer 'stage1.conv1'|fails on text data of shape"):
        study(sizes, {"source": "glosses", "limit": 50, "test_limit": 5}, engine="inline")
    assert calls(toy) == []


def test_the_best_so_far_counts_runs_of_an_earlier_study(toy: Path, sizes: Design, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    study(replace(sizes, seeds=3), out=tmp_path, engine="inline", latency=False)
    study(replace(sizes, seeds=4), out=tmp_path, engine="inline", latency=False, progress=events.append)
    assert (events[0]["best"]["label"], events[0]["best"]["runs"]) == ("kernel_size=5", 3)
    assert events[-1]["best"]["runs"] == 4


def test_a_prediction_of_values_is_told_as_one(toy: Path, sizes: Design, tmp_path: Path) -> None:
    dense = replace(sizes, arguments={"width": 2, "upsampling": "nearest"}, seeds=1)
    source = {"source": "fashion-denoise", "limit": 50, "test_limit": 5}
    result = study(dense, source, out=tmp_path, engine="inline", latency=False)
    assert result.data["values"] is True
    assert "test R² in percent" in StudyResult.from_record(tmp_path)._repr_html_()


def test_what_is_finished_can_be_looked_at_while_the_study_runs(
    toy: Path, sizes: Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "PUBLISHED", 0.0)
    monkeypatch.setattr(studies, "_SHARE", 0.0)
    found: list[int] = []

    def look(event: dict[str, Any]) -> None:
        if event["done"]:
            found.append(StudyResult.from_record(tmp_path).done)

    study(sizes, out=tmp_path, engine="inline", latency=False, progress=look)
    assert found == list(range(1, 13))


def test_a_damaged_record_is_told_and_made_again(toy: Path, sizes: Design, tmp_path: Path) -> None:
    study(sizes, out=tmp_path / "a", engine="inline", latency=False)
    before, events = kept(tmp_path / "a"), list[dict[str, Any]]()
    for path in sorted((tmp_path / "a" / "records" / "runs").iterdir())[:2]:
        path.write_text(path.read_text().replace('"test": 0.', '"test": 1.'))
    study(sizes, out=tmp_path / "a", engine="inline", latency=False, progress=events.append)
    assert [event["damaged"] for event in events] == [2, 2, 2]
    assert "2 damaged and made again" in said(events[1])
    assert kept(tmp_path / "a") == before


# ---------------------------------------------------------------- with real trainings


REAL = Design(
    "convscope.studies.networks:small_cnn",
    {"kernel_size": [1, 3], "rule": ["none", "pool:average"]},
    seeds=[3],
    budget={"epochs": 1},
    arguments={"width": 2},
    training={"batch": 32},
    data={"source": "fashion", "limit": 150, "test_limit": 50},
)


def test_real_trainings_are_the_same_on_every_engine(tmp_path: Path) -> None:
    first = study(REAL, out=tmp_path / "a", engine="inline", latency=False)
    second = study(REAL, out=tmp_path / "b", engine="process", workers=1, latency=False)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    assert first.failed == second.failed == ()
    scores = [variant.runs[0].scores["test"] for variant in first.variants]
    assert all(0 <= score <= 1 for score in scores)
    curves = [variant.runs[0].curves for variant in first.variants]
    assert curves[0]["train_loss"] != curves[1]["train_loss"]
    assert curves[2]["train_loss"] != curves[3]["train_loss"]
    assert not (tmp_path / "a" / "checkpoints").exists() or not any(
        (tmp_path / "a" / "checkpoints").iterdir()
    )


def test_latencies_are_measured_once_and_kept_out_of_results(toy: Path, tmp_path: Path) -> None:
    two = replace(REAL, factors={"kernel_size": [1, 3]})
    result = study(two, out=tmp_path / "a", engine="inline")
    times = [variant.cost.latency for variant in result.variants]
    assert all(0 < time_["low"] <= time_["median"] <= time_["high"] for time_ in times)
    assert times[0]["threads"] == 1
    assert "latency" not in (tmp_path / "a" / "results.json").read_text()
    again = study(two, out=tmp_path / "a", engine="inline")
    assert [variant.cost.latency for variant in again.variants] == times
    assert StudyResult.from_record(tmp_path / "a").variants[1].cost.latency == times[1]


def _config(**changed: Any) -> dict[str, Any]:
    about = {**dict(REAL.data), "hash": dataset("fashion", limit=150, test_limit=50).hash}
    return {**plan(REAL, about)[0].config.to_dict(), **changed}


def test_a_run_trusts_nothing_it_was_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_loaded", {})
    config = _config()
    with pytest.raises(
        RequestError, match="this worker has other code than the driver: sources is .* here and 'x'"
    ):
        runs.run({"config": {**config, "code": {**config["code"], "sources": "x"}}})
    with pytest.raises(RequestError, match="data='fashion' holds something else on this worker"):
        runs.run({"config": {**config, "data": {**config["data"], "hash": "0" * 64}}})
    with pytest.raises(Exception, match="this worker cannot load data that was given as an object"):
        runs.run({"config": {**config, "data": {"hash": "1" * 64}}})


def test_a_damaged_checkpoint_is_thrown_away(tmp_path: Path) -> None:
    config = _config()
    path = tmp_path / "state.pt"
    path.write_bytes(b"no checkpoint")
    found = runs.run({"config": config, "checkpoint": str(path)})
    assert found["result"] == runs.run({"config": config, "checkpoint": None})["result"]
    assert path.read_bytes() != b"no checkpoint"


def test_a_loaded_network_is_trained_further_with_its_own_normalization() -> None:
    from convscope.models import InputSpec
    from convscope.studies.network import network
    from convscope.studies.plan import RunConfig

    spec = InputSpec((1, 28, 28), mean=(0.9,), std=(0.5,))
    config = RunConfig.from_dict(
        _config(base="fashion", arguments={}, rules=["kernel_size:5,where=block1.conv1"])
    )
    module, found = network(config, spec)
    assert found == convscope.load("fashion").input != spec
    assert module.get_submodule("block1.conv1").kernel_size == (5, 5)
    assert all(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(
        RequestError, match="rule 'input_size:32.*' makes a network for inputs of .*give data of that size"
    ):
        network(replace(config, rules=("input_size:32,width=32",)), spec)
    with pytest.raises(
        RequestError, match="rule 'padding:valid' is for networks of images, and this data has none"
    ):
        network(replace(config, rules=("padding:valid",)), None)
    with pytest.raises(RequestError, match="base 'fashion' is for networks of images"):
        network(replace(config, rules=()), None)


def test_a_base_that_cannot_be_built_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises((ModelError, RequestError), match="kernel_size"):
        study(replace(REAL, factors={"kernel_size": [-1, -2]}), engine="inline", latency=False)


def test_a_net_is_the_base_of_a_study_on_every_engine(tmp_path: Path) -> None:
    made = convscope.rewrite(convscope.load("fashion"), "kernel_size:1", where="block1.conv1").net
    before = made.sha256
    design = {
        "base": made,
        "factors": {"training.lr": [0.01, 0.0001]},
        "seeds": 1,
        "budget": {"epochs": 1},
        "training": {"batch": 16},
        "data": {"source": "fashion", "limit": 40, "test_limit": 20},
    }
    first = study(design, out=tmp_path / "a", engine="inline", latency=False)
    second = study(design, out=tmp_path / "b", engine="process", workers=1, latency=False)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    assert (first.done, second.failed, made.sha256) == (2, (), before)
    assert first.design.base.startswith("given:fashion-kernel_size-size-1?key=k")
    assert first.variants[0].cost.params == sum(p.numel() for p in made.module.parameters())
    assert first.variants[0].runs[0].curves != first.variants[1].runs[0].curves


def test_a_net_is_named_by_what_it_is() -> None:
    net = convscope.load("fashion")
    same, other = convscope.load("fashion"), convscope.rewrite(net, "pool:average").net
    assert given.text_of(net) == given.text_of(same)
    assert (
        given.text_of(other).partition("?")[2] != given.text_of(net).partition("?")[2]
    )  # the weights are equal
    design = replace(REAL, base=net, factors={"depth": [1]}, arguments={})
    with pytest.raises(RequestError, match="base 'fashion' is a network, which takes no argument 'depth'"):
        study(design, engine="inline")
    with pytest.raises(RequestError, match="was given as an object, which this process does not have"):
        study(replace(REAL, base="given:fashion?key=k0", arguments={}), engine="inline")
    with pytest.raises(RequestError, match="base=Linear must be text, .* or a Net: convscope.load"):
        replace(REAL, base=nn.Linear(2, 2))
