"""Processes that only replay, for machines without a web server: what ``wsgi-admission work`` does.

The parent forks them and looks after them; it never imports the app, so that a reload (HUP) takes up changed code.  A
process that dies is replaced, after a delay when it died at once.  Signals that are for the parent stay blocked and are
waited for, so that none is missed and nothing is interrupted.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsgi_admission import logs
from wsgi_admission.config import Config, load_config
from wsgi_admission.errors import ConfigError
from wsgi_admission.policy.backoff import delay
from wsgi_admission.replaying import STUCK, end_within, replay
from wsgi_admission.stores import check_url

log = logging.getLogger("wsgi_admission.work")

#: Seconds between the parent's looks at its processes.
LOOK_INTERVAL = 0.1
#: A process that lives for fewer seconds has died at once.
SOON = 10.0
#: The delay before a process is replaced that died at once, and the longest, in seconds.
FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
#: Seconds beyond its grace after which a process that leaves is killed.
MARGIN = 10.0

_OURS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD})


def read_config(path: str) -> Config:
    """Return the configuration, or raise `ConfigError` for one with which nothing can be replayed here."""
    # Who stands behind a ticket was found out when it was put: the resolver is not needed.
    config = load_config(path, import_resolver=False)
    check_url(config.store.url)
    if config.store.url == "memory://":
        reason = "is one process's own, so nobody else can replay what waits there: take a file"
        raise ConfigError(f"{path} {config.store.problem('url', reason)}")
    return config


def log_to_stderr() -> None:
    """Send what the package logs to stderr, one line for each event, unless the app configures ``logging``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda _record: not logging.getLogger().handlers)
    handler.setFormatter(logs.Formatter())
    package = logging.getLogger("wsgi_admission")
    package.addHandler(handler)
    package.setLevel(logging.INFO)


@dataclass(eq=False)
class Child:
    """A process that replays, as its parent knows it.

    :param reader: the end of a pipe through which it tells how it is.
    :param generation: how many reloads there had been when it was started.
    :param born: when it was started; as all times here, in seconds of the monotonic clock.
    :param replaces: the one that leaves when this one has begun.
    :param told: what it has told: ``+`` when it began, or why it cannot.
    :param patience: when it is killed if it has not left, or None as long as it is not asked to.
    """

    pid: int
    reader: int
    generation: int
    born: float
    replaces: Child | None = None
    told: bytes = b""
    patience: float | None = None
    ended: str = field(default="", init=False)
    status: int = field(default=0, init=False)

    @property
    def begun(self) -> bool:
        """Whether it replays."""
        return self.told.startswith(b"+")

    @property
    def fault(self) -> str:
        """Why it cannot replay, or an empty string."""
        return self.told.removeprefix(b"+").decode("utf-8", "replace")

    def give_up(self, why: str) -> None:
        """Ask it to leave before it has begun; in this very moment it may begin, so it is not killed at once."""
        self.told = why.encode()
        os.kill(self.pid, signal.SIGTERM)
        self.patience = time.monotonic() + MARGIN

    def look(self) -> None:
        """Take note of what it tells, and of its end."""
        try:
            while text := os.read(self.reader, 65536):
                self.told += text
        except BlockingIOError:
            pass
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            os.close(self.reader)
            self.status = code = os.waitstatus_to_exitcode(status)
            self.ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


class Crew:
    """The processes that replay, and what looks after them.

    :param path: the INI file; it is read again on HUP.
    :param app: ``MODULE:APP``.
    :param processes: how many there are to be, 1 or more.
    :param grace: seconds that what runs has when a process leaves.
    :param nice: by how much the CPU priority of the processes is lowered.
    :param start_timeout: seconds after which a process is given up that has not begun.
    """

    def __init__(
        self, path: str, config: Config, app: str, *, processes: int, grace: float, nice: int, start_timeout: float
    ) -> None:
        self._path = path
        self._config = config
        self._app = app
        self._processes = processes
        self._grace = grace
        self._nice = nice
        self._start_timeout = start_timeout
        self._children: list[Child] = []
        self._generation = 0
        self._leaving = False
        self._proved = False
        self._fault = ""
        self._deaths = 0
        self._not_before = 0.0
        self._mask: Iterable[Any] = ()

    def run(self) -> str:
        """Look after the processes until a signal ends it; return why they cannot work, or an empty string."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        log.info("%s: %d processes replay for %s", self._path, self._processes, self._app)
        self._note_idle_slots()
        while not self._leaving or self._children:
            self._tend()
            if told := signal.sigtimedwait(_OURS, LOOK_INTERVAL):
                self._obey(signal.Signals(told.si_signo))
        return self._fault

    def _obey(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP and not self._leaving:
            self._reload()
        elif number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            haste = self._leaving or number is signal.SIGQUIT
            log.info("%s: leaving%s", number.name, " at once" if haste else "")
            self._leaving = True
            for child in self._children:
                self._dismiss(child, haste=haste)

    def _reload(self) -> None:
        log.info("SIGHUP: the processes are replaced one after another")
        try:
            self._config = read_config(self._path)
        except ConfigError as error:
            # The error's text says it all; a traceback would only hide it.
            log.error("the changed configuration is not used, the old one stays:\n%s", error)  # noqa: TRY400 - see above
        for child in self._children:
            if child.replaces is not None and not child.told:
                child.give_up("SIGHUP came again while it was starting")
        self._generation += 1
        self._note_idle_slots()

    def _note_idle_slots(self) -> None:
        if idle := self._config.admission.idle_slots(self._processes):
            log.warning("%s %s", self._path, idle)

    def _tend(self) -> None:
        now = time.monotonic()
        for child in self._children[:]:
            child.look()
            if child.begun:
                self._has_begun(child)
            if child.ended:
                self._has_ended(child, now)
            elif child.patience is not None and now > child.patience:
                log.error("process %d does not leave and is killed", child.pid)
                os.kill(child.pid, signal.SIGKILL)
                child.patience = now + MARGIN
            elif child.patience is None and not child.told and now - child.born > self._start_timeout:
                child.give_up(f"it had not begun after {self._start_timeout:g} s")
        if not self._leaving:
            self._replace_old()
            self._fill_up(now)

    def _has_begun(self, child: Child) -> None:
        self._proved = True
        old, child.replaces = child.replaces, None
        if old is not None:
            self._dismiss(old)

    def _has_ended(self, child: Child, now: float) -> None:
        self._children.remove(child)
        for other in self._children:
            if other.replaces is child:
                other.replaces = None
        why = child.fault or child.ended
        if self._leaving or (child.patience is not None and not child.fault):
            log.info("process %d has left: it %s", child.pid, child.ended)
        elif not self._proved:
            self._fault = child.fault or f"the process that imports {self._app!r} {child.ended}"
            self._leaving = True
        elif child.replaces is not None:
            self._give_reload_up(child.generation, why)
        else:
            # One whose threads are stuck worked until then, and nobody does while none is there.
            soon = now - child.born < SOON and child.status != STUCK
            if not soon:
                self._deaths, self._not_before = 0, now
            wait = self._postpone(now) if soon else 0.0
            log.warning("process %d: %s; another starts in %.1f s", child.pid, why, wait)

    def _give_reload_up(self, generation: int, why: str) -> None:
        log.error("the reload is given up, the old processes stay: %s", why)
        for child in self._children:
            child.generation = max(child.generation, generation)

    def _postpone(self, now: float) -> float:
        """Let time pass before the next start, more each time; return the seconds."""
        self._deaths += 1
        wait = delay(self._deaths - 1, 0.0, random.random(), base=FIRST_DELAY, cap=LONGEST_DELAY)  # noqa: S311 - jitter
        self._not_before = now + wait
        return wait

    def _replace_old(self) -> None:
        """Start the successor of one process of before the reload, if none is being replaced."""
        if any(child.replaces or child.patience is not None for child in self._children):
            return
        old = next((child for child in self._children if child.generation != self._generation), None)
        if old is not None:
            self._start(old)

    def _fill_up(self, now: float) -> None:
        """Start what is missing; before any has proved that the app can be used, one alone."""
        there = sum(
            (child.patience is None or bool(child.fault)) and child.replaces is None for child in self._children
        )
        missing = (self._processes if self._proved else 1) - there
        while missing > 0 and now >= self._not_before:
            self._start()
            missing -= 1

    def _start(self, replaces: Child | None = None) -> None:
        parent = os.getpid()
        ends: tuple[int, ...] = ()
        try:
            reader, writer = ends = os.pipe()
            pid = os.fork()
        except OSError as error:
            for end in ends:
                os.close(end)
            self._cannot_start(f"no process can be started: {error}", replaces)
            return
        if not pid:
            status = self._replay(parent, writer)
            # The parent kills only those that it has asked to leave, and it may be dead.
            end_within(MARGIN + (0.0 if status else self._grace), status)
            # SystemExit: what the app has registered for the end of the process is done, as under a web server.
            sys.exit(status)
        os.close(writer)
        os.set_blocking(reader, False)
        self._children.append(Child(pid, reader, self._generation, time.monotonic(), replaces))
        log.info("process %d is started", pid)

    def _cannot_start(self, why: str, replaces: Child | None) -> None:
        if replaces is not None:
            self._give_reload_up(self._generation, why)
        elif not self._proved:
            self._fault = why
            self._leaving = True
        else:
            log.warning("%s; the next attempt is in %.1f s", why, self._postpone(time.monotonic()))

    def _replay(self, parent: int, writer: int) -> int:
        """Be the process that was just forked; return its exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, lambda *_: None)  # from a terminal that closes; the parent takes it
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.nice(self._nice)  # on Linux it is each thread's own, and inherited: before any thread starts

        def tell(fault: str) -> None:
            with suppress(BrokenPipeError):  # the parent is dead, which the process will notice
                os.write(writer, (fault or "+").encode("utf-8", "backslashreplace"))

        return replay(self._config, self._app, parent=parent, grace=self._grace, tell=tell)

    def _dismiss(self, child: Child, *, haste: bool = False) -> None:
        """Ask a process to leave."""
        os.kill(child.pid, signal.SIGQUIT if haste else signal.SIGTERM)
        child.patience = time.monotonic() + MARGIN + (0.0 if haste else self._grace)


def work(path: str, app: str, *, processes: int, chdir: str, grace: float, nice: int, start_timeout: float) -> str:
    """Replay what is queued in the line of an INI file; return why that cannot be, or an empty string.

    :param app: ``MODULE:APP``.
    :param chdir: the folder to change to first; the app is imported from there, and relative paths begin there.
    :param grace: seconds that what runs has when a process leaves.
    :param nice: by how much the CPU priority is lowered.
    :param start_timeout: seconds after which a process is given up that has not begun.
    :raises ConfigError: when the configuration cannot be used.
    """
    os.chdir(chdir)
    sys.path.insert(0, str(Path.cwd()))
    config = read_config(path)
    logs.use(config.log.format)
    log_to_stderr()
    crew = Crew(path, config, app, processes=processes, grace=grace, nice=nice, start_timeout=start_timeout)
    return crew.run()
