"""The moves of a ticket, as values: what it is afterwards, and what that adds to its tally.

Stores that keep their tickets in Python terms share this arithmetic, so that they cannot differ in it.
"""

from __future__ import annotations

from dataclasses import replace

from wsgi_admission.errors import FinalTicket, NotRetryable
from wsgi_admission.ticket import State, Ticket

USED_UP = "The worker that ran this request stopped unexpectedly, and it is not run again by itself; you can retry it."


def claimed(ticket: Ticket, *, now: float) -> Ticket:
    """A worker takes the ticket: a new attempt begins."""
    return replace(ticket, state=State.PROCESSING, started_at=now, attempt=ticket.attempt + 1)


def check_end(state: State, response: object | None, *, keep_request: bool) -> None:
    """Raise ValueError for what no run can end with."""
    if state not in {State.COMPLETED, State.FAILED}:
        raise ValueError(f"a run ends completed or failed, not {state.value}")
    if keep_request and (state is State.COMPLETED or response is not None):
        raise ValueError("only the request of a run that failed without an answer is kept")


def finished(ticket: Ticket, state: State, *, now: float, error: str, keep_request: bool) -> Ticket:
    """The run came to its end; a cancellation that was asked for meanwhile wins."""
    if ticket.cancelling:
        return _ended(ticket, State.CANCELLED, now, ticket.error)
    return replace(_ended(ticket, state, now, error), retryable=keep_request)


def released(ticket: Ticket, *, now: float) -> Ticket:
    """The worker gives the ticket back."""
    if ticket.cancelling:
        return _ended(ticket, State.CANCELLED, now, ticket.error)
    return replace(ticket, state=State.QUEUED, started_at=None, progress=None, note="")


def crashed(ticket: Ticket, *, now: float) -> Ticket:
    """The worker died: back to the line, unless that was once too often."""
    ticket = replace(ticket, crashes=ticket.crashes + 1)
    if ticket.crashes > ticket.crash_retries and not ticket.cancelling:
        return replace(_ended(ticket, State.FAILED, now, USED_UP), retryable=True)
    return released(ticket, now=now)


def retried(ticket: Ticket) -> Ticket:
    """The ticket's request goes to a new one.

    :raises NotRetryable: when there is nothing to go.
    """
    if not ticket.retryable:
        raise NotRetryable(ticket.id)
    return replace(ticket, retryable=False)


def cancelled(ticket: Ticket, *, now: float, reason: str) -> Ticket:
    """The ticket is cancelled if it waits; while it runs that is only asked for, and the first reason stays.

    :raises FinalTicket: when it is over already.
    """
    if ticket.state.final:
        raise FinalTicket(ticket.id, ticket.state.value)
    if ticket.state is State.QUEUED:
        return _ended(ticket, State.CANCELLED, now, reason)
    return replace(ticket, cancelling=True, error=ticket.error or reason)


def _ended(ticket: Ticket, state: State, now: float, error: str) -> Ticket:
    return replace(ticket, state=state, completed_at=now, error=error)


def delta(before: Ticket | None, after: Ticket) -> dict[str, float]:
    """Return what a move adds to the fields of the `Tally` of the ticket's tier and route.

    :param before: None when the ticket is new.
    """
    change: dict[str, float] = {}
    if before is None:
        change["accepted"] = 1
    else:
        if before.attempt == 0 and after.attempt == 1 and after.started_at is not None:
            change["started"] = 1
            change["wait_seconds"] = max(0.0, after.started_at - after.created_at)
        if after.crashes > before.crashes:
            change["crashed"] = 1
        elif after.state in {State.COMPLETED, State.FAILED}:
            change["ran"] = 1
            change["run_seconds"] = run_seconds(after)
        if before.state is after.state:
            return change
        if not before.state.final:
            change[before.state.value] = -1
    change[after.state.value] = 1
    return change


def run_seconds(ticket: Ticket) -> float:
    """Return how long the last attempt of a ticket ran that has come to its end; 0 if it never began."""
    if ticket.started_at is None or ticket.completed_at is None:
        return 0.0
    return max(0.0, ticket.completed_at - ticket.started_at)  # the wall clock may have been set back
