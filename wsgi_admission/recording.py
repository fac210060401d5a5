"""Recordings: how a request becomes one, and how a response is served from one.

A request recording's ``head`` is the JSON object of the environ entries that can be stored: string values
under names without a dot, and ``wsgi.url_scheme``.  Everything else belongs to the server (sockets,
callables) and is made anew for the replay.  A response recording's ``head`` is ``{"status": str,
"headers": [[name, value], ...], "method": str, "address": str}``, where the method and the address (see `address`)
are those of the recorded request.  Older ones have no address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from wsgi_admission.receiving import Body, announced_length

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: Bytes sent at once.
BLOCK = 64 * 1024
#: Header fields that speak of one connection and not of the message (RFC 9110 7.6.1), in lower case.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def _key(field: str) -> str:
    return "HTTP_" + field.strip().upper().replace("-", "_")


_DROPPED = frozenset(_key(field) for field in (*HOP_BY_HOP, "expect"))
# A 304 or a 206 is of no use to who fetches the result later.  If-Match and If-Unmodified-Since stay: they
# say under which condition the app may act at all.
_DROPPED_IN_GET = frozenset(_key(field) for field in ("if-none-match", "if-modified-since", "if-range", "range"))


@dataclass(frozen=True)
class Recording:
    """A request or a response in the form in which it is stored.

    :param head: JSON text: what is not the body.
    :param body: a binary file, open for reading at its beginning; whoever receives a recording closes it.
    :param length: the number of bytes in ``body``.
    """

    head: str
    body: BinaryIO
    length: int


def queueable(environ: dict[str, Any]) -> bool:
    """Whether the request can be answered later at all: not when it asks about, or changes, the connection.

    A server may ignore an Upgrade (RFC 9110, 7.8), and some clients offer ``h2c`` with every request.  Only a
    websocket is nothing without it.
    """
    method = environ.get("REQUEST_METHOD")
    if method in {"CONNECT", "OPTIONS", "TRACE"}:
        return False
    upgrade = environ.get("HTTP_UPGRADE")
    return not upgrade or method != "GET" or "websocket" not in upgrade.lower()


def record(environ: dict[str, Any], body: Body | None) -> Recording:
    """Return the recording of a request whose body was read by `receive`; the recording's body is that file.

    :raises UntellableLength: when it was not read for that reason.
    """
    if body is None:
        announced_length(environ)
    file, length = body or Body(BytesIO(), 0)
    return Recording(_request_head(environ, length), file, length)


def address(path: str, query: str) -> str:
    """Return the path and the query of an environ as they stand in a URL: one text, however a client writes them."""
    # Of the characters that are left as they are, a browser writes none in another way.
    query = quote(query, safe="/:@!$&()*+,;=~%?", encoding="latin-1")
    return quote(path, safe="/:@!$&'()*+,;=~", encoding="latin-1") + (f"?{query}" if query else "")


def restore(environ: dict[str, Any], recording: Recording) -> None:
    """Put the recorded body into ``environ``.

    The app then reads ``recording.body`` itself; whoever runs it closes that file afterwards.
    """
    environ["wsgi.input"] = recording.body
    environ["wsgi.input_terminated"] = True
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    # A request that had no body at all keeps saying so: for some apps no length and a length of 0 differ.
    if recording.length or environ.get("CONTENT_LENGTH"):
        environ["CONTENT_LENGTH"] = str(recording.length)


def _request_head(environ: dict[Any, Any], length: int) -> str:
    dropped = _DROPPED.union(map(_key, environ.get("HTTP_CONNECTION", "").split(",")))
    if environ.get("REQUEST_METHOD") in {"GET", "HEAD"}:
        dropped |= _DROPPED_IN_GET
    head = {
        key: value
        for key, value in environ.items()
        if isinstance(value, str) and isinstance(key, str) and "." not in key and key not in dropped
    }
    if "wsgi.url_scheme" in environ:
        head["wsgi.url_scheme"] = environ["wsgi.url_scheme"]
    if isinstance(environ.get("REMOTE_PORT"), int):  # some servers give a number
        head["REMOTE_PORT"] = str(environ["REMOTE_PORT"])
    # Who fetches the result may not understand the encodings that this client does.
    head["HTTP_ACCEPT_ENCODING"] = "identity"
    if length or head.get("CONTENT_LENGTH"):
        head["CONTENT_LENGTH"] = str(length)
    return json.dumps(head, ensure_ascii=True)


def serve(response: Recording, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer a GET or HEAD with the recorded response; closes ``response.body`` when it has been sent.

    Status line, header list and body are the app's own, less what belongs to one connection and Date and
    Server, which this server adds itself.  The list gains a length only in the answer to HEAD, where some
    servers would take the missing body for an empty one.  It loses its Content-Length when the recorded
    request was a HEAD and this one is not: the body that it measures was never sent.
    """
    with ExitStack() as stack:
        stack.callback(response.body.close)
        head = json.loads(response.head)
        asked, recorded = environ.get("REQUEST_METHOD"), head["method"]
        headers = _servable(head["headers"])
        if recorded == "HEAD" and asked != "HEAD":
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        elif asked == "HEAD" and recorded != "HEAD" and not (bodiless(head["status"]) or stated_lengths(headers)):
            headers.append(("Content-Length", str(response.length)))
        start_response(head["status"], headers)
        if asked == "HEAD":
            return [b""]
        if response.length <= BLOCK:
            return [response.body.read(BLOCK)]  # never an empty list: some servers stumble over it
        stack.pop_all()
        return _Blocks(response.body)


def bodiless(status: str) -> bool:
    """Whether an answer with this status line has no body, whatever its headers say (RFC 9110 6.4.1)."""
    return status.startswith(("1", "204", "304"))


def stated_lengths(headers: Iterable[tuple[str, str]]) -> set[str]:
    """Return the different values of Content-Length among the headers."""
    return {value.strip(" \t") for name, value in headers if name.lower() == "content-length"}


def _servable(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    named = {"date", "server"}
    for name, value in headers:
        if name.lower() == "connection":
            named.update(option.strip().lower() for option in value.split(","))
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | named]


class _Blocks:
    """A file as the iterable of a WSGI answer."""

    def __init__(self, body: BinaryIO) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        while block := self._body.read(BLOCK):
            yield block

    def close(self) -> None:
        self._body.close()
