"""For programs that call a queued site: their requests wait through the line as if the site had only been slow.

`AdmissionAdapter` is for requests, `AdmissionTransport` and `AsyncAdmissionTransport` are for httpx.  Each library is
imported when its adapter is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsgi_admission.client.answers import Update
from wsgi_admission.client.errors import (
    ForeignAddress,
    TicketCancelled,
    TicketLost,
    UnexpectedAnswer,
    Unreachable,
    WaitedTooLong,
    WaitingError,
)
from wsgi_admission.client.terms import RetryBudget, Terms

if TYPE_CHECKING:
    from wsgi_admission.client.httpx import AdmissionTransport, AsyncAdmissionTransport
    from wsgi_admission.client.requests import AdmissionAdapter

__all__ = [
    "AdmissionAdapter",
    "AdmissionTransport",
    "AsyncAdmissionTransport",
    "ForeignAddress",
    "RetryBudget",
    "Terms",
    "TicketCancelled",
    "TicketLost",
    "UnexpectedAnswer",
    "Unreachable",
    "Update",
    "WaitedTooLong",
    "WaitingError",
]


def __getattr__(name: str) -> Any:
    if name == "AdmissionAdapter":
        from wsgi_admission.client.requests import AdmissionAdapter  # noqa: PLC0415 - see above

        return AdmissionAdapter
    if name in {"AdmissionTransport", "AsyncAdmissionTransport"}:
        from wsgi_admission.client import httpx  # noqa: PLC0415 - see above

        return getattr(httpx, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
