"""A real browser for the tests: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

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
