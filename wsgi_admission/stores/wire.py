"""Commands as they go over the wire to Redis, and what is asked of redis-py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

Argument = bytes | str | int | float


class Wire(Protocol):
    """What is needed of a connection of redis-py."""

    def connect(self) -> None:
        """Connect, and tell password and database."""

    def disconnect(self) -> None:
        """Close the socket."""

    def send_packed_command(self, command: list[bytes], *, check_health: bool) -> None:
        """Send bytes."""

    def can_read(self, timeout: float) -> bool:
        """Return whether anything comes within so many seconds."""

    def read_response(self, *, timeout: float) -> Any:
        """Read one reply."""


def pack(command: Sequence[Argument]) -> bytes:
    """Return a command as it goes over the wire."""
    return b"*%d\r\n" % len(command) + b"".join(map(_part, command))


def _part(argument: Argument) -> bytes:
    if isinstance(argument, str):
        return _known(argument) if len(argument) < 100 else _framed(encode(argument))
    return _framed(argument if isinstance(argument, bytes) else encode(argument))


def _framed(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


# Keys and names are the same in most commands.
@lru_cache(maxsize=1000)
def _known(text: str) -> bytes:
    return _framed(encode(text))


def encode(value: str | float) -> bytes:
    """Return the bytes of a text, or of a number with all its digits."""
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "surrogatepass")


def decode(value: bytes) -> str:
    """Return the text that `encode` was given."""
    return value.decode("utf-8", "surrogatepass")
