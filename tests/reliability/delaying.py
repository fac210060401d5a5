"""A network between a site and its Redis server that can be cut, or made slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Network:
    """Carries bytes from a port of this host to a Unix socket and back.

    What is sent while it is cut is held back, as TCP does, and arrives when the cut is over.

    :param path: the socket of the server.
    """

    def __init__(self, path: Path) -> None:
        self.delay = 0.0
        self._unanswered: bytes | None = None
        self._path = path
        self._whole = threading.Event()
        self._whole.set()
        self._entry = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = [self._entry]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The URL of the store behind it."""
        return f"redis://127.0.0.1:{self._entry.getsockname()[1]}/0"

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Let nothing through during the block."""
        self._whole.clear()
        try:
            yield
        finally:
            self._whole.set()

    @contextmanager
    def slow(self, delay: float) -> Iterator[None]:
        """Let every answer take ``delay`` seconds longer during the block."""
        self.delay = delay
        try:
            yield
        finally:
            self.delay = 0.0

    @contextmanager
    def losing_answers_to(self, command: bytes) -> Iterator[None]:
        """Let no answer through to what has ``command`` in it, and is done, during the block."""
        self._unanswered = command
        try:
            yield
        finally:
            self._unanswered = None

    def close(self) -> None:
        """Close all connections."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._entry.accept()
                server = socket.socket(socket.AF_UNIX)
                self._ends += [client, server]
                server.connect(str(self._path))
            except OSError:
                return
            lost = threading.Event()
            for source, sink, back in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._carry, args=(source, sink, lost, back), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, lost: threading.Event, back: bool) -> None:  # noqa: FBT001 - the thread's
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._whole.wait()
                if back:
                    time.sleep(self.delay)  # the slow network
                elif self._unanswered is not None and self._unanswered in data:
                    lost.set()
                if not (back and lost.is_set()):
                    sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
