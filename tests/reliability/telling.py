"""A gunicorn worker that notes in the history when it was told to leave."""

from __future__ import annotations

import os

from gunicorn.workers.gthread import ThreadWorker

from tests.reliability.history import Writer

history = Writer(os.environ["ADMISSION_TEST_HISTORY"])


class TellingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Every way of telling a worker, by a signal or by ``max_requests``, ends in ``alive`` turning false."""

    _alive = False

    @property
    def alive(self) -> bool:
        """Whether the worker is to go on."""
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        if self._alive and not value:
            history.note("told", pid=os.getpid())
        self._alive = value
