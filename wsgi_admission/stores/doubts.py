"""What was sent to a server that did not answer, and may have been done all the same.

A put without a key whose answer did not come was a failure for its caller, who runs the request at once or refuses it:
the ticket must not be run as well.  (One with a key stays in the line: its caller asks again, and the key finds it.)
Of a claim whose answer did not come nobody knows: the ticket would wait for the end of its lease, and count a crash
that was none.  So both are remembered until the server answers again, however long that takes, and settled then (the
script ``settle``).  An old command may still be under way to a server that answers new ones, so it is done for some
time.  A process that leaves does it at once, while it still knows what is in doubt.

A step whose caller repeats it needs no settling: it is said with the same mark again, by which the server knows it.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores.breaker import Tripped

#: Seconds for which something stays in doubt after the server first answered: what a network that was cut off still
#: carries has come by then.  And seconds for which a step that had no answer can be said again.
IN_DOUBT = 60.0


class Doubts:
    """The ids of puts, and the marks of claims, that are in doubt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}  # infinite until the server has answered

    @contextmanager
    def about(self, name: str) -> Iterator[None]:
        """Remember the name if the block fails because no answer comes."""
        try:
            yield
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, Tripped):
                with self._lock:
                    self._until[name] = math.inf
            raise

    def names(self) -> list[str]:
        """Return what is in doubt."""
        if not self._until:
            return []
        with self._lock:
            now = self._clock()
            self._until = {name: until for name, until in self._until.items() if now < until}
            return list(self._until)

    def settled(self, names: Iterable[str], done: Iterable[str]) -> None:
        """Take note that the server answered when it was asked about these, and which of them had been done."""
        with self._lock:
            end = self._clock() + IN_DOUBT
            for name in names:
                self._until[name] = min(end, self._until.get(name, 0.0))
            for name in done:
                self._until.pop(name, None)


class Repeats:
    """The marks of steps that are repeated until they are answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._marks: dict[Hashable, tuple[str, float]] = {}

    @contextmanager
    def of(self, *step: Hashable) -> Iterator[str]:
        """Return the mark of a step: that of the last time, if the block failed then because no answer came."""
        with self._lock:
            mark, _ = self._marks.pop(step, (uuid.uuid4().hex, 0.0))
        try:
            yield mark
        except StoreUnavailable:
            with self._lock:
                now = self._clock()
                self._marks = {name: kept for name, kept in self._marks.items() if now < kept[1]}
                self._marks[step] = mark, now + IN_DOUBT
            raise
