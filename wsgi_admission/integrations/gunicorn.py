"""Put the line in front of an app under gunicorn, from its configuration file.

At the end of ``gunicorn.conf.py``::

    from wsgi_admission.integrations.gunicorn import install
    install(globals(), "conf/admission.ini")

The app itself is not changed.  Beside the web workers gunicorn then runs ``[admission] replay_processes``
workers more that only replay queued requests, at a lower CPU priority (nice 10): replays in the web workers
would cost the cheap endpoints dearly.  gunicorn supervises, restarts and stops them like any worker.  A server
with one worker, and one with ``replay_processes = 0``, replays in threads of its web workers.  With
``install(..., replays=False)`` nothing is replayed here: ``wsgi-admission work`` does it, on this machine or another.

The roles are given out in the master, in ``pre_fork``, by counting: an election among the workers would fail on
a reload, where the new ones start while an old one still holds the part.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from wsgi_admission.config import Config, load_config
from wsgi_admission.errors import ConfigError, StoreError
from wsgi_admission.integrations.leaving import WATCH_INTERVAL, Leaving
from wsgi_admission.integrations.limits import server_of
from wsgi_admission.integrations.trying import permanent_fault
from wsgi_admission.middleware import AdmissionMiddleware

log = logging.getLogger("wsgi_admission.gunicorn")

#: The nice value of processes that only replay.
NICE = 10
_REPLAYS = "_wsgi_admission_replays"


def install(namespace: MutableMapping[str, Any], config: str | os.PathLike[str], *, replays: bool = True) -> None:
    """Chain the hooks that wrap the app into a gunicorn configuration; the user's own hooks run first.

    :param namespace: the configuration's ``globals()``; call this at its end, after the user's own hooks.
    :param config: the path of the INI file, relative to the working directory.
    :param replays: False leaves all replays to others.
    """
    installation = _Installation(os.fspath(config), replays=replays)
    for name in (
        "nworkers_changed",
        "on_starting",
        "on_reload",
        "pre_fork",
        "post_worker_init",
        "worker_int",
        "worker_abort",
        "worker_exit",
    ):
        _chain(namespace, name, getattr(installation, name))


def _chain(namespace: MutableMapping[str, Any], name: str, ours: Callable[..., None]) -> None:
    theirs = namespace.get(name)
    if theirs is None:
        namespace[name] = ours
        return
    # gunicorn checks how many parameters a hook has.
    count = len(inspect.signature(ours).parameters)
    if count == 1:

        def one(first: Any) -> None:
            theirs(first)
            ours(first)

        namespace[name] = one
    elif count == 3:

        def three(first: Any, second: Any, third: Any) -> None:
            theirs(first, second, third)
            ours(first, second, third)

        namespace[name] = three
    else:

        def two(first: Any, second: Any) -> None:
            theirs(first, second)
            ours(first, second)

        namespace[name] = two


class _Installation:
    """The hooks of one gunicorn server and what they share."""

    def __init__(self, path: str, *, replays: bool) -> None:
        self._path = path
        self._replays = replays
        self._config: Config | None = None
        self._set_aside = 0
        self._generation = 0

    def on_starting(self, server: Any) -> None:
        """Refuse to start with a configuration, or a store, that cannot work."""
        try:
            config = self._load(server)
        except ConfigError as error:
            # gunicorn turns this into "Error: ..." and exit status 1.
            raise RuntimeError(str(error)) from error
        if fault := permanent_fault(config, lambda: _become_worker(server.cfg)):
            raise RuntimeError(fault)
        self._config = _last_good[self._path] = config
        self._make_room(server)

    def on_reload(self, server: Any) -> None:
        """Take up a changed configuration; one that cannot work is logged and the old one stays."""
        # A reloaded configuration file has called `install` anew: this object knows no configuration yet.
        try:
            self._config = _last_good[self._path] = self._load(server)
        except ConfigError as error:
            self._config = _last_good.get(self._path)
            # The error's text says it all; a traceback would only hide it.
            server.log.error("the changed configuration is not used, the old one stays:\n%s", error)  # noqa: TRY400 - see above
        self._generation = server.worker_age
        self._make_room(server)

    def nworkers_changed(self, server: Any, new: int, _old: int | None) -> None:
        """Keep one worker that answers: TTOU ends the oldest, and those that replay are the youngest."""
        if 0 < new <= self._set_aside:  # 0 is gunicorn's own way of stopping them all
            server.num_workers = self._set_aside + 1

    def pre_fork(self, server: Any, worker: Any) -> None:
        """Say which part the new worker has: to answer, or only to replay."""
        mine = [other for other in server.WORKERS.values() if other.age > self._generation]
        answering = sum(not getattr(other, _REPLAYS, False) for other in mine)
        # Replaying ones come last: of too many workers gunicorn ends the oldest.
        replays = self._set_aside > len(mine) - answering and answering >= server.num_workers - self._set_aside
        setattr(worker, _REPLAYS, replays)

    def post_worker_init(self, worker: Any) -> None:
        """Wrap the app in this worker, and start what the worker's part needs."""
        config = self._config
        if config is None:
            worker.log.error("there is no usable configuration: the app runs without a line")
            return
        only_replays = getattr(worker, _REPLAYS, False)
        if only_replays:
            os.nice(NICE)  # on Linux it is each thread's own, and inherited: before any thread starts
        middleware = self._wrap(worker, config, replays=self._replays and (only_replays or not self._set_aside))
        worker.wsgi = middleware
        try:
            middleware.process()
        except StoreError:
            pass  # it is logged, and opened at a later request
        leaving = Leaving(worker, middleware, stands_by=self._replays)
        worker.wsgi_admission_leaving = leaving
        if only_replays:
            worker.run = lambda: _replay(worker, leaving)

    def _wrap(self, worker: Any, config: Config, *, replays: bool) -> AdmissionMiddleware:
        try:
            return AdmissionMiddleware(worker.wsgi, config, replays=replays, **server_of(worker))
        except ConfigError as error:
            if not self._generation:
                raise  # gunicorn stops: nothing has been served yet
            # After a reload gunicorn would stop too, with a site that was up.
            reason = str(error)
            worker.log.error("the resolver is not used, everybody is anonymous: %s", reason)  # noqa: TRY400 - see on_reload

        def unusable(_environ: dict[str, Any]) -> str:
            raise ValueError(reason)

        return AdmissionMiddleware(worker.wsgi, config, replays=replays, resolver=unusable, **server_of(worker))

    def worker_int(self, worker: Any) -> None:
        """Make haste: gunicorn was told to quit."""
        _make_haste(worker)

    def worker_abort(self, worker: Any) -> None:
        """Make haste: gunicorn lost patience with this worker."""
        _make_haste(worker)

    def worker_exit(self, _server: Any, worker: Any) -> None:
        """Wait for what still runs, as long as gunicorn waits, and hand the rest back."""
        leaving = getattr(worker, "wsgi_admission_leaving", None)
        if leaving is not None:
            leaving.finish()

    def _load(self, server: Any) -> Config:
        """Return the configuration, or raise `ConfigError` for one that cannot work on this server."""
        # The resolver's module belongs to the app: imported here in the master, a reload would not renew it.
        config = load_config(self._path, import_resolver=False)
        kind = server.cfg.worker_class_str
        if "asgi" in kind.lower():
            raise ConfigError(
                f"worker class {kind!r} serves ASGI apps: wsgi_admission needs one for WSGI, such as gthread."
            )
        if config.store.url.startswith("memory:") and (server.cfg.workers > 1 or not self._replays):
            reason = f"is one process's own, and gunicorn has {server.cfg.workers} workers: take a file, or one worker"
            if not self._replays:
                reason = "is one process's own, and none of gunicorn's replays: take a file"
            raise ConfigError(f"{self._path} {config.store.problem('url', reason)}")
        return config

    def _make_room(self, server: Any) -> None:
        """Add the workers that are set aside for replaying to those that answer; say if that leaves slots idle."""
        config, web = self._config, server.cfg.workers
        set_aside = config is not None and self._replays and web > 1
        self._set_aside = config.admission.replay_processes if config is not None and set_aside else 0
        if self._set_aside:
            server.cfg.set("workers", web + self._set_aside)
            server.num_workers = web + self._set_aside
        if config is not None and self._replays and (idle := config.admission.idle_slots(self._set_aside or web)):
            server.log.warning("%s %s", self._path, idle)


#: The last configuration that worked, by path; outlives the reloads of the gunicorn configuration.
_last_good: dict[str, Config] = {}


def _become_worker(settings: Any) -> None:
    """Take the user and the group of a worker."""
    from gunicorn.util import set_owner_process  # noqa: PLC0415 - a gunicorn is there when this is called, not before

    set_owner_process(settings.uid, settings.gid, initgroups=settings.initgroups)


def _make_haste(worker: Any) -> None:
    leaving = getattr(worker, "wsgi_admission_leaving", None)
    if leaving is not None:
        leaving.make_haste()


def _replay(worker: Any, leaving: Leaving) -> None:
    """Be a worker that answers nobody: what gunicorn calls instead of its own loop."""
    worker.log.info("Worker (pid:%s) only replays queued requests", worker.pid)
    # Held open here, the listening sockets would take connections that nobody answers while this process leaves.
    for listener in worker.sockets:
        listener.close()
    while leaving.wanted():
        leaving.watch()
        if leaving.stuck():
            worker.log.error("Worker (pid:%s) leaves: most of its replay threads are stuck", worker.pid)
            worker.alive = False
        worker.notify()
        time.sleep(WATCH_INTERVAL)
