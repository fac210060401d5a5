"""Two people wait in their browsers, and one of them is a donor who came later."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, expect

from tests.browsers import page_of
from tests.support import Server, gunicorn, ini, until

CONFIG = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[tiers]
resolver = wsgi_admission.demo.who:tier_of
[route:gated]
path = /gated
"""


def come(page: Page, site: Server, tier: str) -> None:
    """Send a form as somebody of this tier."""
    page.context.add_cookies([{"name": "demo_tier", "value": tier, "url": site.url}])
    page.goto(f"{site.url}/ping")
    page.set_content(f'<form method="post" action="{site.url}/gated?{tier}"><button>Go</button></form>')
    page.get_by_role("button", name="Go").click()


def place(page: Page, number: int) -> None:
    """See where somebody stands."""
    words = "You are next in line" if number == 1 else f"You are number {number} in line"
    expect(page.get_by_role("heading", name=re.compile(f"^{words}$"))).to_be_visible(timeout=20_000)


def test_a_donor_overtakes_on_both_screens_and_a_killed_worker_takes_nobodys_place(
    tmp_path: Path, browser: Browser
) -> None:
    """Catches: a page that keeps the place of its first moment; one that gives up when its server's process dies."""
    with gunicorn(tmp_path, ini(tmp_path, CONFIG)) as site, page_of(browser) as one, page_of(browser) as two:
        site.ask("/gated?first", "POST", b"")
        until(site.starts, "the first start")
        site.ask("/gated?second", "POST", b"")
        come(one, site, "anonymous")
        place(one, 2)
        come(two, site, "donor")
        place(two, 1)
        place(one, 3)
        for worker in psutil.Process(site.process.pid).children():
            if worker.nice() == 0:  # those that answer; the one that replays goes on
                os.kill(worker.pid, signal.SIGKILL)
        two.reload()
        place(two, 1)
        place(one, 3)
        site.open_gate()
        expect(two.locator("body")).to_have_text("gated donor", timeout=20_000)
        expect(one.locator("body")).to_have_text("gated anonymous", timeout=20_000)
        assert site.starts() == ["start first", "start donor", "start second", "start anonymous"]
