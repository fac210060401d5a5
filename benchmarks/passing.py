"""``pass``: what a request that matches no route pays for the line.

Every call gets a new string for its path, as from a server: what is remembered by path must pay for its hash.
Beside it stand the app called directly, a class that only hands the call on, and a class that first tries one
expression for the same eight paths: the last two are what any middleware of this kind costs on this machine.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from timeit import Timer
from typing import Any

from benchmarks.harness import Report, interleaved, medians, us, verdict
from benchmarks.site import environ, idle, start_response
from wsgi_admission import AdmissionMiddleware, load_config

SHIPPED = Path(__file__).parent.parent / "conf" / "admission.ini"
QUICK = {"turns": 201}
#: Seconds that the line may add.
TARGET = 0.3e-6
#: ``{}`` stands for a number that never comes again.
PATHS = (
    "/",
    "/static/css/site.min.css",
    "/api/users/12345/orders",
    "/api/users/{}/orders",
    "/blog/2026/01/a-long-title-that-says-everything-about-what-the-article-is-going-to-say-in-the-end",
)
METHODS = ("GET", "POST")
_CALL = "environ['PATH_INFO'] = next(paths); app(environ, start_response)"


class Nothing:
    """A middleware that hands every call on."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Hand the call on."""
        answer: Iterable[bytes] = self.app(environ, start_response)
        return answer


class OneExpression(Nothing):
    """A middleware that tries one expression for all paths before it hands the call on."""

    def __init__(self, app: Any, paths: Iterable[str]) -> None:
        super().__init__(app)
        self.match = re.compile("(?:" + "|".join(map(re.escape, paths)) + r")\Z").match

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Hand the call on unless the path is one of them."""
        if self.match(environ["PATH_INFO"]):
            raise AssertionError("the benchmark asks for no such path")
        answer: Iterable[bytes] = self.app(environ, start_response)
        return answer


def _strings(path: str) -> Iterator[str]:
    """Yield new strings of this path for ever."""
    if "{}" in path:
        return map(path.format, itertools.count())
    return map(bytes.decode, itertools.repeat(path.encode()))


def run(*, turns: int = 1001, calls: int = 200) -> Report:
    """Measure every request; ``turns`` of ``calls`` calls each."""
    config = load_config(SHIPPED, {})
    paths = [path for route in config.routes for path in route.path]
    sides = {
        "bare": idle,
        "nothing": Nothing(idle),
        "expression": OneExpression(idle, paths),
        "line": AdmissionMiddleware(idle, config),
    }
    rows = []
    for path, method in itertools.product(PATHS, METHODS):
        timers = {}
        for side, app in sides.items():
            names = {"app": app, "environ": environ(method, path), "start_response": start_response}
            timers[side] = Timer(_CALL, globals={**names, "paths": _strings(path)})
        found = medians(interleaved(timers, turns=turns, calls=calls))
        nothing, expression, line = (found[side] - found["bare"] for side in ("nothing", "expression", "line"))
        target, ratio = verdict(met=line <= TARGET), line / expression if expression > 0 else float("inf")
        shown = path if len(path) < 40 else f"{path[:36]}..."
        rows.append(
            (f"{method} {shown}", us(found["bare"]), us(nothing), us(expression), us(line), f"{ratio:.2f}x", target)
        )
    return Report(
        f"pass: added to a request that matches no route (target: at most {us(TARGET)}, where one regex takes 0.2)",
        f"The {len(paths)} routes' paths of conf/admission.ini; medians of {turns} interleaved turns of {calls} calls,"
        " less the median of the bare app, which includes making its path. The ratio is the line to the one regex.",
        ("request", "bare app", "+ class", "+ one regex", "+ line", "ratio", "target"),
        rows,
    )
