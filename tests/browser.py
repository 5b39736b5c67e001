"""Pages in a real browser: a headless Chromium of this machine; nothing is downloaded."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; pip install playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1200, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The browser; without one the test is skipped."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser here; install one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def watched(browser, **options) -> Iterator:
    """An empty page; nothing may have gone wrong on it, and nothing been requested from elsewhere, at the end."""
    context = browser.new_context(**options)
    opened, wrong, requested = context.new_page(), [], []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: requested.append(request.url))
    yield opened
    context.close()
    assert wrong == []
    assert [url for url in requested if not url.startswith(("file:", "data:", "blob:"))] == []
