"""The Lua scripts of a line in Redis, as they are sent: every step is one of them.

All of them name the same keys, in the same order.  The name of the line stands between braces, so that all keys of
a line are in one slot of a cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

from wsgi_admission.ticket import Ticket

#: What a line keeps, by the end of its key.
KEYS = (
    "meta",  # hash: version, watched, number, schema, paused; and the channel on which changes are told
    "tickets",  # hash: id -> its fields
    "line",  # sorted set: the queued tickets by route, tier, start and number
    "own",  # sorted set: the queued tickets by client, start and number
    "created",  # sorted set: the queued tickets that were never claimed, by route and created_at
    "leases",  # sorted set: id of what runs, by the end of its lease in the server's time
    "finished",  # sorted set: number and id of what is final, by completed_at
    "requests",  # hash: id -> recording
    "responses",  # hash: id -> recording
    "bodies",  # hash: kind and id -> name of a large body
    "trash",  # set: names of large bodies that are to be removed
    "keys",  # hash: route, client and key -> id
    "gone",  # hash: id -> owner
    "gone_at",  # sorted set: id by when it was removed
    "tallies",  # hash: tier and route -> tally
    "minutes",  # sorted set: minute, tier and route by minute
    "minute_counts",  # hash: what is counted, minute, tier and route -> number
    "run_times",  # hash: route -> its last run times
    "workers",  # hash: id -> report
    "virtual_times",  # hash: tier -> virtual time
    "finishes",  # hash: tier and client -> last finish of what was ever claimed
    "finish_order",  # sorted set: the same by tier and finish
)
#: The fields of a ticket as it is kept: what it knows itself, who claimed it last and by which claim, its key
#: with the digest.
FIELDS = (*(field.name for field in fields(Ticket)), "worker", "mark", "key", "digest")
# Scripts that move no ticket need not know how.
_STILL = {
    "chunk",
    "get",
    "listing",
    "pause",
    "recording",
    "version",
    "counts",
    "statistics",
    "minutes",
    "observe",
    "report",
    "prune_rest",
    "schema",
    "information",
    "rights",
}


@dataclass(frozen=True)
class Script:
    """A script and the name under which the server remembers it."""

    source: bytes
    sha: bytes


@cache
def script(name: str) -> Script:
    """Return the script of this name."""
    keys = ", ".join(f"{key} = KEYS[{place}]" for place, key in enumerate(KEYS, 1))
    places = ", ".join(f"{field} = {place}" for place, field in enumerate(FIELDS, 1))
    head = f"local K, F = {{{keys}}}, {{{places}}}\nlocal SKEW = table.remove(ARGV, 1)\n"
    parts = ["common", name] if name in _STILL else ["common", "moves", name]
    folder = resources.files("wsgi_admission.stores") / "lua"
    source = (head + "".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)).encode()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def key(line: str, name: str) -> str:
    """Return the key under which a line keeps what has this name."""
    return f"{{wa:{line}}}:{name}"
