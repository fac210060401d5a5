"""Reading a request's body before anything is decided about it.

While a body is read, the request holds no slot and has no place: a client that sends slowly keeps nobody from
running.  (It still keeps a thread of the server, as without this package; a proxy that buffers requests helps.)
"""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from wsgi_admission.errors import BodyTooLarge, InvalidLength, LengthRequired, SlowBody, StoreUnavailable, TruncatedBody

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream

#: Bytes of a request body read at once: few, because nothing can be done about a slow client during a read.
READ = 8 * 1024
#: Seconds that a client may be silent in the middle of its body ...
SILENCE = 30.0
#: ... and bytes per second that it must send beyond that on average.
SLOWEST = 1024
#: A body up to this many bytes stays in memory, a larger one goes to an unnamed temporary file.
IN_MEMORY = 256 * 1024


class Body(NamedTuple):
    """A request body that was read: a file of our own, and the number of bytes in it.  Whoever has it closes it."""

    file: BinaryIO
    length: int


def receive(environ: dict[str, Any], *, max_body: int, clock: Callable[[], float] = time.monotonic) -> Body | None:
    """Read the whole body into a file, and put that into ``environ`` in place of the server's ``wsgi.input``.

    Whoever runs the request now holds up nobody by waiting for a slow client, and whoever queues it has all of it.

    :param max_body: the largest body accepted, in bytes.
    :param clock: seconds of a clock that does not jump.
    :return: None when there is no body; the environ is untouched then.
    :raises UntellableLength: when the end of the body cannot be known; nothing of it has been read.
    :raises StoreUnavailable: when it cannot be kept (the disk is full).
    :raises RequestRefused: `BodyTooLarge`, `TruncatedBody` or `SlowBody`.  What the server's own ``read`` raises
        passes through, because only the server can still answer then.
    """
    announced = announced_length(environ)
    if announced == 0:
        return None
    if announced is not None and announced > max_body:
        raise BodyTooLarge(max_body)
    with _patience(environ):
        blocks = _blocks(environ["wsgi.input"], announced, max_body, clock)
        first = next(blocks, None)
        if first is None:
            return None  # as with most requests whose body may go to the end of the input
        file = spool()
        try:
            length = sum(_kept(file.write, block) for block in chain([first], blocks))
            _kept(file.seek, 0)
        except BaseException:
            file.close()
            raise
    environ["wsgi.input"] = file
    return Body(file, length)


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


def _kept(step: Callable[[Any], int], value: bytes | int) -> int:
    try:
        return step(value)
    except OSError as error:
        raise StoreUnavailable(f"A request body cannot be kept: {error.strerror}.") from error


def announced_length(environ: dict[str, Any]) -> int | None:
    """Return the length of the body, or None when it goes to the end of the input.

    :raises UntellableLength: `InvalidLength` or `LengthRequired`.
    """
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


def _blocks(source: InputStream, announced: int | None, max_body: int, clock: Callable[[], float]) -> Iterator[bytes]:
    # Never a read without a size, and never past the length: some servers would wait for ever.
    wanted = max_body + 1 if announced is None else announced
    received, start = 0, clock()
    while received < wanted:
        try:
            block = source.read(min(READ, wanted - received))
        except TimeoutError as error:
            raise SlowBody(received) from error
        if not block:
            break
        received += len(block)
        if received < wanted and clock() - start > SILENCE + received / SLOWEST:
            raise SlowBody(received)
        yield block
    if announced is not None and received < announced:
        raise TruncatedBody(announced, received)
    if received > max_body:
        raise BodyTooLarge(max_body)


@contextmanager
def _patience(environ: Mapping[str, Any]) -> Iterator[None]:
    """Let a client be silent for `SILENCE` seconds at most, on servers that show the socket."""
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if not isinstance(connection, socket.socket):  # one of gevent's costs no thread
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(SILENCE)
    try:
        yield
    except SlowBody:
        # Else the server would wait for the rest of the body before it takes the next request.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
        raise
    finally:
        connection.settimeout(before)
