"""Recordings as they are kept in Redis: a large body stands under a key of its own, as a list of chunks.

The chunks are sent before the step that names them, which lets them stay.  They are removed when it does not keep them:
they must not take the memory of what was accepted.  Whether a step without an answer was done nobody knows; if it was
not, they go by themselves, `ORPHANED` seconds after the last of them.
"""

from __future__ import annotations

import math
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

from redis.exceptions import ResponseError

from wsgi_admission.errors import AdmissionError, StoreError, StoreUnavailable
from wsgi_admission.replay import Recording
from wsgi_admission.stores.records import INLINE_BODY
from wsgi_admission.stores.scripts import key, script
from wsgi_admission.stores.servers import Servers
from wsgi_admission.stores.wire import decode, encode

#: Bytes of a large body that are sent at once.
CHUNK = 128 * 1024
#: Seconds that sending a request may take, and the bytes for each of which it may take one more: it is waited for.
PATIENCE = 0.8
RATE = 8 << 20
#: Seconds after its last chunk when a large body goes that no ticket has come to name.
ORPHANED = 120

# The lengths of body and head, before the head and, if it is small, the body.
_LENGTHS = struct.Struct(">QI")


class Chunks:
    """The large bodies of one line."""

    def __init__(self, servers: Servers, line: str) -> None:
        self._servers = servers
        self._line = line

    def key(self, name: str) -> str:
        """Return the key of a large body."""
        return key(self._line, f"body:{name}")

    @contextmanager
    def sent(self, recording: Recording, *, patience: float = math.inf) -> Iterator[tuple[bytes, str]]:
        """Send the body of a recording, if it is large, before the block, which does the step that is to keep it.

        Gives the recording as it is kept, and the name of its body, or an empty one if that is not large.  The body is
        removed when the block fails, unless it may have been kept all the same.

        :param patience: seconds that sending may take, and one more for each `RATE` bytes.
        :raises StoreUnavailable: when it is not sent in that time.
        """
        name = uuid.uuid4().hex
        try:
            stored, body = self._send(recording, name, patience)
        except Exception:
            self.discard(name)
            raise
        try:
            yield stored, body
        except AdmissionError as error:
            if not isinstance(error, StoreUnavailable) or isinstance(error.__cause__, ResponseError):
                self.discard(body)
            raise

    def _send(self, recording: Recording, name: str, patience: float) -> tuple[bytes, str]:
        begin = time.monotonic()
        start = recording.body.read(INLINE_BODY + 1)
        head = encode(recording.head)
        if len(start) <= INLINE_BODY:
            return _LENGTHS.pack(len(start), len(head)) + head + start, ""
        length, rest = 0, BytesIO(start)
        while chunk := rest.read(CHUNK) or recording.body.read(CHUNK):
            self._servers.run(script("chunk"), [self.key(name)], [0.0, ORPHANED, chunk])
            length += len(chunk)
            if time.monotonic() - begin > patience + length / RATE:
                raise StoreUnavailable(f"{self._servers.shown} takes bodies too slowly.")
        return _LENGTHS.pack(length, len(head)) + head, name

    def recording(self, stored: bytes, name: str) -> Recording | None:
        """Return a recording that was kept, with the body at its beginning; None if a large body is not complete."""
        length, size = _LENGTHS.unpack_from(stored)
        end = _LENGTHS.size + size
        body = self._fetch(name) if name else BytesIO(stored[end:])
        if body.getbuffer().nbytes != length:
            return None
        return Recording(decode(stored[_LENGTHS.size : end]), body, length)

    def remove(self, name: str) -> None:
        """Remove a large body."""
        self._servers.call(b"UNLINK", self.key(name))

    def discard(self, name: str) -> None:
        """Remove a large body that was not kept, if there is one; it goes by itself if that cannot be done now."""
        if name:
            with suppress(StoreError):
                self.remove(name)

    def _fetch(self, name: str) -> BytesIO:
        body, number = BytesIO(), 0
        while (chunk := self._servers.call(b"LINDEX", self.key(name), number)) is not None:
            body.write(chunk)
            number += 1
        body.seek(0)
        return body
