"""The slots: how many queueable requests run on this host at once, over all of its processes.

A slot is one byte of a file, held by a record lock (`locks` says why by that, and not by ``flock`` or a
semaphore): a killed process frees its slots at once, and a forked child inherits none.  The host's slots are
region 0 of the file; a route with a limit of its own has the region ``1 + crc32(name)``, so that processes
agree on it although their configurations differ.  While processes with different limits run side by side (a
reload), the largest of the limits holds for all of them together.
"""

from __future__ import annotations

import abc
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wsgi_admission.errors import StoreError
from wsgi_admission.locks import REGION, Ledger, open_ledger

#: The region of the slots of the host.
HOST = 0
#: The region of `Slots.turn`, beyond those of the routes.
_TURN = 1 << 33
#: Seconds after which nobody waits for a turn any longer.
TURN_PATIENCE = 0.5


class Slot:
    """The right to run one queueable request, until it is released."""

    __slots__ = ("_ledger", "_offsets")

    def __init__(self, ledger: Ledger, offset: int) -> None:
        self._ledger = ledger
        self._offsets = [offset]  # the host's, and then the route's, if it has a limit

    def extend(self, region: int, limit: int) -> bool:
        """Take a byte of another region too; return whether there was one."""
        with self._ledger.lock:
            offset = self._ledger.take(region, limit)
            if offset is not None:
                self._offsets.append(offset)
            return offset is not None

    def release(self) -> None:
        """Give the slot back; again, from another thread, or in a forked child it does no harm."""
        ledger = self._ledger
        # A child's locks on the same bytes are its own: the slots that it inherited as objects are not.
        if ledger.pid != os.getpid():
            return
        with ledger.lock:
            offsets = self._offsets
            while offsets:
                ledger.give(offsets.pop())


class Slots(abc.ABC):
    """``limit`` slots in all, and of these at most so many for each route that has a limit of its own.

    :param limit: 1 to ``2**20``.
    :param route_limits: route name -> its limit, 1 or more; routes that are not in it share the host's slots freely.
    """

    def __init__(self, limit: int, route_limits: Mapping[str, int]) -> None:
        for name, value in {"": limit, **route_limits}.items():
            if not 1 <= value <= REGION:
                what = f"the limit of route {name!r}" if name else "the limit"
                raise ValueError(f"{what} is {value}: expected 1 to {REGION}")
        self._limit = limit
        self._regions = {name: (1 + zlib.crc32(name.encode()), own) for name, own in route_limits.items()}

    @abc.abstractmethod
    def _ledger(self) -> Ledger:
        """Return the ledger of this process."""

    def take(self, route: str | None) -> Slot | None:
        """Take a slot of the host and, if the route has a limit, one of the route: both or neither.

        Never waits.  The caller must `Slot.release` it when the request is over.

        :param route: the route to be run, or None when that is not known yet; see `allow`.
        :return: None when there is none.
        :raises StoreUnavailable: when the kernel cannot lock; nothing is taken then.
        """
        ledger = self._ledger()
        with ledger.lock:
            host = ledger.take(HOST, self._limit)
        if host is None:
            return None
        slot = Slot(ledger, host)
        if route in self._regions and not self.allow(slot, route):
            slot.release()
            return None
        return slot

    def allow(self, slot: Slot, route: str) -> bool:
        """Let a slot that was taken for no route run this one: take a slot of the route's own, if it has a limit.

        :return: False when there is none; the slot of the host is kept.
        :raises StoreUnavailable: as `take` does; the slot is released then.
        """
        own = self._regions.get(route)
        if own is None:
            return True
        try:
            return slot.extend(*own)
        except StoreError:
            slot.release()
            raise

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let one thread of this host at a time choose what to run next where a look at the slots decides.

        Two that choose at once would both find a route's last slot free, or that nothing runs.  Who has waited for
        `TURN_PATIENCE` seconds goes on without: the one whose turn it is may be stopped, and the line must move.
        """
        ledger = self._ledger()
        deadline = time.monotonic() + TURN_PATIENCE
        held = ledger.turn.acquire(timeout=TURN_PATIENCE)
        try:
            offset = None
            while held and offset is None:
                with ledger.lock:
                    offset = ledger.take(_TURN, 1)
                if offset is None:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.001)
            try:
                yield
            finally:
                if offset is not None:
                    with ledger.lock:
                        ledger.give(offset)
        finally:
            if held:
                ledger.turn.release()

    def limited(self, routes: Iterable[str]) -> bool:
        """Whether any of these routes has a limit of its own."""
        return not self._regions.keys().isdisjoint(routes)

    def in_use(self) -> int:
        """Return how many slots of the host are taken, at most its limit."""
        return min(self._limit, self._ledger().count(HOST))

    def full(self, route: str) -> bool:
        """Whether the route's own limit is reached; never for a route that has none."""
        region, limit = self._regions.get(route, (HOST, 0))
        return bool(limit) and self._ledger().count(region) >= limit


class LocalSlots(Slots):
    """Slots of this process alone, for a store that no other process sees."""

    def __init__(self, limit: int, route_limits: Mapping[str, int]) -> None:
        super().__init__(limit, route_limits)
        self._own = Ledger()

    def _ledger(self) -> Ledger:
        if self._own.pid != os.getpid():
            self._own = Ledger()
        return self._own


class HostSlots(Slots):
    """Slots that all processes of this host share through a file.

    :param path: created with mode 0600 if it is missing, its directory with 0700.  All processes must be of one
        user, and the file on a local file system.
    :raises StoreError: when the file cannot be opened, is not a regular file, or is somebody else's.
    """

    def __init__(self, path: Path, limit: int, route_limits: Mapping[str, int]) -> None:
        super().__init__(limit, route_limits)
        self._path = path
        self._file = open_ledger(path)

    def _ledger(self) -> Ledger:
        # Cheaper than asking for the pid; after a fork that Python was not told of the middleware makes new slots.
        if self._file.inherited:
            self._file = open_ledger(self._path)
        return self._file
