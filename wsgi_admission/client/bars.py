"""Progress bars on the terminal for requests that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wsgi_admission.client.answers import Update

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
except ModuleNotFoundError as missing:
    raise ImportError("progress=True needs rich: pip install 'wsgi-admission[client]'") from missing


class Bars:
    """A bar for each request that waits, on the terminal of standard error; nothing where that is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        # The text is the site's: it is shown, not read as markup.
        text = TextColumn("{task.description}", markup=False)
        self._progress = Progress(
            SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._shown = 0
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[Callable[[Update], None]]:
        """Return what shows an update; the bar appears with the first one and goes at the end."""
        task = None

        def show(update: Update) -> None:
            nonlocal task
            text = f"{update.message} {update.note}".strip() or update.state
            # Without a total the bar moves to and fro.
            total = None if update.progress is None else 1.0
            if task is None:
                with self._lock:
                    self._shown += 1
                    self._progress.start()
                    task = self._progress.add_task(text, total=total)
            self._progress.update(task, description=text, total=total, completed=update.progress or 0.0)

        try:
            yield show
        finally:
            if task is not None:
                with self._lock:
                    self._progress.remove_task(task)
                    self._shown -= 1
                    if not self._shown:
                        self._progress.stop()
