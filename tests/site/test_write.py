"""What the report writes, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from syrupy.assertion import SnapshotAssertion

from convscope import site
from convscope.errors import RequestError, StoreError, UnknownName
from convscope.site import build, index, pages, scripts
from convscope.site.files import write_if_changed
from convscope.site.sprites import BLOCK, TILE, Sheets


def written(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@given(
    st.recursive(
        st.text() | st.floats() | st.none() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_safe_json_is_json_without_markup(value: Any) -> None:
    text = scripts.safe_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == scripts.finite(value)


def test_credits_of_what_the_network_learned_from(fakes: ModuleType, tmp_path: Path) -> None:
    atlas = fakes.FakeAtlas(tmp_path, units=4)
    atlas.add(1)
    manifest = atlas.manifest()
    site.write(tmp_path, atlas=manifest)
    assert "Zalando" not in (tmp_path / "index.html").read_text()
    manifest["net"]["source"] = "fashion-decoder"
    site.write(tmp_path, atlas=manifest)
    text = (tmp_path / "index.html").read_text()
    assert "Credits: 3" in text
    assert re.search(r"Fashion-MNIST[^<]*</a>, Copyright 2017 Zalando SE[^<]*\(MIT\)", text)


def test_sheets_hold_the_pictures_in_order(tmp_path: Path) -> None:
    names: list[str | None] = []
    for k in range(10):
        Image.new("RGB", (48, 48), (20 * k, 0, 255 - 20 * k)).save(tmp_path / f"{k}.png")
        names.append(f"{k}.png")
    names[4], names[5] = None, "missing.png"
    (tmp_path / "6.png").write_bytes(b"not a picture")
    sheets = Sheets(tmp_path)
    sheet = sheets.sheet("000-0", names)
    sheets.close()
    assert (sheet.columns, sheet.rows) == (8, 2)
    assert sheet.shown == (True, True, True, True, False, False, False, True, True, True)
    pixels = np.asarray(Image.open(tmp_path / sheet.file)).astype(int)
    assert pixels.shape == (2 * TILE, 8 * TILE, 3)
    for k in (0, 3, 7, 8, 9):
        middle = pixels[k // 8 * TILE + TILE // 2, k % 8 * TILE + TILE // 2]
        assert np.abs(middle - [20 * k, 0, 255 - 20 * k]).max() < 8, k


def test_a_second_write_changes_nothing(fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=36, distinct=4)
    fake.add(36)
    first = site.write(tmp_path, atlas=fake.save())
    assert first == tmp_path / "index.html"
    before = written(tmp_path)
    assert not [name for name in before if name.endswith(".tmp")]
    site.write(tmp_path, atlas=fake.manifest())
    site.write(tmp_path)  # from the manifest in the folder
    assert written(tmp_path) == before


def test_only_the_growing_layer_is_drawn_again(fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=48, distinct=4)
    fake.add(18)
    site.write(tmp_path, atlas=fake.manifest("running"))
    before = written(tmp_path)
    fake.add(2)
    site.write(tmp_path, atlas=fake.manifest("running"))
    after = written(tmp_path)
    changed = {
        name
        for name in after
        if name.split("/")[0] not in ("images", "crops") and after[name] != before.get(name)
    }
    assert changed == {"data/atlas.js", "data/004-0.js", "sprites/004-0.webp", "sprites/sheets.json"}


def test_a_large_layer_is_cut_into_blocks(fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, names=("conv",), units=BLOCK + 3, distinct=3, photos=False)
    fake.add(BLOCK + 3)
    found = index.write_index(tmp_path, fake.manifest())
    assert [(block["columns"], block["rows"]) for block in found["layers"][0]["blocks"]] == [(8, 8), (3, 1)]
    smaller = fake.manifest()
    smaller["units"] = smaller["units"][:5]
    index.write_index(tmp_path, smaller)
    assert sorted(path.name for path in (tmp_path / "sprites").iterdir()) == ["000-0.webp", "sheets.json"]


def test_two_writes_in_any_steps_end_alike(fakes: ModuleType, tmp_path: Path) -> None:
    results = []
    for steps in ((30,), (7, 11, 12)):
        out = tmp_path / str(len(steps))
        fake = fakes.FakeAtlas(out, units=30, distinct=4)
        for step in steps:
            fake.add(step)
            site.write(out, atlas=fake.manifest("done" if len(fake.units) == 30 else "running"))
        results.append(
            {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        )
    assert results[0] == results[1]


def unit(layer: int, channel: int, ratio: float | None, **more: Any) -> dict[str, Any]:
    same = {"image": "x.webp", "status": "converged", "flags": [], "activation": 2.0, "robust": 1.0}
    where = {"id": f"{layer}/{channel}/0", "layer": layer, "channel": channel, "place": channel}
    return {**where, **same, "ratio": ratio, **more}


def test_hero_takes_the_best_of_every_layer() -> None:
    units = [
        unit(0, 0, 1.0),
        unit(0, 1, 3.0),
        unit(0, 2, 2.0),
        unit(1, 0, 9.0, flags=["weak"]),
        unit(1, 1, 0.5),
        unit(2, 0, 7.0, image=None),
    ]
    assert index.hero(units, 3) == ["0/1/0", "1/0/0", "1/1/0"] or index.hero(units, 3) == [
        "0/1/0",
        "0/2/0",
        "1/1/0",
    ]
    assert index.hero(units, 2) == ["0/1/0", "1/1/0"]
    assert index.hero(units, 1) == ["1/1/0"]
    assert index.hero([], 5) == []
    assert index.hero([unit(0, 0, float("nan")), unit(0, 1, None, robust=1.9)], 1) == ["0/1/0"]


def test_the_page_forbids_everything_foreign(report: Path) -> None:
    for page in ("index.html", "filters.html", "look.html"):
        text = (report / page).read_text()
        assert "default-src 'none'" in text
        assert " style=" not in text
        assert "<script>" not in text


def test_names_are_escaped(fakes: ModuleType, tmp_path: Path) -> None:
    fake = fakes.FakeAtlas(tmp_path, names=(fakes.HOSTILE,), units=2)
    fake.add(2)
    manifest = fake.manifest()
    manifest["net"]["name"] = fakes.HOSTILE
    site.write(tmp_path, atlas=manifest)
    for path in (*tmp_path.glob("*.html"), *tmp_path.glob("data/*.js")):
        assert "<img" not in path.read_text(), path


def test_a_page_can_be_added(fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGES", list(pages.PAGES))
    site.register(site.Page("extra", "Extra", "filters.html", lambda contents: {}))
    with pytest.raises(
        UnknownName, match="page name='extra' is already registered; give the new page a name"
    ):
        site.register(site.Page("extra", "Extra", "filters.html", lambda contents: {}))
    fake = fakes.FakeAtlas(tmp_path, units=1)
    fake.add(1)
    site.write(tmp_path, atlas=fake.manifest())
    assert '<a href="extra.html">Extra</a>' in (tmp_path / "index.html").read_text()
    assert (tmp_path / "extra.html").is_file()
    assert not (tmp_path / "look.html").exists()


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"out='.*' holds no atlas and no look was given.*; make an atlas there first\."
    ):
        site.write(tmp_path)
    (tmp_path / "atlas.json").write_text("{")
    with pytest.raises(
        StoreError, match=r"atlas\.json' cannot be read .*; remove it or make the atlas again\."
    ):
        site.write(tmp_path)
    with pytest.raises(StoreError, match=r"cannot write '.*atlas\.json/page\.html'"):
        write_if_changed(tmp_path / "atlas.json" / "page.html", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas.json"]


def test_paced_skips_only_while_running(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(
        [0.0, 1.0, 3.0, 10.0, 50.0, 51.0, 60.0, 61.0]
    )  # began; write 1: 2 s; asked at 10 s: no; at 50 s: yes
    monkeypatch.setattr(build.time, "monotonic", lambda: next(clock))
    states: list[str] = []
    monkeypatch.setattr(build, "write", lambda out, atlas: states.append(atlas["step"]))
    write = build.paced(tmp_path, share=0.05)
    for step, state in (("a", "running"), ("b", "running"), ("c", "running"), ("d", "done")):
        write({"step": step, "state": state})
    assert states == ["a", "c", "d"]


@pytest.mark.parametrize("page", ["index.html", "filters.html", "look.html"])
def test_pages_read_as_before(
    fakes: ModuleType, tmp_path: Path, snapshot: SnapshotAssertion, page: str
) -> None:
    fake = fakes.FakeAtlas(tmp_path, units=12)
    fake.add(3)
    site.write(tmp_path, atlas=fake.manifest(), looks=[fakes.look(tmp_path, ["0/0/0"])])
    assert (tmp_path / page).read_text() == snapshot
