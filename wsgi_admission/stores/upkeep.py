"""What keeps the SQLite file usable: damage is mended, another file at its path taken up, and its log carried over."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from wsgi_admission.errors import StoreError
from wsgi_admission.stores import headers, mending, opening
from wsgi_admission.stores.beside import is_emptied
from wsgi_admission.stores.checkpoints import Checkpointer, host_lock
from wsgi_admission.stores.connections import Connections, is_damage, unavailable
from wsgi_admission.stores.mending import Look
from wsgi_admission.stores.watch import Watch

log = logging.getLogger("wsgi_admission.stores")

#: Seconds between two looks through the whole database for what may be damage: a full disk, too, gives reason for one.
LOOK_AGAIN = 60.0
#: Seconds until the next one if a look could not be had, or if SQLite insists that a sound database is damaged.
RETRY = 3.0


def prepare(path: Path, *, patience: float) -> None:
    """Make the file and what is missing in it; mend one of ours that is so damaged that it cannot be opened.

    :raises StoreError: when it cannot or must not be used.
    """
    # Only a file that we have had open before: another one may be somebody's.
    ours = path.with_name(f"{path.name}-mark").exists()
    if ours and is_emptied(path):
        _mend_now(path, patience)
    try:
        opening.prepare(path, patience=patience)
    except StoreError as error:
        if not ours or error.__cause__ is None or not is_damage(error.__cause__):
            raise
        _mend_now(path, patience)
        opening.prepare(path, patience=patience)


def _mend_now(path: Path, patience: float) -> None:
    if _mend(path, patience) is Look.ELSEWHERE:
        raise unavailable(path, "somebody else is at mending it")


class Upkeep:
    """What the housekeeper of a process does for the file, every second.

    :param opened: when this process opened it, in seconds since the epoch.
    """

    def __init__(self, connections: Connections, watch: Watch, *, opened: float) -> None:
        self._connections = connections
        self._watch = watch
        self._path, self._patience = connections.path, connections.patience
        self._checkpointer = Checkpointer(connections)
        self.carry_over = self._checkpointer.carry_over
        self._opened = opened
        # When it was looked through, and for how long that will do.
        self._looked, self._pause = -LOOK_AGAIN, 0.0

    def maintain(self, *, now: float) -> None:
        """Do what is to be done now.

        :raises StoreUnavailable: when it cannot be done.
        """
        if self._connections.moved:
            self._begin_anew()
            if self._connections.moved:
                return  # somebody else is at it
        if self._connections.read_only:
            self._look_at_header()
        broken = self._connections.broken or is_emptied(self._path)
        due = broken or self._connections.damaged or mending.due(self._path, self._opened, now=now)
        if due and abs(now - self._looked) >= (min(self._pause, RETRY) if broken else self._pause):
            self._look(now)
        self._checkpointer.maintain(now=now)

    def _look_at_header(self) -> None:
        """Find out whether it is the file itself by which SQLite only reads; on a disk that is so nothing is broken."""
        try:
            with host_lock(f"{self._path}-lock") as held:
                if held:
                    self._connections.read_only = False
                    self._connections.broken = self._connections.broken or headers.forbids_writing(self._path)
        except OSError as error:
            raise unavailable(self._path, error) from error

    def _look(self, now: float) -> None:
        """Look for damage, and mend it; not again at once if that fails, or if there was none."""
        self._looked, self._pause = now, RETRY
        look = _mend(self._path, self._patience)
        self._pause = LOOK_AGAIN if look is Look.SOUND else 0.0
        if look is not Look.ELSEWHERE:
            self._connections.mark.renew()  # what it was mended to is news
            self._connections.damaged = self._connections.broken = False

    def _begin_anew(self) -> None:
        """Take up what is at the path now, or make it; the log that is left over from the other file is not its own."""
        try:
            with host_lock(f"{self._path}-lock") as held:
                if not held:
                    return  # until the next time
                # If it has a log that is not the one open here, somebody was quicker.
                if self._connections.shared_memory() == self._connections.shared:
                    opening.remove_log(self._path)
            prepare(self._path, patience=self._patience)
            self._connections.begin_anew()
        except OSError as error:
            raise unavailable(self._path, error) from error
        self._watch.begin_anew()
        log.error(
            "the database %s was removed or replaced; the line is that of the file which is there now", self._path
        )


def _mend(path: Path, patience: float) -> Look:
    try:
        return mending.mend(path, patience=patience)
    except (sqlite3.Error, OSError) as error:
        raise unavailable(path, error) from error
