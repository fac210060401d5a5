"""How many requests of a gunicorn worker may wait, and for how long."""

from __future__ import annotations

from typing import Any


def server_of(worker: Any) -> dict[str, Any]:
    """Return the arguments with which the middleware knows what server a worker is part of."""
    from gunicorn.workers.base_async import AsyncWorker  # noqa: PLC0415 - a gunicorn is there when this is called

    cfg = worker.cfg
    # A greenlet is to gevent what a thread is to gthread, and there are as many as connections.
    threads = cfg.worker_connections if isinstance(worker, AsyncWorker) else cfg.threads
    return {"server_threads": threads, "server_timeout": cfg.timeout or None}
