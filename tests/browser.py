"""A real browser for the tests: the machine's own Chromium, headless, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = 1280, 390

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"
)


@dataclass
class Visit:
    """An opened page, and what the browser said and asked for meanwhile."""

    page: Page
    own: str = "file:"
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def assert_sound(self) -> None:
        """No error, nothing asked of others, every image drawn, nothing beyond the edge."""
        assert self.problems == []
        assert [url for url in self.requests if not url.startswith((self.own, "data:"))] == []
        images = self.page.evaluate("[...document.images].map((image) => image.naturalWidth)")
        assert images
        assert min(images) > 0
        root = "document.documentElement"
        assert self.page.evaluate(f"{root}.scrollWidth") <= self.page.evaluate("innerWidth")


@contextmanager
def start_chromium() -> Iterator[Browser]:
    """Start the machine's Chromium; see the fixture `chromium`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def visit(chromium: Browser, place: Path | str, *, width: int = DESKTOP) -> Iterator[Visit]:
    """Open a file, or the page of an address, in a window of `width` pixels and a new profile."""
    address = place if isinstance(place, str) else place.resolve().as_uri()
    page = chromium.new_page(viewport={"width": width, "height": 800})
    opened = Visit(page, address if isinstance(place, str) else "file:")
    page.on("console", lambda message: opened.problems.append(message.text))
    page.on("pageerror", lambda error: opened.problems.append(str(error)))
    page.on(
        "requestfailed",
        lambda request: opened.problems.append(f"{request.url}: {request.failure}"),
    )
    page.on("request", lambda request: opened.requests.append(request.url))
    try:
        page.goto(address)
        yield opened
    finally:
        page.close()
