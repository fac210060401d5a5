"""For requests: an adapter that waits through the line.

session = requests.Session()
session.mount("https://example.org/", AdmissionAdapter(max_wait=600, progress=True))
picture = session.post("https://example.org/api/generate", data={"prompt": "a lake"})
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from wsgi_admission.client.answers import Update
from wsgi_admission.client.driving import Through, run
from wsgi_admission.client.errors import WaitingError, of_both
from wsgi_admission.client.terms import Terms
from wsgi_admission.client.waiting import (
    CANCEL_TIMEOUT,
    LOOK_TIMEOUT,
    Asked,
    Call,
    Failure,
    Kind,
    Reply,
    headers_of,
    wants_body,
)

try:
    import requests
    from requests import exceptions
    from requests.adapters import HTTPAdapter
    from requests.utils import rewind_body
    from urllib3 import Timeout
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
except ModuleNotFoundError as missing:
    raise ImportError("AdmissionAdapter needs requests: pip install 'wsgi-admission[client]'") from missing


class AdmissionAdapter(HTTPAdapter):
    """Answers a request that was queued with the app's own answer, when that is there.

    Everything else goes through untouched, but for an Idempotency-Key in requests of methods that are not idempotent,
    and with that a Prefer where the read timeout or ``max_wait`` is short.

    :param max_wait: seconds after which a request that waits is given up and its ticket cancelled, or None.
    :param on_update: called with an `Update` after each look for the ticket; what it raises ends the waiting.
    :param progress: whether a bar on the terminal shows the place in the line; needs rich.
    :param terms: how often and how long it tries.
    :param sleep: called with the seconds of a pause.
    :param pool: parameters of requests' `HTTPAdapter`.

    Besides the errors of requests it raises `WaitingError`; those are a `requests.RequestException` too.
    """

    def __init__(
        self,
        *,
        max_wait: float | None = None,
        on_update: Callable[[Update], None] | None = None,
        progress: bool = False,
        terms: Terms | None = None,
        sleep: Callable[[float], object] = time.sleep,
        **pool: Any,
    ) -> None:
        super().__init__(**pool)
        self._through = Through(max_wait=max_wait, on_update=on_update, progress=progress, terms=terms)
        self._sleep = sleep

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - the signature is requests'
        timeout: Any = None,
        verify: bool | str = True,  # noqa: FBT001, FBT002
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send the request and return its answer, after the line if it was queued."""
        connection = {"stream": stream, "verify": verify, "cert": cert, "proxies": proxies}
        headers = headers_of(request.headers.items())
        asked = Asked(request.method or "GET", request.url or "", headers, _again(request), _read_timeout(timeout))
        first = True

        def send(call: Call) -> Reply | Failure:
            nonlocal first
            limit = CANCEL_TIMEOUT if call.kind in {Kind.CANCEL, Kind.RECALL} else timeout
            if call.kind not in {Kind.SUBMIT, Kind.RECALL}:
                limit = limit or LOOK_TIMEOUT
                return self._send(call, _request_for(call), timeout=limit, **connection)
            prepared = request.copy()
            prepared.headers.update(call.headers)
            if not first and hasattr(prepared.body, "seek"):
                rewind_body(prepared)
            first = False
            return self._send(call, prepared, timeout=limit, **connection)

        try:
            with self._through.one(asked) as waiting:
                response: requests.Response = run(waiting, send, self._sleep)
        except WaitingError as error:
            both = of_both(error, exceptions.RequestException, exceptions.Timeout)
            raise both from error.__cause__
        # It is the answer to this request; a redirect in it starts from here.
        response.request, response.url = request, request.url or ""
        return response

    def _send(self, call: Call, request: requests.PreparedRequest, **connection: Any) -> Reply | Failure:
        try:
            response = super().send(request, **connection)
            body = response.content if wants_body(call.kind, response.status_code, response.headers) else b""
        except exceptions.SSLError:
            raise
        except exceptions.ReadTimeout as error:
            return Failure(error, broke=False)
        except (exceptions.ConnectionError, exceptions.ChunkedEncodingError) as error:
            return Failure(error, sent=not _never_connected(error))
        return Reply(response.status_code, response.headers, body, response)


def _again(request: requests.PreparedRequest) -> bool:
    """Whether the body can be sent again: it is in memory, or a file that can be rewound."""
    body: Any = request.body
    position = getattr(request, "_body_position", None)
    return body is None or isinstance(body, bytes | str) or isinstance(position, int)


def _read_timeout(timeout: Any) -> float | None:
    """Return the seconds that requests waits for an answer, or None."""
    if isinstance(timeout, Timeout):
        running = timeout.clone()
        running.start_connect()  # before that it does not tell of its total
        timeout = running.read_timeout
    seconds: float | None = timeout[1] if isinstance(timeout, tuple) else timeout
    return seconds


def _request_for(call: Call) -> requests.PreparedRequest:
    request = requests.Request(call.method, call.url).prepare()
    request.url = call.url
    request.headers.clear()
    request.headers.update(call.headers)
    return request


def _never_connected(error: Exception) -> bool:
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, exceptions.ConnectTimeout) or isinstance(reason, NewConnectionError | ConnectTimeoutError)
