"""The commands of operators: ``wsgi-admission status``, ``pause``, ``requeue`` and so on.

The exit code is 0 when it was done, 1 when the store said no, and 2 when there was no store to ask.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from wsgi_admission import operators
from wsgi_admission.config import Config, load_config
from wsgi_admission.errors import AdmissionError, ConfigError
from wsgi_admission.operators import CANCELLED, cancel_client, find, summary, wait_until_idle
from wsgi_admission.stores import Store, open_store
from wsgi_admission.web.overview import overview, plain

#: Where the configuration is looked for.
FILES = ("admission.ini", "conf/admission.ini")
#: Seconds after which a site does not answer.
ANSWER_TIMEOUT = 2.0

F = TypeVar("F", bound=Callable[..., object])


def load_of(url: str, config: Config) -> float | None:
    """Return the load that the site at this URL tells, or None if it tells none."""
    address = f"{url.rstrip('/')}{config.api.prefix}/health"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT) as answer:  # noqa: S310 - the operator's own
            return float(json.load(answer)["server_load"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None


class Unusable(click.ClickException):
    """There is no store to ask."""

    exit_code = 2


@contextmanager
def opened(file: str | None) -> Iterator[tuple[Config, Store]]:
    """Read the configuration and open its store; whatever the store says no to ends the command."""
    file = file or next((name for name in FILES if Path(name).exists()), None)
    if file is None:
        raise Unusable(f"there is no {' and no '.join(FILES)} here: name the configuration with --config.")
    try:
        config = load_config(file, import_resolver=False)
        _look_at(config.store.url)
        store = open_store(config.store.url, name=config.admission.name, durability=config.store.durability)
    except ConfigError as error:
        raise Unusable(str(error)) from error
    except AdmissionError as error:
        raise click.ClickException(str(error)) from error
    try:
        yield config, store
    except AdmissionError as error:
        raise click.ClickException(str(error)) from error
    finally:
        store.close()


def _look_at(url: str) -> None:
    """Refuse a store that is out of reach, or that opening it would make."""
    if url == "memory://":
        raise Unusable("[store] url = memory://: that line lives in the process of its server, and only there.")
    kind, _, path = url.partition(":///")
    if kind == "sqlite" and not Path(path).exists():
        where = "" if Path(path).is_absolute() else " Run this in the directory in which the server runs."
        raise Unusable(f"there is no store at {Path(path).absolute()}.{where}")


config_option = click.option(
    "-c", "--config", "file", type=click.Path(), metavar="FILE",
    help=f"The configuration.  [default: {' or '.join(FILES)}]",
)  # fmt: skip
url_option = click.option("--url", help="Where the site runs, to show its load: http://127.0.0.1:8000")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_id_argument = click.argument("ticket_id", metavar="ID")


def _options(function: F) -> F:
    return config_option(_json_option(function))


def _say(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(data) if as_json else text)


@click.command()
@_options
@url_option
def status(file: str | None, url: str | None, *, as_json: bool) -> None:
    """Show the line, what runs, and the workers."""
    with opened(file) as (config, store):
        data = overview(store, config, now=time.time(), load=load_of(url, config) if url else None)
    _say(data, plain(data), as_json=as_json)


@click.command()
@_options
def pause(file: str | None, *, as_json: bool) -> None:
    """Start nothing more, anywhere, and queue what comes.  What runs goes on."""
    with opened(file) as (config, store):
        store.pause(paused=True)
        data = summary(store, config)
    text = f"The line {data['name']} is paused: {data['queued']} queued, {data['processing']} processing."
    _say(data, text, as_json=as_json)


@click.command()
@_options
def resume(file: str | None, *, as_json: bool) -> None:
    """Undo pause and drain."""
    with opened(file) as (config, store):
        store.pause(paused=False)
        data = summary(store, config)
    text = f"The line {data['name']} goes on: {data['queued']} queued, {data['processing']} processing."
    _say(data, text, as_json=as_json)


@click.command()
@_options
@click.option("--wait", is_flag=True, help="Return when nothing is processing any more.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: give up after so long.")
def drain(file: str | None, timeout: float | None, *, as_json: bool, wait: bool) -> None:
    """Pause, and let what runs come to its end."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to wait: it needs --wait.")
    with opened(file) as (config, store):
        store.pause(paused=True)
        idle = wait_until_idle(store, timeout if wait else 0.0)
        data = {**summary(store, config), "drained": idle}
    text = f"The line {data['name']} is {'drained' if idle else 'paused'}: {data['queued']} queued, "
    _say(data, f"{text}{data['processing']} processing.", as_json=as_json)
    if wait and not idle:
        raise click.exceptions.Exit(1)


@click.command()
@_id_argument
@_options
def requeue(ticket_id: str, file: str | None, *, as_json: bool) -> None:
    """Put a ticket back to its place in the line, or run a failed one again under a new id."""
    with opened(file) as (_, store):
        ticket = operators.requeue(store, old := find(store, ticket_id), now=time.time())
    data = {"request_id": ticket.id, "status": ticket.state.value, "retry_of": None if ticket.id == old else old}
    text = f"Ticket {old} is {ticket.state.value}."
    if ticket.id != old:
        text = f"Ticket {ticket.id} runs what {old} was to run."
    _say(data, text, as_json=as_json)


@click.command()
@click.argument("ticket_id", metavar="[ID]", required=False)
@click.option("--client", help="Cancel all tickets of this client: user:ACCOUNT or addr:ADDRESS.")
@_options
def cancel(ticket_id: str | None, client: str | None, file: str | None, *, as_json: bool) -> None:
    """Cancel a ticket, or all of a client.  What runs ends first, and its answer is dropped."""
    if (ticket_id is None) == (client is None):
        raise click.UsageError("Name either a ticket or a --client.")
    with opened(file) as (_, store):
        if client is not None:
            data = cancel_client(store, client, now=time.time())
            text = f"Of {client}: {data['cancelled']} cancelled, {data['cancelling']} to be cancelled when they end."
        else:
            ticket = store.cancel(find(store, ticket_id or ""), now=time.time(), reason=CANCELLED)
            data = {"request_id": ticket.id, "status": ticket.state.value, "cancelling": not ticket.state.final}
            text = f"Ticket {ticket.id} is {'cancelled' if ticket.state.final else 'to be cancelled when it ends'}."
    _say(data, text, as_json=as_json)


COMMANDS = (status, pause, resume, drain, requeue, cancel)
