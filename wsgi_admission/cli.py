"""The command line: ``wsgi-admission``."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from wsgi_admission import __version__
from wsgi_admission.commands import COMMANDS
from wsgi_admission.config import SECTIONS, load_with_origins
from wsgi_admission.errors import ConfigError
from wsgi_admission.options import Section, options_of
from wsgi_admission.working import work as work_for

#: Columns of what `options` prints.
WIDTH = 100


class LazyCommand(click.Command):
    """A command that is imported only when it is asked for, because it needs packages of its own.

    :param target: ``module:attribute`` of the real command.
    :param extra: the extra of this distribution that installs what it needs.
    """

    def __init__(self, name: str, *, target: str, extra: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._target = target
        self._extra = extra

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Make the context of the real command: it is that one which runs."""
        return self._load().make_context(info_name, args, parent=parent, **extra)

    def _load(self) -> click.Command:
        module, _, attribute = self._target.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            if (error.name or "").partition(".")[0] == __package__:
                raise
            raise click.ClickException(
                f"{self.name!r} needs packages that are not there ({error}).\n"
                f"Install them with: pip install 'wsgi-admission[{self._extra}]'"
            ) from error
        return command


@click.group()
@click.version_option(__version__, prog_name="wsgi-admission")
def main() -> None:
    """A line in front of the expensive endpoints of a WSGI app."""


@main.command()
@click.argument("file", type=click.Path())
def check(file: str) -> None:
    """Say what is wrong with FILE, or print what would be in force.

    The environment is looked at too.  A value that does not come from FILE is followed by its origin.
    """
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as servers do, so that the same resolver is found
    try:
        config, origins = load_with_origins(file, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from error

    def note(section: Section, name: str) -> str:
        origin = origins.get((section.title, name), "default")
        empty = options_of(type(section))[name].kind.empty
        meaning = f": {empty}" if empty and getattr(section, name) is None else ""
        return f"{origin}{meaning}" if origin != "file" or meaning else ""

    click.echo(f"; {file}")
    for section in config.sections:
        click.echo("\n" + "\n".join(_lines(section, note)))
    admission = config.admission
    # 0: as many as gunicorn has web workers, which is not known here.
    if admission.replay_processes and (idle := admission.idle_slots(admission.replay_processes)):
        click.echo(f"\n; Note: {idle}")


@main.command()
def options() -> None:
    """Print every option with its default and its meaning, as a file that could be used."""
    click.echo("; Every section and option, with its default.")
    seen: set[type[Section]] = set()
    for section in SECTIONS:
        click.echo("")
        if type(section) in seen:
            click.echo("\n".join(_lines(section)))
        else:
            click.echo("\n".join(_explained(section)))
        seen.add(type(section))


@main.command()
@click.argument("config", type=click.Path())
@click.argument("app", metavar="MODULE:APP")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 1000), help="How many replay.")
@click.option(
    "--chdir", default=".", type=click.Path(exists=True, file_okay=False), metavar="DIR", help="Change to DIR first."
)
@click.option(
    "--grace",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="What runs has so long when a process leaves.",
)
@click.option(
    "--start-timeout",
    default=300.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="A process that has not begun by then is given up.",
)
@click.option("--nice", default=10, show_default=True, type=click.IntRange(0, 19), help="CPU priority; 0: the usual.")
def work(config: str, app: str, processes: int, chdir: str, grace: float, start_timeout: float, nice: int) -> None:
    """Replay what is queued in the line of CONFIG, with the app MODULE:APP: for machines without a web server.

    TERM and INT: claim nothing more, wait for what runs, and hand the rest back; a second one does not wait.  HUP: read
    CONFIG again and replace the processes one after another.
    """
    try:
        fault = work_for(
            config, app, processes=processes, chdir=chdir, grace=grace, nice=nice, start_timeout=start_timeout
        )
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from error
    if fault:
        raise click.ClickException(fault)


for command in COMMANDS:
    main.add_command(command)
main.add_command(
    LazyCommand("top", target="wsgi_admission.top:top", extra="top", short_help="Show the line as it moves.")
)
main.add_command(
    LazyCommand("demo", target="wsgi_admission.demo.command:demo", extra="demo", short_help="Start the example site.")
)


def _lines(section: Section, note: Callable[[Section, str], str] = lambda _section, _name: "") -> Iterator[str]:
    """Yield a section as lines of a file; ``note`` gives what stands behind a value."""
    yield f"[{section.title}]"
    for name in options_of(type(section)):
        yield _line(section, name, note(section, name))


def _line(section: Section, name: str, note: str = "") -> str:
    value = section.text(name).replace("\n", "\n    ")
    line = f"{name} = {value}".rstrip()
    return f"{line:<40} ; {note}" if note else line


def _explained(section: Section) -> Iterable[str]:
    """Yield a section as lines of a file, each option below what there is to know of it."""
    yield f"; {(type(section).__doc__ or '').partition('.')[0]}."
    yield f"[{section.title}]"
    for name, about in options_of(type(section)).items():
        known = [f"{about.meaning[0].upper()}{about.meaning[1:]}.", f"Expected: {about.kind.expected}."]
        if about.kind.empty:
            known.append(f"Empty: {about.kind.empty}.")
        if about.env:
            known.append(f"Environment: {about.env}.")
        yield ""
        for sentence in known:
            yield textwrap.fill(sentence, WIDTH, initial_indent="; ", subsequent_indent=";   ")
        yield _line(section, name)
