"""The middleware: wrap a WSGI app, and the requests to its expensive routes wait in a line when it is loaded.

::

    from wsgi_admission import AdmissionMiddleware

    app = AdmissionMiddleware(app, "admission.ini")

Building it starts no thread and opens no file but the configuration.  What a process needs (the store, the
slots, the threads) is made at its first use in that process, so preloading and forking are safe.

A replayed call sees its ticket as ``environ["wsgi_admission.ticket"]``.  ``environ["wsgi_admission.progress"]`` and
``environ["wsgi_admission.cancelled"]`` are there for every request that matches a route (see progressing.py).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property

from wsgi_admission.arrivals import close, closing, holds, prefers_queue, received, refusal
from wsgi_admission.config import Config, Route, load_config
from wsgi_admission.errors import (
    AdmissionError,
    KeyReused,
    RequestRefused,
    StoreError,
    StoreUnavailable,
)
from wsgi_admission.load import Load, LoadMeter
from wsgi_admission.logs import event
from wsgi_admission.policy.decision import Mode, Verdict, decide
from wsgi_admission.process import Process, start_process
from wsgi_admission.progressing import NOT_QUEUED
from wsgi_admission.receiving import Body
from wsgi_admission.replay import MARK, Recording, queueable, record
from wsgi_admission.routes import API, Table
from wsgi_admission.running import App, run
from wsgi_admission.slotfile import SpareSlots
from wsgi_admission.slots import Slot, Slots
from wsgi_admission.stores import check_url
from wsgi_admission.stores.absent import absent
from wsgi_admission.ticket import Ticket
from wsgi_admission.tiers import Identity, Resolver
from wsgi_admission.web.answers import Answer, Environ, StartResponse, retry_later
from wsgi_admission.web.api import Api
from wsgi_admission.web.holding import Server
from wsgi_admission.web.origins import Origins
from wsgi_admission.web.pages import Pages
from wsgi_admission.web.repeats import NO_KEY, Key, key_of

log = logging.getLogger("wsgi_admission")

# Python before 3.12 takes long to look up a member of an enumeration.
_PASS_THROUGH, _SHADOW = Mode.PASS_THROUGH, Mode.SHADOW
_RUN, _QUEUE = Verdict.RUN, Verdict.QUEUE

#: Seconds between attempts to open a store that could not be opened.
REOPEN_INTERVAL = 1.0
#: Seconds for which a request with an Idempotency-Key waits for its answer, if it can start at once.
HOLD = 10.0
#: Seconds after which a client whose request is kept has waited long enough, and is not told its place too.
LONG_PUT = 0.5


class AdmissionMiddleware:
    """A WSGI app that puts a line in front of another one.

    :param app: the app to wrap.
    :param config: a `Config`, or the path of an INI file.
    :param replays: whether this process runs queued requests too; False where other processes do.
    :param resolver: says who is asking, instead of ``[tiers] resolver``: from the environ to a tier's name, or to
        a tier's name and a client's id, or to None.
    :param server_threads: how many requests this process answers at once.  A quarter of them may be event streams
        and answers that are held; with fewer than four there are none.
    :param server_timeout: seconds after which the server ends a process that is busy for too long, or None; an
        answer is held for half of it at most.
    :raises ConfigError: when the configuration cannot be used.
    """

    def __init__(
        self,
        app: App,
        config: Config | str | os.PathLike[str],
        *,
        replays: bool = True,
        resolver: Callable[[Environ], object] | None = None,
        server_threads: int = 4,
        server_timeout: float | None = None,
    ) -> None:
        self.app = app
        self.config = config if isinstance(config, Config) else load_config(config)
        check_url(self.config.store.url)
        self.replays = replays
        self._server = Server(server_threads, server_timeout)
        tiers = self.config.tiers
        self._identify = Resolver(
            [tier.name for tier in tiers.order],
            resolver=resolver or self.config.load_resolver(),
            header=tiers.header,
            trusted_proxies=tiers.trusted_proxies,
        )
        self._find = Table(self.config.routes, self.config.api.prefix).find
        self._pages = Pages(self.config)
        self._origins = Origins(self.config.api)
        self._mode = self.config.admission.mode
        self._process: Process | None = None
        self._inherited: Process | None = None
        self._starting = threading.Lock()
        self._failed_at = -REOPEN_INTERVAL
        self._spare_slots = SpareSlots(self.config)
        load = self.config.load
        self._spare_meter = LoadMeter(
            threshold=load.threshold, resume=load.resume, cpu_threshold=None, memory_threshold=None, sensors=()
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request: by the app, by the queue API, or with a place in the line."""
        # Local names: a method's own are looked up faster than an instance's callable attributes.
        find, app = self._find, self.app
        route = find(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
        # A replayed request has had its turn; what replays it may be no process of ours (see working.py).
        if route is None or MARK in environ:
            return app(environ, start_response)
        process = self._process_or_none()
        if process is not None and process.alone:
            process.look_for_others(environ)
        if route is not API:
            return self._admit(process, route, environ, start_response)
        api = self._spare_api if process is None else process.api
        return api(environ, start_response)

    def process(self) -> Process:
        """Return what this process needs, made at the first call.  Raises `StoreError` when it cannot be."""
        process = self._process
        if process is not None and process.pid == os.getpid():
            return process
        with self._starting:
            if self._process is None or self._process.pid != os.getpid():
                self._process = self._start()
            return self._process

    def started(self) -> Process | None:
        """Return what `process` has made in this process, or None if it has not made it yet."""
        process = self._process
        return process if process is not None and process.pid == os.getpid() else None

    def _start(self) -> Process:
        if time.monotonic() - self._failed_at < REOPEN_INTERVAL:
            raise StoreUnavailable("The store could not be opened a moment ago.")
        # What was made before a fork stays referenced: closing its connections here would harm the parent's.
        self._inherited = self._process
        try:
            process = start_process(self.app, self.config, self._identify, replays=self.replays, server=self._server)
        except StoreError as error:
            if self._failed_at < 0:  # once until it works
                event(log, "store.failing", level=logging.ERROR, step="open", error=error)
            self._failed_at = time.monotonic()
            raise
        if self._failed_at >= 0:
            event(log, "store.back", step="open")
        self._failed_at = -REOPEN_INTERVAL
        atexit.register(self.close)
        return process

    def drain(self, timeout: float) -> None:
        """Replay nothing more in this process: what runs has ``timeout`` seconds, then it returns to the line.

        Streams and held answers end at once.
        """
        if process := self.started():
            process.drain(timeout)

    def close(self) -> None:
        """End what this process does, and hand back what it runs.  A later request begins anew."""
        process, self._process = self._process, None
        if process is not None and process.pid == os.getpid():
            atexit.unregister(self.close)
            process.close()

    def _process_or_none(self) -> Process | None:
        try:
            return self.process()
        except StoreError:
            return None

    def _admit(
        self, process: Process | None, route: Route, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer a matching request; the store cannot be opened if ``process`` is None."""
        environ.update(NOT_QUEUED)
        if self._mode is _PASS_THROUGH:
            return self.app(environ, start_response)
        if self._mode is _SHADOW:
            return self._shadow(process, route, environ, start_response)
        try:
            body = received(environ, route)
        except AdmissionError as error:
            return self._refuse(environ, start_response, self._refusal(process, error, "body"))
        if environ.get("HTTP_IDEMPOTENCY_KEY", "").strip() and queueable(environ):
            return self._admit_once(process, route, body, environ, start_response)
        if process is None:
            return self._run_or_refuse(None, route, body, environ, start_response)
        who = self._identify(environ)
        at_once = "HTTP_PREFER" not in environ or not prefers_queue(environ, body)
        if at_once and _verdict(self._mode, process, who, route) is _RUN:
            slot = _take(process.slots, route)
            if slot is not None:
                passed = process.passing.begin(who.tier, route.name, shadowed=False)
                return run(self.app, environ, start_response, slot, closing(body, passed))
        return self._queue(process, route, who, body, NO_KEY, environ, start_response)

    def _admit_once(
        self, process: Process | None, route: Route, body: Body | None, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer a matching request with an Idempotency-Key.

        It always gets a ticket, which alone keeps the promise of a key, also to requests that come at the same time.
        """
        if process is None:
            # Nobody knows whether it is in the line already, and a key promises one run.
            close(body)
            answer = retry_later("The server cannot keep the request just now.", self._load(None))
            return self._refuse(environ, start_response, answer)
        try:
            key = key_of(environ, body)
        except RequestRefused as error:
            close(body)
            return self._refuse(environ, start_response, self._refusal(process, error, "key"))
        who = self._identify(environ)
        idle = holds(environ) and _verdict(self._mode, process, who, route) is _RUN
        return self._queue(process, route, who, body, key, environ, start_response, patience=HOLD if idle else 0.0)

    def _shadow(
        self, process: Process | None, route: Route, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Let the request through and count it: this mode changes nothing for anybody."""
        if process is None:
            return self.app(environ, start_response)
        who = self._identify(environ)
        verdict = _verdict(self._mode, process, who, route)
        slot = _take(process.slots, route)
        passed = process.passing.begin(who.tier, route.name, shadowed=verdict is _QUEUE or slot is None)
        return run(self.app, environ, start_response, slot, passed)

    def _queue(
        self,
        process: Process,
        route: Route,
        who: Identity,
        body: Body | None,
        key: Key,
        environ: Environ,
        start_response: StartResponse,
        *,
        patience: float = 0.0,
    ) -> Iterable[bytes]:
        """Put the request into the line; wait ``patience`` seconds for its answer."""
        if not queueable(environ):
            # It cannot be answered later, and may not get around the line either.
            close(body)
            answer = retry_later("The server is busy, and this request cannot be queued.", self._load(process))
            return self._refuse(environ, start_response, answer)
        asked = time.monotonic()
        try:
            ticket = self._put(process, route, who, record(environ, body), key)
        except (RequestRefused, KeyReused, StoreError) as error:
            if key != NO_KEY or not isinstance(error, StoreError):
                # Nobody knows whether it is there already, and a key promises that it runs once.
                close(body)
                return self._refuse(environ, start_response, self._refusal(process, error, "put"))
            event(log, "store.failing", level=logging.ERROR, step="put", route=route.name, error=error)
            if body is not None:
                body.file.seek(0)
            return self._run_or_refuse(process, route, body, environ, start_response)
        except BaseException:
            close(body)
            raise
        close(body)
        slow = time.monotonic() - asked > LONG_PUT
        return process.api.admitted(ticket, environ, start_response, ask=not slow, patience=patience)

    def _put(self, process: Process, route: Route, who: Identity, request: Recording, key: Key) -> Ticket:
        now = time.time()
        retries = self.config.admission.crash_retries if route.crash_retries is None else route.crash_retries
        new = Ticket(
            id=str(uuid.uuid4()),
            route=route.name,
            tier=who.tier,
            tier_rank=who.rank,
            client=who.client,
            owner=who.owner,
            cost=process.api.forecast.expected(route.name, now=now),
            crash_retries=retries,
            created_at=now,
        )
        ticket = process.store.put(new, request, now=now, key=key.value, digest=key.digest)
        if ticket.id == new.id:
            process.pool.wake()
            event(log, "ticket.queued", ticket=ticket.id, route=ticket.route, tier=ticket.tier)
        return ticket

    @cached_property
    def _spare_api(self) -> Api:
        """The queue API while the store cannot be opened: scripts, health and the figures of the host are there."""
        slots, server = self._spare_slots, self._server
        return Api(absent(), self.config, self._identify, self._spare_load, slots_in_use=slots.in_use, server=server)

    def _run_or_refuse(
        self,
        process: Process | None,
        route: Route,
        body: Body | None,
        environ: Environ,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Run a request that can be kept nowhere."""
        slot = _take(self._spare_slots if process is None else process.slots, route)
        if slot is None:
            close(body)
            answer = retry_later("The server is busy and cannot queue requests just now.", self._load(process))
            return self._refuse(environ, start_response, answer)
        return run(self.app, environ, start_response, slot, lambda: close(body))

    def _refuse(self, environ: Environ, start_response: StartResponse, answer: Answer) -> Iterable[bytes]:
        """Send a problem, or the page with the same text."""
        start_response = self._origins.telling(environ, start_response)
        return self._pages.problem(environ, answer).send(environ, start_response)

    def _refusal(self, process: Process | None, error: AdmissionError, step: str) -> Answer:
        return refusal(error, lambda: self._load(process), step)

    def _load(self, process: Process | None) -> float:
        """Return the load of this host; as far as it can be known, if the store cannot be opened."""
        return (self._spare_load() if process is None else process.load()).value

    def _spare_load(self) -> Load:
        return self._spare_meter.load(self._spare_slots.in_use(), self.config.admission.max_concurrent)


def _verdict(mode: Mode, process: Process, who: Identity, route: Route) -> Verdict:
    try:
        return decide(mode, process.load(), process.line(who.rank, route.name)).verdict
    except StoreError:
        return _RUN  # whether anybody waits cannot be known


def _take(slots: Slots, route: Route) -> Slot | None:
    """Take a slot; a kernel that cannot lock has none."""
    try:
        return slots.take(route.name)
    except StoreError:
        log.warning("no slot can be taken just now", exc_info=True)
        return None
