"""The command line's contract: stdout, stderr, exit codes, messages, what is kept."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from syrupy.assertion import SnapshotAssertion

import convscope
from convscope import cli
from convscope.commands import progress
from convscope.commands.arguments import channels_of
from convscope.errors import RequestError, StoreError
from convscope.features.unit import Unit, Visualization
from convscope.models import Net

Run = Callable[..., tuple[int, str, str]]

FACTORY = '''
import torch
from torch import nn

def make():
    """Untrained, but nobody can know that of a module from a factory."""
    torch.manual_seed(3)
    parts = {"first": nn.Conv2d(3, 6, 5), "act": nn.ReLU(), "again": nn.Conv2d(6, 8, 3), "act2": nn.ReLU()}
    return nn.Sequential(*[part for part in parts.values()])
'''


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("visualize", ...) -> exit code, stdout, stderr; in a folder with a factory in `clinet.py`."""
    (tmp_path / "clinet.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def unit(**values: Any) -> Unit:
    known: dict[str, Any] = {
        "layer": "a",
        "channel": 0,
        "seed": 0,
        "label": None,
        "activation": 1.0,
        "robust": 0.5,
    }
    known |= {"peak": 2.0, "status": "budget", "steps": 4, "curve": ((1, 0.5), (4, 1.0))}
    return Unit(**(known | values))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tiny: Net) -> Callable[..., dict[str, Any]]:
    """fake("visualize", result or error) replaces a verb; the dict returned takes its arguments."""
    monkeypatch.setattr(convscope, "load", lambda *args, **kwargs: tiny, raising=False)

    def put(verb: str, result: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.update(kwargs, args=args)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(convscope, verb, call, raising=False)
        return seen

    return put


def shown(*units: Unit, **values: Any) -> Visualization:
    return Visualization(torch.rand(len(units), 3, 8, 8), units, **values)


# ---------------------------------------------------------------- what there is


def test_bare_command_says_what_to_try_in_ten_lines(run: Run) -> None:
    code, out, err = run()
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert len(lines) <= 10
    assert all(len(line) <= 100 for line in lines)
    tries = [re.split(r"  +", line.strip())[0] for line in lines if line.strip().startswith("convscope ")]
    assert len([words for words in tries if words.split()[1] in ("report", "visualize", "look")]) == 3


@pytest.mark.parametrize(
    "verb", ["", "report", "atlas", "visualize", "look", "measure", "rewrite", "compare"]
)
def test_help(run: Run, snapshot: SnapshotAssertion, verb: str) -> None:
    code, out, err = run(*filter(None, [verb, "--help"]))
    assert (code, err) == (0, "")
    assert "\n".join(line.rstrip() for line in out.splitlines()) == snapshot


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from convscope.cli import main; code = main(['visualize', '--help']);"
        "heavy = {'torch', 'numpy', 'PIL', 'timm', 'torchvision', 'jinja2'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.0  # 0.15 s on an idle machine


def test_module_and_script_are_the_same(tmp_path: Path) -> None:
    for words in ([sys.executable, "-m", "convscope"], [str(Path(sys.executable).parent / "convscope")]):
        if Path(words[0]).exists():
            said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
            assert said.stdout.strip() == convscope.__version__


def test_colours_only_for_a_terminal_that_wants_them() -> None:
    def on_terminal(**environment: str) -> bytes:
        leader, follower = pty.openpty()
        wanted = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
        subprocess.run(
            [sys.executable, "-m", "convscope"], stdout=follower, check=True, env=wanted | environment
        )
        os.close(follower)
        said = os.read(leader, 1 << 16)
        os.close(leader)
        return said

    colour = re.compile(rb"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    assert colour.search(on_terminal())
    assert not colour.search(on_terminal(NO_COLOR="1"))
    piped = subprocess.run([sys.executable, "-m", "convscope"], capture_output=True, check=True)
    assert b"\x1b" not in piped.stdout + piped.stderr


# ---------------------------------------------------------------- visualize


def test_visualize_prints_one_json_list(run: Run) -> None:
    words = "visualize clinet:make 2 --channels 0:2,5 --input 24 --steps 3 --seeds 2 --out here --json"
    code, out, err = run(*words.split())
    assert code == 0, err
    units = json.loads(out)
    assert [(u["layer"], u["channel"], u["seed"]) for u in units] == [
        ("2", c, s) for c in (0, 1, 5) for s in (0, 1)
    ]
    for row in units:
        assert {"layer", "channel", "seed", "path", "activation", "status", "seconds"} <= set(row)
        if row["status"] != "dead":
            with Image.open(row["path"]) as picture:
                assert (picture.mode, picture.size) == ("RGB", (48, 48))
    assert "Next: convscope report clinet:make --open" in err


def test_visualize_as_text(run: Run, fake: Any, snapshot: SnapshotAssertion) -> None:
    fake(
        "visualize",
        shown(unit(activation=1234.5678), unit(channel=10, seed=1, status="dead", activation=0.0)),
    )
    code, out, _ = run("visualize", "conv1")
    assert code == 0
    assert out == snapshot


def test_arguments_reach_the_api(run: Run, fake: Any, tiny: Net) -> None:
    seen = fake("visualize", shown(unit()))
    words = "visualize net:make conv1 --channels 3 --size 96x128 --steps 7 --seeds 2 --seed 5"
    run(*words.split(), "--data", "photographs", "--device", "cpu", "--random")
    seen.pop("progress")
    assert seen.pop("args") == (tiny, "conv1", [3])
    numbers = {"size": (96, 128), "steps": 7, "seeds": 2, "seed": 5}
    assert seen == numbers | {"data": "photographs", "device": "cpu", "random": True}


def test_a_lone_argument_is_the_layer(run: Run, fake: Any) -> None:
    seen = fake("visualize", shown(unit()))
    run("visualize", "blocks.4.2")
    assert seen["args"][1] == "blocks.4.2"
    assert "steps" not in seen
    run("visualize", "conv1:pre", "--quick")
    assert seen["args"][1] == "conv1:pre"
    assert seen["steps"] == 32
    for model in ("timm:resnet18", "fashion", "fashion-decoder"):
        code, _, err = run("visualize", model)
        assert code == 2
        assert "no layer was given; name one, or see them all with --list-layers" in err


@pytest.mark.parametrize(
    "layer", ["../../x", "/etc/passwd", "<img src=x onerror=alert(1)>", "..", "a\x1b[31m\nb", "-"]
)
def test_a_layer_name_is_never_a_path_nor_an_escape(run: Run, fake: Any, tmp_path: Path, layer: str) -> None:
    fake("visualize", shown(unit(layer=layer), unit(layer=layer, channel=1)))
    code, out, err = run("visualize", "conv1", "--out", "here")
    assert code == 0
    assert len(list((tmp_path / "here").iterdir())) == 2
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"clinet.py", "here"}
    assert "\x1b" not in out + err


def test_dead_and_broken_units_have_no_picture(run: Run, fake: Any, tmp_path: Path) -> None:
    units = unit(status="dead"), unit(channel=1, status="nan", activation=float("nan")), unit(channel=2)
    fake("visualize", shown(*units))
    code, out, _ = run("visualize", "conv1", "--out", "here", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["path"] is None for row in rows] == [True, True, False]
    assert rows[1]["activation"] is None
    fake("visualize", shown(units[1]))
    assert run("visualize", "conv1")[0] == 1


def test_list_layers(run: Run, snapshot: SnapshotAssertion) -> None:
    code, out, err = run("visualize", "clinet:make", "--input", "3x20x24", "--list-layers")
    assert code == 0, err
    assert out == snapshot
    _, out, _ = run("report", "clinet:make", "--input", "3x20x24", "--list-layers", "--json")
    assert json.loads(out)[0] == {"layer": "0", "kind": "Conv2d", "shape": [6, 16, 20]}


def test_list_layers_into_a_closed_pipe(run: Run) -> None:
    line = f"{sys.executable} -m convscope visualize clinet:make --input 64 --list-layers"
    said = subprocess.run(["bash", "-c", f"{line} | true"], capture_output=True, text=True, check=True)
    assert "Traceback" not in said.stderr
    assert "BrokenPipe" not in said.stderr


# ---------------------------------------------------------------- atlas, report, look


def test_atlas_then_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    words = (
        "clinet:make",
        "--input",
        "24",
        "--layers",
        "0,2",
        "--channels",
        "0:2",
        "--steps",
        "2",
        "--out",
        "both",
    )
    code, out, err = run("atlas", *words, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert {"units", "done", "dead", "failed", "seconds", "manifest"} <= set(facts)
    assert (facts["units"], facts["done"], facts["failed"]) == (4, 4, 0)
    assert json.loads(Path(facts["manifest"]).read_text())["state"] == "done"
    following = re.search(r"Next: convscope (.*?)   ", err)
    assert following

    code, out, err = run(*following[1].split(), "--answers", "none")
    assert code == 0, err
    assert out == "both/index.html\n"
    assert opened == [(tmp_path / "both/index.html").as_uri()]
    assert "4 of 4 units" in err
    assert "Next: convscope look clinet:make PHOTO.jpg --open" in err

    code, _, err = run("atlas", *words, "--seed", "1")
    assert code == 2
    assert "holds results of another model or other settings: settings.seed (there 0, now 1)" in err


def test_settings_of_an_atlas(run: Run, fake: Any) -> None:
    seen = fake("atlas", RequestError("enough"))
    run("atlas", "--all", "--channels", "all", "--quick", "--fresh", "--data", "photos", "--device", "cpu")
    wanted = {"layers": "all", "channels": "all", "quick": True, "fresh": True, "data": "photos"}
    assert {key: seen[key] for key in wanted} == wanted
    run("atlas", "--layers", "a.*,b", "--device", "cpu")
    assert seen["layers"] == ["a.*", "b"]


def test_look_opens_its_page(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or False)
    code, out, err = run(
        "look", "clinet:make", "chelsea", "--input", "32", "--out", "seen", "--open", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["page"] == "seen/index.html"
    assert (tmp_path / "seen/index.html").is_file()
    assert opened == [(tmp_path / "seen/index.html").as_uri()]
    assert "no browser could be started; open seen/index.html yourself" in err
    code, _, err = run("look", "timm:resnet18")
    assert code == 2
    assert "no photograph was given; name an image file" in err


# ---------------------------------------------------------------- measure


def test_measure_prints_a_table(run: Run, snapshot: SnapshotAssertion) -> None:
    code, out, err = run("measure", "clinet:make", "--input", "3x20x24")
    assert code == 0, err
    assert out == snapshot
    assert "input 1x3x20x24 float32 on cpu" in err
    assert "Next: convscope measure clinet:make --latency" in err


def test_measure_as_json_csv_markdown_and_tree(run: Run) -> None:
    words = ("measure", "clinet:make", "--input", "3x20x24")
    code, out, err = run(*words, "--json", "--backward", "--batch", "2")
    assert code == 0, err
    told = json.loads(out)
    assert told["input"] == [2, 3, 20, 24]
    assert told["totals"]["macs"] == 2 * (16 * 20 * 6 * 75 + 14 * 18 * 8 * 54)
    assert told["totals"]["backward_macs"] == 2 * (16 * 20 * 6 * 75 + 2 * 14 * 18 * 8 * 54)
    assert [row["name"] for row in told["layers"]] == ["0", "1", "2", "3"]
    _, out, _ = run(*words, "--csv", "--layers", "0,2", "--sort", "macs")
    assert [line.split(",")[:2] for line in out.splitlines()] == [
        ["name", "kind"],
        ["0", "Conv2d"],
        ["2", "Conv2d"],
    ]
    _, out, _ = run(*words, "--markdown", "--depth", "0")
    assert out.splitlines()[4].startswith("| (network) | Sequential | 1x8x14x18 |")
    _, out, _ = run(*words, "--tree")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["0", "1", "2", "3"]


def test_measure_asks_for_what_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fail(net: Net, **settings: Any) -> None:
        seen.update(settings)
        raise RequestError("enough")

    monkeypatch.setattr(convscope, "measure", fail, raising=False)
    words = "measure clinet:make --input 24 --health --border --data photos --seed 3 --device cpu"
    assert run(*words.split())[0] == 2
    wanted = {"health": True, "border": True, "latency": False, "data": "photos", "seed": 3}
    assert {key: seen[key] for key in wanted} == wanted


def test_measure_tells_whole_measures_below(run: Run) -> None:
    code, out, err = run("measure", "clinet:make", "--input", "16", "--memory", "--latency", "--threads", "1")
    assert code == 0, err
    header = out.splitlines()[0].split()
    assert {"time", "bound"} <= set(header)
    assert re.search(r"\nlatency: [0-9.]+ .s", out)
    assert re.search(r"\nmake on 1x3x16x16: peak memory", out)
    assert "Next: convscope look clinet:make PHOTO.jpg --open" in err


# ---------------------------------------------------------------- how the model is loaded


def test_model_options(run: Run, fake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = fake("visualize", shown(unit()))
    monkeypatch.setattr(convscope, "load", convscope.models.load)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    words = "visualize clinet:make 0 --input 3x20x24 --mean 0.5,0.4,0.3 --std 0.2 --labels names.txt"
    code, _, err = run(*words.split())
    assert code == 0, err
    net = seen["args"][0]
    assert (net.input.shape, net.input.mean, net.input.std) == ((3, 20, 24), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert net.labels == ("cat", "dog")


def test_warnings_of_the_model_are_told_once(
    run: Run, fake: Any, monkeypatch: pytest.MonkeyPatch, tiny: Net
) -> None:
    fake("visualize", shown(unit()))
    monkeypatch.setattr(
        convscope, "load", lambda *_, **__: replace(tiny, warnings=("[red]odd\x1b[0m weights",))
    )
    _, _, err = run("visualize", "conv1")
    assert err.count("warning: [red]odd�[0m weights") == 1


def test_threads_are_set_for_the_run_only(run: Run, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    fake("visualize", None)
    monkeypatch.setattr(
        convscope, "visualize", lambda *_, **__: counts.append(torch.get_num_threads()) or shown(unit())
    )
    path = list(sys.path)
    run("visualize", "conv1", "--threads", "2")
    assert (counts, torch.get_num_threads(), sys.path) == ([2], 1, path)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reprot", "'reprot' is no command; did you mean 'report'"),
        ("visualize a b c", "'c' is one argument too many; see convscope visualize --help."),
        ("report --stepz 3", "Unknown option: --stepz. Did you mean --steps"),
        ("report --steps many", 'unable to convert "many" into int; see convscope report --help.'),
        ("visualize", "no layer was given"),
        ("measure --tree --csv", "were given together; ask for one."),
        ("measure --sort mac", "key='mac' is no column of the profile; did you mean 'macs'"),
        ("measure --depth -1", "depth=-1 must be a number of names from 0 on, such as 1"),
        ("measure --layers zzz", "layer 'zzz' matches no row of the profile"),
        ("look", "no photograph was given"),
        (
            "visualize conv1 --channels 1-3",
            "--channels '1-3' must be numbers or ranges START:END, such as 3, 1,5,9 or 0:8",
        ),
        ("visualize conv1 --channels 0:8:0", "--channels '0:8:0' must be numbers or ranges"),
        (
            "visualize conv1 --channels 5:5",
            "--channels '5:5' is empty; START:END goes from START to END - 1.",
        ),
        (
            "visualize conv1 --size big",
            "--size 'big' must be auto, pixels such as 128, or HEIGHTxWIDTH such as 96x128.",
        ),
        (
            "visualize conv1 --mean a,b",
            "--mean 'a,b' must be numbers by commas, one a channel, such as 0.5,0.5,0.5.",
        ),
        ("visualize conv1 --threads 0", "--threads 0 must be at least 1; leave it out for all cores."),
        ("visualize conv1 --device tpu9", "device 'tpu9' cannot be used"),
        ("visualize conv1 --labels nowhere", "--labels 'nowhere' cannot be read as text"),
        ("visualize conv9", "layer 'conv9' matches no layer of the network; did you mean 'conv"),
        ("visualize conv1 --channels 12", "channel=12 does not exist in layer 'conv1'; give 0 to 11"),
        ("atlas --all --layers conv1", "--all and --layers were both given"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.usefixtures("fake")
def test_a_wrong_request_is_one_sentence_and_code_2(
    run: Run, words: str, message: str, as_json: bool
) -> None:
    code, out, err = run(*words.split(), *(["--json"] if as_json else []))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    if as_json:
        assert message in json.loads(out)["error"]
    else:
        assert out == ""


def test_failures_are_code_1_and_bugs_say_so(run: Run, fake: Any) -> None:
    fake("atlas", StoreError("no space is left"))
    assert run("atlas")[0::2] == (1, "error: no space is left\n")
    fake("atlas", TypeError("oops"))
    code, _, err = run("atlas")
    assert code == 1
    assert err == "error: TypeError: oops; this was not expected: --debug shows where it happened.\n"
    code, out, err = run("atlas", "--debug", "--json")
    assert (code, json.loads(out)["kind"]) == (1, "TypeError")
    assert "Traceback (most recent call last)" in err


def test_every_failed_unit_is_a_failure(run: Run, fake: Any, tmp_path: Path) -> None:
    from convscope.features.atlas import Atlas

    fake("atlas", Atlas(tmp_path, units=2, done=2, dead=0, failed=2, seconds=1.0, content={}))
    code, _, err = run("atlas")
    assert code == 1
    assert "2 of 2 units in 1 s, 0 dead, 2 failed" in err


def test_ctrl_c_tells_what_is_kept(run: Run, fake: Any) -> None:
    fake("atlas", KeyboardInterrupt())
    code, out, err = run("atlas", "--out", "mine")
    assert (code, out) == (130, "")
    assert err == "Interrupted: what is finished is kept in mine; the same command goes on from there.\n"
    fake("visualize", shown(unit(), interrupted=True))
    code, out, err = run("visualize", "conv1", "--json", "--out", "here")
    assert code == 130
    assert len(json.loads(out)) == 1
    assert err == "Interrupted: the 1 pictures that were finished are in here.\n"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT to a child")
def test_ctrl_c_and_again(run: Run, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "convscope", "atlas", "clinet:make", "--input", "24", "--channels", "all"]
    words += ["--steps", "40", "--threads", "1", "--out", "cut"]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    manifest, deadline = tmp_path / "cut/atlas.json", time.monotonic() + 90
    while first.poll() is None and time.monotonic() < deadline:
        if manifest.exists() and json.loads(manifest.read_text())["units"]:
            first.send_signal(signal.SIGINT)
            break
        time.sleep(0.02)
    out, err = first.communicate(timeout=90)
    if first.returncode == 0:
        pytest.skip("the run ended before it could be interrupted")
    assert (first.returncode, out) == (130, "")
    assert "what is finished is kept in cut; the same command goes on from there" in err
    assert "Traceback" not in err
    kept = len(json.loads(manifest.read_text())["units"])
    again = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True, timeout=120)
    facts = json.loads(again.stdout)
    assert 0 < kept < facts["done"] == facts["units"]


# ---------------------------------------------------------------- progress

EVENT = {"done": 3, "total": 12, "rate": 0.5, "seconds_left": 78.4, "layer": "a\x1bb"}


def test_progress_lines_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    tell = progress.Lines(every=0)
    tell(EVENT)
    tell({**EVENT, "rate": 0.0, "seconds_left": None})
    tell({"done": 12, "total": 12, "rate": 0.0, "seconds_left": 0.0, "layer": "measuring a\x1bb"})
    progress.Lines()(EVENT)
    assert capsys.readouterr().err.splitlines() == [
        "3 of 12 units, 0.50 a second, 1:18 left",
        "3 of 12 units, 0.00 a second",
        "12 of 12 units, measuring a\N{REPLACEMENT CHARACTER}b",
    ]


def test_progress_bar() -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with progress.bar(console) as tell:
        tell(EVENT)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3/12 units  0.50 a second, 1:18 left  a�b" in drawn


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        ("0:4", [0, 1, 2, 3]),
        (":3", [0, 1, 2]),
        ("0:9:4", [0, 4, 8]),
        ("5, 1,1:3", [5, 1, 2]),
        (None, None),
    ],
)
def test_channels(text: str | None, expected: list[int] | None) -> None:
    assert channels_of(text) == expected


@pytest.fixture(autouse=True)
def _forget_factories() -> Iterator[None]:
    yield
    sys.modules.pop("clinet", None)
