"""The atlas: kill it, resume it, change it, feed it hostile names."""

from __future__ import annotations

import json
import os
import random as python_random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.errors import RequestError, StoreMismatch, UnknownLayer, UntrainedWeights
from convscope.features import atlas as module_of_atlas
from convscope.features.atlas import Atlas, atlas
from convscope.features.objectives import Channel
from convscope.features.parametrization import Fourier
from convscope.features.session import Session
from convscope.models import InputSpec, Net

SMALL: dict[str, Any] = {"steps": 6, "size": 32, "batch": 2}
LOGS = {"timings.jsonl"}


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the log and the lock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in LOGS and "lock" not in path.name:
            found[name] = path.read_bytes()
    return found


def equal(a: Path, b: Path) -> None:
    ours, theirs = files(a), files(b)
    assert set(ours) == set(theirs)
    differing = [name for name in ours if ours[name] != theirs[name]]
    assert not differing, differing


@pytest.fixture(scope="module")
def whole(tiny: Net, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Atlas]:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "atlas"
    return folder, atlas(tiny, folder, ["relu1", "conv3", "fc"], 3, **SMALL)


def test_workers_draw_the_same_files(tiny: Net, whole: tuple[Path, Atlas], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    made = same_request(tiny, tmp_path, engine="process", workers=1, progress=events.append)
    equal(whole[0], tmp_path)
    assert (made.done, made.failed) == (whole[1].done, whole[1].failed)
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    assert events[-1]["done"] == made.units


def test_a_network_that_workers_cannot_rebuild_is_refused(tmp_path: Path) -> None:
    class Local(nn.Conv2d):
        pass

    net = nn.Sequential(Local(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(RequestError, match="Sequential cannot be sent to workers .*take engine 'inline'"):
        atlas(net, tmp_path, ["0"], 1, input="3x16x16", engine="process", workers=1, **SMALL)


def same_request(tiny: Net, folder: Path, **more: Any) -> Atlas:
    return atlas(tiny, folder, ["relu1", "conv3", "fc"], 3, **(SMALL | more))


# ---------------------------------------------------------------- what is in it


def test_the_manifest(tiny: Net, whole: tuple[Path, Atlas]) -> None:
    folder, made = whole
    content = json.loads((folder / "atlas.json").read_text())
    assert content == json.loads(json.dumps(made.content))
    assert set(content) >= {
        "format", "state", "planned", "net", "settings", "versions", "machine", "network", "layers", "units",
        "attributions", "skipped", "chunks", "broken_images",
    }  # fmt: skip
    assert (content["format"], content["state"], content["planned"]) == (1, "done", 9)
    assert content["net"]["sha256"] == tiny.sha256
    assert set(content["net"]) >= {"name", "source", "sha256", "trained", "params", "input", "labels"}
    assert content["settings"]["recipe"]["steps"] == 6
    assert set(content["versions"]) >= {"convscope", "torch", "python"}
    assert [layer["name"] for layer in content["layers"]] == ["relu1", "conv3", "fc"]
    assert [layer["role"] for layer in content["layers"]] == ["chosen", "chosen", "logits"]
    assert [layer["index"] for layer in content["layers"]] == [0, 1, 2]
    assert content["layers"][1]["shape"] == [32, 8, 8]
    assert content["layers"][0]["receptive_field"]["size"] == [5, 5]
    names = [row["name"] for row in content["network"]]
    assert names == [
        "conv1",
        "bn1",
        "relu1",
        "pool",
        "conv2",
        "bn2",
        "relu2",
        "conv3",
        "bn3",
        "relu3",
        "gap",
        "fc",
    ]
    assert [row["layer"] for row in content["network"] if row["layer"] is not None] == [0, 1, 2]
    assert sum(row["params"] for row in content["network"]) == content["net"]["params"]
    assert all(row["leaf"] and row["depth"] == 1 for row in content["network"])
    assert len(content["attributions"]) == 12
    assert (made.units, made.done, made.failed) == (9, 9, 0)
    assert json.loads(json.dumps(made.to_dict()))["manifest"] == str(folder / "atlas.json")


def test_the_units(tiny: Net, whole: tuple[Path, Atlas]) -> None:
    folder, made = whole
    ids = [unit["id"] for unit in made.content["units"]]
    assert len(set(ids)) == 9
    for unit in made.content["units"]:
        assert unit["id"] == f"{unit['layer']}/{unit['channel']}/{unit['seed']}"
        assert set(unit) >= {
            "label", "image", "size", "activation", "robust", "status", "steps", "curve", "flags", "agreement", "natural",
            "command", "python", "peak",
        }  # fmt: skip
        assert "seconds" not in unit
        assert unit["status"] in ("converged", "budget", "dead")
        assert (unit["image"] is None) == (unit["status"] == "dead")
        if unit["image"] is not None:
            assert not Path(unit["image"]).is_absolute()
            with Image.open(folder / unit["image"]) as image:
                assert list(image.size[::-1]) == unit["size"] == [32, 32]
        seen = unit["natural"]
        assert seen["count"] == len(seen["examples"]) == 9
        with Image.open(folder / seen["crops"]) as strip:
            assert strip.size == (9 * strip.height, strip.height)
        assert len(seen["histogram"]["edges"]) == len(seen["histogram"]["counts"]) + 1
        assert seen["examples"][0]["activation"] == seen["max"]
        assert all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in (e["box"] for e in seen["examples"]))
        assert unit["command"] is None  # a module of one's own has no name on a command line
        assert "convscope.visualize(net, " in unit["python"]
    assert tiny.labels is not None
    labels = {unit["channel"]: unit["label"] for unit in made.content["units"] if unit["layer"] == 2}
    assert labels == {channel: tiny.labels[channel] for channel in labels}


def test_only_what_is_named_is_there(whole: tuple[Path, Atlas]) -> None:
    folder, made = whole
    named = {unit["image"] for unit in made.content["units"]} | {
        u["natural"]["crops"] for u in made.content["units"]
    }
    pictures = {name for name in files(folder) if name.endswith(".webp")}
    assert pictures == named - {None}


def test_the_python_line_remakes_the_picture(tiny: Net, whole: tuple[Path, Atlas]) -> None:
    """Up to the batch size, which changes rounding."""
    from convscope.features.visualize import visualize

    unit = next(u for u in whole[1].content["units"] if u["layer"] == 1)
    call = unit["python"].splitlines()[-1].replace("convscope.", "")
    found = eval(call, {"visualize": visualize, "net": tiny})  # noqa: S307
    assert found.units[0].channel == unit["channel"]
    assert list(found.images.shape[-2:]) == unit["size"]
    assert found.units[0].activation == pytest.approx(unit["activation"], rel=0.05)


def test_the_command_is_quoted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    net = Net(module, InputSpec((3, 32, 32)), name="n", source="timm:a b; rm -rf /", trained=True)
    unit = atlas(net, tmp_path / "a", ["0"], 1, **SMALL).content["units"][0]
    assert unit["command"].startswith("convscope visualize 'timm:a b; rm -rf /' 0 --channels 0")


def test_seeds(tiny: Net, tmp_path: Path) -> None:
    made = atlas(tiny, tmp_path / "a", ["relu2"], 2, seeds=2, **SMALL)
    assert [unit["id"] for unit in made.content["units"]] == ["0/0/0", "0/0/1", "0/12/0", "0/12/1"]
    assert all(unit["agreement"] is not None for unit in made.content["units"])


def test_progress_and_chunks(tiny: Net, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    states: list[tuple[str, int]] = []
    atlas(
        tiny, tmp_path / "a", ["relu1", "fc"], 3, progress=events.append,
        on_chunk=lambda content: states.append((content["state"], len(content["units"]))), **SMALL,
    )  # fmt: skip
    assert events[-1]["done"] == events[-1]["total"] == 6
    assert states == [("running", 2), ("running", 3), ("running", 5), ("running", 6), ("done", 6)]


def test_quick_is_less(tiny: Net, tmp_path: Path) -> None:
    made = atlas(tiny, tmp_path / "a", quick=True, size=32)
    assert made.content["settings"]["recipe"]["steps"] == 32
    assert all(
        sum(u["layer"] == layer["index"] for u in made.content["units"]) <= 3
        for layer in made.content["layers"]
    )


def test_it_shows_itself(whole: tuple[Path, Atlas]) -> None:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(whole[1])
    assert "relu1" in captured.get()
    assert "Atlas(9 of 9 units" in repr(whole[1])
    assert isinstance(whole[1]._repr_html_(), str)


# ---------------------------------------------------------------- resuming


CHILD = """
import sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from tiny import LABELS, SPEC, TinyNet
from convscope.features.atlas import atlas
from convscope.models import Net
module = TinyNet().eval()
module.load_state_dict(torch.load({weights!r}))
net = Net(module, SPEC, labels=LABELS, name="tiny", trained=True, normalization_known=True)
print("ready", flush=True)
atlas(net, {out!r}, ["relu1", "conv3", "fc"], 3, steps=6, size=32, batch=2,
      progress=lambda event: print(event["done"], flush=True))
print("done", flush=True)
"""


def killed(out: Path, weights: Path, moment: float) -> bool:
    """Starts the run in another process and kills it a moment after it began; whether it was still running."""
    code = CHILD.format(tests=str(Path(__file__).parents[1]), out=str(out), weights=str(weights))
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(moment)
        running = child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    return running


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.timeout(180)
def test_killed_at_random_moments_it_ends_the_same(
    tiny: Net, tmp_path: Path, whole: tuple[Path, Atlas]
) -> None:
    out = tmp_path / "killed"
    moments = python_random.Random(0)
    weights = tmp_path / "weights.pt"
    torch.save(tiny.module.state_dict(), weights)
    stopped = [killed(out, weights, moments.uniform(0.0, 1.2)) for _ in range(5)]
    assert any(stopped)
    same_request(tiny, out)
    equal(out, whole[0])


def drawn(folder: Path) -> list[str]:
    """The batches that were finished, by whatever runs, in order."""
    lines = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    return [line["piece"] for line in lines if line.get("event") == "batch"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.timeout(120)
def test_workers_and_their_driver_are_killed_and_it_ends_the_same(
    tiny: Net, tmp_path: Path, whole: tuple[Path, Atlas], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver in the middle; then, when it goes on, the worker that draws."""
    from convscope.engines import process

    out, weights = tmp_path / "killed", tmp_path / "weights.pt"
    torch.save(tiny.module.state_dict(), weights)
    code = CHILD.format(tests=str(Path(__file__).parents[1]), out=str(out), weights=str(weights))
    code = code.replace("batch=2,", 'batch=2, engine="process", workers=1,')
    words, environment = [sys.executable, "-c", code], os.environ | {"PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert int(child.stdout.readline()) > 0  # units of a batch that is kept
        child.kill()
    before = drawn(out)
    assert 0 < len(before) < len(drawn(whole[0]))

    born, lives, left = process._Worker.__init__, list[subprocess.Popen[bytes]](), list[int]()

    def watched(self: process._Worker, threads: int) -> None:
        born(self, threads)
        lives.append(self.process)

    def kill_the_first(event: dict[str, Any]) -> None:
        if len(lives) == 1 and not left:
            left.append(event["total"] - event["done"])
            lives[0].kill()

    monkeypatch.setattr(process._Worker, "__init__", watched)
    made = same_request(tiny, out, engine="process", workers=1, progress=kill_the_first)
    assert len(lives) == 2 or left[0] <= 2  # what it had in hand may have been the last batch, and done
    equal(out, whole[0])
    assert (made.done, made.failed) == (whole[1].done, whole[1].failed)
    assert sorted(drawn(out)) == sorted(drawn(whole[0]))  # each batch finished once, by whichever run


@pytest.mark.parametrize("write", [1, 2, 3, 5, 8, 13])
def test_stopped_before_any_write_it_ends_the_same(
    tiny: Net, tmp_path: Path, whole: tuple[Path, Atlas], monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """As if killed: the process stops at the n-th rename and nothing after it happens."""
    import convscope.store as store

    count = 0
    original = os.replace

    def stop(*args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count >= write:
            raise SystemExit
        original(*args, **options)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", stop)
        with pytest.raises(SystemExit):
            same_request(tiny, out)
    assert count >= write
    same_request(tiny, out)
    equal(out, whole[0])


@pytest.mark.parametrize("event", [1, 3, 6, 10])
def test_ctrl_c_keeps_and_continues(tiny: Net, tmp_path: Path, whole: tuple[Path, Atlas], event: int) -> None:
    count = 0

    def progress(_: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == event:
            raise KeyboardInterrupt

    out = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        same_request(tiny, out, progress=progress)
    content = json.loads((out / "atlas.json").read_text())
    assert content["state"] == "interrupted"
    resumed: list[dict[str, Any]] = []
    made = same_request(tiny, out, progress=resumed.append)
    assert made.done == 9
    assert resumed[0]["done"] >= len(content["units"])
    equal(out, whole[0])


def test_a_finished_one_is_not_drawn_again(
    tiny: Net, tmp_path: Path, whole: tuple[Path, Atlas], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = whole
    before = files(folder)
    monkeypatch.setattr(Session, "draw", None)
    monkeypatch.setattr(module_of_atlas.natural, "scan", None)
    again = same_request(tiny, folder)
    assert again.done == first.done
    assert files(folder) == before


def test_a_batch_chosen_by_memory_stays_as_it_was(
    tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    asked: dict[str, Any] = {"steps": 4, "size": 32}
    first = atlas(tiny, out, ["relu2"], 6, **asked)
    monkeypatch.setattr("convscope.features.session._free_memory", lambda device: 1.0)
    assert atlas(tiny, out, ["relu2"], 6, **asked).content["chunks"] == first.content["chunks"]


def test_broken_images_stay_listed_after_a_resume(tiny: Net, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 9, 200)).save(source / f"{number}.png")
    (source / "broken.png").write_bytes(b"not a picture")
    folders = []
    for name in ("a", "b"):
        out = tmp_path / name
        first = atlas(tiny, out, ["relu1"], 2, data=str(source), **SMALL)
        assert [image["image"] for image in first.content["broken_images"]] == ["broken.png"]
        assert first.content["attributions"] == []
        folders.append(out)
    atlas(tiny, folders[1], ["relu1"], 2, data=str(source), **SMALL)
    equal(*folders)


CHANGES: dict[str, dict[str, Any]] = {
    "steps": {"steps": 7},
    "seed": {"seed": 1},
    "size": {"size": 40},
    "channels": {"channels": 4},
    "layers": {"layers": ["relu1"]},
    "seeds": {"seeds": 2},
    "colour": {"parametrization": Fourier(color=torch.eye(3).flip(0))},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_refused_or_started_afresh(tiny: Net, tmp_path: Path, name: str) -> None:
    asked: dict[str, Any] = {
        "layers": ["relu1", "fc"],
        "channels": 2,
        "parametrization": Fourier(color=torch.eye(3)),
    }
    out = tmp_path / "a"
    atlas(tiny, out, **(SMALL | asked))
    with pytest.raises(StoreMismatch, match="fresh"):
        atlas(tiny, out, **(SMALL | asked | CHANGES[name]))
    made = atlas(tiny, out, fresh=True, **(SMALL | asked | CHANGES[name]))
    assert made.done == made.units
    atlas(tiny, tmp_path / "b", **(SMALL | asked | CHANGES[name]))
    equal(out, tmp_path / "b")


def test_changed_weights_and_images_are_refused(
    tiny: Net, tmp_path: Path, make_net: Callable[..., Net]
) -> None:
    def net(seed: int) -> Net:
        torch.manual_seed(seed)
        return make_net(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))

    out = tmp_path / "a"
    atlas(net(0), out, ["1"], 1, **SMALL)
    with pytest.raises(StoreMismatch, match="model"):
        atlas(net(1), out, ["1"], 1, **SMALL)
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    with pytest.raises(StoreMismatch, match="images"):
        atlas(net(0), out, ["1"], 1, data=str(tmp_path / "one.png"), **SMALL)
    assert atlas(net(0), out, ["1"], 1, **SMALL).done == 1


# ---------------------------------------------------------------- odd networks


def test_dead_units_have_no_picture(make_net: Callable[..., Net], tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        conv.bias[2] = -100.0  # type: ignore[index]
    made = atlas(make_net(nn.Sequential(conv, nn.ReLU())), tmp_path / "a", ["1"], "all", **SMALL)
    assert made.dead == 1
    dead = made.content["units"][2]
    assert (dead["status"], dead["image"], dead["flags"]) == ("dead", None, ["dead"])
    assert not (tmp_path / "a/images/000/00002-0.webp").exists()


def test_nan_units_end_alone(make_net: Callable[..., Net], tmp_path: Path) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.cat([y[:, :1] + y[:, :1].detach() * torch.nan, y[:, 1:]], 1)

    made = atlas(make_net(nn.Sequential(Bad(), nn.ReLU())), tmp_path / "a", ["0"], "all", **SMALL)
    assert [unit["status"] for unit in made.content["units"]] == ["nan", "budget", "budget"]
    assert made.content["units"][0]["activation"] is None
    assert made.content["units"][0]["natural"] is None
    assert made.content["units"][1]["natural"] is not None
    assert "NaN" not in (tmp_path / "a/atlas.json").read_text()


@pytest.mark.parametrize("shape", [(1, 28, 28), (5, 24, 24), (3, 20, 36)])
def test_any_input(make_net: Callable[..., Net], tmp_path: Path, shape: tuple[int, int, int]) -> None:
    module = nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    made = atlas(make_net(module, shape), tmp_path / "a", channels=2, steps=4)
    assert made.done == made.units > 4
    assert made.failed == 0
    seen = [unit["natural"] for unit in made.content["units"]]
    assert (None in seen) == (shape[0] == 5)  # photographs do not fit five channels


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "../../x",
    "con\u202etxt",
    "a/b\\c",
    "%2e%2e",
    "'; DROP TABLE x; --",
]


def test_hostile_names_never_reach_a_path(make_net: Callable[..., Net], tmp_path: Path) -> None:
    module = nn.Sequential()
    for name in HOSTILE:
        module._modules[name] = nn.Conv2d(3, 3, 1)  # add_module refuses a dot; a pickle does not
    net = make_net(module, labels=("</script><script>alert(1)</script>",) * 3)
    wanted = HOSTILE
    made = atlas(net, tmp_path / "out" / "a", wanted, 1, **SMALL)
    assert made.failed == 0
    assert [layer["name"] for layer in made.content["layers"]] == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    for name in files(tmp_path / "out" / "a"):
        assert re.fullmatch(r"[a-z0-9/._-]+", name), name


def test_a_layer_named_like_a_path(make_net: Callable[..., Net], tmp_path: Path) -> None:
    """torch refuses a dot in a name, a pickled module may still have one."""
    module = nn.Sequential(nn.Conv2d(3, 3, 3))
    module._modules["../../x"] = nn.Conv2d(3, 3, 3)
    module._modules["../y"] = nn.BatchNorm2d(3)
    made = atlas(make_net(module), tmp_path / "out" / "a", ["../../x", "../y"], 1, **SMALL)
    assert [layer["name"] for layer in made.content["layers"]] == ["../../x", "../y"]
    assert made.failed == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_a_layer_that_fails_is_listed_and_the_rest_drawn(
    tiny: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convscope.errors import OutOfMemory

    original = Session.draw

    def narrow(self: Session, wanted: Any, *rest: Any) -> Any:
        if wanted[0].layer == "conv3":
            raise OutOfMemory("2 units of conv3 do not fit")
        return original(self, wanted, *rest)

    monkeypatch.setattr(Session, "draw", narrow)
    made = same_request(tiny, tmp_path / "a")
    assert (made.done, made.failed) == (6, 3)
    assert {item["layer"] for item in made.content["skipped"]} == {"conv3"}
    assert made.content["state"] == "done"


def test_a_network_that_gives_no_gradient_is_listed(make_net: Callable[..., Net], tmp_path: Path) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).detach()

    made = atlas(make_net(nn.Sequential(Detached(), nn.ReLU())), tmp_path / "a", ["0.conv", "0"], 2, **SMALL)
    assert (made.done, made.failed) == (2, 2)
    assert "passes no gradient" in made.content["skipped"][0]["reason"]


# ---------------------------------------------------------------- errors


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layers": "relu9"}, UnknownLayer, "did you mean"),
    ({"seeds": 0}, RequestError, "seeds=0 must be a positive integer"),
    ({"steps": 0}, RequestError, "steps=0 must be a positive integer"),
    ({"channels": 0}, RequestError, "channels=0 must be at least 1"),
    ({"batch": 0}, RequestError, "batch=0 must be"),
    ({"size": "big"}, RequestError, "size='big' must be"),
    ({"data": "no/such"}, RequestError, "'no/such' does not exist"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS)
def test_errors_name_what_is_wrong(
    tiny: Net, tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        atlas(tiny, tmp_path / "a", **({"layers": ["fc"], "channels": 1} | arguments))


def test_untrained_weights_are_refused(make_net: Callable[..., Net], tmp_path: Path) -> None:
    net = make_net(nn.Sequential(nn.Conv2d(3, 2, 3)), trained=False)
    with pytest.raises(UntrainedWeights):
        atlas(net, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert Channel("a", 0) is not None
