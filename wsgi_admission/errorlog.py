"""The ``wsgi.errors`` of a replayed call: what the app writes there becomes log records."""

from __future__ import annotations

import io
import logging
import sys
import threading

from wsgi_admission.logs import printable

_log = logging.getLogger("wsgi_admission.app")
_emitting = threading.local()


class ErrorLog(io.TextIOBase):
    """A text stream of which each line becomes a warning of the logger ``wsgi_admission.app``.

    A line without an end is logged on ``flush`` and on ``close``.
    """

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        """Whether it can be written to: always."""
        return True

    def write(self, text: str, /) -> int:
        """Log the lines that ``text`` completes; return its length."""
        # A log handler may itself write to wsgi.errors (Flask's does): to log that would never end.
        if getattr(_emitting, "now", False):
            sys.stderr.write(text)
            return len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        self._emit(lines)
        return len(text)

    def flush(self) -> None:
        """Log the line that is not complete yet."""
        if not getattr(_emitting, "now", False):
            rest, self._rest = self._rest, ""
            self._emit([rest])

    def _emit(self, lines: list[str]) -> None:
        _emitting.now = True
        try:
            for line in filter(None, lines):
                _log.warning("%s", printable(line))
        finally:
            _emitting.now = False
