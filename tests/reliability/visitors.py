"""Who sends requests to the site of the reliability tests."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Protocol

from tests.reliability.history import FINAL, Writer
from tests.support import Reply

ROUTES = ("/twice", "/once", "/narrow")
TIERS = ("donor", "registered", "anonymous")

#: Seconds after which a request with a key is sent again.
REPEAT = 0.05


class Ask(Protocol):
    """Asks a site for a path, with a method, a body, the header ``Who`` and further ones; 503 if nobody answers."""

    def __call__(self, path: str, method: str, body: bytes, who: str, **headers: str) -> Reply: ...


class Visitor:
    """Somebody who sends a few requests, looks after them until they are final, and begins anew.

    :param history: where it writes what it does and is told.
    :param seconds: how long its requests may take, at least and at most.
    :param routes: where it sends them.
    :param keyed: how many of its requests have an Idempotency-Key, 0 to 1; they are sent until they are accepted.
    """

    def __init__(
        self,
        ask: Ask,
        history: Writer,
        dice: random.Random,
        *,
        seconds: tuple[float, float] = (0.002, 0.03),
        routes: Sequence[str] = ROUTES,
        keyed: float = 0.0,
    ) -> None:
        self._ask, self._history, self._dice, self._seconds, self._routes = ask, history, dice, seconds, routes
        self._keyed = keyed
        self._with_keys: list[tuple[str, str, bytes, str]] = []

    def visit(self, requests: int) -> None:
        """Send requests and wait for all of them."""
        who = self.somebody()
        sent = [self.submit(who) for _ in range(requests)]
        self.look_after([ticket for ticket in sent if ticket is not None], who)

    def somebody(self) -> str:
        """Return a tier and a client."""
        return f"{self._dice.choice(TIERS)}:client {self._dice.randrange(4)}"

    def look_after(self, tickets: Iterable[str], who: str) -> None:
        """Ask for tickets again and again, until they are final."""
        waiting = set(tickets)
        while waiting:
            waiting -= {ticket for ticket in waiting if self._look(ticket, who)}

    def submit(self, who: str) -> str | None:
        """Send a request; return its ticket if it was accepted."""
        request = uuid.UUID(int=self._dice.getrandbits(128)).hex
        body = {"request": request, "seconds": self._dice.uniform(*self._seconds)}
        if self._dice.random() < 0.1:
            body["large"] = "x" * 300_000  # kept in a file
        route, content = self._dice.choice(self._routes), json.dumps(body).encode()
        keyed = self._dice.random() < self._keyed
        self._history.note("submitted", request=request, keyed=keyed)
        if keyed:
            self._with_keys.append((request, route, content, who))
            return self._submit_until_accepted(*self._with_keys[-1])
        return self._accepted(request, self._ask(route, "POST", content, who))

    def again(self) -> None:
        """Send all that had a key once more."""
        for one in self._with_keys:
            self._submit_until_accepted(*one)

    def _submit_until_accepted(self, request: str, route: str, content: bytes, who: str) -> str | None:
        while True:
            answer = self._ask(route, "POST", content, who, Idempotency_Key=f'"{request}"')
            if answer.status != 503:
                return self._accepted(request, answer, keyed=True)
            time.sleep(REPEAT)  # waits for the server

    def _accepted(self, request: str, answer: Reply, *, keyed: bool = False) -> str | None:
        if keyed and answer.status == 200:  # it has run
            self._history.note("answered", request=request, other=answer.json().get("request"))
            return None
        if answer.status != 202:
            self._history.note("refused", request=request, status=answer.status)
            return None
        ticket: str = answer.json()["request_id"]
        self._history.note("accepted", request=request, ticket=ticket)
        return ticket

    def _look(self, ticket: str, who: str) -> bool:
        asked = time.monotonic()
        answer = self._ask(f"/api/queue/status/{ticket}", "GET", b"", who)
        if answer.status == 503:
            return False
        told = answer.json() if answer.status == 200 else {}
        state = told.get("status")
        self._history.note(
            "seen",
            ticket=ticket,
            asked=asked,
            state=state,
            attempt=told.get("attempt"),
            position=told.get("position_in_queue"),
        )
        if state == "completed":
            answer = self._ask(f"/api/queue/result/{ticket}", "GET", b"", who)
            if answer.status == 503:
                return False
            self._history.note("answer", ticket=ticket, request=answer.json().get("request"))
        return state is None or state in FINAL
