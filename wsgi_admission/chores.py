"""The housekeeper: the threads of a process that do what must be done again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

log = logging.getLogger("wsgi_admission.chores")

#: What a chore returns that has stopped halfway.
AGAIN: Final = object()


@dataclass
class Chore:
    """Something to do again and again, every ``interval`` seconds; ``due`` is when it is next.

    ``run`` returns `AGAIN` when it has not come to its end: it goes on once the other chores have had their turn.
    ``fails`` is whether it has failed the last time.
    """

    interval: float
    run: Callable[[], Any]
    due: float = field(default=0.0)
    fails: bool = field(default=False)


class Housekeeper:
    """One daemon thread for each list of chores: what takes long holds up those of its own list only.

    A chore that raises is logged, once until it works again, and the others go on.
    """

    def __init__(self, *lists: Iterable[Chore]) -> None:
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(list(chores),), name="wsgi-admission-housekeeper", daemon=True)
            for chores in lists
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, and wait for the chores in hand, for five seconds at most."""
        self._stopping.set()
        until = time.monotonic() + 5
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=max(0.0, until - time.monotonic()))

    def _work(self, chores: list[Chore]) -> None:
        while not self._stopping.wait(tick(chores)):
            pass


def tick(chores: Collection[Chore], *, clock: Callable[[], float] = time.monotonic) -> float:
    """Do what is due; return the seconds until the next chore is.

    :param clock: a monotonic clock in seconds.
    """
    for chore in chores:
        if chore.due > clock():
            continue
        outcome = None
        try:
            outcome = chore.run()
            chore.fails = False
        except Exception as error:
            if not chore.fails:
                log.error("a chore failed and will be tried again: %s", error, exc_info=error)  # noqa: TRY400 - once
            chore.fails = True
        chore.due = clock() + (0.0 if outcome is AGAIN else chore.interval)
    return max(0.0, min(chore.due for chore in chores) - clock())
