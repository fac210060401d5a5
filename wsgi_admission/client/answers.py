"""What the answers of a queued site say, read from status, headers and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from wsgi_admission.client.errors import ForeignAddress

FINAL = frozenset({"completed", "failed", "cancelled"})
#: Methods that are idempotent by definition (RFC 9110 9.2.2); QUERY will be one.
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "QUERY"})
# They speak of the request that was accepted, and not of a look for its ticket.
_ABOUT_THE_REQUEST = re.compile(
    r"content-.*|if-.*|expect|idempotency-key|prefer|range|te|trailer|transfer-encoding", re.IGNORECASE
)
# The caller has said how long the site may take for its answer.
_PATIENCE = re.compile(r"(?:^|,)\s*(?:wait|respond-async)\b", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Update:
    """Where a ticket stands.

    :param state: ``queued``, ``processing``, ``completed``, ``failed`` or ``cancelled``.
    :param position: 1 for the next to start, over all tiers; None when it does not wait or that cannot be told.
    :param wait: the middle of the expected wait in seconds, or None.
    :param p90: seconds within which nine of ten such waits end, or None.
    :param progress: 0 to 1, how far the run has come, or None.
    :param note: what the app says of its progress, or an empty string.
    :param message: one sentence for people.
    :param ticket: the ticket's id.
    """

    state: str
    position: int | None = None
    wait: float | None = None
    p90: float | None = None
    progress: float | None = None
    note: str = ""
    message: str = ""
    ticket: str = ""


class Places(NamedTuple):
    """Where to ask for a ticket; an empty string where that is not known."""

    status: str
    result: str
    cancel: str


def is_pending(status: int, headers: Mapping[str, str]) -> bool:
    """Whether this is the line's answer, and not a 202 of the app's own.

    :param headers: any mapping that does not look at the case of names.
    """
    return status == 202 and "Admission-Status" in headers


def read_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``, or an empty one."""
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def update_of(data: Mapping[str, Any], state: str) -> Update:
    """Return what the JSON of a 202 or of a status says.

    :param state: what is said when the JSON does not tell the state.
    """
    info = data.get("queue_info")
    place = info if isinstance(info, dict) else data
    position = _number(place.get("position_in_queue"))
    return Update(
        state=_text(data.get("status")) or state,
        position=None if position is None else int(position),
        wait=_number(place.get("estimated_wait_time")),
        p90=_number(data.get("estimated_wait_p90")),
        progress=_number(data.get("progress")),
        note=_text(data.get("progress_note")),
        message=_text(data.get("message")),
        ticket=_text(data.get("request_id")),
    )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    # It may be shown in a terminal, where a control character is a command.
    return "".join(filter(str.isprintable, value)) if isinstance(value, str) else ""


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds that a Retry-After asks for, 0 or more, or None when there is none (RFC 9110 10.2.3).

    A date is counted from the answer's own ``Date``, whose clock is the same, else from ``wall``.

    :param wall: seconds since the epoch.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    then = _date(text)
    if then is None:
        return None
    now = _date(headers.get("Date", ""))
    return max(0.0, then - (wall if now is None else now))


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def same_origin(asked: str, given: str) -> str:
    """Return the absolute form of an address that an answer to the request for ``asked`` gave.

    :raises ForeignAddress: when it is of another scheme, host or port, or is none at all.
    """
    base = urlsplit(asked)
    origin = f"{base.scheme}://{base.netloc.rpartition('@')[2]}"
    plain = given.isprintable() and given.isascii() and not set(given) & set(' \\"<>')
    try:
        target = urlsplit(urljoin(f"{origin}{base.path}", given))
        same = plain and _origin(target) == _origin(base) and "@" not in target.netloc
    except ValueError as error:
        raise ForeignAddress(f"{origin} sends its client to wait at {given!r}, which is no address.", given) from error
    if not same:
        hint = "If that is the name of the site ([api] base_url), call it by that."
        raise ForeignAddress(f"{origin} sends its client to wait at {given!r}, which is refused. {hint}", given)
    # Put together anew: another parser has nothing left to read differently.
    query = f"?{target.query}" if target.query else ""
    return f"{origin}{target.path or '/'}{query}"


def _origin(parts: SplitResult) -> tuple[str, str, int | None]:
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


def looking(headers: Iterable[tuple[str, Any]], accept: str = "") -> list[tuple[str, Any]]:
    """Return the headers with which a client that sent a request with ``headers`` looks for its ticket.

    Credentials and cookies stay, for a ticket answers to its owner only.

    :param accept: what takes the place of the request's Accept.
    """
    kept = [(name, value) for name, value in headers if not _ABOUT_THE_REQUEST.fullmatch(name)]
    if accept:
        kept = [(name, value) for name, value in kept if name.lower() != "accept"] + [("Accept", accept)]
    return kept


def preferring(headers: Iterable[tuple[str, Any]], wait: str) -> list[tuple[str, str]]:
    """Return the Prefer (RFC 7240) to send: the caller's with ``wait``, or nothing if that tells of a time already."""
    given = [
        value.decode("latin-1") if isinstance(value, bytes) else value
        for name, value in headers
        if name.lower() == "prefer"
    ]
    field = ", ".join([*given, wait])
    return [] if any(map(_PATIENCE.search, given)) else [("Prefer", field)]
