"""Waiting through the line, without any input or output.

`Waiting.steps` is a generator.  It yields what is to be done next, a `Call` to send or a `Pause` to make, and is sent
what came of it: a `Reply` or a `Failure` for a call, None for a pause.  It returns the reply that is the caller's.
So every adapter, in threads or on an event loop, behaves alike, and tests need neither network nor time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable
from enum import Enum
from typing import Any, NamedTuple

from wsgi_admission.client import answers
from wsgi_admission.client.answers import IDEMPOTENT, Places, Update
from wsgi_admission.client.errors import TicketCancelled, TicketLost, UnexpectedAnswer, Unreachable, WaitedTooLong
from wsgi_admission.client.terms import Terms
from wsgi_admission.policy import backoff

#: Seconds for one look where the caller has set no timeout, and for a cancellation.
LOOK_TIMEOUT = 30.0
CANCEL_TIMEOUT = 5.0
#: Seconds for which a site that is idle holds a request with an Idempotency-Key, unless that prefers another time.
HOLD = 10.0


class Kind(Enum):
    """What a call is for."""

    SUBMIT = "submit"  # the caller's own request, with the call's headers set besides
    RECALL = "recall"  # the same once more, to learn its ticket
    LOOK = "look"
    FETCH = "fetch"
    CANCEL = "cancel"


class Call(NamedTuple):
    """A request to send."""

    kind: Kind
    method: str
    url: str
    headers: list[tuple[str, Any]]


class Pause(NamedTuple):
    """A time in which nothing is done, in seconds."""

    seconds: float


class Reply(NamedTuple):
    """An answer.

    :param headers: a mapping that does not look at the case of names.
    :param body: the whole body where `wants_body` said so, else empty.
    :param native: the library's own response.  Whoever drives the steps closes it, unless it is the one returned.
    """

    status: int
    headers: Any
    body: bytes
    native: Any


class Failure(NamedTuple):
    """No answer came.

    :param sent: whether the request may have reached the site.
    :param broke: whether the connection failed; otherwise the caller's own timeout ran out.
    """

    error: Exception
    sent: bool = True
    broke: bool = True


class Asked(NamedTuple):
    """The caller's request.

    :param repeatable: whether its body can be sent again.
    :param read_timeout: seconds that the caller waits for an answer, or None if that has no end.
    """

    method: str
    url: str
    headers: list[tuple[str, Any]]
    repeatable: bool
    read_timeout: float | None = None


Steps = Generator["Call | Pause", Any, Reply]


def wants_body(kind: Kind, status: int, headers: Any) -> bool:
    """Whether the steps read the body of an answer themselves; all others may be of any size."""
    return kind in {Kind.LOOK, Kind.CANCEL} or answers.is_pending(status, headers)


class Waiting:
    """One request on its way through the line.

    :param max_wait: seconds after which it is given up, counted from the first step, or None.
    :param tell: called with where the ticket stands, after each look; what it raises ends the waiting.
    """

    def __init__(self, asked: Asked, terms: Terms, *, max_wait: float | None, tell: Callable[[Update], None]) -> None:
        self._asked = asked
        self._terms = terms
        self._max_wait = max_wait
        self._tell = tell
        self._began = terms.clock()
        self._places = Places("", "", "")
        self._key: list[tuple[str, Any]] = []
        self._unheard = False  # whether it may have a ticket that only its key can tell

    def steps(self) -> Steps:
        """Yield what is to be done; return the caller's answer.

        :raises WaitingError: of one kind or another.
        """
        reply = yield from self._submit()
        state = ""
        while answers.is_pending(reply.status, reply.headers):
            self._learn(reply)
            if not self._places.status:  # the 202 was a page for people: ask for JSON
                reply = yield from self._look(self._places.result)
                self._learn(reply)
            if answers.is_pending(reply.status, reply.headers):
                state = yield from self._until_final(reply)
            reply = yield from self._fetch(state)
        self._places = Places("", "", "")
        return reply

    def cancelling(self) -> Generator[Call, Any, None]:
        """Yield what gives the place in the line up after an interruption; nothing when there is none to give up."""
        asked = self._asked
        if self._unheard:
            # An idle site holds the request and has not told the ticket yet.  It knows the key.
            headers = [*self._key, ("Accept", "application/json"), ("Prefer", "wait=0")]
            outcome: Reply | Failure = yield Call(Kind.RECALL, asked.method, asked.url, headers)
            if isinstance(outcome, Reply) and answers.is_pending(outcome.status, outcome.headers):
                self._learn(outcome)
        if self._places.cancel:
            yield Call(Kind.CANCEL, "DELETE", self._places.cancel, answers.looking(asked.headers, "application/json"))

    def _submit(self) -> Steps:
        """Send the request, and again while that is of use and within the budget."""
        asked = self._asked
        self._terms.budget.deposit(self._terms.clock())
        keyed = own = any(name.lower() == "idempotency-key" for name, _ in asked.headers)
        if asked.method not in IDEMPOTENT and not keyed:
            self._key, keyed = [("Idempotency-Key", f'"{uuid.uuid4()}"')], True
        retry = 0
        while True:
            headers = self._key + (self._patience() if keyed else [])
            # Who has set a key knows that it is heeded; with one of ours the request might run twice for nothing.
            self._unheard = own and asked.repeatable and self._terms.resend
            outcome: Reply | Failure = yield Call(Kind.SUBMIT, asked.method, asked.url, headers)
            self._unheard = self._unheard and isinstance(outcome, Failure) and outcome.sent
            pause = self._before_retry(outcome, retry)
            if pause is None:
                break
            yield Pause(pause)
            retry += 1
        self._unheard = False  # what has failed for good is no interruption: the caller may send it again
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def _patience(self) -> list[tuple[str, str]]:
        """Return the Prefer of a request with a key, which an idle site holds while it runs.

        Its 202 must come before the caller has given up.
        """
        asked = self._asked
        held = min(self._left(), HOLD if asked.read_timeout is None else asked.read_timeout / 2)
        if held >= HOLD:
            return []
        return answers.preferring(asked.headers, f"wait={int(held + 0.01)}")  # of max_wait a moment has passed

    def _before_retry(self, outcome: Reply | Failure, retry: int) -> float | None:
        """Return the seconds until the request is sent again, or None when it shall not be."""
        terms = self._terms
        if retry + 1 >= terms.tries or not self._asked.repeatable or not self._may_repeat(outcome):
            return None
        told = answers.retry_after(outcome.headers, terms.wall()) if isinstance(outcome, Reply) else None
        pause = max(told or 0.0, self._backoff(retry))
        if (told or 0.0) > terms.longest_pause or pause >= self._left():
            return None
        return pause if terms.budget.take(terms.clock()) else None

    def _may_repeat(self, outcome: Reply | Failure) -> bool:
        if isinstance(outcome, Reply):
            return outcome.status in {429, 503}
        if not outcome.sent:
            return True
        return outcome.broke and (self._asked.method in IDEMPOTENT or self._terms.resend)

    def _until_final(self, reply: Reply) -> Generator[Call | Pause, Any, str]:
        """Look for the ticket until its state is final; return the state, or nothing where only the result tells it."""
        self._tell(self._update(reply))
        while True:
            told = answers.retry_after(reply.headers, self._terms.wall())
            yield from self._rest(max(1.0, told or 1.0))
            reply = yield from self._look(self._places.status or self._places.result)
            if not self._places.status and not answers.is_pending(reply.status, reply.headers):
                return ""
            self._learn(reply)
            update = self._update(reply)
            if update.state in answers.FINAL:
                self._places = self._places._replace(cancel="")
            self._tell(update)
            if update.state == "cancelled":
                raise TicketCancelled(update.message or "The ticket was cancelled.", self._places.status)
            if update.state in answers.FINAL:
                return update.state

    def _look(self, url: str) -> Steps:
        """Ask where the ticket stands."""
        call = Call(Kind.LOOK, "GET", url, answers.looking(self._asked.headers, "application/json"))
        reply = yield from self._ask(call, lambda reply: reply.status == 429 or reply.status >= 500)
        if reply.status in {404, 410}:
            self._places = Places("", "", "")
            sentence = f"The site has no ticket at {url} (any more): it answered {reply.status}."
            raise TicketLost(sentence, url, reply.status)
        known = answers.is_pending(reply.status, reply.headers) or answers.read_json(reply.body).get("status")
        if url == self._places.status and not known:
            raise UnexpectedAnswer(f"The site answered {reply.status} when asked for {url}.", url, reply.status)
        return reply

    def _fetch(self, state: str) -> Steps:
        """Get the app's answer.  When it is known to be below 500, one above is not the app's.

        It was made for the Accept of the request; who asks for HTML here is taken for a browser and led elsewhere.
        """
        method = "HEAD" if self._asked.method == "HEAD" else "GET"
        call = Call(Kind.FETCH, method, self._places.result, answers.looking(self._asked.headers, "*/*"))
        return (yield from self._ask(call, lambda reply: state == "completed" and reply.status >= 500))

    def _ask(self, call: Call, troubled: Callable[[Reply], bool]) -> Steps:
        """Send a call about the ticket until it is answered: servers are restarted while people wait."""
        terms, retry = self._terms, 0
        since: float | None = None
        while True:
            outcome: Reply | Failure = yield call
            if isinstance(outcome, Reply) and not troubled(outcome):
                return outcome
            now = terms.clock()
            since = now if since is None else since
            if now - since >= terms.outage:
                sentence = f"The site has not told about the ticket at {call.url} for {now - since:.0f} seconds."
                error = Unreachable(sentence, call.url, 0 if isinstance(outcome, Failure) else outcome.status)
                raise error from (outcome.error if isinstance(outcome, Failure) else None)
            told = answers.retry_after(outcome.headers, terms.wall()) if isinstance(outcome, Reply) else None
            yield from self._rest(max(told or 0.0, min(self._backoff(retry), 30.0)))
            retry += 1

    def _rest(self, seconds: float) -> Generator[Pause, None, None]:
        left = self._left()
        if left > 0:
            yield Pause(min(seconds, self._terms.longest_pause, left))
        if self._left() <= 0:
            sentence = f"The request waited in line for {self._max_wait:g} seconds and is given up."
            raise WaitedTooLong(sentence, self._asked.url)

    def _backoff(self, retry: int) -> float:
        return backoff.delay(retry, 0.0, self._terms.uniform(), base=1.0, cap=self._terms.longest_pause)

    def _left(self) -> float:
        """Return the seconds of ``max_wait`` that are left."""
        return float("inf") if self._max_wait is None else self._began + self._max_wait - self._terms.clock()

    def _learn(self, reply: Reply) -> None:
        """Take the addresses from an answer; those of another origin are refused."""
        data = answers.read_json(reply.body)
        given = {
            "status": data.get("status_url"),
            "result": data.get("result_url") or reply.headers.get("Location"),
            "cancel": data.get("cancel_url"),
        }
        found = {name: answers.same_origin(self._asked.url, url) for name, url in given.items() if _is_address(url)}
        self._places = self._places._replace(**found)
        if not self._places.result:
            raise UnexpectedAnswer("The site put the request in its line and did not tell where.", self._asked.url, 202)

    def _update(self, reply: Reply) -> Update:
        return answers.update_of(answers.read_json(reply.body), reply.headers.get("Admission-Status", ""))


def _is_address(given: object) -> bool:
    return isinstance(given, str) and given != ""


def headers_of(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    """Return header fields with their names as text; a library may keep them as bytes."""
    return [(name.decode("latin-1") if isinstance(name, bytes) else name, value) for name, value in pairs]
