"""Chromium without a network: whatever is not a file or this machine is refused, and remembered."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PICTURES = Path("build/browser-failures")  # a screenshot of each page whose test failed
OWN = ("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:")


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: object
    errors: list[str] = field(default_factory=list)  # of the console, and of scripts
    refused: list[str] = field(default_factory=list)  # addresses outside this machine


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watched(chromium, request):
    """A fresh page of a projector's size; its picture is kept when the test fails."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    context.set_default_timeout(120_000)  # machines may be busy
    seen = Watched(context.new_page())

    def decide(route):
        if route.request.url.startswith(OWN):
            route.continue_()
        else:
            seen.refused.append(route.request.url)
            route.abort()

    context.route("**/*", decide)
    seen.page.on("console", lambda line: line.type == "error" and seen.errors.append(line.text))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    yield seen
    if getattr(request.node, "failed", False):
        folder = Path(request.config.rootpath) / PICTURES
        folder.mkdir(parents=True, exist_ok=True)
        seen.page.screenshot(path=folder / f"{request.node.name}.png")
    context.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell the fixture above whether the test failed."""
    outcome = yield
    if call.when == "call":
        item.failed = outcome.get_result().failed
