"""The ticket: one accepted request, its state and the legal moves.

::

    queued -> processing -> completed            the app answered (any status below 500)
                         -> failed               it answered 5xx, raised, or ran out of attempts
                         -> queued               its worker died or is leaving, and attempts are left
    queued -> cancelled                          by its owner, an operator, or its deadline
    processing -> cancelled                      asked for; takes effect when the app returns
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass


class State(str, enum.Enum):
    """Where a ticket is on its way; the values are what clients see."""

    QUEUED = "queued"  # waiting for its first or its next attempt
    PROCESSING = "processing"  # leased to a worker that runs it
    COMPLETED = "completed"  # the app answered with a status below 500
    FAILED = "failed"  # the app answered 5xx or raised, or the attempts are used up
    CANCELLED = "cancelled"  # nobody wants it any more

    @property
    def final(self) -> bool:
        """Whether the ticket stays in this state for ever."""
        return self not in LEGAL_MOVES


LEGAL_MOVES = {
    State.QUEUED: frozenset({State.PROCESSING, State.CANCELLED}),
    State.PROCESSING: frozenset({State.COMPLETED, State.FAILED, State.QUEUED, State.CANCELLED}),
}


@dataclass(frozen=True)
class Ticket:
    """One accepted request.  Times are seconds since the epoch.

    :param id: a uuid that cannot be guessed; who knows it may read an anonymous client's ticket.
    :param route: the name of the route that matched.
    :param tier: the name of the client's tier.
    :param tier_rank: the tier's place in the configuration, 0 first.
    :param client: the unit of fairness inside a tier: an account or a network address.
    :param owner: the account the ticket answers to, or an empty string: it answers to whoever has the id.
    :param cost: the run time in seconds that was expected at submission; charged to the client's fair share.
    :param crash_retries: how many times the ticket runs again after its worker died.
    :param start: its rank inside the tier (see `policy.ordering`), set by the store's ``put``.
    :param number: counts the tickets of the store upwards; decides between equal ranks.
    :param attempt: how often it has been claimed; the fencing token of every write about its run.
    :param crashes: how many of the attempts ended with the death of their worker.
    :param cancelling: a cancellation was asked for while it was processing.
    :param progress: what the app reported, 0 to 1, or None.
    :param note: what the app said about its progress.
    :param error: for a failed or cancelled ticket one sentence on why, for people.
    :param retryable: it failed without an answer of the app, and its request is kept so that it may be run again.
    """

    id: str
    route: str
    tier: str
    tier_rank: int
    client: str
    owner: str
    cost: float
    crash_retries: int
    created_at: float
    state: State = State.QUEUED
    start: float = 0.0
    number: int = 0
    started_at: float | None = None
    completed_at: float | None = None
    attempt: int = 0
    crashes: int = 0
    cancelling: bool = False
    progress: float | None = None
    note: str = ""
    error: str = ""
    retryable: bool = False

    @property
    def being_cancelled(self) -> bool:
        """Whether it still runs although its cancellation was asked for: its answer will be dropped."""
        return self.cancelling and not self.state.final

    def again(self, *, cost: float, now: float) -> Ticket:
        """Return a new ticket, not put yet, that is to run the same request for the same client.

        Its id is always the same, and follows from this one's: whoever knows only the old ticket finds the new one.
        """
        return Ticket(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"again {self.id}")),
            route=self.route,
            tier=self.tier,
            tier_rank=self.tier_rank,
            client=self.client,
            owner=self.owner,
            cost=cost,
            crash_retries=self.crash_retries,
            created_at=now,
        )
