"""The order of the queued tickets of a store in memory: by what they are ranked, and where each of them stands."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from sortedcontainers import SortedList

from wsgi_admission.policy.ordering import place
from wsgi_admission.stores.ledger import drop
from wsgi_admission.ticket import Ticket


class Order:
    """The order of one line; the formula is told in policy/ordering.py.  It has no lock of its own."""

    def __init__(self) -> None:
        # For each route the queued tickets, as (tier_rank, start, number, id).
        self._routes: dict[str, SortedList] = defaultdict(SortedList)
        # All queued tickets, as (tier, client, start, number, finish).
        self._own = SortedList()
        self._number = 0
        self._virtual_times: dict[str, float] = {}
        # (tier, client) -> the last finish of those of its tickets that were ever claimed.
        self._finishes: dict[tuple[str, str], float] = {}

    def rank(self, ticket: Ticket) -> Ticket:
        """Return a new ticket with its rank and number."""
        self._number += 1
        start = place(self._virtual_times.get(ticket.tier, 0.0), self._last_finish(ticket.tier, ticket.client))
        return replace(ticket, start=start, number=self._number)

    def add(self, ticket: Ticket) -> None:
        """Put a ranked ticket in its place."""
        self._routes[ticket.route].add(_key(ticket))
        self._own.add(_own_key(ticket))

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out that was added."""
        self._routes[ticket.route].remove(_key(ticket))
        self._own.remove(_own_key(ticket))

    def first(self, routes: Collection[str]) -> str | None:
        """Return the id of the first ticket of these routes."""
        first = min((self._routes[route][0] for route in routes if self._routes.get(route)), default=None)
        return None if first is None else first[-1]

    def of(self, route: str) -> list[str]:
        """Return the ids of a route's tickets."""
        return [key[-1] for key in self._routes.get(route, ())]

    def ahead(self, ticket: Ticket) -> Mapping[str, int]:
        """Look up where the ticket's rank would stand among those of each route."""
        mine = _key(ticket)
        return {route: before for route, queued in self._routes.items() if (before := queued.bisect_left(mine))}

    def charge(self, claimed: Ticket) -> None:
        """Move the tier's virtual time to a claimed ticket, and its client's finish, if that is later."""
        tier, client, start, _, finish = _own_key(claimed)
        self._virtual_times[tier] = max(self._virtual_times.get(tier, 0.0), start)
        self._finishes[tier, client] = max(self._finishes.get((tier, client), 0.0), finish)

    def prune(self, busy: Collection[str]) -> None:
        """Drop the finishes that have no effect.

        :param busy: the tiers in which somebody waits or runs; in another a busy period has ended.
        """
        finishes = self._finishes.items()
        passed = (key for key, finish in finishes if key[0] not in busy or finish <= self._virtual_times[key[0]])
        drop(self._finishes, passed)

    def _last_finish(self, tier: str, client: str) -> float:
        queued = self._own.irange((tier, client), (tier, client, math.inf), reverse=True)
        return max(self._finishes.get((tier, client), 0.0), next((key[-1] for key in queued), 0.0))


def _key(ticket: Ticket) -> tuple[int, float, int, str]:
    return (ticket.tier_rank, ticket.start, ticket.number, ticket.id)


def _own_key(ticket: Ticket) -> tuple[str, str, float, int, float]:
    return (ticket.tier, ticket.client, ticket.start, ticket.number, ticket.start + ticket.cost)
