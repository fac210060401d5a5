"""The sections of the configuration, as frozen dataclasses whose fields are the options.

They can be constructed in Python too, and check their values then: ``Route(name="video", path=("/api/video",))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from wsgi_admission.logs import FORMATS
from wsgi_admission.options import NamedSection, Section, option, optional
from wsgi_admission.options.files import colour, site_path, template, texts
from wsgi_admission.options.numbers import duration, fraction, size, whole
from wsgi_admission.options.texts import (
    Network,
    choice,
    header_name,
    matching,
    networks,
    origin,
    origins,
    reference,
    request_methods,
    secret,
    several,
    store_url,
    string,
    url_path,
)
from wsgi_admission.policy.decision import Mode
from wsgi_admission.routes import expression


@dataclass(frozen=True, kw_only=True)
class Admission(Section):
    """The line itself and what replays it.  ``retention`` and ``cleanup_interval`` are seconds."""

    SECTION: ClassVar[str] = "admission"

    name: str = option(
        "main",
        "the line's name; apps that share a store and must not share a line take different ones",
        matching(r"[0-9A-Za-z._-]{1,64}", "1 to 64 letters, digits, '.', '_' and '-'", "has other characters"),
    )
    mode: Mode = option(  # noqa: RUF009 - it returns a field
        Mode.AUTO,
        "auto queues while the server is loaded, queue_all always, pass_through never; shadow decides and counts, "
        "but always lets through",
        choice({mode.value: mode for mode in Mode}),
    )
    max_concurrent: int = option(
        5, "slots on this host: queueable requests that run at once", whole(1), env="MAX_CONCURRENT_REQUESTS"
    )
    worker_threads: int = option(
        3,
        "replay threads in each process that replays; all together should reach max_concurrent",
        whole(1),
        env="QUEUE_WORKER_THREADS",
    )
    replay_processes: int = option(
        1,
        "processes set aside for replaying under gunicorn, at nice 10 (0: threads inside the web workers); as many as "
        "cores for CPU-bound pure Python, 1 for work on a GPU or in C",
        whole(0),
    )
    retention: float = option(24 * 3600.0, "how long finished tickets and their results are kept", duration())
    cleanup_interval: float = option(30.0, "time between two clean-ups of the store", duration())
    crash_retries: int = option(
        1,
        "how often a request runs again after a worker died in the middle of it (0: never; for routes that must not "
        "repeat)",
        whole(0),
    )

    def idle_slots(self, processes: int) -> str:
        """Return a note on slots that the line never uses, or an empty string.

        :param processes: how many processes replay, 1 or more.
        """
        threads = self.worker_threads * processes
        if threads >= self.max_concurrent:
            return ""
        who = "1 process that replays" if processes == 1 else f"{processes} processes that replay"
        return (
            f"[admission] worker_threads = {self.worker_threads}: replays take at most {threads} of the "
            f"{self.max_concurrent} slots ({self.worker_threads} threads in each of {who}). "
            f"Set worker_threads = {math.ceil(self.max_concurrent / processes)} to use all."
        )


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Section):
    """When the server counts as loaded.  All are fractions, 0 to 1."""

    SECTION: ClassVar[str] = "load"

    threshold: float = option(
        0.8, "load above which requests are queued, for every sensor that has none of its own", fraction()
    )
    resume: float = option(0.7, "load below which requests go straight through again", fraction())
    cpu_threshold: float | None = option(
        None,
        "threshold of the CPU sensor (0%: queue always)",
        optional(fraction(), "threshold applies"),
        env="RESOURCE_CPU_THRESHOLD",
    )
    memory_threshold: float | None = option(
        None,
        "threshold of the memory sensor",
        optional(fraction(), "threshold applies"),
        env="RESOURCE_MEMORY_THRESHOLD",
    )

    def conflicts(self) -> Iterable[str]:
        """Return the problem of a load that would go up and down at once."""
        if self.resume >= self.threshold and (self.resume, self.threshold) != (0, 0):
            yield self.problem("resume", f"must be below threshold, which is {self.text('threshold')} (or both 0%)")


@dataclass(frozen=True, kw_only=True)
class StoreOptions(Section):
    """Where the line lives."""

    SECTION: ClassVar[str] = "store"

    url: str = option("sqlite:///var/admission.db", "where tickets and recordings are kept", store_url())
    durability: str = option(
        "full",
        "what an accepted request survives: full means power loss, normal the crash of any process",
        choice({"full": "full", "normal": "normal"}),
    )


@dataclass(frozen=True, kw_only=True)
class Tier(NamedSection):
    """Who is asking.  ``name`` is what the resolver or the header says."""

    SECTION: ClassVar[str] = "tier"

    priority: str = option(
        "medium",
        "what clients are told; the order in which tiers are served is that of their sections",
        choice({"high": "high", "medium": "medium", "low": "low"}),
    )
    hint: str = option("", "a sentence added to what waiting clients of this tier read", string("a sentence"))


DEFAULT_TIERS = (
    Tier(name="donor", priority="high"),
    Tier(name="registered", priority="medium"),
    Tier(name="anonymous", priority="low"),
)


@dataclass(frozen=True, kw_only=True)
class Tiers(Section):
    """How the tier of a client is found.

    :param order: the tiers in the order in which they are served.
    """

    SECTION: ClassVar[str] = "tiers"

    resolver: str = option(
        "",
        "callable(environ) that returns a tier's name, or (tier's name, client id)",
        reference(),
    )
    header: str = option(
        "", "instead of a resolver: request header with one tier's name, believed from trusted_proxies", header_name()
    )
    trusted_proxies: tuple[Network, ...] = option(
        (), "addresses of the proxies whose header and X-Forwarded-For are believed", networks()
    )
    order: tuple[Tier, ...] = DEFAULT_TIERS

    def conflicts(self) -> Iterable[str]:
        """Return the problems of a tier that cannot be told, and of tiers that nobody can be in."""
        if self.resolver and self.header:
            yield self.problem("header", "cannot be used together with resolver")
        if self.header and not self.trusted_proxies:
            yield self.problem("trusted_proxies", "is needed with header: anybody could send that")
        if not self.order:
            yield "[tiers]: there is no tier. Expected: at least one [tier:NAME]."
        names = [tier.name for tier in self.order]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"[tier:{name}]: there is another tier of this name."
        if not self.resolver and not self.header:
            for name in names:
                if name not in {tier.name for tier in DEFAULT_TIERS}:
                    yield (
                        f"[tier:{name}]: nothing says who is in this tier. Expected: a resolver or a header in "
                        "[tiers]; without them there are only registered (REMOTE_USER) and anonymous."
                    )


@dataclass(frozen=True, kw_only=True)
class Api(Section):
    """The queue API."""

    SECTION: ClassVar[str] = "api"

    prefix: str = option("/api/queue", "path below which the queue API lives", url_path())
    base_url: str = option("", "makes Location and the urls absolute, which some clients need", origin())
    admin_token: str = option(
        "",
        "the secret of operators: opens the dashboard, and the metrics where these are not public; empty: no dashboard",
        secret(),
    )
    metrics: str = option(
        "public",
        "who may read the metrics: public (counts only, no ids), or token (operators)",
        choice({"public": "public", "token": "token"}),
    )

    allow_origins: tuple[str, ...] = option(
        (),
        "other origins whose pages may call the queue API and read its answers (*: all, without cookies)",
        origins(),
    )

    def conflicts(self) -> Iterable[str]:
        """Return the problems of metrics that nobody can read, and of a list that says two things."""
        if self.metrics == "token" and not self.admin_token:
            yield self.problem("metrics", "needs an admin_token")
        if "*" in self.allow_origins and len(self.allow_origins) > 1:
            yield self.problem("allow_origins", "must be * alone, or origins without it")


@dataclass(frozen=True, kw_only=True)
class PagesOptions(Section):
    """What people see in a browser: the waiting room, and our errors."""

    SECTION: ClassVar[str] = "pages"

    name: str = option("", "the site's name, shown on every page", string("a few words"))
    logo: str = option("", "the site's logo, shown beside its name", site_path())
    colour: str = option(
        "#4f46e5", "the colour of buttons and bars; made lighter or darker where it could not be read", colour()
    )
    note: str = option("", "a sentence of your own in the waiting room", string("a sentence"))
    texts: str = option("", "folder with texts that replace ours, and with further languages", texts())
    template: str = option("", "the waiting room, instead of ours; it can extend admission/waiting.html", template())


@dataclass(frozen=True, kw_only=True)
class LogOptions(Section):
    """The log."""

    SECTION: ClassVar[str] = "log"

    format: str = option(
        "text",
        "how an event is written: text (its name and key=value fields), or json (one object)",
        choice({name: name for name in FORMATS}),
    )


@dataclass(frozen=True, kw_only=True)
class Route(NamedSection):
    """Requests that may be queued."""

    SECTION: ClassVar[str] = "route"

    path: tuple[str, ...] = option(
        (),
        "path patterns, one a line: /img/<name>, /job/<int:n>; <path:rest> takes anything, slashes included",
        several(
            string("a path", expression),
            make=tuple,
            split=r"\s*\n\s*",
            join="\n",
            expected="paths that begin with '/', such as /api/video or /img/<name>, one a line",
            minimum=1,
        ),
    )
    methods: frozenset[str] = option(frozenset({"POST"}), "request methods that may be queued", request_methods())
    expected_time: float = option(30.0, "run time to expect until some are known", duration())
    max_concurrent: int | None = option(
        None, "requests of this route that run at once", optional(whole(1), "as many as the host has slots")
    )
    max_body: int = option(16 * 2**20, "largest request body; a larger one is answered with 413", size())
    max_wait: float | None = option(
        None,
        "how long a request of this route may wait for its start; then it is cancelled",
        optional(duration(), "as long as it takes"),
    )
    max_runtime: float | None = option(
        None,
        "how long a run of this route may take; one that takes longer is reported, and its slot is free for others",
        optional(duration(), "as long as it takes"),
    )
    crash_retries: int | None = option(
        None,
        "how often a request of this route runs again after a worker died in the middle of it (0: never)",
        optional(whole(0), "that of [admission] applies"),
    )
