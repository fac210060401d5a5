"""A process of ``wsgi-admission work``: it replays queued requests and answers nobody.

It leaves in order when it is asked to (TERM, INT), when its parent is dead, and when more than half of its threads are
stuck: it claims nothing more, what runs has ``grace`` seconds, and the rest goes back to its place in the line.  QUIT
hands back at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wsgi_admission.config import Config, import_callable
from wsgi_admission.errors import StoreError, StoreRefused, StoreUnavailable
from wsgi_admission.process import Process, start_process
from wsgi_admission.tiers import Resolver

log = logging.getLogger("wsgi_admission.work")

App = Callable[..., Iterable[bytes]]

#: Seconds between looks at whether the process is to go on.
LOOK_INTERVAL = 0.1
#: Seconds between attempts to open a store that does not answer.
REOPEN_INTERVAL = 1.0
#: The exit status of a process that can never replay: its app or its store cannot be used.
UNUSABLE = 3
#: The exit status of a process that left because its threads are stuck.
STUCK = 4


@dataclass
class Asked:
    """What signals have asked of this process."""

    leave: bool = False
    haste: bool = False

    def listen(self) -> None:
        """Take signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        signal.signal(signal.SIGQUIT, self._hurry)

    def _leave(self, _number: int, _frame: object) -> None:
        self.leave = True

    def _hurry(self, _number: int, _frame: object) -> None:
        self.leave = self.haste = True


def load_app(reference: str) -> App:
    """Import the app that ``MODULE:APP`` names; ``MODULE:FACTORY()`` is called for it.

    An app that stands behind the line already may be named too: its middleware lets replayed requests through.

    :raises ValueError: when there is no such app; it says why.
    """
    path = reference.removesuffix("()")
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError("is not of the form MODULE:APP")
    app = import_callable(path)
    if path != reference:
        try:
            app = app()
        except (Exception, SystemExit) as error:
            raise ValueError(f"calling it raised {error!r}") from error
        if not callable(app):
            raise ValueError(f"returns {app!r}, which is not callable")
    return app


def replay(config: Config, reference: str, *, parent: int, grace: float, tell: Callable[[str], None]) -> int:
    """Replay until this process is to leave; return its exit status.

    :param reference: the app, as for `load_app`.
    :param parent: the process id of the parent.
    :param grace: seconds that what runs has to end when the process leaves.
    :param tell: called with an empty string when the process has begun, or with the reason why it never can.
    """
    try:
        app = load_app(reference)
    except ValueError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, ModuleNotFoundError):
            log.error("%s cannot be used:", reference, exc_info=error.__cause__)  # noqa: TRY400 - the app's, not ours
        tell(f"{reference!r} cannot be used as the app: {error}")
        return UNUSABLE
    asked = Asked()
    # Not before the app is there: while it is imported a signal ends this process at once.
    asked.listen()

    def wanted() -> bool:
        return not asked.leave and os.getppid() == parent

    try:
        process = _start(app, config, wanted, tell)
    except StoreError as error:
        tell(str(error))
        return UNUSABLE
    if process is None:
        return 0
    log.info("replays with %d threads", config.admission.worker_threads)
    while wanted() and not process.pool.runs.mostly_stuck:
        time.sleep(LOOK_INTERVAL)
    stuck = wanted()
    if stuck:
        log.error("most threads are stuck: leaving")
    elif not asked.leave:
        log.warning("the parent is dead: leaving")
    _leave(process, grace, asked)
    return STUCK if stuck else 0


def _start(app: App, config: Config, wanted: Callable[[], bool], tell: Callable[[str], None]) -> Process | None:
    """Begin to replay, as soon as the store answers; return None if the process is to leave before that."""
    # Nobody asks anything here: who stands behind a ticket was found out when it was put.
    nobody = Resolver([tier.name for tier in config.tiers.order])
    failed_at: float | None = None
    while wanted():
        try:
            if failed_at is None or time.monotonic() - failed_at >= REOPEN_INTERVAL:
                process = start_process(app, config, nobody, replays=True)
                if failed_at is None:
                    tell("")
                return process
        except StoreRefused:
            raise
        except StoreUnavailable as error:
            if failed_at is None:
                log.warning("the store does not answer, replays wait: %s", error)
                tell("")
            failed_at = time.monotonic()
        time.sleep(LOOK_INTERVAL)
    return None


def _leave(process: Process, grace: float, asked: Asked) -> None:
    process.pool.stop()
    log.info("leaves; %d tickets run here and have %g s", process.pool.runs.busy, grace)
    deadline = time.monotonic() + grace
    while process.pool.runs.busy and time.monotonic() < deadline and not asked.haste:
        time.sleep(LOOK_INTERVAL)
    if rest := process.pool.runs.busy:
        log.warning("hands %d tickets back", rest)
    process.close()


def end_within(seconds: float, status: int) -> None:
    """End this process after so many seconds, however long threads of the app keep the interpreter from its end."""

    def end() -> None:
        log.error("threads of the app do not end: the process ends without them")
        sys.stderr.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
