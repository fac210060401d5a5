"""Failing at once while a store does not answer: a server that is away, a file that others keep locked.

After a failure every call fails at once for `PAUSE` seconds.  Then one call tries, and the others go on failing until
it has succeeded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

#: Seconds for which nothing is tried after a failure.
PAUSE = 1.0


class Tripped(Exception):
    """Nothing was tried."""

    def __init__(self) -> None:
        super().__init__("it did not answer a moment ago")


class Breaker:
    """A context around each call.  It raises `Tripped` when the call must not be made.

    :param failures: the errors which mean that there was no answer; others are answers.
    :param pause: seconds for which nothing is tried after a failure.
    """

    def __init__(
        self,
        failures: tuple[type[Exception], ...],
        *,
        pause: float = PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures = failures
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._refusing_until: float | None = None
        self._trying: int | None = None

    def check(self) -> None:
        """Raise `Tripped` if a call that was made now would."""
        until = self._refusing_until
        if until is not None and (self._trying is not None or self._clock() < until):
            raise Tripped

    def __enter__(self) -> None:
        if self._refusing_until is None:
            return
        with self._lock:
            self.check()
            if self._refusing_until is not None:
                self._trying = threading.get_ident()

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        failed = isinstance(error, self._failures)
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
