"""For httpx: transports that wait through the line, around another transport.

with httpx.Client(transport=AdmissionTransport(max_wait=600)) as client:
picture = client.post("https://example.org/api/generate", data={"prompt": "a lake"})
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from wsgi_admission.client.answers import Update
from wsgi_admission.client.driving import Through, run, run_async
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
    import anyio
    import httpx
except ModuleNotFoundError as missing:
    raise ImportError("AdmissionTransport needs httpx: pip install 'wsgi-admission[client]'") from missing


class AdmissionTransport(httpx.BaseTransport):
    """Answers a request that was queued with the app's own answer, when that is there.

    Everything else goes through untouched, but for an Idempotency-Key in requests of methods that are not idempotent,
    and with that a Prefer where the read timeout or ``max_wait`` is short.

    :param transport: what sends the requests; a new `httpx.HTTPTransport` when there is none.
    :param max_wait: seconds after which a request that waits is given up and its ticket cancelled, or None.
    :param on_update: called with an `Update` after each look for the ticket; what it raises ends the waiting.
    :param progress: whether a bar on the terminal shows the place in the line; needs rich.
    :param terms: how often and how long it tries.
    :param sleep: called with the seconds of a pause.

    Besides the errors of httpx it raises `WaitingError`; those are an `httpx.TransportError` too.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | None = None,
        *,
        max_wait: float | None = None,
        on_update: Callable[[Update], None] | None = None,
        progress: bool = False,
        terms: Terms | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._inner = transport or httpx.HTTPTransport()
        self._through = Through(max_wait=max_wait, on_update=on_update, progress=progress, terms=terms)
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its answer, after the line if it was queued."""

        def send(call: Call) -> Reply | Failure:
            try:
                response = self._inner.handle_request(_request_for(call, request))
                body = response.read() if wants_body(call.kind, response.status_code, response.headers) else b""
            except httpx.TransportError as error:
                return _failure(error)
            return Reply(response.status_code, response.headers, body, response)

        try:
            with self._through.one(_asked(request)) as waiting:
                response: httpx.Response = run(waiting, send, self._sleep)
        except WaitingError as error:
            raise of_both(error, httpx.TransportError, httpx.ReadTimeout) from error.__cause__
        return response

    def close(self) -> None:
        """Close the transport that sends."""
        self._inner.close()


class AsyncAdmissionTransport(httpx.AsyncBaseTransport):
    """Does what `AdmissionTransport` does on an event loop, asyncio's or Trio's; the parameters are the same.

    A task that is cancelled while it waits cancels its ticket before it ends.

    :param sleep: called with the seconds of a pause, and awaited.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        max_wait: float | None = None,
        on_update: Callable[[Update], None] | None = None,
        progress: bool = False,
        terms: Terms | None = None,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self._inner = transport or httpx.AsyncHTTPTransport()
        self._through = Through(max_wait=max_wait, on_update=on_update, progress=progress, terms=terms)
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its answer, after the line if it was queued."""

        async def send(call: Call) -> Reply | Failure:
            try:
                response = await self._inner.handle_async_request(_request_for(call, request))
                wanted = wants_body(call.kind, response.status_code, response.headers)
                body = await response.aread() if wanted else b""
            except httpx.TransportError as error:
                return _failure(error)
            return Reply(response.status_code, response.headers, body, response)

        try:
            with self._through.one(_asked(request)) as waiting:
                response: httpx.Response = await run_async(waiting, send, self._sleep)
        except WaitingError as error:
            raise of_both(error, httpx.TransportError, httpx.ReadTimeout) from error.__cause__
        return response

    async def aclose(self) -> None:
        """Close the transport that sends."""
        await self._inner.aclose()


def _asked(request: httpx.Request) -> Asked:
    # A form with files rewinds them itself; any other stream may be at its end.
    form = request.headers.get("Content-Type", "").startswith("multipart/form-data")
    again = isinstance(request.stream, httpx.ByteStream) or form
    read = (request.extensions.get("timeout") or {}).get("read")
    return Asked(request.method, str(request.url), headers_of(request.headers.multi_items()), again, read)


def _request_for(call: Call, request: httpx.Request) -> httpx.Request:
    given = request.extensions.get("timeout") or {}
    limits: dict[str, Any] = {name: given.get(name) or LOOK_TIMEOUT for name in ("connect", "read", "write", "pool")}
    if call.kind in {Kind.CANCEL, Kind.RECALL}:
        limits = dict.fromkeys(limits, CANCEL_TIMEOUT)
    extensions = request.extensions if call.kind is Kind.SUBMIT else {**request.extensions, "timeout": limits}
    if call.kind not in {Kind.SUBMIT, Kind.RECALL}:
        return httpx.Request(call.method, call.url, headers=call.headers, extensions=extensions)
    headers = request.headers.copy()
    headers.update(call.headers)
    return httpx.Request(call.method, request.url, headers=headers, stream=request.stream, extensions=extensions)


def _failure(error: httpx.TransportError) -> Failure:
    never = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    return Failure(error, sent=not never, broke=isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError))
