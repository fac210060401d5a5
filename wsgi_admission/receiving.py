"""Reading a request's body before anything is decided about it.

While a body is read, the request holds no slot and has no place: a client that sends slowly keeps nobody from
running.  (It still keeps a thread of the server, as without this package; a proxy that buffers requests helps.)
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from wsgi_admission.errors import BodyTooLarge, InvalidLength, LengthRequired, SlowBody, StoreUnavailable, TruncatedBody

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream

#: Bytes of a request body read at once: few, because a read that is under way says nothing of how far it is.
READ = 8 * 1024
#: Seconds that a client may take for its body ...
SILENCE = 30.0
#: ... and one more for so many bytes of it.
SLOWEST = 1024
#: A body up to this many bytes stays in memory, a larger one goes to an unnamed temporary file.
IN_MEMORY = 256 * 1024


class Body(NamedTuple):
    """A request body that was read: a file of our own, and the number of bytes in it.  Whoever has it closes it."""

    file: BinaryIO
    length: int


class _Reading:
    """A body that is being read.

    :param connection: the client's socket, on servers that show it, or None.
    """

    def __init__(self, connection: object, now: float) -> None:
        # One of gevent's holds up no thread, and is none of these.
        self.connection = connection if isinstance(connection, socket.socket) else None
        self.began = now
        self.received = 0
        self.given_up = False

    def too_slow(self, now: float) -> bool:
        """Whether even the block that is awaited should have come by now."""
        return now - self.began > SILENCE + (self.received + READ) / SLOWEST

    def give_up(self) -> None:
        """End the read that is under way, as if the client had left."""
        self.given_up = True
        if self.connection is not None:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RD)


#: The bodies that threads of this process are reading just now.
_under_way: set[_Reading] = set()
# A child has the sockets of its parent, but not the threads that read from them.
os.register_at_fork(after_in_child=_under_way.clear)


def give_up_slow(*, now: float) -> None:
    """Give up the bodies that come too slowly; to be called about once a second.

    Many servers return from a read only when all that was asked for is there: the thread that reads cannot look at
    the time itself.

    :param now: seconds of ``time.monotonic``.
    """
    for reading in list(_under_way):
        if reading.too_slow(now):
            reading.give_up()


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
    reading = _Reading(environ.get("gunicorn.socket") or environ.get("werkzeug.socket"), clock())
    _under_way.add(reading)
    try:
        file = _spooled(_blocks(environ["wsgi.input"], announced, max_body, reading, clock))
    except Exception as error:
        if reading.given_up:
            raise SlowBody(reading.received) from error
        raise
    finally:
        _under_way.discard(reading)
    if file is None:
        return None
    environ["wsgi.input"] = file
    return Body(file, reading.received)


def _spooled(blocks: Iterator[bytes]) -> BinaryIO | None:
    """Return a file with the blocks, at its beginning; None if there are none, as with most inputs without a length."""
    first = next(blocks, None)
    if first is None:
        return None
    file = spool()
    try:
        for block in chain([first], blocks):
            _kept(file.write, block)
        _kept(file.seek, 0)
    except BaseException:
        file.close()
        raise
    return file


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
    length = environ.get("CONTENT_LENGTH")
    chunked = bool(environ.get("HTTP_TRANSFER_ENCODING"))
    if length == "0" and not chunked:
        return 0
    text = str(length or "").strip(" \t")
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


def _blocks(
    source: InputStream, announced: int | None, max_body: int, reading: _Reading, clock: Callable[[], float]
) -> Iterator[bytes]:
    # Never a read without a size, and never past the length: some servers would wait for ever.
    wanted = max_body + 1 if announced is None else announced
    while reading.received < wanted:
        block = source.read(min(READ, wanted - reading.received))
        if not block:
            break
        reading.received += len(block)
        if reading.received < wanted and reading.too_slow(clock()):
            reading.give_up()
            break
        yield block
    if reading.given_up and (announced is None or reading.received < announced):
        raise SlowBody(reading.received)
    if announced is not None and reading.received < announced:
        raise TruncatedBody(announced, reading.received)
    if reading.received > max_body:
        raise BodyTooLarge(max_body)
