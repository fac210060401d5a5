"""The place of a ticket in the line.

Tiers are served strictly in order.  Inside a tier the line is fair between clients, not between tickets:
it is start-time fair queueing (Goyal, Vin and Cheng, 1996).  Each tier has a virtual time V, the rank of the
last of its tickets that was started.  A ticket is ranked once, when it is put::

    start  = max(V, last finish of the client)
    finish = start + expected run time

and tickets are served by (tier, start, number).  A client's own tickets follow each other at distances of
their run times, so they stay in their order, and somebody who comes with one ticket stands behind what is
being served now, not behind the thousand of somebody else.  When every client has one ticket all starts are
V or equal, and the number makes it first in, first out.  Because the rank never changes, any store can order
by it, and a position is a count.
"""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """A rank (``start``) and the client's new last finish, both in seconds of virtual time."""

    start: float
    finish: float


def place(virtual_time: float, last_finish: float | None, cost: float) -> Place:
    """Rank one more ticket of a client.

    :param virtual_time: the rank of the last ticket of the tier that was started; 0 before the first.
    :param last_finish: the finish of the client's ticket before, or None if it has none.
    :param cost: the ticket's expected run time in seconds, above 0.
    """
    start = virtual_time if last_finish is None else max(virtual_time, last_finish)
    return Place(start, start + cost)
