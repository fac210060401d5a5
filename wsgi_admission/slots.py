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
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

from wsgi_admission.errors import StoreError
from wsgi_admission.locks import REGION, Ledger, open_ledger

_HOST = 0


class Slot:
    """The right to run one queueable request, until it is released.

    :param routes: the routes whose requests may run with it; empty for the host's slot alone.
    """

    __slots__ = ("_ledger", "_offsets", "routes")

    def __init__(self, ledger: Ledger, offsets: dict[str, int], routes: frozenset[str]) -> None:
        self.routes = routes
        self._ledger = ledger
        self._offsets = offsets  # by route; "" is the host's

    def narrow(self, route: str) -> None:
        """Keep the slot for this one of its routes only, and give back those of the others.

        :raises ValueError: when the slot is not for that route.
        """
        if route not in self.routes:
            raise ValueError(f"the slot is for {sorted(self.routes)}, not for {route!r}")
        self.routes = frozenset({route})
        self._give([name for name in self._offsets if name not in {"", route}])

    def release(self) -> None:
        """Give the slot back; again, from another thread, or in a forked child it does no harm."""
        self._give(None)

    def _give(self, names: Collection[str] | None) -> None:
        """Give back what is held for these names, or all of it."""
        ledger = self._ledger
        # A child's locks on the same bytes are its own: the slots that it inherited as objects are not.
        if ledger.pid != os.getpid():
            return
        with ledger.lock:
            offsets = self._offsets
            for name in offsets.copy() if names is None else names:
                offset = offsets.pop(name, None)
                if offset is not None:
                    ledger.give(offset)


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

        :param route: the route to be run, or None for a slot of the host alone.
        :return: None when there is none.
        :raises StoreUnavailable: when the kernel cannot lock; nothing is taken then.
        """
        if route is not None and route in self._regions:
            return self.take_any((route,))
        # Nearly every request: no list of routes to go through.
        ledger = self._ledger()
        with ledger.lock:
            host = ledger.take(_HOST, self._limit)
        return None if host is None else Slot(ledger, {"": host}, frozenset() if route is None else frozenset((route,)))

    def take_any(self, routes: Collection[str]) -> Slot | None:
        """Take a slot for whichever of these routes comes next, to be told by `Slot.narrow`.

        Besides the host's it holds a slot of every limited route among them that was not full; ``slot.routes``
        are those that may run with it.

        :return: None when the host has no slot, or none of the routes may run.
        :raises StoreUnavailable: as `take` does.
        """
        slot = self._take(routes)
        if slot is not None and not slot.routes:
            slot.release()
            return None
        return slot

    def in_use(self) -> int:
        """Return how many slots of the host are taken, at most its limit."""
        return min(self._limit, self._ledger().count(_HOST))

    def full(self, route: str) -> bool:
        """Whether the route's own limit is reached; never for a route that has none."""
        region, limit = self._regions.get(route, (_HOST, 0))
        return bool(limit) and self._ledger().count(region) >= limit

    def _take(self, routes: Collection[str]) -> Slot | None:
        """Take a slot of the host and of each of the routes that has room."""
        ledger = self._ledger()
        with ledger.lock:
            host = ledger.take(_HOST, self._limit)
            if host is None:
                return None
            offsets = {"": host}
            possible = []
            try:
                for route in routes:
                    own = self._regions.get(route)
                    offset = None if own is None else ledger.take(*own)
                    if offset is not None:
                        offsets[route] = offset
                    if own is None or offset is not None:
                        possible.append(route)
            except StoreError:
                Slot(ledger, offsets, frozenset()).release()
                raise
        return Slot(ledger, offsets, frozenset(possible))


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
        if self._file.pid != os.getpid():
            self._file = open_ledger(self._path)
        return self._file
