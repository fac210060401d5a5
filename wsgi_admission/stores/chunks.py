"""Recordings as they are kept in Redis: a large body stands under a key of its own, as a list of chunks.

The chunks are sent before the step that names them, and would go by themselves after `ORPHANED` seconds; that step
lets them stay.
"""

from __future__ import annotations

import math
import struct
import time
import uuid
from io import BytesIO

from wsgi_admission.errors import StoreUnavailable
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
#: Seconds after which a large body goes that no ticket has come to name.
ORPHANED = 3600

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

    def send(self, recording: Recording, *, patience: float = math.inf) -> tuple[bytes, str]:
        """Return a recording as it is kept and the name of its body, which is sent if it is large; else no name.

        :param patience: seconds, and one more for each `RATE` bytes.
        :raises StoreUnavailable: when it is not sent in that time.
        """
        begin = time.monotonic()
        start = recording.body.read(INLINE_BODY + 1)
        head = encode(recording.head)
        if len(start) <= INLINE_BODY:
            return _LENGTHS.pack(len(start), len(head)) + head + start, ""
        name, length, rest = uuid.uuid4().hex, 0, BytesIO(start)
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

    def _fetch(self, name: str) -> BytesIO:
        body, number = BytesIO(), 0
        while (chunk := self._servers.call(b"LINDEX", self.key(name), number)) is not None:
            body.write(chunk)
            number += 1
        body.seek(0)
        return body
