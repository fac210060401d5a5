from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browsers import page_of


def test_the_browser_runs_scripts(browser: Browser) -> None:
    """Catches: a browser that was started and shows nothing, so that every test of a page would be about nothing."""
    with page_of(browser) as page:
        page.set_content("<title>a</title><script>document.title += 'b'</script>")
        assert page.title() == "ab"


def test_a_script_that_raises_is_told(browser: Browser) -> None:
    """Catches: tests of pages that pass while their scripts fail."""

    def visit() -> None:
        with page_of(browser) as page, page.expect_event("pageerror"):
            page.set_content("<script>throw new Error('broken')</script>")

    with pytest.raises(AssertionError, match="broken"):
        visit()
