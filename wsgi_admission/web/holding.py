"""Requests that wait for something to change: event streams, and answers that are held.

Each of them takes up a thread of the server while it waits.  So there are seats: at most a quarter of the threads,
for streams and held answers together, and whoever finds none is answered at once.  The rest of the threads stay for
everybody else.

However many wait, one thread per process asks the store for its token of change, and only while somebody waits.
Who is woken looks for himself, but not more often than his spacing allows: at a high rate of changes the cost is
that of a few looks per second and reader.  Nobody holds anything of the store while he waits.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from wsgi_admission.errors import StoreError

#: The part of a server's threads that may wait, and the most of them in a process.
SHARE = 4
MOST = 64
#: The longest that an answer is held, in seconds.
LONGEST_HOLD = 30.0
#: Seconds between two questions to the store whether anything has changed.
INTERVAL = 0.05
#: Seconds after which a reader looks although he was told of no change: waits shrink by themselves.
LOOK_INTERVAL = 5.0


class Server(NamedTuple):
    """What the server in front of a process is like.

    :param threads: how many requests the process answers at once.
    :param timeout: seconds after which the server ends a process that is busy for too long; None if it never does.
    """

    threads: int = 4
    timeout: float | None = None


class Readers:
    """The seats of one process, and the thread that wakes those who sit there.

    :param changed: returns the store's token of change (`Store.changed`).
    """

    def __init__(
        self,
        changed: Callable[[], Hashable],
        server: Server = Server(),  # noqa: B008 - it is immutable
        *,
        interval: float = INTERVAL,
    ) -> None:
        self.longest_hold = LONGEST_HOLD if not server.timeout else min(LONGEST_HOLD, server.timeout / 2)
        self._limit = min(server.threads // SHARE, MOST)
        self._changed = changed
        self._interval = interval
        self._taken = 0
        self._token: Hashable = None
        self._leaving = threading.Event()
        self._news = threading.Condition()
        self._watcher: threading.Thread | None = None

    @property
    def leaving(self) -> bool:
        """Whether this process is about to leave, so that nobody may wait any longer."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Wake everybody, and let nobody wait from now on."""
        self._leaving.set()
        with self._news:
            self._news.notify_all()

    def seat(self, environ: dict[str, Any], *, spacing: float) -> Seat | None:
        """Take a seat; None if the request cannot wait here: all are taken, the process leaves, or lacks threads.

        :param spacing: the shortest time between two looks, in seconds.
        """
        # A server with one thread answers nobody else meanwhile; for HEAD there is nothing to wait for.
        if not environ.get("wsgi.multithread") or environ.get("REQUEST_METHOD") == "HEAD":
            return None
        with self._news:
            if self._taken >= self._limit or self.leaving:
                return None
            if self._watcher is None:
                watcher = threading.Thread(target=self._watch, name="wsgi-admission-readers", daemon=True)
                try:
                    watcher.start()  # it looks whether anybody waits only later, and behind the lock
                except RuntimeError:
                    return None  # the system has no thread left: nobody would wake who waits
                self._watcher = watcher
            self._taken += 1
        return Seat(self, spacing)

    def free(self) -> None:
        """Count a seat as free again."""
        with self._news:
            self._taken -= 1

    def wait(self, token: Hashable, seconds: float) -> None:
        """Return when the store's token is another one, when the process leaves, or after ``seconds``."""
        current = self._ask()
        with self._news:
            self._token = current
            self._news.wait_for(lambda: self._token != token or self.leaving, max(0.0, seconds))

    def pause(self, seconds: float) -> None:
        """Return after ``seconds``, or when the process leaves."""
        self._leaving.wait(max(0.0, seconds))

    def _ask(self) -> Hashable:
        try:
            return self._changed()
        except StoreError:
            return object()  # something has changed, and whoever looks finds out what

    def _watch(self) -> None:
        """Tell of changes as long as anybody waits."""
        while not self._leaving.wait(self._interval):
            if not threading.main_thread().is_alive():
                self.leave()  # the process ends, and waits for its threads before it tells anybody
                return
            token = self._ask()
            with self._news:
                if not self._taken:
                    self._watcher = None
                    return
                if token != self._token:
                    self._token = token
                    self._news.notify_all()


class Seat:
    """The right of one request to wait; to be freed when it has ended."""

    def __init__(self, readers: Readers, spacing: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._readers = readers
        self._taken = True
        self._spacing = spacing
        self._clock = clock
        self._looked = -math.inf

    @property
    def leaving(self) -> bool:
        """Whether the process is about to leave."""
        return self._readers.leaving

    def rest(self, token: Hashable, seconds: float) -> None:
        """Return when a look is due: the store has changed since ``token``, or nobody has looked for long.

        Also when the process leaves, and after ``seconds``.
        """
        end = self._clock() + seconds
        self._readers.pause(min(seconds, self._looked + self._spacing - self._clock()))
        self._readers.wait(token, min(LOOK_INTERVAL, end - self._clock()))
        self._looked = self._clock()

    def pause(self, seconds: float) -> None:
        """Return after ``seconds``, or when the process leaves."""
        self._readers.pause(seconds)

    def close(self) -> None:
        """Let somebody else sit here."""
        if self._taken:
            self._taken = False
            self._readers.free()

    def __del__(self) -> None:
        # A server may drop an answer without closing it.
        self.close()
