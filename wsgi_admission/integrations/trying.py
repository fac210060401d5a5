"""Try the store before the first worker starts, when what can never work can still be told."""

from __future__ import annotations

import os
from collections.abc import Callable

from wsgi_admission.config import Config
from wsgi_admission.errors import StoreError, StoreRefused, StoreUnavailable
from wsgi_admission.slotfile import open_slots
from wsgi_admission.stores import open_store


def permanent_fault(config: Config, become_worker: Callable[[], None]) -> str:
    """Return why the store or the slots can never be opened, or an empty string.

    It is tried in a child process with the rights of a worker.  The master must not open them itself: it may be root,
    and what it has open its workers inherit.

    :param become_worker: gives up the rights that a worker does not have.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            become_worker()
            os.write(writer, _fault(config).encode("utf-8", "backslashreplace"))
        finally:
            os._exit(0)  # whatever else goes wrong here goes wrong in the workers too, and they tell
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        told = answer.read().decode()
    os.waitpid(child, 0)
    return told


def _fault(config: Config) -> str:
    try:
        open_store(config.store.url, name=config.admission.name, durability=config.store.durability).close()
        open_slots(config)
    except StoreRefused as error:
        return str(error)
    except StoreUnavailable:
        return ""  # it may be there in a moment
    except StoreError as error:
        return str(error)
    return ""
