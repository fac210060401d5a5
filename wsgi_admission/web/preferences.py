"""How long a client is ready to wait for an answer: ``?wait=`` of the queue API, and ``Prefer`` (RFC 7240)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from wsgi_admission.errors import MalformedWait
from wsgi_admission.web.answers import Environ, Sendable, StartResponse

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - of RFC 9110's grammar
_WORD = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_PREFERENCE = re.compile(
    rf"\s*({_TOKEN})\s*(?:=(?:\s*({_WORD}))?\s*)?"
    rf"(?:;\s*(?:{_TOKEN}\s*(?:=(?:\s*{_WORD})?\s*)?)?)*"  # parameters; nobody has defined any
)
_SECONDS = re.compile(r"[0-9]+")
#: Characters of the field that are looked at.
_LONGEST = 1000


class Preferences(NamedTuple):
    """What a client prefers.

    :param respond_async: to be queued rather than to wait for the app.
    :param wait: seconds that it is ready to wait before it is told that it was queued.
    """

    respond_async: bool = False
    wait: float | None = None


NONE = Preferences()


def preferences(environ: Environ) -> Preferences:
    """Return what the request prefers; what is malformed or unknown is ignored, and the first of several holds."""
    if "HTTP_PREFER" not in environ:
        return NONE
    found: dict[str, str] = {}
    for name, value in _preferences(environ["HTTP_PREFER"][:_LONGEST]):
        found.setdefault(name.lower(), value.strip('"'))
    wait = found.get("wait", "")
    return Preferences(found.get("respond-async") == "", float(wait) if _SECONDS.fullmatch(wait) else None)


def _preferences(field: str) -> Iterable[tuple[str, str]]:
    position = 0
    while position < len(field):
        match = _PREFERENCE.match(field, position)
        end = match.end() if match else position
        if match and field[end : end + 1] in {"", ","}:
            yield match[1], match[2] or ""
        elif (end := field.find(",", end)) < 0:
            return
        position = end + 1


def asked_wait(environ: Environ) -> float:
    """Return the seconds of ``?wait=``, 0 if there is none.

    :raises MalformedWait: when it is no whole number.
    """
    query = environ.get("QUERY_STRING", "")
    if "wait" not in query:
        return 0.0
    value = parse_qs(query, keep_blank_values=True).get("wait", ["0"])[0]
    if not _SECONDS.fullmatch(value):
        raise MalformedWait
    return float(value)


class Applied(NamedTuple):
    """An answer that also says which preferences were honoured."""

    answer: Sendable
    preferences: str

    def send(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the WSGI call."""

        def told(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            return start_response(status, [*headers, ("Preference-Applied", self.preferences)], *exc_info)

        return self.answer.send(environ, told)
