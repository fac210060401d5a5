"""Failing at once while a server does not answer.

After a failure every call fails at once for `PAUSE` seconds.  Then one call tries, and the others go on failing until
it has succeeded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from redis.exceptions import ConnectionError as Unconnected
from redis.exceptions import TimeoutError as TimedOut

#: Seconds for which nothing is tried after a failure.
PAUSE = 1.0


class Tripped(Exception):
    """Nothing was tried."""


class Breaker:
    """A context around each call.  It raises `Tripped` when the call must not be made.

    :param pause: seconds for which nothing is tried after a failure.
    """

    def __init__(self, pause: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._refusing_until: float | None = None
        self._trying: int | None = None

    def __enter__(self) -> None:
        if self._refusing_until is None:
            return
        with self._lock:
            if self._refusing_until is not None:
                if self._trying is not None or self._clock() < self._refusing_until:
                    raise Tripped
                self._trying = threading.get_ident()

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        failed = isinstance(error, (Unconnected, TimedOut, OSError))
        if not failed and self._trying is None:
            return
        with self._lock:
            mine = self._trying == threading.get_ident()
            if failed:
                self._refusing_until = self._clock() + self._pause
            elif mine and (error is None or isinstance(error, Exception)):
                self._refusing_until = None
            if mine:
                self._trying = None
