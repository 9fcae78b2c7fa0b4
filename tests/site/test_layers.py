"""The page of layers: its layout by hand and by property, and the page in a browser."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion
from torch import Tensor, nn

from convscope import site
from convscope.graph import record
from convscope.graph.wiring import INPUT, Wiring, wiring
from convscope.models import InputSpec
from convscope.site.flow import FEW, MOST, flow
from convscope.site.layered import GAP, LANE, Box, draw, rank

Opener = Callable[..., Any]
BOX = (40.0, 20.0)


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_layers", Path(__file__).with_name("fake_layers.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _load()


# ---------------------------------------------------------------- the layout


def test_a_chain_is_one_straight_line() -> None:
    found = draw([BOX] * 4, [(0, 1), (1, 2), (2, 3)])
    assert [box.x for box in found.boxes] == [k * (40 + GAP) for k in range(4)]
    assert {box.y for box in found.boxes} == {0.0}
    assert (found.width, found.height) == (4 * 40 + 3 * GAP, 20)
    assert found.lines == ("M40 10L66 10", "M106 10L132 10", "M172 10L198 10")


def test_a_shortcut_runs_above_what_it_passes() -> None:
    found = draw([BOX] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])  # 0 feeds 3 past 1 and 2
    assert rank(4, [(0, 1), (1, 2), (2, 3), (0, 3)]) == [0, 1, 2, 3]
    tops = {round(box.y, 1) for box in found.boxes}
    assert len(tops) == 1  # the chain stays straight
    (top,) = tops
    assert top == pytest.approx(LANE + 14, abs=0.5)  # a lane and the gap above it
    assert len(found.lines) == 3 + 3  # the chain; to the lane, along it, and from it
    assert found.height == pytest.approx(top + 20, abs=0.5)


def test_an_inception_block_fans_out_and_in() -> None:
    # 0 -> four branches of 1, 2, 2 and 2 boxes -> 8
    edges = [(0, 1), (0, 2), (2, 3), (0, 4), (4, 5), (0, 6), (6, 7), (1, 8), (3, 8), (5, 8), (7, 8)]
    found = draw([BOX] * 9, edges)
    assert rank(9, edges) == [0, 1, 1, 2, 1, 2, 1, 2, 3]
    y = [box.y for box in found.boxes]
    assert y[1] < y[2] < y[4] < y[6]  # in order, none crossing another
    assert [y[2], y[4], y[6]] == pytest.approx([y[3], y[5], y[7]], abs=0.5)
    assert y[0] == pytest.approx((y[1] + y[2] + y[4] + y[6]) / 4, abs=0.5)


@st.composite
def graphs(pick: st.DrawFn) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    count = pick(st.integers(1, 14))
    sizes = pick(st.lists(st.tuples(st.integers(4, 90), st.integers(4, 60)), min_size=count, max_size=count))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    edges = pick(st.lists(st.sampled_from(pairs), unique=True, max_size=24)) if pairs else []
    return [(float(width), float(height)) for width, height in sizes], edges


def ends(line: str) -> tuple[float, float]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", line)]
    return numbers[0], numbers[-2]


@given(graphs())
def test_boxes_never_overlap_and_edges_run_to_the_right(
    graph: tuple[list[tuple[float, float]], list[tuple[int, int]]],
) -> None:
    sizes, edges = graph
    found = draw(sizes, edges)
    assert [(box.width, box.height) for box in found.boxes] == sizes
    for a, b in combinations(found.boxes, 2):
        assert a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
    for source, target in edges:
        assert found.boxes[source].x + found.boxes[source].width < found.boxes[target].x
    for box in found.boxes:
        assert -0.1 <= box.x <= found.width - box.width + 0.1
        assert -0.1 <= box.y <= found.height - box.height + 0.1
    for line in found.lines:
        start, stop = ends(line)
        assert start <= stop


def test_an_empty_graph() -> None:
    assert draw([], []).boxes == ()
    assert draw([BOX], []).boxes == (Box(0.0, 0.0, 40.0, 20.0),)


def test_one_that_feeds_many_takes_one_lane() -> None:
    count = 12
    edges = [(k, k + 1) for k in range(count - 1)] + [(0, k) for k in range(2, count)]
    assert draw([BOX] * count, edges).height == pytest.approx(20 + 14 + LANE, abs=0.5)


# ---------------------------------------------------------------- what feeds what


class Both(nn.Module):
    """A reused activation, an in-place one, a concatenation of slices, a residual sum, a gate of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(4, 4, 1), nn.Conv2d(2, 2, 1), nn.ReLU()
        self.drop = nn.Dropout()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.one(x)))  # parts 0, 1; dropout at rest does nothing
        left, right = x.chunk(2, 1)
        y = torch.cat([self.two(left), right], 1)  # parts 2, 3
        gate = torch.sigmoid(self.scale)
        return self.act(x + y * gate)  # parts 4 (mul), 5 (add), 6


def wired(module: nn.Module, *shape: int) -> Wiring:
    return wiring(record(module.eval(), spec=InputSpec(shape)))


def test_edges_of_a_network() -> None:
    found = wired(Both(), 4, 6, 6)
    assert [part.kind for part in found.parts] == ["Conv2d", "ReLU", "Conv2d", "cat", "mul", "add", "ReLU"]
    assert [part.name for part in found.parts] == ["one", "act#0", "two", "", "", "", "act#1"]
    assert found.edges == ((INPUT, 0), (0, 1), (1, 2), (1, 3), (1, 5), (2, 3), (3, 4), (4, 5), (5, 6))
    assert found.ends == (6,)


def test_edges_through_memory_written_in_place() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2  # part 0
            y[:, :1].add_(1)  # part 1 writes to what y lies in
            return y + x  # part 2

    found = wired(nn.Sequential(InPlace(), nn.Identity()), 3, 4, 4)
    # InPlace has no submodules: one part
    assert [part.kind for part in found.parts] == ["InPlace"]

    class Open(InPlace):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Identity()

    found = wired(Open(), 3, 4, 4)
    assert [part.kind for part in found.parts] == ["mul", "add", "add"]
    assert found.edges == ((INPUT, 0), (INPUT, 2), (0, 1), (0, 2), (1, 2))


def bands(module: nn.Module, *shape: int) -> dict[str, Any]:
    graph = record(module.eval(), spec=InputSpec(shape))
    kinds = {graph.address(call): call.kind for call in graph.calls}
    return flow(wiring(graph).to_dict(), kinds, {"one": 3.0, "body": 8.0, "body.0": 8.0})


def test_bands_of_a_network() -> None:
    found = bands(nn.Sequential(Both(), Both()), 4, 6, 6)
    top = found["bands"][""]
    assert [(box["label"], box["under"]) for box in top["boxes"]] == [("0", "4 × 6 × 6"), ("1", "4 × 6 × 6")]
    inner = found["bands"][top["boxes"][0]["band"]]
    assert [box["label"] for box in inner["boxes"]] == ["one", "act#0", "two", "cat", "×", "+", "act#1"]
    assert [box["op"] for box in inner["boxes"]] == [False, False, False, True, True, True, False]
    assert found["open"] == []


def test_what_holds_most_of_a_network_is_opened() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            units = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(5))
            self.one, self.body = nn.Conv2d(3, 3, 1), nn.Sequential(*units)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.one(x))

    found = bands(Net(), 3, 6, 6)
    assert found["open"] == ["body"]
    assert [box["label"] for box in found["bands"][""]["boxes"]] == ["one", *(f"body.{k}" for k in range(5))]
    assert [box["cost"] for box in found["bands"][""]["boxes"]][:2] == [3.0, 8.0]


@pytest.mark.parametrize("count", [MOST, MOST + 1, 150, 700])
def test_a_long_chain_is_cut_into_runs(count: int) -> None:
    parts = [fake.part(f"{k}", "Conv2d", (), [1, 3, 8, 8]) for k in range(count)]
    edges = [[k - 1, k] for k in range(count)]
    found = flow(
        {"parts": parts, "edges": edges, "ends": [count - 1]}, {}, {str(k): 1.0 for k in range(count)}
    )
    named: list[str] = []
    for band in found["bands"].values():
        assert len(band["boxes"]) <= MOST
        assert len(band["lines"]) == len(band["boxes"]) + 1
        named += [box["name"] for box in band["boxes"] if box["band"] is None]
    assert sorted(named, key=int) == [str(k) for k in range(count)]
    assert sum(box["cost"] for box in found["bands"][""]["boxes"]) == count
    if count > MOST:
        assert len(found["bands"][""]["boxes"]) <= FEW


def test_a_long_chain_is_cut_where_the_resolution_changes() -> None:
    sides = [32] * 10 + [16] * 12 + [8] * 8
    parts = [fake.part(f"f.{k}", "Conv2d", (), [1, 3, side, side]) for k, side in enumerate(sides)]
    found = flow({"parts": parts, "edges": [[k - 1, k] for k in range(30)], "ends": [29]}, {}, {})
    assert [(box["label"], box["under"]) for box in found["bands"][""]["boxes"]] == [
        ("f.0 … f.9", "3 × 32 × 32"),
        ("f.10 … f.21", "3 × 16 × 16"),
        ("f.22 … f.29", "3 × 8 × 8"),
    ]


# ---------------------------------------------------------------- what is written


def written(out: Path) -> Any:
    text = (out / "data" / "layers.js").read_text()
    return json.loads(text.partition('convscopeData["layers"]=')[2].rstrip(";\n"))


def test_the_data_of_the_page(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    site.write(tmp_path, layers=fake.layers(tmp_path, blocks=1, stages=1))
    assert written(tmp_path) == snapshot


def test_the_page_reads_as_before(fakes: ModuleType, tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    atlas = fakes.FakeAtlas(tmp_path, units=12)
    atlas.add(2)
    site.write(tmp_path, atlas=atlas.manifest(), layers=fake.layers(tmp_path))
    assert (tmp_path / "layers.html").read_text() == snapshot
    site.write(tmp_path, atlas=atlas.manifest())  # kept from the folder
    assert '<a href="layers.html">Layers</a>' in (tmp_path / "filters.html").read_text()


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    value = fake.layers(tmp_path, blocks=2, stages=1)
    site.write_layers(tmp_path, value)
    first = written(tmp_path)["version"]
    site.write_layers(tmp_path, value)
    assert written(tmp_path)["version"] == first
    site.write_layers(tmp_path, {**value, "state": "running"})
    assert written(tmp_path)["version"] != first


def test_a_path_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    value = fake.layers(tmp_path, blocks=2, stages=1)
    value["photo"]["file"] = "https://example.org/x.png"
    value["sights"]["stage0.0"]["visits"]["file"] = "../../secret.png"
    site.write_layers(tmp_path, value)
    found = written(tmp_path)
    assert found["photo"] is None
    assert set(found["sights"]["stage0.0"]) == {"effective", "border"}


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="module")
def page_of(fakes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with an atlas of two of its layers. Read only."""
    out = tmp_path_factory.mktemp("layers")
    atlas = fakes.FakeAtlas(out, names=("stem", "stage0.0", "stage1.5"), units=24, distinct=6)
    atlas.add(24)
    site.write(out, atlas=atlas.manifest(), layers=fake.layers(out))
    return out


def until(page: Any, condition: str) -> None:
    """Waits for it; the page's own policy forbids what `wait_for_function` does."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never came: {condition}")


def names(page: Any) -> list[str]:
    return list(page.locator("tbody tr[data-id]").evaluate_all("rows => rows.map((row) => row.dataset.id)"))


def test_sorting_and_filtering(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "layers.html").page
    assert "4.65" not in page.locator("#lead").inner_text()
    assert page.locator("#count").inner_text() == "74 layers"
    assert names(page)[:3] == ["stem", "stage0", "stage0.0"]
    foot = page.locator("tfoot").inner_text()
    assert "Whole network" in foot
    assert "10 ms" in foot
    # three clicks: the largest first, the smallest first, as it ran
    macs = page.get_by_role("columnheader", name="MACs", exact=True)
    orders = []
    for _ in range(3):
        page.locator('[data-sort="macs"]').click()
        orders.append((macs.get_attribute("aria-sort"), names(page)[0]))
    value = fake.layers(page_of)["profile"]["layers"]
    dearest = max(value, key=lambda row: row["macs"])["name"]
    cheapest = min((row for row in value if row["macs"]), key=lambda row: row["macs"])["name"]
    assert orders == [("descending", dearest), ("ascending", cheapest), ("none", "stem")]
    page.keyboard.press("Enter")  # the header kept the focus
    assert macs.get_attribute("aria-sort") == "descending"
    page.locator("#query").fill("stage1 .conv2")
    assert {name.split(".")[-1] for name in names(page)} == {"conv2"}
    assert page.locator("#count").inner_text() == "4 of 74 layers"
    page.locator("#query").fill("nothing")
    assert page.locator("#empty").inner_text() == "No layer matches “nothing”."
    page.keyboard.press("Escape")
    assert page.locator("#count").inner_text() == "74 layers"
    assert "2 aten.fft_c2c" in page.locator("#notes").inner_text()
    assert "visits of fc: it has no positions" in page.locator("#notes").inner_text()


def test_groups_fold_by_keyboard(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "layers.html").page
    page.locator("#fold").click()
    assert names(page) == ["stem", "stage0", "stage1", "stage2", "fc"]
    page.locator('tr[data-id="stem"]').focus()
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert names(page)[:3] == ["stem", "stage0", "stage0.0"]
    assert page.locator('tr[data-id="stage0"]').get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")  # from a closed group to what it lies in
    assert page.evaluate("document.activeElement.dataset.id") == "stage0"
    page.keyboard.press("ArrowLeft")
    assert names(page)[1:3] == ["stage0", "stage1"]
    page.keyboard.press("Enter")
    assert page.locator("#panel h2").inner_text() == "stage0"
    assert page.evaluate("location.hash") == "#stage0"
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.activeElement.dataset.id") == "stage0"


def test_a_deep_link_and_the_panel(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "layers.html#stage0.0").page
    panel = page.locator("#panel")
    assert panel.locator("h2").inner_text() == "stage0.0"
    assert page.locator('tr[aria-selected="true"]').get_attribute("data-id") == "stage0.0"
    assert page.locator(".sight img").count() == 2
    assert page.locator(".sight rect.field").first.bounding_box()["width"] == pytest.approx(
        page.locator(".sight").bounding_box()["width"] * 21 / 64, abs=4
    )
    assert "6.25 px a side, 30 % of that" in panel.locator(".seen").inner_text()
    assert "12 %" in panel.locator(".maps2").inner_text()
    assert "a corner 44.4 %" in panel.locator(".maps2").inner_text()
    # to its filters and back
    assert panel.locator(".filters .tile").count() == 8
    panel.locator(".filters .about a").click()
    page.wait_for_url("**/filters.html#layer=1")
    page.goto(f"{page_of.as_uri()}/filters.html#unit=1/0/0")
    page.locator("#panel .where a").click()
    page.wait_for_url("**/layers.html#stage0.0")
    # the frame of a layer whose field is larger than the image shows what lies around
    page.evaluate("location.hash = 'stage2.11.bn2'")
    until(page, "document.querySelector('#panel h2').textContent === 'stage2.11.bn2'")
    assert "× the image" in panel.locator(".seen").inner_text()
    page.evaluate("location.hash = 'nowhere'")
    until(page, "document.querySelector('#panel h2').textContent === 'nowhere'")
    assert "This network has no such layer." in panel.inner_text()


def test_the_flow_opens_and_chooses(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "layers.html").page
    assert page.locator(".band").count() == 1
    assert page.locator(".band .box .label").all_text_contents() == [
        "stem",
        "stage0",
        "stage1",
        "stage2",
        "fc",
    ]
    page.locator('.box[aria-label^="stem"]').click()
    assert page.locator("#panel h2").inner_text() == "stem"
    assert page.locator(".box[aria-current]").get_attribute("aria-label") == "stem, Conv2d"
    page.keyboard.press("Escape")
    page.locator('.box[aria-label^="stem"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):  # to stage0, into it, into its first block
        page.keyboard.press(key)
    assert page.locator(".band").count() == 3
    assert page.locator(".band.inner header .mono").all_inner_texts() == ["stage0", "stage0.0"]
    assert page.locator(".band").last.locator(".label").all_text_contents() == [*fake.PARTS, "+"]
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#stage0.0.conv1"
    page.locator(".band.inner header button").first.click()
    assert page.locator(".band").count() == 1
    overlaps = """() => [...document.querySelectorAll('.flow')].flatMap((one) => {
        const boxes = [...one.querySelectorAll('.face')].map((face) => face.getBoundingClientRect());
        const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)));
    }).length"""
    assert page.evaluate(overlaps) == 0


def test_two_thousand_layers_scroll(visit: Opener, tmp_path: Path) -> None:
    site.write(tmp_path, layers=fake.layers(tmp_path, blocks=330, stages=6))
    page = visit(tmp_path, "index.html").page  # without an atlas it is the first page
    assert page.locator("#count").inner_text() == "1,982 layers"
    page.locator("#unfold").click()
    measured = page.evaluate("""async () => {
        const sheet = document.getElementById('sheet'), frame = () => new Promise(requestAnimationFrame), times = [];
        let most = 0, bare = 0;
        const step = sheet.scrollHeight / 16;
        for (let top = 0; top < sheet.scrollHeight; top += step) {
            const begun = performance.now();
            sheet.scrollTop = top;
            await frame(); await frame();
            times.push(performance.now() - begun);
            const own = sheet.getBoundingClientRect(), rows = [...sheet.querySelectorAll('tbody tr[data-id]')];
            const places = rows.map((row) => row.getBoundingClientRect());
            most = Math.max(most, rows.length);
            if (Math.min(...places.map((r) => r.top)) > own.top + 45) bare++;
            if (Math.max(...places.map((r) => r.bottom)) < own.bottom - 45) bare++;
        }
        times.sort((a, b) => a - b);
        return {steps: times.length, median: times[times.length >> 1], most, bare, height: sheet.scrollHeight};
    }""")
    print(measured)
    assert measured["height"] > 2000 * 34
    assert measured["most"] < 120
    assert measured["bare"] == 0
    assert measured["median"] < 500  # milliseconds, on a busy machine too
    page.evaluate("location.hash = 'stage3.180.conv2'")
    until(page, "document.querySelector('tr[aria-selected=true]')?.dataset.id === 'stage3.180.conv2'")
    row, box = page.locator('tr[aria-selected="true"]').bounding_box(), page.locator("#sheet").bounding_box()
    assert box["y"] < row["y"] < box["y"] + box["height"]


def test_hostile_names_of_layers(visit: Opener, fakes: ModuleType, tmp_path: Path) -> None:
    value = fake.layers(tmp_path, names=fakes.HOSTILE)
    value["profile"]["model"] = value["groups"][fakes.HOSTILE + "0"]["kind"] = fakes.HOSTILE
    value["left_out"][0]["reason"] = value["profile"]["notes"][0] = fakes.HOSTILE
    site.write(tmp_path, layers=value)
    assert "<img" not in (tmp_path / "data" / "layers.js").read_text()
    page = visit(tmp_path, "layers.html").page
    page.locator("tr.group .label").first.click()
    assert page.locator("#panel h2").inner_text() == fakes.HOSTILE + "0"
    page.reload()
    assert page.locator("#panel h2").inner_text() == fakes.HOSTILE + "0"
    assert page.locator("img[onerror]").count() == 0


def test_on_a_phone(visit: Opener, page_of: Path) -> None:
    page = visit(page_of, "layers.html", width=390, height=844).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator('tr[data-id="stem"] .label').click()
    assert page.locator("#panel").bounding_box()["width"] == 390
    page.get_by_role("button", name="Close (Esc)").click()
    assert page.locator("#panel").is_hidden()


def test_the_page_fills_while_the_run_goes_on(visit: Opener, tmp_path: Path) -> None:
    value = fake.layers(tmp_path, state="running", latency=None, sights={})
    site.write(tmp_path, layers=value)
    hurry = "const wait = setTimeout; window.setTimeout = (run, ms) => wait(run, ms >= 3000 ? ms / 10 : ms);"
    seen = visit(tmp_path, "layers.html#stage0.0", script=hurry)
    page = seen.page
    assert page.locator("#state").is_visible()
    assert page.locator("#roof-box").is_hidden()
    assert page.locator('[data-sort="seconds"]').count() == 0
    site.write(tmp_path, layers=fake.layers(tmp_path))
    until(page, "document.getElementById('state').hidden")
    assert page.locator('[data-sort="seconds"]').count() == 1
    assert page.locator("#roof circle").count() == 25
    assert page.locator("#panel .sight img").count() == 2
    asked = len(seen.requests)
    page.wait_for_timeout(350)
    assert len(seen.requests) == asked


def test_a_network_that_cannot_be_measured(visit: Opener, tmp_path: Path) -> None:
    site.write(tmp_path, layers={"error": "the network is <b>compiled</b>"})
    page = visit(tmp_path, "layers.html").page
    assert (
        page.locator("#state").inner_text()
        == "The layers could not be measured: the network is <b>compiled</b>"
    )
    assert page.locator("#table-box").is_hidden()
