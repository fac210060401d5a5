"""The figures of the line for Prometheus, in its text format or in OpenMetrics.

What is counted stands in the store, so every process of every host says the same of it.  Names with ``_host_`` speak
of the host that answers.  Labels are tiers, routes and sensors: nothing that grows with the number of clients; and the
name of the line everywhere, as apps with lines of their own may be scraped by one job.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from wsgi_admission.config import Config
from wsgi_admission.errors import StoreError
from wsgi_admission.load import Load
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import Tally
from wsgi_admission.web.answers import Answer, Environ, problem

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PREFIX = "wsgi_admission_"
_GAUGES = {"queued_requests": "Tickets that wait in the line.", "processing_requests": "Tickets that are being run."}
#: Field of `Tally` -> name without ``_total``, and what it counts.
_COUNTERS = {
    "accepted": ("accepted_requests", "Requests put into the line."),
    "passed": ("passed_requests", "Matching requests that ran at once, without a place in the line."),
    "shadowed": ("shadowed_requests", "Requests that ran at once only because the mode is shadow."),
    "started": ("started_requests", "Tickets that were claimed for the first time."),
    "completed": ("completed_requests", "Tickets that the app answered with a status below 500."),
    "failed": ("failed_requests", "Tickets that failed."),
    "cancelled": ("cancelled_requests", "Tickets that were cancelled."),
    "crashed": ("crashed_attempts", "Attempts that ended with the death of their worker."),
    "late": ("late_answers", "Answers that were refused because their attempt was over."),
    "ran": ("ended_attempts", "Attempts that came to their end; those of run_seconds."),
    "wait_seconds": ("wait_seconds", "Time from submission to the first start, over started_requests."),
    "run_seconds": ("run_seconds", "Time from start to end, over ended_attempts."),
}


class Figures(NamedTuple):
    """What the figures are made of, collected anew for each scrape.

    :param now: seconds since the epoch.
    """

    store: Store
    config: Config
    load: Load
    slots_in_use: int
    now: float

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; of a store that does not answer only that it does not."""
        yield from self._host()
        try:
            found = list(self._line())
        except StoreError:
            found = []
        yield self._gauge("store_up", "Whether the store answers.", 1.0 if found else 0.0)
        yield from found

    def _line(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        tallies = {(tier.name, route.name): Tally() for tier in self.config.tiers.order for route in self.config.routes}
        tallies.update(self.store.counts())
        line, labels = self.config.admission.name, ["line", "tier", "route"]
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
            for key, tally in tallies.items():
                gauge.add_metric([line, *key], getattr(tally, name.removesuffix("_requests")))
            yield gauge
        for field, (name, text) in _COUNTERS.items():
            counter = CounterMetricFamily(_PREFIX + name, text, labels=labels)
            for key, tally in tallies.items():
                counter.add_metric([line, *key], getattr(tally, field))
            yield counter
        workers = self.store.statistics(now=self.now).workers
        yield self._gauge("paused", "Whether an operator has paused the line.", float(self.store.paused()))
        yield self._gauge("workers", "Processes of all hosts that replay.", len(workers))
        yield self._gauge("worker_threads", "Replay threads of all hosts.", sum(worker.threads for worker in workers))
        yield self._gauge("slots", "Slots of all hosts that replay.", sum({w.host: w.slots for w in workers}.values()))
        health = self.store.health()
        facts = {"kind": health["kind"], "version": health["version"], "line": line}
        info = GaugeMetricFamily(f"{_PREFIX}store_info", "Which store it is; always 1.", labels=list(facts))
        info.add_metric(list(facts.values()), 1.0)
        yield info

    def _host(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        options = self.config.load
        own = {"cpu": options.cpu_threshold, "memory": options.memory_threshold}
        line, labels = self.config.admission.name, ["line", "sensor"]
        sensors = sorted({"slots", *own, *self.load.readings, *self.load.failed})
        used = GaugeMetricFamily(f"{_PREFIX}host_load_ratio", "Load of this host, 0 to 1.", labels=labels)
        failed = GaugeMetricFamily(f"{_PREFIX}host_sensor_failed", "Whether it gives nothing.", labels=labels)
        limit = GaugeMetricFamily(
            f"{_PREFIX}host_load_threshold_ratio", "From where on requests are queued.", labels=labels
        )
        for sensor in sensors:
            threshold = own.get(sensor)
            limit.add_metric([line, sensor], options.threshold if threshold is None else threshold)
            failed.add_metric([line, sensor], float(sensor in self.load.failed))
            if sensor in self.load.readings:
                used.add_metric([line, sensor], self.load.readings[sensor])
        yield from (used, limit, failed)
        yield self._gauge("host_slots", "Slots of this host.", self.config.admission.max_concurrent)
        yield self._gauge("host_slots_in_use", "Slots of this host that are taken.", self.slots_in_use)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["line"])
        gauge.add_metric([self.config.admission.name], value)
        return gauge


def asked_for(environ: Environ) -> bool:
    """Whether the metrics are wanted for Prometheus: by ``?format=prometheus``, or by what it sends as Accept.

    A client that takes JSON as well gets JSON.
    """
    query: str = environ.get("QUERY_STRING", "")
    if given := parse_qs(query).get("format"):
        return given[-1] == "prometheus"
    kinds = {part.partition(";")[0].strip().lower() for part in environ.get("HTTP_ACCEPT", "").split(",")}
    return bool(kinds & {"application/openmetrics-text", "text/plain"}) and "application/json" not in kinds


def exposition(environ: Environ, figures: Figures) -> Answer:
    """Return the figures in the format that the scraper asks for, or a problem where it cannot be made here."""
    if find_spec("prometheus_client") is None:
        return problem(406, "This needs the package prometheus_client: pip install 'wsgi_admission[prometheus]'.")
    from prometheus_client.exposition import choose_encoder

    try:
        encoder, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
    except Exception:  # noqa: BLE001 - it parses what anybody may send, and stumbles over a version that is none
        encoder, content_type = choose_encoder("")
    return Answer(200, [("Content-Type", content_type)], encoder(figures))
