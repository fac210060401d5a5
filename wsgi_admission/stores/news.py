"""Noticing that anybody changed a line in Redis, without asking for every request.

What was read last is given again until the line has changed.  Each step that changes it publishes that, if somebody
has read the line since the last time, and one thread per process listens; it starts at the first reading.  So what is
given is as old as a message is under way: well below a millisecond on one machine, and as long as this process lets
the thread wait.  Steps of the same process are always seen at once.

Behind this stands a poll.  Nothing is given again after `SURE` seconds, however quiet it is.  While the thread does
not hear from the server, because the connection is lost or not made yet, nothing is given again after `UNSURE`
seconds.  A connection that is cut without a word is noticed after at most `SURE` seconds too, as nothing is given
for longer.

A server that is slow to answer is not asked the same for every step of every request: what took longer than `LONG`
seconds to read is given again for four times as long, whatever has changed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import RedisError

from wsgi_admission.stores.servers import REPLY_TIMEOUT, Servers
from wsgi_admission.stores.wire import Wire, encode, pack

T = TypeVar("T")

#: Seconds for which a reading holds while changes are told, and while they are not.
SURE = 1.0
UNSURE = 0.02
#: Seconds after which a reading counts as slow.
LONG = 0.25
#: Seconds between looks at whether the store was closed, and between attempts to listen.
LOOK_INTERVAL = 0.5


class News:
    """What a process knows of a line's changes.

    :param channel: where changes are told.
    """

    def __init__(self, servers: Servers, channel: str) -> None:
        self._servers = servers
        self._channel = encode(channel)
        self._listener = _Listener()

    def cached(self, key: str, load: Callable[[], T], of: Hashable = None) -> T:
        """Return what ``load`` returns; from memory if the line has not changed since and ``of`` is the same."""
        listener = self._listening()
        known = listener.known.get(key)
        if (
            known is not None
            and known.of == of
            and time.monotonic() < (known.until if known.turn is listener.turn else known.whatever)
        ):
            value: T = known.value
            return value
        turn, hears, now = listener.turn, listener.hears, time.monotonic()
        value = load()
        took = time.monotonic() - now
        whatever = now + (5 * took if took > LONG else 0.0)
        listener.known[key] = _Reading(turn, of, max(whatever, now + (SURE if hears else UNSURE)), whatever, value)
        return value

    def changed(self) -> None:
        """Note that this process changed the line, or may have."""
        self._listener.turn = object()

    def close(self) -> None:
        """Let the thread end."""
        self._listener.closed.set()

    def _listening(self) -> _Listener:
        listener = self._listener
        if listener.pid != os.getpid():
            listener = self._listener = _Listener()
        if not listener.started:
            with listener.lock:
                if not listener.started:
                    listener.started = True
                    arguments = (listener, self._servers, self._channel)
                    threading.Thread(target=_listen, args=arguments, name="wsgi-admission-news", daemon=True).start()
        return listener


def try_to_listen(servers: Servers, channel: str) -> None:
    """Ask for a channel once, as the thread would never tell that it may not; raises as `Servers.call`."""
    servers.aside(lambda connection: _subscribe(connection, encode(channel)))


class _Reading(NamedTuple):
    """What was read in a turn, and of what; until when it holds in that turn, and until when whatever changes."""

    turn: object
    of: Hashable
    until: float
    whatever: float
    value: Any


class _Listener:
    """What the thread of one process tells the others.  The turn is another object after every change."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.started = False
        self.closed = threading.Event()
        self.turn = object()
        self.hears = False
        self.known: dict[str, _Reading] = {}


def _listen(listener: _Listener, servers: Servers, channel: bytes) -> None:
    """Listen until the store is closed; a server that is away is tried again and again."""
    while not listener.closed.is_set():
        connection = None
        try:
            connection = servers.connect()
            _hear(listener, connection, channel)
        except (RedisError, OSError):
            listener.closed.wait(LOOK_INTERVAL)
        finally:
            if connection is not None:
                connection.disconnect()


def _hear(listener: _Listener, connection: Wire, channel: bytes) -> None:
    _subscribe(connection, channel)
    try:
        listener.hears = True
        while not listener.closed.is_set():
            if not connection.can_read(timeout=LOOK_INTERVAL):
                connection.send_packed_command([pack((b"PING",))], check_health=False)
            if connection.read_response(timeout=REPLY_TIMEOUT)[0] == b"message":
                listener.turn = object()
    finally:
        listener.hears = False
        listener.turn = object()


def _subscribe(connection: Wire, channel: bytes) -> None:
    connection.send_packed_command([pack((b"SUBSCRIBE", channel))], check_health=False)
    connection.read_response(timeout=REPLY_TIMEOUT)
