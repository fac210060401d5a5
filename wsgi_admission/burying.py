"""Looking for workers of this host that were killed: what they ran need not wait for its leases to run out."""

from __future__ import annotations

import logging

from wsgi_admission import host
from wsgi_admission.logs import event
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import Worker

log = logging.getLogger("wsgi_admission.burying")

#: Seconds by which two readings of a process's start may differ: a tick of the kernel is 0.01.
SAME_BIRTH = 0.005


def bury_dead(store: Store, here: Worker, *, now: float) -> None:
    """Bury the workers that have reported from this host and are dead.

    :param here: how this process reports itself.
    :param now: seconds since the epoch.
    """
    if not here.born or host.born(here.pid) != here.born:
        return  # this host does not tell
    for worker in store.statistics(now=now).workers:
        if worker.host == here.host and worker.born and not _lives(worker):
            tickets = store.bury(worker.id, now=now)
            event(log, "worker.died", level=logging.WARNING, pid=worker.pid, tickets=tickets)


def _lives(worker: Worker) -> bool:
    born = host.born(worker.pid)
    return born is not None and abs(born - worker.born) < SAME_BIRTH
