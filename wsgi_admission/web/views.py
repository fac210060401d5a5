"""What a client sees of a ticket: the fields of the contract, and the headers that go with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from wsgi_admission.config import Config
from wsgi_admission.errors import AdmissionError
from wsgi_admission.load import Load
from wsgi_admission.policy import backoff
from wsgi_admission.policy.estimates import human
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.web import messages
from wsgi_admission.web.answers import Environ, iso, mounted
from wsgi_admission.web.outlook import Forecast, Outlook

#: Seconds that a pause is taken to last where a client is told when to ask again.
PAUSE = 60.0


class Views:
    """Puts tickets into words and numbers; the parameters are those of `Api`."""

    def __init__(
        self,
        store: Store,
        config: Config,
        load: Callable[[], Load],
        forecast: Forecast,
        *,
        clock: Callable[[], float],
        uniform: Callable[[], float],
    ) -> None:
        self._store = store
        self._config = config
        self._load = load
        self._forecast = forecast
        self._clock = clock
        self._uniform = uniform
        self._tiers = {tier.name: tier for tier in config.tiers.order}

    def accepted(
        self, environ: Environ, ticket: Ticket, *, ask: bool = True
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return what the 202 to a request that was queued says, and the headers that go with it.

        :param ask: whether the store is asked for its place; without that there is none.
        """
        now = self._clock()
        # It is in the line whatever the store says now, and whoever is told of an error sends it again.
        outlook, load = Outlook(None, None), 1.0
        pending = [("Retry-After", "1"), ("Admission-Status", ticket.state.value)]
        if ask:
            with suppress(AdmissionError):
                found = self._forecast.outlook(ticket, now=now)
                pending, outlook, load = self._pending(ticket, found), found, self._load().value
        urls = self._urls(environ, ticket)
        data = {
            "queued": True,
            "request_id": ticket.id,
            "status": ticket.state.value,
            "message": self._message(ticket, outlook),
            "queue_info": {
                **self._place(outlook),
                "priority": self._priority(ticket),
                "created_at": iso(ticket.created_at),
            },
            "server_load": round(load, 4),
            **urls,
            "retry_suggestion": self._suggestion(partial(messages.retry, paused=outlook.paused), 0, load, now),
        }
        return data, [*pending, ("Location", urls["result_url"])]

    def status(self, environ: Environ, ticket: Ticket) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return what a ticket's owner sees of it, and the headers that go with it."""
        now = self._clock()
        outlook = self._forecast.outlook(ticket, now=now)
        data = {
            "request_id": ticket.id,
            "status": ticket.state.value,
            "created_at": iso(ticket.created_at),
            "started_at": None if ticket.state is State.QUEUED else iso(ticket.started_at),
            "completed_at": iso(ticket.completed_at),
            "priority": self._priority(ticket),
            **self._place(outlook),
            "estimated_wait_p90": None if outlook.wait is None else round(outlook.wait.p90),
            "progress": ticket.progress,
            "progress_note": ticket.note,
            "attempt": ticket.attempt,
            "cancelling": ticket.being_cancelled,
            "message": self._message(ticket, outlook),
            **self._urls(environ, ticket),
        }
        if ticket.state is State.FAILED or (ticket.state is State.CANCELLED and ticket.error):
            data["error_message"] = ticket.error
            if ticket.retryable:
                data["retry_url"] = f"{data['status_url']}/retry"
        if ticket.state is State.FAILED:
            retry = min(ticket.crashes, 8)
            advice = messages.retry_kept if ticket.retryable else messages.retry_failed
            data["retry_suggestion"] = self._suggestion(advice, retry, self._load().value, now)
        return data, [] if ticket.state.final else self._pending(ticket, outlook)

    def _place(self, outlook: Outlook) -> dict[str, Any]:
        wait = None if outlook.wait is None else outlook.wait.p50
        return {
            "position_in_queue": outlook.position,
            "estimated_wait_time": None if wait is None else round(wait),
            "estimated_wait_human": None if wait is None else human(wait),
        }

    def _priority(self, ticket: Ticket) -> str:
        # A tier that the configuration no longer names is still served, by its old rank; it is shown as the last.
        tier = self._tiers.get(ticket.tier) or self._config.tiers.order[-1]
        return tier.priority

    def _message(self, ticket: Ticket, outlook: Outlook) -> str:
        tier = self._tiers.get(ticket.tier)
        return messages.status(
            ticket.state,
            position=outlook.position,
            wait=None if outlook.wait is None else outlook.wait.p50,
            paused=outlook.paused,
            cancelling=ticket.being_cancelled,
            hint=tier.hint if tier else "",
            error=ticket.error,
        )

    def _pending(self, ticket: Ticket, outlook: Outlook) -> list[tuple[str, str]]:
        waiting = sum(tally.queued for tally in self._store.counts().values())
        wait = PAUSE if outlook.paused else 0.0 if outlook.wait is None else outlook.wait.p50
        seconds = backoff.poll_interval(wait, waiting, self._uniform())
        return [("Retry-After", str(seconds)), ("Admission-Status", ticket.state.value)]

    def _suggestion(self, message: Callable[..., str], retry: int, load: float, now: float) -> dict[str, Any]:
        seconds = max(1, round(backoff.delay(retry, load, self._uniform())))
        return {
            "delay_seconds": seconds,
            "delay_human": human(seconds),
            "message": message(seconds, load),
            "retry_after": iso(now + seconds),
        }

    def base(self, environ: Environ) -> str:
        """Return the address of the API as clients see it."""
        return f"{self._config.api.base_url.rstrip('/')}{mounted(environ, self._config.api.prefix)}"

    def _urls(self, environ: Environ, ticket: Ticket) -> dict[str, str]:
        base = self.base(environ)
        return {
            "status_url": f"{base}/status/{ticket.id}",
            "result_url": f"{base}/result/{ticket.id}",
            "cancel_url": f"{base}/status/{ticket.id}",
            "events_url": f"{base}/events/{ticket.id}",
        }
