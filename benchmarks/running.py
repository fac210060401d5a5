"""``run``: what a matching request pays for the line on an idle server, where it runs at once.

The verdict is RUN: the request is identified, the load and the line are looked at, a slot is taken, and given back
when the answer is closed.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from timeit import Timer
from typing import Any

from benchmarks.harness import Report, interleaved, medians, us, verdict
from benchmarks.site import ROUTES, environ, idle, middleware, sqlite_url, start_response
from wsgi_admission import AdmissionMiddleware
from wsgi_admission.policy.decision import Mode, decide
from wsgi_admission.replay import queueable
from wsgi_admission.routes import Table
from wsgi_admission.running import run as run_app
from wsgi_admission.stores.records import Passed
from wsgi_admission.tiers import Resolver

QUICK = {"turns": 101}
#: Seconds that the line may add.
TARGET = 10e-6
#: Requests that the housekeeper writes down together in the benchmark.
BATCH = 1000
PATH = f"/{ROUTES[0]}"
_SERVE = """
answer = app(environ, start_response)
for _ in answer:
    pass
close = getattr(answer, "close", None)
if close is not None:
    close()
"""


def run(*, turns: int = 501, calls: int = 50) -> Report:
    """Measure the whole and its parts, for both stores; ``turns`` of ``calls`` calls each."""
    rows: list[tuple[str, ...]] = []
    with TemporaryDirectory() as folder:
        built = {"sqlite": middleware(sqlite_url(Path(folder))), "memory": middleware("memory://")}
        try:
            # Without the housekeeper: its first look at a busy CPU would end the idleness that is measured here.
            for line in built.values():
                line.process().housekeeper.stop()
            names = {"environ": environ("POST", PATH), "start_response": start_response}
            apps = {"bare": idle, **built}
            timers = {side: Timer(_SERVE, globals={**names, "app": app}) for side, app in apps.items()}
            found = medians(interleaved(timers, turns=turns, calls=calls))
            for kind, line in built.items():
                assert not line.process().store.counts(), "a request was queued: the server was not idle"
                added = found[kind] - found["bare"]
                rows.append((f"{kind}: added in all", us(added), verdict(met=added <= TARGET)))
                parts = medians(interleaved(_parts(line), turns=turns, calls=calls))
                rows += [(f"  {part}", us(seconds), "") for part, seconds in parts.items()]
                rows.append(("  written down later, once a second", us(_observe(line, turns=turns)), ""))
        finally:
            for line in built.values():
                line.close()
    return Report(
        f"run: added to a matching request on an idle server (target: at most {us(TARGET)})",
        f"The bare app takes {us(found['bare'])} with iterating and close(). Medians of {turns} interleaved turns of"
        f" {calls} calls; the parts are measured by themselves, calls through a lambda of about 0.03 µs included."
        " The housekeeper is stopped.",
        ("", "time", "target"),
        rows,
    )


def _parts(line: AdmissionMiddleware) -> dict[str, Timer]:
    """Return the steps of one request in their order."""
    process, config, env = line.process(), line.config, environ("POST", PATH)
    table = Table(config.routes, config.api.prefix)
    identify = Resolver([tier.name for tier in config.tiers.order])
    load, waiting = process.load(), process.line(2, ROUTES[0])
    steps = {
        "the route is found": lambda: table.find(env["REQUEST_METHOD"], env["PATH_INFO"]),
        "the process's parts": line.process,
        "can it be queued": lambda: queueable(env),
        "who is asking": lambda: identify(env),
        "the load, with the slots in use": process.load,
        "the line (counts)": lambda: process.line(2, ROUTES[0]),
        "the decision": lambda: decide(Mode.AUTO, load, waiting),
        "a slot taken and given back": lambda: _both(process.slots),
        "the run is noted": process.passing.begin("anonymous", ROUTES[0], shadowed=False),
        "the answer is wrapped and closed": lambda: run_app(idle, env, start_response, None, _nothing).close(),  # type: ignore[attr-defined]  # it is a Running
        "(of that the bare app)": lambda: idle(env, start_response),
    }
    return {name: Timer(step) for name, step in steps.items()}


def _both(slots: Any) -> None:
    slots.take(ROUTES[0]).release()


def _nothing() -> None:
    """Stand for what is called at the end."""


def _observe(line: AdmissionMiddleware, *, turns: int) -> float:
    """Return the seconds for each request that the housekeeper needs to write a batch of them down."""
    passed = [Passed("anonymous", route, 0.01) for route in ROUTES] * (BATCH // len(ROUTES))
    timer = Timer(lambda: line.process().store.observe(passed, now=time.time()))
    return median(timer.timeit(1) for _ in range(1 + turns // 50)) / len(passed)
