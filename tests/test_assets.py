from __future__ import annotations

import pytest

from tests.test_api import Desk
from tests.wsgi import call


def test_an_asset_is_sent_once() -> None:
    """Catches: styles of the wrong type, which browsers refuse, and ones that are sent anew with every page."""
    desk = Desk()
    first = call(desk.api, "/api/queue/static/queue.css")
    assert (first.status, first.header("Content-Type")) == ("200 OK", "text/css; charset=utf-8")
    assert first.header("Cache-Control") == "no-cache"
    assert b"color-scheme" in first.body
    again = call(desk.api, "/api/queue/static/queue.css", HTTP_IF_NONE_MATCH=first.header("ETag"))
    assert (again.status, again.body) == ("304 Not Modified", b"")


@pytest.mark.parametrize("name", ["", "../api.py", "queue.css/", "/etc/passwd", ".", "queue.css\0", "%2e%2e/api.py"])
def test_nothing_else_is_sent(name: str) -> None:
    """Catches: a path out of the folder."""
    assert call(Desk().api, f"/api/queue/static/{name}").status == "404 Not Found"
