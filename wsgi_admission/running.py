"""A request that runs at once: its slot is given back when the server has closed the app's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

App = Callable[..., Iterable[bytes]]


class Held(Protocol):
    """What is given back when the request has ended."""

    def release(self) -> None:
        """Give it back."""


class Running:
    """The app's iterable; the slot is given back when the server closes it."""

    def __init__(self, iterable: Iterable[bytes], slot: Held | None, passed: Callable[[], None]) -> None:
        self._iterable = iterable
        self._slot = slot
        self._passed: Callable[[], None] | None = passed

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._iterable)

    def close(self) -> None:
        """Close the app's iterable and give the slot back, whatever happens."""
        try:
            close = getattr(self._iterable, "close", None)
            if close is not None:
                close()
        finally:
            self.__del__()

    def __del__(self) -> None:
        # Also for a server that drops the iterable without closing it: a slot lost so would be lost for ever.
        passed = self._passed
        if passed is not None:
            self._passed = None
            _end(self._slot, passed)


class SizedRunning(Running):
    """The same for a list or a tuple: servers take the Content-Length from one that holds one block."""

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # it is a list or a tuple


def run(
    app: App, environ: dict[str, Any], start_response: Callable[..., Any], slot: Held | None, passed: Callable[[], None]
) -> Iterable[bytes]:
    """Call the app; give the slot back, and tell ``passed``, when its answer has been closed."""
    try:
        iterable = app(environ, start_response)
    except BaseException:
        _end(slot, passed)
        raise
    return (SizedRunning if isinstance(iterable, (list, tuple)) else Running)(iterable, slot, passed)


def _end(slot: Held | None, passed: Callable[[], None]) -> None:
    if slot is not None:
        slot.release()
    passed()
