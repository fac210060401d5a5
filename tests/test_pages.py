"""Our pages, rendered without a browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.wsgi import environ
from wsgi_admission.web.pages import prefers_html


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", True),
        ("application/json", False),
        ("text/html;q=0.5, application/json", False),
        ("application/json;q=0.5, text/html", True),
        ("text/html, application/json", False),
        ("text/*;q=0.3", True),
        ("text/html;q=0, */*", False),
        ("TEXT/HTML ; Q=0.7, */*;q=0.1", True),
        ("text/html;level=1", True),
        ("image/avif,image/webp,*/*;q=0.8", False),
        ("text/html;q=nan", False),
        ("text/html;q=1e9, application/json", False),
        (";;,,;q=,=", False),
        ("text/event-stream", False),
    ],
)
def test_who_gets_a_page(accept: str | None, html: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Catches: a program that gets HTML, a person who gets JSON, a quality that is not looked at."""
    keys: dict[str, Any] = {} if accept is None else {"HTTP_ACCEPT": accept}
    assert prefers_html(environ("/", **keys)) is html
