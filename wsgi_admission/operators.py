"""What operators do with a line while the site runs, as steps on its store.  The commands are in commands.py."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from wsgi_admission.config import Config
from wsgi_admission.errors import FinalTicket, GoneTicket, TicketError, UnknownTicket
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket

#: What the owner of a ticket is told that an operator cancelled.
CANCELLED = "An operator cancelled it."
#: Tickets of one state among which a short id is looked for, and tickets of a client that are cancelled at a time.
LISTED = 100_000
#: Characters of an id that are enough to name its ticket: as many as the log has.
SHORT = 8
#: Seconds between two looks whether all has ended.
LOOK_INTERVAL = 0.2


def find(store: Store, text: str) -> str:
    """Return the id that is this text, or begins with it.

    :raises UnknownTicket: when there is none.
    :raises TicketError: when there are several.
    """
    if len(text) < SHORT or len(text) >= len(str(uuid.UUID(int=0))):
        return text
    found = [
        ticket.id for state in State for ticket in store.listing(state, limit=LISTED) if ticket.id.startswith(text)
    ]
    if len(found) > 1:
        raise TicketError(text, f"{len(found)} tickets begin with {text}: give more of the id.")
    if not found:
        raise UnknownTicket(text)
    return found[0]


def summary(store: Store, config: Config) -> dict[str, Any]:
    """Return whether the line is paused, and how much waits and runs."""
    tallies = store.counts().values()
    return {
        "name": config.admission.name,
        "paused": store.paused(),
        "queued": sum(tally.queued for tally in tallies),
        "processing": sum(tally.processing for tally in tallies),
    }


def wait_until_idle(
    store: Store,
    timeout: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Wait until nothing is processing; return whether that came before ``timeout`` seconds were over."""
    deadline = None if timeout is None else clock() + timeout
    while any(tally.processing for tally in store.counts().values()):
        if deadline is not None and clock() >= deadline:
            return False
        sleep(LOOK_INTERVAL)
    return True


def requeue(store: Store, ticket_id: str, *, now: float) -> Ticket:
    """Have a ticket run (again), and return the one that waits for it now.

    One in processing goes back to its place, and what its worker answers is refused.  A failed one stays as it is, and
    a new ticket takes its request.

    :raises FinalTicket: when it is completed or cancelled.
    :raises NotRetryable: when it failed and its request is no longer there.
    :raises LeaseLost: when its run ended in this moment.
    """
    ticket = store.get(ticket_id)
    if ticket.state is State.PROCESSING:
        store.release(ticket.id, ticket.attempt, now=now)
        return store.get(ticket.id)
    if ticket.state is State.FAILED:
        return store.retry(ticket.id, ticket.again(cost=ticket.cost, now=now), now=now)
    if ticket.state.final:
        raise FinalTicket(ticket.id, ticket.state.value)
    return ticket


def cancel_client(store: Store, client: str, *, now: float) -> dict[str, Any]:
    """Cancel all that a client has waiting, and ask for the cancellation of what runs; return how many there were."""
    counts = {"cancelled": 0, "cancelling": 0}
    for state in (State.QUEUED, State.PROCESSING):
        for ticket in store.listing(state, client=client, limit=LISTED):
            try:
                ended = store.cancel(ticket.id, now=now, reason=CANCELLED).state.final
            except (FinalTicket, GoneTicket):
                continue  # it ended in this moment
            counts["cancelled" if ended else "cancelling"] += 1
    return {"client": client, **counts}
