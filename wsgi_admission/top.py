"""``wsgi-admission top``: the line as it moves."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wsgi_admission.commands import Unusable, config_option, load_of, opened, url_option
from wsgi_admission.errors import StoreError
from wsgi_admission.web.overview import headline, overview, tables


@click.command()
@config_option
@url_option
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between looks.")
def top(file: str | None, url: str | None, interval: float) -> None:
    """Show the line, what runs and the workers, until q or Ctrl-C."""
    if not on_terminal():
        raise Unusable("top needs a terminal; wsgi-admission status prints the same once.")
    # Ctrl-C is one of the two ways to end it.
    with (
        opened(file) as (config, store),
        suppress(KeyboardInterrupt),
        _keys() as keyboard,
        Live(console=Console(), screen=True, auto_refresh=False) as live,
    ):
        while True:
            try:
                load = load_of(url, config) if url else None
                shown = picture(overview(store, config, now=time.time(), load=load))
            except StoreError as error:
                shown = Text(f"{error}\nIt will be tried again; q ends.", style="red")
            live.update(shown, refresh=True)
            if _quits(keyboard, interval):
                return


def picture(data: Mapping[str, Any]) -> RenderableType:
    """Return an overview for a terminal."""
    parts: list[RenderableType] = [Text(headline(data), style="bold yellow" if data["paused"] else "bold")]
    for table in tables(data):
        grid = Table(*table.columns)
        for row in table.rows:
            grid.add_row(*(Text(text) for text in row))  # not markup: clients choose some of it
        parts.append(grid)
    return Group(*parts, Text("q ends", style="dim"))


def on_terminal() -> bool:
    """Return whether there is somebody to look and to press a key."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextmanager
def _keys() -> Iterator[int]:
    """Have keys arrive one by one and unseen; give the descriptor that they come from."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quits(keyboard: int, interval: float) -> bool:
    """Wait for a key, ``interval`` seconds at most; return whether it was q, or the terminal has gone."""
    ready, _, _ = select.select([keyboard], [], [], interval)
    return bool(ready) and os.read(keyboard, 1) in {b"q", b"Q", b""}
