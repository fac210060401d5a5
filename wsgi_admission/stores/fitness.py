"""Whether a Redis server can be trusted with a line."""

from __future__ import annotations

from wsgi_admission.errors import StoreError, StoreMismatch
from wsgi_admission.stores.scripts import KEYS, key, script
from wsgi_admission.stores.servers import Servers
from wsgi_admission.stores.wire import decode

#: The oldest server that is good enough.
OLDEST = (6, 2)
#: What the keys of a line hold, and how (scripts.py); another number is refused.
SCHEMA = 1


def information(servers: Servers) -> dict[str, str]:
    """Return what the server says of itself."""
    lines = decode(servers.call(b"INFO")).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def refuse_unfit(servers: Servers, line: str) -> None:
    """Mark the line as one of this version.

    :raises StoreRefused: when the user lacks a right.
    :raises StoreMismatch: when it is one of another version.
    :raises StoreError: when the server is too old, or may evict what it keeps.
    """
    about = information(servers)
    version, policy = about["redis_version"], about.get("maxmemory_policy", "noeviction")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise StoreError(f"{servers.shown} is Redis {version}; {'.'.join(map(str, OLDEST))} or newer is needed.")
    if policy != "noeviction":
        raise StoreError(
            f"{servers.shown} has the maxmemory-policy {policy!r}, by which accepted requests would be evicted; "
            "set it to noeviction."
        )
    found = servers.run(script("schema"), [key(line, name) for name in KEYS], [0.0, SCHEMA])
    if found != b"%d" % SCHEMA:
        raise StoreMismatch(
            f"The line {line!r} in {servers.shown} was written by another version of this package "
            f"(schema {decode(found)}, expected {SCHEMA})."
        )
    # Rights that nothing above needs, and every later step does.
    servers.run(script("version"), [key(line, name) for name in KEYS], [0.0])
    servers.call(b"PUBLISH", key(line, "meta"), "")
