"""Takes the screenshots of the documentation: ``make screenshots``."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browsers import chromium, page_of
from tests.support import ROOT, Server, gunicorn, ini, until

FOLDER = ROOT / "docs" / "images"
TOKEN = "the-secret-of-operators"  # noqa: S105 - of a site that lives for a minute
CONFIG = f"""
[admission]
mode = queue_all
max_concurrent = 2
worker_threads = 2
[api]
admin_token = {TOKEN}
[tiers]
resolver = wsgi_admission.demo.who:tier_of
[pages]
name = The atelier
[route:text-to-image]
path = /api/generate
expected_time = 3s
[route:image-to-image]
path = /api/img2img
expected_time = 3s
"""


def visitors(site: Server) -> None:
    """Send the requests of a busy minute."""
    dice = random.Random(1)  # noqa: S311 - repeatable
    for number in range(40):
        tier = dice.choice(["donor", "registered", "anonymous", "anonymous"])
        site.ask(
            "/api/generate", "POST", f"prompt=a lake at night {number}&size=512".encode(),
            Content_Type="application/x-www-form-urlencoded", Cookie=f"demo_tier={tier}",
        )  # fmt: skip


def waiting(page: Page, site: Server, name: str) -> None:
    """Send a form, and show the page of its ticket."""
    page.goto(f"{site.url}/ping")
    page.set_content(
        f'<form method="post" action="{site.url}/api/generate"><input name="prompt" value="a lake"><button>Go</button>'
    )
    page.get_by_role("button", name="Go").click()
    page.wait_for_timeout(1500)  # the pictures settle
    page.screenshot(path=str(FOLDER / name))


def main() -> None:
    """Start the example site with a line, and look at its pages."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        config = ini(Path(folder), CONFIG)
        with gunicorn(Path(folder), config, app="wsgi_admission.demo.site:app") as site:
            visitors(site)
            for scheme in ("light", "dark"):
                with page_of(browser, color_scheme=scheme, viewport={"width": 900, "height": 760}) as page:
                    waiting(page, site, f"waiting-room-{scheme}.png")
            with page_of(browser, color_scheme="dark", viewport={"width": 390, "height": 760}) as page:
                waiting(page, site, "waiting-room-phone.png")
            with page_of(browser, color_scheme="light", viewport={"width": 1200, "height": 1100}) as page:
                page.goto(f"{site.url}/api/queue/dashboard")
                page.get_by_label("Admin token").fill(TOKEN)
                page.get_by_role("button", name="Sign in").click()
                expect(page.locator("#line svg")).to_be_visible()
                until(lambda: page.locator("#completed").inner_text() != "0", "a picture")
                page.screenshot(path=str(FOLDER / "dashboard.png"))
    print(f"The screenshots are in {FOLDER}.")  # noqa: T201 - what make shows


if __name__ == "__main__":
    main()
