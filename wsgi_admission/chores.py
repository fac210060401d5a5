"""The housekeeper: the one thread of a process that does what must be done again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

log = logging.getLogger("wsgi_admission.chores")

#: What a chore returns that has stopped halfway.
AGAIN: Final = object()


@dataclass
class Chore:
    """Something to do again and again, every ``interval`` seconds; ``due`` is when it is next.

    ``run`` returns `AGAIN` when it has not come to its end: it goes on once the other chores have had their turn.
    """

    interval: float
    run: Callable[[], Any]
    due: float = field(default=0.0)


class Housekeeper:
    """One daemon thread that does the chores of a process.

    A chore that raises is logged, once until it works again, and the others go on.

    :param clock: a monotonic clock in seconds.
    """

    def __init__(self, chores: Iterable[Chore], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._chores = list(chores)
        self._clock = clock
        self._failing: set[int] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wsgi-admission-housekeeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for the chore in hand."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def tick(self) -> float:
        """Do what is due; return the seconds until the next chore is."""
        for number, chore in enumerate(self._chores):
            if chore.due > self._clock():
                continue
            outcome = None
            try:
                outcome = chore.run()
                self._failing.discard(number)
            except Exception as error:
                if number not in self._failing:
                    self._failing.add(number)
                    log.error("a chore failed and will be tried again: %s", error, exc_info=error)  # noqa: TRY400 - once
            chore.due = self._clock() + (0.0 if outcome is AGAIN else chore.interval)
        return max(0.0, min(chore.due for chore in self._chores) - self._clock())

    def _work(self) -> None:
        while not self._stopping.wait(self.tick()):
            pass
