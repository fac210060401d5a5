"""A real browser for the tests: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from tests.support import PATIENCE

ARGUMENTS = [
    "--no-sandbox",  # it needs rights that root in a container does not have
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # asks nobody outside for anything
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium without a window; where there is none the test is skipped, but in CI it fails."""
    path = shutil.which("chromium")
    if path is None:
        message = "there is no chromium: make browser"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, **how: object) -> Iterator[Page]:
    """Open a page in a context of its own (cookies, settings); fail if a script of it raised or was refused by a CSP.

    :param how: as for `Browser.new_context`, for instance ``java_script_enabled=False``.
    """
    context = browser.new_context(**how)  # type: ignore[arg-type]  # the names are Playwright's
    context.set_default_timeout(PATIENCE * 1000)
    faults: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(f"{error}\n{error.stack}"))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    try:
        yield page
    finally:
        context.close()
    assert not faults, faults


class Streams:
    """The streams of events that the pages of a context hold."""

    def __init__(self, context: BrowserContext) -> None:
        self._held: list[Request] = []
        context.on("request", self._begun)
        context.on("requestfinished", self._ended)
        context.on("requestfailed", self._ended)

    def _begun(self, request: Request) -> None:
        if request.resource_type == "eventsource":
            self._held.append(request)

    def _ended(self, request: Request) -> None:
        if request in self._held:
            self._held.remove(request)

    def of(self, *pages: Page) -> int:
        """Return how many there are just now; of some of the pages, the first of which is still open."""
        pages[0].evaluate("0")  # Playwright tells what has happened when it is asked for something
        return sum(request.frame.page in pages for request in self._held)


def hide(page: Page, hidden: bool) -> None:  # noqa: FBT001 - the one thing that it is about
    """Let a page believe that it is a tab in the background, or no more."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", {configurable: true, value: hidden})
          document.dispatchEvent(new Event("visibilitychange"))
        }""",
        hidden,
    )
