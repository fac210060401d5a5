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

The last finish of a client is the largest among its queued tickets and those that were ever claimed.  So a
ticket that is cancelled before it is claimed leaves no trace once no own ticket stands behind it, one that was
claimed stays charged whatever becomes of it, and no newcomer is ranked before an own ticket that waits or may
return to the line.
"""

from __future__ import annotations


def place(virtual_time: float, last_finish: float) -> float:
    """Return the rank (``start``) of one more ticket of a client, in seconds of virtual time.

    :param virtual_time: the rank of the last ticket of the tier that was started; 0 before the first.
    :param last_finish: the largest finish of the client's queued tickets and of those that were ever claimed; 0 if
        it has none.
    """
    return max(virtual_time, last_finish)
