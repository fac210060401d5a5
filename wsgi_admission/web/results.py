"""What a browser makes of a recorded answer, by its head."""

from __future__ import annotations

import json
from typing import Any

from wsgi_admission.recording import Recording


def address_of(response: Recording) -> str:
    """Return the path and the query that the app was asked for; an empty string if they were not kept."""
    address: str = json.loads(response.head).get("address", "")
    return address


def page_address(response: Recording) -> str:
    """Return the path and the query of a page whose relative links are to work; an empty string for all else.

    A browser takes ``.`` and ``..`` out of a path: what was asked with them cannot be shown at its own.
    """
    head = json.loads(response.head)
    status, address = head["status"], address_of(response)
    dotted = {".", ".."} & set(address.partition("?")[0].split("/"))
    if status.startswith("3") or _download(head) or dotted or not address.startswith("/"):
        return ""
    kind = _header(head, "content-type").partition(";")[0].strip()
    return address if kind in {"text/html", "application/xhtml+xml"} else ""


def leaves_the_page(response: Recording) -> bool:
    """Whether a browser that gets this answer goes on showing the page from which it asked."""
    head = json.loads(response.head)
    return head["status"].startswith(("204", "205", "304")) or _download(head)


def _download(head: dict[str, Any]) -> bool:
    return _header(head, "content-disposition").startswith("attachment")


def _header(head: dict[str, Any], wanted: str) -> str:
    """Return the value of a header in lower case; an empty string if it is not there."""
    return next((value.strip().lower() for name, value in head["headers"] if name.lower() == wanted), "")
