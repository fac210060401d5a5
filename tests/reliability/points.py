"""The points of a step at which something can happen to it: before each call of SQLite or of the file system."""

from __future__ import annotations

import io
import sqlite3
import sys
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
    :param act: is told whether the call is one of SQLite, and kills the process or raises what the call raises.
    """

    def __init__(self, number: int, act: Callable[[bool], None]) -> None:
        self._number, self._act = number, act
        self.passed = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._called)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        sys.setprofile(None)
        return False

    def _called(self, _frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            return
        of_sqlite = _of_sqlite(function)
        if of_sqlite or _of_files(function):
            self.passed += 1
            if self.passed == self._number:
                self._act(of_sqlite)


def _of_sqlite(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    ours = isinstance(owner, (sqlite3.Connection, sqlite3.Cursor)) or function is sqlite3.connect
    return ours and function.__name__ in SQLITE_CALLS


def _of_files(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    of_files = getattr(function, "__module__", None) in {"posix", "io", "_io"} or isinstance(owner, io.IOBase)
    return of_files and function.__name__ in FILE_CALLS and not isinstance(owner, io.BytesIO)
