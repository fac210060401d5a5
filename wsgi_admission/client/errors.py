"""What can go wrong while a program waits for its request in the line of a site."""

from __future__ import annotations

from wsgi_admission.errors import AdmissionError


class WaitingError(AdmissionError):
    """A request is in the line, or was, and its answer did not come.

    What an adapter raises is an error of the library that it serves as well: a `requests.RequestException` or an
    `httpx.TransportError`.

    :param url: the address that it is about.
    :param status: the HTTP status that was answered, or 0.
    """

    def __init__(self, sentence: str, url: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.url = url
        self.status = status


class ForeignAddress(WaitingError):
    """The site sends the client to another origin to wait; nothing is sent there, credentials least of all."""


class TicketLost(WaitingError):
    """The site does not know the ticket (404), or has removed it (410)."""


class TicketCancelled(WaitingError):
    """The ticket was cancelled by somebody else: an operator, or its deadline."""


class UnexpectedAnswer(WaitingError):
    """The site's answer about the ticket is none that it should give, for instance a 401."""


class Unreachable(WaitingError):
    """The site did not answer about the ticket for too long."""


class WaitedTooLong(WaitingError, TimeoutError):
    """``max_wait`` is over; the ticket was cancelled."""


def of_both(error: WaitingError, general: type[Exception], timeout: type[Exception]) -> WaitingError:
    """Return the same error, which ``except`` for a library's error catches as well.

    :param general: the library's error for whatever is no timeout.
    """
    library = timeout if isinstance(error, WaitedTooLong) else general
    kind = type(error)
    both = type(kind.__name__, (kind, library), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    made: WaitingError = both(str(error), error.url, error.status)
    return made
