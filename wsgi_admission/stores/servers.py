"""The connections of a process to a Redis server, and what happens when it does not answer.

A connection is used by one call at a time and dropped after any error, a timeout or an interruption: a reply that
comes late can never be taken for that of another command.  Connections are made in the process that uses them; those
that a fork inherits are left alone.  All are dropped when the server says that it became a replica: after a fail-over
its name leads to another.

After a failure nothing is tried for a while (breaker.py), so a request waits for a dead server once: `CONNECT_TIMEOUT`
to be connected, `GREETING_TIMEOUT` for each step until the command is sent (password, database, sending), and
`REPLY_TIMEOUT` for the answer; 2 s in all.  Looking up a host name is not limited: name the server by an address, or by
a name that the machine knows itself.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Unconnected
from redis.exceptions import TimeoutError as TimedOut
from redis.retry import Retry

from wsgi_admission.errors import StoreError, StoreRefused, StoreUnavailable
from wsgi_admission.options.texts import store_url
from wsgi_admission.stores.breaker import PAUSE, Breaker, Tripped
from wsgi_admission.stores.scripts import Script
from wsgi_admission.stores.wire import Argument, Wire, pack

#: Seconds to be connected, for each step before the first command, and for the answer to a command.
CONNECT_TIMEOUT = 0.3
GREETING_TIMEOUT = 0.2
REPLY_TIMEOUT = 1.0

# The beginnings of errors that pass: no memory, no disk, a replica, a cluster that changes.
_PASSING = (
    *("OOM", "MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN", "LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MOVED"),
    *("ASK", "UNBLOCKED"),
)

#: What a script is told of a right that the user lacks: Redis 6 and 7.0, later ones.
DENIED = ("The user executing the script can't", "ACL failure in script")


class Servers:
    """Calls of one process, and of those that it forks, to the server at a URL.

    :param url: as for `open_store`.
    :param pause: seconds for which nothing is tried after a failure.
    :param fit: called with `shown` and what a node of a cluster says of itself, before that is used instead of the
        one that the URL names; raises `StoreError` to refuse it.
    """

    def __init__(
        self, url: str, *, pause: float = PAUSE, fit: Callable[[str, bytes], None] = lambda _shown, _about: None
    ) -> None:
        #: The URL without its password.
        self.shown = store_url().mask(url)
        self._pause = pause
        self._fit = fit
        options: dict[str, Any] = parse_url(_plain(url))  # type: ignore[no-untyped-call]  # it has no types
        self._make: Callable[..., Wire] = options.pop("connection_class", Connection)
        self._options = {
            **options,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_timeout": GREETING_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),  # the breaker decides when to try again
            "protocol": 2,
            "driver_info": None,
        }
        self._elsewhere: dict[str, Any] = {}
        self._own = _Own(self._pause)
        self._inherited: list[_Own] = []

    def call(self, *command: Argument) -> Any:
        """Send a command and return its reply; texts in it are bytes.

        :raises StoreRefused: when the server refuses the user, the password or a right; or a certificate is refused.
        :raises StoreUnavailable: when there is no reply in time, or the server cannot do it just now.
        :raises StoreError: when the server refuses it.
        """
        return self._exchange(lambda connection: _ask(connection, pack(command)))

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script, which is sent whole only if the server does not know it yet; raises as `call`."""
        rest = (len(keys), *keys, *arguments)

        def ask(connection: Wire) -> Any:
            try:
                return _ask(connection, pack((b"EVALSHA", script.sha, *rest)))
            except NoScriptError:
                return _ask(connection, pack((b"EVAL", script.source, *rest)))

        return self._exchange(ask)

    def connect(self) -> Wire:
        """Return a new connection that the caller closes.  Raises as redis-py does."""
        return self._connected(self._elsewhere)

    def aside(self, use: Callable[[Wire], Any]) -> Any:
        """Return what ``use`` makes of a new connection, which is closed then; raises as `call`."""

        def ask(_idle: Wire) -> Any:
            connection = self.connect()
            try:
                return use(connection)
            finally:
                connection.disconnect()

        return self._exchange(ask)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        own = self._mine()
        own.closed = True
        own.drop()

    def _mine(self) -> _Own:
        own = self._own
        if own.pid != os.getpid():
            self._inherited.append(own)  # still referenced: nothing of it is closed here
            own = self._own = _Own(self._pause)
        return own

    def _exchange(self, ask: Callable[[Wire], Any]) -> Any:
        own = self._mine()
        if own.closed:
            raise StoreError(f"The store {self.shown} was closed.")
        try:
            with own.breaker:
                return self._followed(own, ask)
        except Tripped as error:
            raise StoreUnavailable(f"{self.shown} did not answer a moment ago.") from error
        except AuthenticationError as error:
            own.drop()
            raise StoreRefused(f"{self.shown} refuses the user or the password: {error}.") from error
        except (Unconnected, TimedOut, OSError) as error:
            own.drop()
            self._elsewhere = {}  # that node may be gone for good
            if _distrusts(error):
                raise StoreRefused(f"The certificate of {self.shown} or ours is refused: {error}.") from error
            raise StoreUnavailable(f"{self.shown} does not answer: {error}.") from error
        except RedisError as error:
            if isinstance(error, (ReadOnlyError, MasterDownError)):
                own.drop()  # it became a replica: the name may lead to the new master by now
                self._elsewhere = {}
            raise self._told(error) from error

    def _told(self, error: RedisError) -> StoreError:
        if isinstance(error, NoPermissionError) or any(words in str(error) for words in DENIED):
            return StoreRefused(f"{self.shown} denies the user a right: {error}.")
        if str(error).startswith(_PASSING) or type(error) is not ResponseError:
            return StoreUnavailable(f"{self.shown} cannot do it just now: {error}.")
        return StoreError(f"{self.shown} refused: {error}.")

    def _followed(self, own: _Own, ask: Callable[[Wire], Any]) -> Any:
        try:
            return self._once(own, ask)
        except MovedError as moved:
            # This is a node of a cluster, and all keys of a line are on one other node.
            if "path" in self._options:
                raise
            node = {"host": moved.host or self._options.get("host"), "port": moved.port}
            self._look_at(node)
            self._elsewhere = node
            own.drop()
            return self._once(own, ask)

    def _look_at(self, node: dict[str, Any]) -> None:
        connection = self._connected(node)
        try:
            self._fit(self.shown, _ask(connection, pack((b"INFO",))))
        finally:
            connection.disconnect()

    def _connected(self, node: dict[str, Any]) -> Wire:
        connection = self._make(**{**self._options, **node})
        connection.connect()
        return connection

    def _once(self, own: _Own, ask: Callable[[Wire], Any]) -> Any:
        connection = own.idle() or self.connect()
        try:
            reply = ask(connection)
        except ResponseError:
            own.put_back(connection)  # an answer like any other
            raise
        except BaseException:
            connection.disconnect()
            raise
        own.put_back(connection)
        return reply


class _Own:
    """What one process has: idle connections, and its breaker."""

    def __init__(self, pause: float) -> None:
        self.pid = os.getpid()
        self.closed = False
        self.breaker = Breaker((Unconnected, TimedOut, OSError), pause=pause)
        self._idle: list[Wire] = []

    def idle(self) -> Wire | None:
        """Return a connection that is ready for a command, if there is one."""
        while self._idle:
            try:
                connection = self._idle.pop()
                if not connection.can_read(timeout=0):
                    return connection
                connection.disconnect()  # nobody has asked for what came
            except IndexError:
                break
            except (RedisError, OSError):
                pass  # closed by the server meanwhile
        return None

    def put_back(self, connection: Wire) -> None:
        """Keep a connection for the next call."""
        if self.closed:
            connection.disconnect()
        else:
            self._idle.append(connection)

    def drop(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()


def _ask(connection: Wire, command: bytes) -> Any:
    connection.send_packed_command([command], check_health=False)
    return connection.read_response(timeout=REPLY_TIMEOUT)


def _distrusts(error: BaseException | None) -> bool:
    """Return whether TLS failed because of a certificate, the server's or ours."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and ("CERTIFICATE" in (error.reason or "") or "_CA" in (error.reason or "")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _plain(url: str) -> str:
    """Return the URL with the scheme under which redis-py knows it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.replace('valkey', 'redis').replace('redis+unix', 'unix')}://{rest}"
