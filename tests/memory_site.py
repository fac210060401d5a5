"""The tests' app behind a line in memory, for servers of one process."""

from __future__ import annotations

from tests.apps import app as plain
from wsgi_admission import AdmissionMiddleware, Config
from wsgi_admission.config import Admission, Route, StoreOptions
from wsgi_admission.policy.decision import Mode

app = AdmissionMiddleware(
    plain,
    Config(
        admission=Admission(mode=Mode.QUEUE_ALL, max_concurrent=1, worker_threads=1),
        store=StoreOptions(url="memory://"),
        routes=(
            Route(name="test", path=("/gated", "/echo"), max_body=1_000_000),
            Route(name="small", path=("/small",), max_body=100),
        ),
    ),
)
