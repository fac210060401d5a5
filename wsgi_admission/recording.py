"""Recordings: how a request becomes one, and how a response is served from one.

A request recording's ``head`` is the JSON object of the environ entries that can be stored: string values
under names without a dot, and ``wsgi.url_scheme``.  Everything else belongs to the server (sockets,
callables) and is made anew for the replay.  A response recording's ``head`` is ``{"status": str,
"headers": [[name, value], ...], "method": str}``, where the method is that of the recorded request.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from wsgi_admission.errors import BodyTooLarge, InvalidLength, LengthRequired, TruncatedBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: Bytes read or sent at once.
BLOCK = 64 * 1024
#: A body up to this many bytes stays in memory, a larger one goes to an unnamed temporary file.
IN_MEMORY = 256 * 1024

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


class _Spool(SpooledTemporaryFile[bytes]):
    """A spooled file that can be wrapped in ``io`` classes; Python 3.10's lacks what they ask for."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def spool() -> BinaryIO:
    """Return a new temporary file, in memory up to `IN_MEMORY` bytes."""
    return cast("BinaryIO", _Spool(max_size=IN_MEMORY))


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


def record(environ: dict[str, Any], *, max_body: int) -> Recording:
    """Read the whole body and keep it with what can be stored of ``environ``.

    Afterwards ``wsgi.input`` is used up; `restore` makes the same request runnable again.

    :param max_body: the largest body accepted, in bytes.
    :raises RequestRefused: `BodyTooLarge`, `TruncatedBody`, `InvalidLength` or `LengthRequired`.  What the
        server's own ``read`` raises passes through, because only the server can still answer then.
    """
    announced = _announced_length(environ)
    if announced is not None and announced > max_body:
        raise BodyTooLarge(max_body)
    body = spool()
    try:
        length = _copy_body(environ, body, announced, max_body)
        return Recording(_request_head(environ, length), body, length)
    except BaseException:
        body.close()
        raise


def restore(environ: dict[str, Any], recording: Recording) -> None:
    """Put the recorded body back into ``environ``, which `record` has used up, so that the app can run it now.

    The app then reads ``recording.body`` itself; whoever runs it closes that file afterwards.
    """
    recording.body.seek(0)
    environ["wsgi.input"] = recording.body
    environ["wsgi.input_terminated"] = True
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    # A request that had no body at all keeps saying so: for some apps no length and a length of 0 differ.
    if recording.length or environ.get("CONTENT_LENGTH"):
        environ["CONTENT_LENGTH"] = str(recording.length)


def _announced_length(environ: dict[str, Any]) -> int | None:
    """Return the length of the body, or None when it goes to the end of the input."""
    text = str(environ.get("CONTENT_LENGTH") or "").strip(" \t")
    chunked = bool(environ.get("HTTP_TRANSFER_ENCODING"))
    # A Transfer-Encoding overrides a Content-Length (RFC 9112 6.3).
    if chunked or not text:
        if environ.get("wsgi.input_terminated"):
            return None
        # From HTTP/2 on a body needs neither field; in HTTP/1 there is none without them.
        framed = not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1") and environ.get("CONTENT_TYPE")
        if chunked or framed:
            raise LengthRequired
        return 0
    if not re.fullmatch("[0-9]+", text):
        raise InvalidLength(text)
    # int() refuses numbers of thousands of digits; such a body is too large for anybody.
    return int(text) if len(text) < 20 else sys.maxsize


def _copy_body(environ: dict[str, Any], body: BinaryIO, announced: int | None, max_body: int) -> int:
    # Never a read without a size, and never past the length: some servers would wait for ever.
    wanted = max_body + 1 if announced is None else announced
    received = 0
    while received < wanted:
        block = environ["wsgi.input"].read(min(BLOCK, wanted - received))
        if not block:
            break
        body.write(block)
        received += len(block)
    if announced is not None and received < announced:
        raise TruncatedBody(announced, received)
    if received > max_body:
        raise BodyTooLarge(max_body)
    body.seek(0)
    return received


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
