"""Fake atlases and a browser for the tests of the report."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from convscope import site


def _fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_atlas", Path(__file__).with_name("fake_atlas.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The generator of fake atlases."""
    return _fakes()


@pytest.fixture(scope="session")
def report(fakes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report of 120 units in 12 layers, with a look. Read only."""
    fake = fakes.FakeAtlas(tmp_path_factory.mktemp("report"), units=120, distinct=20)
    fake.add(120)
    looks = [fakes.look(fake.out, [unit["id"] for unit in fake.units[::7]])]
    site.write(fake.out, atlas=fake.save(), looks=looks)
    return fake.out


@pytest.fixture(scope="session")
def large_report(fakes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report of 2,000 units. Read only."""
    fake = fakes.FakeAtlas(tmp_path_factory.mktemp("large"), units=2000, distinct=12)
    fake.add(2000)
    site.write(fake.out, atlas=fake.manifest())
    return fake.out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that says why there is none."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next((name for name in found if name), None)
    if path is None:
        pytest.skip("no browser: none of chromium, chromium-browser, google-chrome is on the PATH")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no browser driver: playwright is not installed"
    )
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    arguments += ["--disable-background-networking", "--disable-component-update"]
    if sys.platform != "linux":
        arguments.remove("--no-sandbox")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


class Visit:
    """An open page that remembers every console message, error and request."""

    def __init__(self, page: Any, out: Path) -> None:
        self.page, self.out = page, out
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def go(self, address: str) -> Visit:
        self.page.goto(f"{self.out.as_uri()}/{address}")
        if "#unit=" in address:
            self.page.locator("#panel h2").wait_for()
        return self

    def outside(self) -> list[str]:
        return [url for url in self.requests if not url.startswith((self.out.as_uri() + "/", "data:"))]

    def shown(self) -> int:
        return int(self.page.locator(".unit").count())


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens a page of a report; afterwards it must have been silent and have asked for nothing outside."""
    opened: list[Visit] = []
    contexts: list[Any] = []

    def open_page(
        out: Path, address: str, width: int = 1280, height: int = 800, script: str = "", **options: Any
    ) -> Visit:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        if script:
            contexts[-1].add_init_script(script)
        opened.append(Visit(contexts[-1].new_page(), out))
        return opened[-1].go(address)

    yield open_page
    for one in opened:
        one.page.wait_for_timeout(20)
    for context in contexts:
        context.close()
    for one in opened:
        assert one.said == []
        assert one.outside() == []
