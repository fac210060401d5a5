"""Closing SQLite connections before a fork.

SQLite keeps the locks of a process in static memory.  A child that inherits an open connection takes them for
its own, although the kernel gave it none: even a connection that it opens anew is then without locks, and a
checkpoint of somebody else can pull the file from under it.  So everything is closed before a fork, and opened
again by whoever needs it, on either side.  What was forked without Python's knowledge is refused.
"""

from __future__ import annotations

import abc
import os
import threading
import weakref

from wsgi_admission.errors import StoreError

_everywhere: weakref.WeakSet[Forkable] = weakref.WeakSet()
_held: list[Forkable] = []
# Python calls the hooks of two threads that fork at once in any order.
_forking = threading.Lock()


class Forkable(abc.ABC):
    """Something that has connections open, from its creation until it is `forgotten`."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        _everywhere.add(self)

    def forgotten(self) -> None:
        """Take no more notice of this one: nothing of it is open."""
        _everywhere.discard(self)

    def refuse_inherited(self) -> None:
        """Raise StoreError if another process opened this, and so in this one nothing on the file is locked."""
        if self.pid != os.getpid():
            raise StoreError(
                f"A SQLite store of process {self.pid} was inherited by a fork that Python was not told of; "
                "open stores after forking only."
            )

    @abc.abstractmethod
    def before_fork(self) -> None:
        """Close every connection, and hold everybody off until `after_fork`."""

    @abc.abstractmethod
    def after_fork(self) -> bool:
        """Let everybody go on; return whether nothing was left open."""


def refuse_inherited() -> None:
    """Raise StoreError if this process has connections that its parent opened."""
    for one in list(_everywhere):
        one.refuse_inherited()


def _before() -> None:
    _forking.acquire()
    _held[:] = list(_everywhere)
    for one in _held:
        one.before_fork()


def _after() -> None:
    for one in _held:
        if one.after_fork():
            one.pid = os.getpid()
    _held.clear()
    _forking.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
