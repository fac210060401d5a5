"""How a gunicorn worker leaves in order."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Any

from wsgi_admission.errors import StoreError
from wsgi_admission.middleware import AdmissionMiddleware

log = logging.getLogger("wsgi_admission.gunicorn")

#: Seconds between a process's looks at whether gunicorn wants it to leave.
WATCH_INTERVAL = 0.25
#: Seconds that are left of gunicorn's own patience when replays are handed back.
MARGIN = 2.0
#: Seconds without any replaying process after which a web worker takes over while requests wait.
STANDBY_AFTER = 20.0


class Leaving:
    """Watches whether this process is to leave, and sees to it that it does so in order.

    Claims stop at once.  What runs has as long as gunicorn waits before it kills, less a margin; the rest
    returns to its place in the line.

    :param stands_by: whether this process replays too when no other does.
    """

    def __init__(self, worker: Any, middleware: AdmissionMiddleware, *, stands_by: bool = True) -> None:
        self._stands_by = stands_by
        self._worker = worker
        self._middleware = middleware
        self._now = threading.Event()
        self._without_replays_since: float | None = None
        limits = [limit for limit in (worker.cfg.graceful_timeout, worker.cfg.timeout) if limit]
        self._patience = max(0.0, min(limits, default=MARGIN) - MARGIN)
        self._watched = False
        self.watch()
        if not self._watched:
            log.error("no thread can be started: process %d will notice late that it is to leave", worker.pid)

    def watch(self) -> None:
        """Begin to watch, unless that is done; where the system has no thread left just now it can be tried again."""
        if not self._watched:
            self._thread = threading.Thread(target=self._watch, name="wsgi-admission-leaving", daemon=True)
            with suppress(RuntimeError):
                self._thread.start()
                self._watched = True

    def wanted(self) -> bool:
        """Return whether gunicorn wants this process to go on."""
        return bool(self._worker.alive) and os.getppid() == self._worker.ppid

    def stuck(self) -> bool:
        """Return whether most replay threads of this process are stuck, so that another should take its place."""
        process = self._middleware.started()
        return process is not None and process.pool.runs.mostly_stuck

    def make_haste(self) -> None:
        """Hand back at once what runs when the process leaves."""
        self._patience = 0.0

    def finish(self) -> None:
        """Leave: return when nothing runs any more or all is handed back."""
        self._now.set()
        if not self._watched:
            with suppress(StoreError):  # it is handed back by the next line, or when this process is found dead
                self._middleware.drain(self._patience)
        elif self._patience:
            self._thread.join(self._patience + MARGIN)
        self._middleware.close()

    def _watch(self) -> None:
        try:
            while self.wanted() and not self._now.wait(WATCH_INTERVAL):
                try:
                    if self._stands_by:
                        self._stand_by()
                except Exception:
                    # This thread must live: without it the process would not leave in order.
                    log.exception("standing by failed and will be tried again")
        finally:
            self._middleware.drain(self._patience)

    def _stand_by(self) -> None:
        """Replay in this process when requests wait and no process that replays has reported for long.

        gunicorn may have ended the one that did without starting another: after TTOU, for one.
        """
        try:
            process = self._middleware.process()
            idle = process.pool.started or process.replayed(time.time())
            stuck = not idle and any(tally.queued for tally in process.store.counts().values())
        except StoreError:
            return  # the housekeeper says so
        if stuck:
            now = time.monotonic()
            self._without_replays_since = self._without_replays_since or now
            if now - self._without_replays_since > STANDBY_AFTER:
                log.warning("no process replays any more: this web worker does it too from now on")
                process.replay()
        else:
            self._without_replays_since = None
