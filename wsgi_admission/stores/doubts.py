"""What was sent to a server that did not answer, and may have been done all the same.

A put without a key whose answer did not come was a failure for its caller, who runs the request at once or refuses it:
the ticket must not be run as well.  (One with a key stays in the line: its caller asks again, and the key finds it.)
Of a claim whose answer did not come nobody knows: the ticket would wait for the end of its lease, and count a crash
that was none.  So both are remembered, and settled once the server answers again (the script ``settle``): a server
that was only slow may take up an old command even after that, so for some time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores.breaker import Tripped

#: Seconds for which something stays in doubt; a lease has run out by then.
IN_DOUBT = 30.0


class Doubts:
    """The ids of puts, and the marks of claims, that are in doubt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    @contextmanager
    def about(self, name: str) -> Iterator[None]:
        """Remember the name if the block fails because no answer comes."""
        try:
            yield
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, Tripped):
                with self._lock:
                    self._until[name] = self._clock() + IN_DOUBT
            raise

    def names(self) -> list[str]:
        """Return what is in doubt."""
        if not self._until:
            return []
        with self._lock:
            now = self._clock()
            self._until = {name: until for name, until in self._until.items() if now < until}
            return list(self._until)

    def settled(self, names: Iterable[str]) -> None:
        """Take note that these are in doubt no longer."""
        with self._lock:
            for name in names:
                self._until.pop(name, None)
