"""The slots of a host, as the configuration has them, and the file that its processes share them by."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from tempfile import gettempdir

from wsgi_admission.config import Config
from wsgi_admission.errors import StoreError
from wsgi_admission.locks import Ledger, make_private, open_ledger
from wsgi_admission.options.texts import store_url
from wsgi_admission.slots import HOST, HostSlots, LocalSlots, Slots

_MEMORY = "memory://"


def route_limits(config: Config) -> dict[str, int]:
    """Return route -> slots of its own, for the routes that have a limit."""
    return {route.name: route.max_concurrent for route in config.routes if route.max_concurrent is not None}


def open_slots(config: Config) -> Slots:
    """Return the slots of this host: in this process alone for a memory store, else in a file."""
    limits = route_limits(config)
    if config.store.url == _MEMORY:
        return LocalSlots(config.admission.max_concurrent, limits)
    return HostSlots(slots_file(config), config.admission.max_concurrent, limits)


class SpareSlots(LocalSlots):
    """What limits runs while the store cannot be opened: the slots of the host all the same.

    They are this process's own only where the file cannot be opened either, or the kernel cannot lock.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.admission.max_concurrent, route_limits(config))
        self._config = config

    def _ledger(self) -> Ledger:
        if self._config.store.url != _MEMORY:
            try:
                # Each time: the folder may be there in a moment, and a file that is open is not opened again.
                ledger = open_ledger(slots_file(self._config))
                ledger.count(HOST)
            except (StoreError, OSError):
                pass
            else:
                return ledger
        return super()._ledger()


def slots_file(config: Config) -> Path:
    """Return the file of the slots of this host: beside a SQLite store, or private to the user for a store elsewhere.

    The latter is ``$XDG_RUNTIME_DIR/wsgi-admission/`` or else ``$TMPDIR/wsgi-admission-UID/`` (``/tmp`` where that is
    not set), and in it the name of the line with a hash of the store's URL.

    :raises StoreError: when the folder is not private, or must not be used.
    :raises OSError: when the folder of a SQLite store cannot be made.
    """
    kind, _, path = config.store.url.partition(":///")
    name = config.admission.name
    if kind == "sqlite":
        from wsgi_admission.stores.opening import make_folder  # noqa: PLC0415 - no other store needs SQLite

        file = Path(f"{path}-{name}.slots").absolute()
        make_folder(file)  # as the store does it: it may be that nobody has come so far
        return file
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "wsgi-admission") if runtime else Path(gettempdir(), f"wsgi-admission-{os.geteuid()}")
    make_private(folder)
    shown = store_url().mask(config.store.url)  # the slots are the same after a change of the password
    digest = hashlib.sha256(f"{name}\0{shown}".encode()).hexdigest()[:16]
    return folder / f"{name}-{digest}.slots"
