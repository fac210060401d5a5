"""Whether a Redis server can be trusted with a line."""

from __future__ import annotations

from wsgi_admission.errors import StoreError, StoreMismatch, StoreRefused
from wsgi_admission.stores.news import try_to_listen
from wsgi_admission.stores.scripts import KEYS, key, script
from wsgi_admission.stores.servers import DENIED, Servers
from wsgi_admission.stores.wire import decode

#: The oldest server that is good enough.
OLDEST = (6, 2)
#: What the keys of a line hold, and how (scripts.py); another number is refused.
SCHEMA = 1


def information(servers: Servers, line: str) -> dict[str, str]:
    """Return what the server that has the line says of itself."""
    return _parsed(_ask(servers, line))


def refuse_server(shown: str, about: bytes) -> None:
    """Refuse a server that no line can be trusted to.

    :param shown: its URL without the password.
    :param about: what it says of itself.
    :raises StoreError: when it is too old, or may evict what it keeps.
    """
    known = _parsed(about)
    version, policy = known["redis_version"], known.get("maxmemory_policy", "noeviction")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise StoreError(f"{shown} is Redis {version}; {'.'.join(map(str, OLDEST))} or newer is needed.")
    if policy != "noeviction":
        raise StoreError(
            f"{shown} has the maxmemory-policy {policy!r}, by which accepted requests would be evicted; "
            "set it to noeviction."
        )


def refuse_unfit(servers: Servers, line: str) -> None:
    """Mark the line as one of this version.

    :raises StoreRefused: when the user lacks a right.
    :raises StoreMismatch: when it is one of another version.
    :raises StoreError: as `refuse_server`.
    """
    refuse_server(servers.shown, _ask(servers, line))
    found = servers.run(script("schema"), _keys(line), [0.0, SCHEMA])
    if found != b"%d" % SCHEMA:
        raise StoreMismatch(
            f"The line {line!r} in {servers.shown} was written by another version of this package "
            f"(schema {decode(found)}, expected {SCHEMA})."
        )
    # Without a right a script ends in the middle, and what it did until then stays.
    lacking = servers.run(script("rights"), [*_keys(line), key(line, "body:")], [0.0, *DENIED])
    if lacking:
        raise StoreRefused(f"{servers.shown} denies the user a right: {decode(lacking)}.")
    try_to_listen(servers, key(line, "meta"))


def _ask(servers: Servers, line: str) -> bytes:
    # One key says which node; to more words a server would not even say that it wants a password.
    about: bytes = servers.run(script("information"), _keys(line)[:1], [0.0])
    return about


def _keys(line: str) -> list[str]:
    return [key(line, name) for name in KEYS]


def _parsed(about: bytes) -> dict[str, str]:
    return dict(each.split(":", 1) for each in decode(about).splitlines() if ":" in each)
