"""Run a recorded request against the app by the rules of PEP 3333, and record the answer.

An answer counts only when it is whole.  What a client of the direct request would have received decides:

* the app raises, or its iterable fails midway: the run has failed, and nothing of the answer is kept;
* fewer bytes than the app's own Content-Length: failed, since that client saw a broken transfer;
* more bytes: cut at the Content-Length, as servers do, and logged;
* ``close()`` raises after the last byte: the client had everything, so the answer counts; logged.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin
from wsgiref.util import FileWrapper

from wsgi_admission.errorlog import ErrorLog
from wsgi_admission.receiving import spool
from wsgi_admission.recording import Recording, address, bodiless, queueable, record, restore, serve, stated_lengths

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["MARK", "MAX_RESPONSE", "Outcome", "Recording", "queueable", "record", "restore", "run", "serve"]

#: The environ key that tells a replayed call: its value is the ticket.  No header can set a key with a dot.
MARK = "wsgi_admission.ticket"
#: The largest answer that is kept, in bytes: an app that never stops must not fill the disk.
MAX_RESPONSE = 4 * 1024**3

_log = logging.getLogger(__name__)

_RAISED = "The application raised an error while it ran this request."
_BROKEN = "The application gave no valid answer to this request."
_UNKEPT = "The application's answer could not be kept."
_UNREADABLE = "The recorded request could not be read."

# Control characters are forbidden (PEP 3333), characters beyond latin-1 cannot be sent, and a 1xx is no final answer.
_STATUS = re.compile(r"[2-9][0-9]{2}(?: [ -~\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")


class Outcome(NamedTuple):
    """What came of running a request.

    :param status: the status code of the answer; 0 when the app gave no usable one.
    :param response: the recorded answer, or None without a usable one; whoever receives it closes its body.
    :param error: for a status of 0 or from 500 up one sentence on why, for people; else empty.
    """

    status: int
    response: Recording | None
    error: str


def run(
    app: WSGIApplication, request: Recording, *, extras: Mapping[str, Any], max_response: int = MAX_RESPONSE
) -> Outcome:
    """Call ``app`` with the recorded request and record its answer; closes ``request.body``.

    Nothing that the app raises escapes, SystemExit and KeyboardInterrupt included; it is logged, and the
    outcome's sentence does not quote it.

    :param extras: added to the environ, for instance ``{MARK: ticket}``.
    :param max_response: the largest answer that is kept, in bytes.
    """
    with closing(request.body), ErrorLog() as errors:
        try:
            environ = _environ(request, errors)
        except ValueError:
            _log.exception("a recorded request could not be read")
            return Outcome(0, None, _UNREADABLE)
        environ.update(extras)
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        answer = _Answer(method, max_response)
        at = address(environ["SCRIPT_NAME"] + path, environ["QUERY_STRING"])
        try:
            _drive(app, environ, answer)
            response = answer.recording(at)
        except BaseException as error:  # noqa: BLE001 - the app must not end the thread, not even by SystemExit
            _log.error("the replay of %s %r failed", method, path, exc_info=error)
            answer.discard()
            return Outcome(0, None, error.sentence if isinstance(error, _Unusable) else answer.lost or _RAISED)
        code = int(answer.status[:3])
        return Outcome(code, response, f"The application answered {answer.status.strip()}." if code >= 500 else "")


def _environ(request: Recording, errors: ErrorLog) -> dict[str, Any]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        **json.loads(request.head),
        "wsgi.version": (1, 0),
        "wsgi.errors": errors,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    }
    environ.setdefault("PATH_INFO", "" if environ["SCRIPT_NAME"] else "/")
    restore(environ, request)
    return environ


def _drive(app: WSGIApplication, environ: dict[str, Any], answer: _Answer) -> None:
    path = environ["PATH_INFO"]  # the app may change its environ
    result = app(environ, answer.start_response)
    try:
        for data in result:
            answer.write(data)
    finally:
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        except BaseException:  # noqa: BLE001 - the answer is whole by now, or the error that broke it is on its way
            _log.exception("close() of the application's answer to %r raised", path)


class _Unusable(Exception):
    """The app's answer cannot be used.

    :param sentence: why, for people.
    """

    def __init__(self, detail: str, sentence: str = _BROKEN) -> None:
        super().__init__(detail)
        self.sentence = sentence


class _Answer:
    """Takes one answer of the app as a server does, into a file instead of a socket.

    ``lost`` says why part of the body is missing: the app may go on as if nothing were after ``write`` raised.
    """

    def __init__(self, method: str, limit: int) -> None:
        self.status = ""
        self.lost = ""
        self._method = method
        self._headers: list[tuple[str, str]] = []
        self._sent = False
        self._body = spool()
        self._length = 0
        self._limit = limit

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None = None,
    ) -> Callable[[bytes], None]:
        if exc_info:
            try:
                if self._sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # the traceback refers to this frame: leave no cycle behind
        elif self.status:
            raise _Unusable("start_response was called twice without exc_info")
        _check(status, headers)
        self.status, self._headers = status, list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        if not self.status:
            raise _Unusable("the body began before start_response was called")
        if not isinstance(data, bytes):
            raise _Unusable(f"the body holds {type(data).__name__}, not bytes")
        self._sent = self._sent or bool(data)
        if self._has_no_body():
            return
        self._length += len(data)
        if self._length > self._limit:
            self.lost = f"The application's answer is larger than {self._limit} bytes."
            raise _Unusable(self.lost, self.lost)
        try:
            self._body.write(data)
        except OSError:
            self.lost = _UNKEPT
            raise

    def recording(self, at: str) -> Recording:
        """Return the whole answer, or raise when it is none.

        It will be fetched from another address: a Location that is relative to ``at``, that of the request, is
        given from the root of the host.
        """
        if not self.status:
            raise _Unusable("the application never called start_response")
        if self.lost:
            raise _Unusable(self.lost, self.lost)
        headers = [(n, _from_root(at, value) if n.lower() == "location" else value) for n, value in self._headers]
        head = {"status": self.status, "headers": headers, "method": self._method, "address": at}
        try:
            self._fit_stated_length()
            self._body.seek(0)
        except OSError:
            self.lost = _UNKEPT
            raise
        return Recording(json.dumps(head, ensure_ascii=True), self._body, self._length)

    def discard(self) -> None:
        with suppress(OSError):  # a full disk fails once more on closing
            self._body.close()

    def _has_no_body(self) -> bool:
        return self._method == "HEAD" or bodiless(self.status)

    def _fit_stated_length(self) -> None:
        stated = stated_lengths(self._headers)
        if not stated or self._has_no_body():
            return
        length = int(stated.pop())
        if self._length < length:
            sentence = f"The application's answer ended after {self._length} of {length} bytes."
            raise _Unusable(sentence, sentence)
        if self._length > length:
            _log.warning("an answer was cut to its Content-Length of %d bytes; it had %d", length, self._length)
            self._body.truncate(length)
            self._length = length


def _from_root(at: str, location: str) -> str:
    """Return a Location (RFC 9110, 10.2.2) that means the same at every address of the host."""
    relative = location and not location.startswith("/") and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location)
    return urljoin(at, location) if relative else location


def _check(status: object, headers: object) -> None:
    """Raise unless a server could send this status and these headers."""
    if type(status) is not str or not _STATUS.fullmatch(status):
        raise _Unusable(f"status {status!r}: expected a str like '200 OK'")
    if not isinstance(headers, list):
        raise _Unusable(f"headers are {type(headers).__name__}, expected a list of (name, value)")
    for item in headers:
        if not isinstance(item, tuple) or len(item) != 2 or any(type(part) is not str for part in item):
            raise _Unusable(f"header {item!r}: expected a tuple of two str")
        if not _NAME.fullmatch(item[0]) or not _VALUE.fullmatch(item[1]):
            raise _Unusable(f"header {item[0]!r}: its name or value holds a character that is not allowed")
    stated = stated_lengths(headers)
    if len(stated) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in stated):
        raise _Unusable(f"Content-Length {sorted(stated)}: expected one whole number")
