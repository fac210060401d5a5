"""Every error this package raises, each with one sentence and its data as attributes.

All of them derive from `AdmissionError`.  Errors about a request carry the HTTP ``status`` with which the
middleware answers; errors about a ticket carry the ticket's id.
"""

from __future__ import annotations


class AdmissionError(Exception):
    """Base of all errors of this package."""


class ConfigError(AdmissionError):
    """The configuration cannot be used.

    :param problems: one text for each problem, complete with file, section, option, value and expectation.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreError(AdmissionError):
    """The store could not carry out a step; the step has had no effect."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written just now; the same step may succeed later."""


class StoreRefused(StoreUnavailable):
    """The store refuses the user, the password or a right; until somebody changes that nothing can succeed."""


class StoreMismatch(StoreError):
    """The store was written by a version of this package that this one cannot work with."""


class DamagedRecording(StoreError):
    """A recorded request or response is not what was written.

    :param ticket_id: whose it is.
    :param kind: ``request`` or ``response``.
    """

    def __init__(self, ticket_id: str, kind: str) -> None:
        super().__init__(f"The recorded {kind} of ticket {ticket_id} is damaged.")
        self.ticket_id = ticket_id
        self.kind = kind


class TicketError(AdmissionError):
    """A step named a ticket that cannot take it.

    :param ticket_id: the id that was named.
    """

    def __init__(self, ticket_id: str, sentence: str) -> None:
        super().__init__(sentence)
        self.ticket_id = ticket_id


class UnknownTicket(TicketError):
    """No ticket has this id."""

    def __init__(self, ticket_id: str) -> None:
        super().__init__(ticket_id, f"There is no ticket {ticket_id}.")


class GoneTicket(TicketError):
    """The ticket was removed after its retention.

    :param owner: the account it belonged to, or an empty string.
    """

    def __init__(self, ticket_id: str, owner: str) -> None:
        super().__init__(ticket_id, f"Ticket {ticket_id} was removed after its retention.")
        self.owner = owner


class FinalTicket(TicketError):
    """The ticket is in a final state and cannot change any more.

    :param state: that state's value, for instance ``"completed"``.
    """

    def __init__(self, ticket_id: str, state: str) -> None:
        super().__init__(ticket_id, f"Ticket {ticket_id} is {state} already.")
        self.state = state


class LeaseLost(TicketError):
    """A worker wrote under an attempt that is no longer the current one.

    :param attempt: the attempt under which it tried.
    """

    def __init__(self, ticket_id: str, attempt: int) -> None:
        super().__init__(ticket_id, f"Attempt {attempt} at ticket {ticket_id} is not the current one.")
        self.attempt = attempt


class NotRetryable(TicketError):
    """The ticket did not fail, or its request is no longer there to be run again."""

    def __init__(self, ticket_id: str) -> None:
        super().__init__(ticket_id, f"Ticket {ticket_id} cannot be run again: its request is not kept.")


class KeyReused(TicketError):
    """A key that stands for one request came with another one.

    :param ticket_id: the ticket of the first request: for code, not for whoever sent the second.
    """

    status = "422 Unprocessable Content"

    def __init__(self, ticket_id: str) -> None:
        super().__init__(ticket_id, "This Idempotency-Key was sent with another request before.")


class RequestRefused(AdmissionError):
    """A request that can be neither recorded nor run: the client has to change it."""

    status = "400 Bad Request"


class SlowBody(RequestRefused):
    """The client sends its body too slowly, or not at all.

    :param received: bytes that arrived.
    """

    status = "408 Request Timeout"

    def __init__(self, received: int) -> None:
        super().__init__(f"The body came too slowly; {received} bytes have arrived.")
        self.received = received


class UntellableLength(RequestRefused):
    """Where the body ends cannot be known, so it cannot be read before the app does it."""


class InvalidKey(RequestRefused):
    """The Idempotency-Key is none."""

    def __init__(self) -> None:
        super().__init__("The Idempotency-Key must be a string in quotation marks, of 1 to 255 printable characters.")


class MalformedWait(RequestRefused):
    """The time that the client wants to wait is none."""

    def __init__(self) -> None:
        super().__init__("wait must be a whole number of seconds.")


class TruncatedBody(RequestRefused):
    """The body ended before its Content-Length.

    :param expected: bytes announced.
    :param received: bytes that arrived.
    """

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"The body ended after {received} of {expected} bytes.")
        self.expected = expected
        self.received = received


class InvalidLength(UntellableLength):
    """The Content-Length is not a whole number, 0 or more."""

    def __init__(self, value: str) -> None:
        super().__init__(f"Content-Length {value!r} is not a whole number, 0 or more.")
        self.value = value


class BodyTooLarge(RequestRefused):
    """The body is larger than the route's ``max_body``.

    :param limit: the largest body, in bytes.
    """

    status = "413 Content Too Large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than {limit} bytes.")
        self.limit = limit


class LengthRequired(UntellableLength):
    """The body's end cannot be told: it has no Content-Length and the server does not end the input."""

    status = "411 Length Required"

    def __init__(self) -> None:
        super().__init__("The body needs a Content-Length on this server.")
