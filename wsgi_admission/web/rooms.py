"""The waiting room: the page of one ticket, for a person in a browser.

It works without JavaScript, by the Refresh header.  With it `static/waiting.js` keeps the page up to date; what that
script writes is what stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from wsgi_admission.config import Config
from wsgi_admission.errors import AdmissionError
from wsgi_admission.languages import Language
from wsgi_admission.load import Load
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.web.answers import Answer, Environ, mounted
from wsgi_admission.web.durations import duration, wait_range
from wsgi_admission.web.messages import BUSY, VERY_BUSY
from wsgi_admission.web.pages import Pages
from wsgi_admission.web.results import leaves_the_page, page_address
from wsgi_admission.web.views import Views

#: The texts that the script writes too.
LIVE = (
    "You are next in line",
    "You are number {position} in line",
    "You are in line",
    "Your request is being worked on",
    "Your request is being cancelled",
    "The line is paused just now. You keep your place.",
    "Your answer is ready",
    "Show the answer",
    "It runs right now. Its answer appears here as soon as it is there.",
    "It may still run for a while. Its answer will be dropped.",
    "The connection is lost. You keep your place; this page tries again by itself.",
    "not known just now",
    "{number}%",
    "a moment",
    "a few seconds",
    "about {low} to {high}",
    "about {duration}",
    "up to {duration}",
    *(text for unit in ("second", "minute", "hour", "day") for text in (f"1 {unit}", f"{{number}} {unit}s")),
)
#: How many of those who are ahead are drawn.
DRAWN = 8


class Rooms:
    """Shows tickets to people; the parameters are those of `Api`."""

    def __init__(
        self,
        store: Store,
        config: Config,
        pages: Pages,
        views: Views,
        load: Callable[[], Load],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._prefix = config.api.prefix
        self._hints = {tier.name: tier.hint for tier in config.tiers.order}
        self._pages = pages
        self._views = views
        self._load = load
        self._clock = clock

    def admitted(self, environ: Environ, ticket: Ticket, *, ask: bool = True) -> Answer:
        """Answer a request that was queued; ``ask`` is as for `Views.accepted`."""
        data, headers = self._views.accepted(environ, ticket, ask=ask)
        seen = {**data, **data["queue_info"]}
        if ask:
            # It is in the line all the same, and whoever is told of an error sends it again.
            with suppress(AdmissionError):
                seen, _ = self._views.status(environ, ticket)
        return self._page(environ, ticket, 202, seen, headers)

    def status(self, environ: Environ, ticket: Ticket, *, code: int = 200) -> Answer:
        """Show where the ticket stands; once the app's own answer is there, lead to it.

        To one that would leave the page as it is, and waiting for ever, there is a link.
        """
        if ticket.state.final and ticket.state is not State.CANCELLED:
            response = self._store.response(ticket.id)
            if response is not None:
                response.body.close()
                if ticket.state is not State.COMPLETED or not leaves_the_page(response):
                    return self.lead(environ, f"result/{ticket.id}", page_address(response))
        data, headers = self._views.status(environ, ticket)
        return self._page(environ, ticket, code, data, headers)

    def lead(self, environ: Environ, path: str, below: str = "") -> Answer:
        """Send the browser to an address of the queue API; ``below`` is the end of it, quoted already."""
        address = mounted(environ, f"{self._prefix}/{path}") + below
        return Answer(303, [("Location", address), ("Content-Type", "text/plain; charset=utf-8")], address.encode())

    def _page(
        self, environ: Environ, ticket: Ticket, code: int, data: dict[str, Any], headers: list[tuple[str, str]]
    ) -> Answer:
        urls = {
            name: mounted(environ, f"{self._prefix}/{path}")
            for name, path in {
                "status_url": f"status/{ticket.id}",
                "result_url": f"result/{ticket.id}",
                "events_url": f"events/{ticket.id}",
                "cancel_url": f"status/{ticket.id}/cancel",
                "retry_url": f"status/{ticket.id}/retry",
            }.items()
        }
        t = self._pages.language(environ)
        if not ticket.state.final:
            headers = [*headers, ("Refresh", f"{dict(headers).get('Retry-After', '5')}; url={urls['status_url']}")]
        return self._pages.answer(
            environ,
            code,
            "waiting.html",
            *headers,
            language=t,
            **{**urls, **self._facts(ticket, data, t)},
            live=self._live(t),
        )

    def _facts(self, ticket: Ticket, data: dict[str, Any], t: Language) -> dict[str, Any]:
        position, p50 = data["position_in_queue"], data["estimated_wait_time"]
        p90 = data.get("estimated_wait_p90")
        waited = max(0.0, self._clock() - ticket.created_at)
        return {
            "state": ticket.state.value,
            "cancelling": ticket.being_cancelled,
            "heading": _heading(ticket, position, t),
            "position": position,
            "ahead": None if position is None else position - 1,
            "drawn": DRAWN,
            "wait": t("not known just now") if p50 is None else wait_range(p50, p50 if p90 is None else p90, t),
            "waited_seconds": round(waited),
            "waited": duration(waited, t),
            "doing": self._doing(ticket, t, paused=position is not None and p50 is None),
            "hint": self._hints.get(ticket.tier, ""),
            "progress": ticket.progress,
            "percent": "" if ticket.progress is None else t("{number}%", number=int(ticket.progress * 100)),
            "note": ticket.note,
            "error": ticket.error,
            "retryable": "retry_url" in data,
        }

    def _doing(self, ticket: Ticket, t: Language, *, paused: bool) -> str:
        if ticket.being_cancelled:
            return t("It may still run for a while. Its answer will be dropped.")
        if ticket.state is State.PROCESSING:
            return t("It runs right now. Its answer appears here as soon as it is there.")
        if paused:
            return t("The line is paused just now. You keep your place.")
        load = self._load().value
        if load >= VERY_BUSY:
            return t("The server is very busy just now. Requests run in order, and you keep your place.")
        if load >= BUSY:
            return t("The server is busy just now. Requests run in order, and you keep your place.")
        return t("Requests run in order, and you keep your place.")

    def _live(self, t: Language) -> dict[str, Any]:
        return {"tag": t.tag, "texts": {text: t(text) for text in LIVE}, "drawn": DRAWN}


def _heading(ticket: Ticket, position: int | None, t: Language) -> str:
    if ticket.being_cancelled:
        return t("Your request is being cancelled")
    if ticket.state is State.PROCESSING:
        return t("Your request is being worked on")
    if ticket.state is State.FAILED:
        return t("Your request failed")
    if ticket.state is State.CANCELLED:
        return t("Your request was cancelled")
    if ticket.state is State.COMPLETED:
        return t("Your answer is ready")
    if position is None:
        return t("You are in line")
    return t("You are next in line") if position == 1 else t("You are number {position} in line", position=position)
