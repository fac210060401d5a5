"""The points of a step at which something can happen to it: before each call of SQLite or of the file system."""

from __future__ import annotations

import io
import sqlite3
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

#: What a store asks of the file system that can fail, or that leaves something behind.
FILE_CALLS = frozenset(
    {"open", "write", "pwrite", "fsync", "rename", "unlink", "mkdir", "mknod", "stat", "lstat", "scandir", "flush"}
)
SQLITE_CALLS = frozenset({"execute", "executemany", "fetchone", "fetchall", "connect"})


class Points:
    """Counts the points that this thread passes inside the block, and does something at one of them.

    :param number: at which, from 1 on; 0: at none.
    :param act: is given the function that is about to be called; it kills the process, or raises what that raises.
    :param threads: count those of the threads that begin inside the block instead, to their end.
    :param times: at how many in a row; where ``act`` raises the thread has to say `again` in between.
    """

    def __init__(self, number: int, act: Callable[[Any], None], *, threads: bool = False, times: int = 1) -> None:
        self._numbers, self._act = range(number, number + times if number else 0), act
        self._install = threading.setprofile if threads else sys.setprofile
        self.passed = 0

    def __enter__(self) -> Self:
        self._install(self._called)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self._install(None)
        return False

    def again(self) -> None:
        """Go on in this thread: Python has removed what raised."""
        sys.setprofile(self._called)

    def _called(self, _frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            return
        if of_sqlite(function) or _of_files(function):
            self.passed += 1
            if self.passed in self._numbers:
                self._act(function)


def of_sqlite(function: Any) -> bool:
    """Whether a function of C is one of SQLite's that can fail."""
    owner = getattr(function, "__self__", None)
    ours = isinstance(owner, (sqlite3.Connection, sqlite3.Cursor)) or function is sqlite3.connect
    return ours and function.__name__ in SQLITE_CALLS


def _of_files(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    of_files = getattr(function, "__module__", None) in {"posix", "io", "_io"} or isinstance(owner, io.IOBase)
    return of_files and function.__name__ in FILE_CALLS and not isinstance(owner, io.BytesIO)
