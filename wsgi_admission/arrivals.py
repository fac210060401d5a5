"""A matching request arrives: its body is read, and when it can be neither run nor kept it is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wsgi_admission.config import Route
from wsgi_admission.errors import AdmissionError, KeyReused, RequestRefused, UntellableLength
from wsgi_admission.logs import event
from wsgi_admission.receiving import Body, receive
from wsgi_admission.replay import queueable
from wsgi_admission.web.answers import Answer, Environ, problem, retry_later
from wsgi_admission.web.preferences import preferences

log = logging.getLogger("wsgi_admission.arrivals")


def received(environ: Environ, route: Route) -> Body | None:
    """Read the body; None if only the app can.

    :raises AdmissionError: when it cannot be had.
    """
    try:
        return receive(environ, max_body=route.max_body)
    except UntellableLength:
        return None  # as long as nothing has to wait, the app may read what we cannot


def prefers_queue(environ: Environ, body: Body | None) -> bool:
    """Whether the client prefers its request to be queued even if it could run at once, and that is possible."""
    readable = body is not None or "HTTP_TRANSFER_ENCODING" not in environ
    return readable and queueable(environ) and preferences(environ).respond_async


def holds(environ: Environ) -> bool:
    """Whether the client lets the answer to a request that got a ticket be held while that runs."""
    wanted = preferences(environ)
    return not wanted.respond_async and wanted.wait != 0


def refusal(error: AdmissionError, load: Callable[[], float], step: str) -> Answer:
    """Return the answer to a request that can be neither run nor kept.

    :param load: returns the load of this host, 0 to 1.
    :param step: what failed, for the log.
    """
    if isinstance(error, (RequestRefused, KeyReused)):
        return problem(int(error.status[:3]), str(error))
    event(log, "store.failing", level=logging.ERROR, step=step, error=error)
    return retry_later("The server cannot keep the request just now.", load())


def close(body: Body | None) -> None:
    """Close the body of a request that has ended."""
    if body is not None:
        body.file.close()


def closing(body: Body | None, ended: Callable[[], None]) -> Callable[[], None]:
    """Return ``ended`` with the closing of the body before it."""
    if body is None:
        return ended
    file = body.file

    def both() -> None:
        file.close()
        ended()

    return both
