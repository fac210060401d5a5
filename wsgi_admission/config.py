"""The configuration: an INI file and the environment, made into one `Config`.

The file is UTF-8.  A line that begins with ``;`` or ``#`` is a comment; within a line a comment begins with a ``;``
after a space (a ``#`` there belongs to the value).  Indented lines continue a value.  ``%`` has no special meaning.
"""

from __future__ import annotations

import configparser
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsgi_admission.errors import ConfigError
from wsgi_admission.options import NamedSection, S, Section, build, closest, nameless
from wsgi_admission.routes import expression
from wsgi_admission.sections import (
    DEFAULT_TIERS,
    Admission,
    Api,
    LoadOptions,
    LogOptions,
    PagesOptions,
    Route,
    StoreOptions,
    Tier,
    Tiers,
)

__all__ = [
    "SECTIONS",
    "Admission",
    "Api",
    "Config",
    "LoadOptions",
    "LogOptions",
    "PagesOptions",
    "Route",
    "StoreOptions",
    "Tier",
    "Tiers",
    "import_callable",
    "load_config",
    "load_with_origins",
]

#: (section, option) -> ``file``, ``default`` or ``env NAME``; sections as in the file: ``route:video``.
Origins = Mapping[tuple[str, str], str]

#: Every kind of section with its defaults, as a file shows them.
SECTIONS: tuple[Section, ...] = (
    Admission(),
    LoadOptions(),
    StoreOptions(),
    Tiers(),
    *DEFAULT_TIERS,
    Api(),
    PagesOptions(),
    LogOptions(),
    Route(name="NAME", path=("/api/generate",)),
)
_SINGLE = tuple(cls.SECTION for cls in (Admission, LoadOptions, StoreOptions, Tiers, Api, PagesOptions, LogOptions))
_NAMED = (Tier.SECTION, Route.SECTION)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration.

    :param source: the file it came from, or an empty string.
    :raises ConfigError: with all problems, when the parts do not fit together.
    """

    admission: Admission = field(default_factory=Admission)
    load: LoadOptions = field(default_factory=LoadOptions)
    store: StoreOptions = field(default_factory=StoreOptions)
    tiers: Tiers = field(default_factory=Tiers)
    api: Api = field(default_factory=Api)
    pages: PagesOptions = field(default_factory=PagesOptions)
    log: LogOptions = field(default_factory=LogOptions)
    routes: tuple[Route, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if problems := list(_conflicts(self.admission, self.api, self.routes)):
            raise ConfigError(*_located(self.source, problems))

    @property
    def sections(self) -> tuple[Section, ...]:
        """Every section, in the order in which a file shows them."""
        single = (self.api, self.pages, self.log)
        return (self.admission, self.load, self.store, self.tiers, *self.tiers.order, *single, *self.routes)

    def load_resolver(self) -> Callable[[dict[str, Any]], object] | None:
        """Import and return ``[tiers] resolver``, or None if there is none.

        :raises ConfigError: when it cannot be imported, or is not callable.
        """
        if not self.tiers.resolver:
            return None
        try:
            return import_callable(self.tiers.resolver)
        except ValueError as error:
            raise ConfigError(*_located(self.source, [self.tiers.problem("resolver", str(error))])) from error


def load_config(
    path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ, *, import_resolver: bool = True
) -> Config:
    """Read an INI file; the environment overrides it.

    :param import_resolver: False leaves ``[tiers] resolver`` alone, for a process that only checks the rest: a
        gunicorn master that has imported a module of the app no longer reloads it for its workers.
    :raises ConfigError: with all problems, not only the first.
    """
    return load_with_origins(path, environ, import_resolver=import_resolver)[0]


def load_with_origins(
    path: str | os.PathLike[str], environ: Mapping[str, str], *, import_resolver: bool = True
) -> tuple[Config, Origins]:
    """Do what `load_config` does, and say of each option where its value comes from."""
    source = os.fspath(path)
    file = _read(source)
    problems = _located(source, filter(None, map(_section_problem, file.sections())))
    origins: dict[tuple[str, str], str] = {}

    def make(cls: type[S], title: str, **base: object) -> S | None:
        built = build(cls, title, file[title] if file.has_section(title) else {}, environ, source=source, **base)
        problems.extend(built.problems)
        origins.update({(title, name): origin for name, origin in built.origins.items()})
        return built.section

    admission, load = make(Admission, "admission"), make(LoadOptions, "load")
    store, api = make(StoreOptions, "store"), make(Api, "api")
    pages, log = make(PagesOptions, "pages"), make(LogOptions, "log")
    priorities = {tier.name: {"priority": tier.priority} for tier in DEFAULT_TIERS}
    order = [
        make(Tier, title, name=name, **priorities.get(name, {})) if name else None for title, name in _named(file, Tier)
    ]
    declared = tuple(tier for tier in order if tier)
    tiers = make(Tiers, "tiers", order=declared or DEFAULT_TIERS)
    routes = [make(Route, title, name=name) if name else None for title, name in _named(file, Route)]
    if admission:
        routes = [route and _lowered(route, admission, origins) for route in routes]
    problems += _located(source, _conflicts(admission, api, routes))
    if tiers and tiers.resolver and import_resolver:
        try:
            import_callable(tiers.resolver)
        except ValueError as error:
            problems += _located(source, [tiers.problem("resolver", str(error))])
    if problems or not (admission and load and store and tiers and api and pages and log):
        raise ConfigError(*problems)
    known = tuple(route for route in routes if route)
    config = Config(
        admission=admission,
        load=load,
        store=store,
        tiers=tiers,
        api=api,
        pages=pages,
        log=log,
        routes=known,
        source=source,
    )
    return config, origins


def _read(source: str) -> configparser.ConfigParser:
    try:
        text = Path(source).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}. Expected: an INI file.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{source} line {line}: byte {error.object[error.start]:#04x} is not UTF-8. Expected: an INI file in UTF-8."
        ) from error
    # No interpolation: a token may hold '%'.  No default section: [DEFAULT] would be ignored in silence.
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",), default_section="")
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise ConfigError(*_syntax_problems(source, text.split("\n"), error)) from error
    return parser


def _syntax_problems(source: str, lines: Sequence[str], error: configparser.Error) -> Iterable[str]:
    match error:
        case configparser.DuplicateSectionError():
            yield f"{source} line {error.lineno} [{error.section}]: the section stands there a second time."
        case configparser.DuplicateOptionError():
            where = f"{source} line {error.lineno} [{error.section}]"
            yield f"{where}: option {error.option!r} stands there a second time."
        case configparser.MissingSectionHeaderError():
            yield f"{source} line {error.lineno}: {error.line.strip()!r} stands before the first [section]."
        case configparser.ParsingError():
            for number, _ in error.errors:
                line = lines[number - 1].strip()
                yield f"{source} line {number}: {line!r} is neither '[section]' nor 'option = value'."


def _section_problem(title: str) -> str | None:
    kind, _, name = title.partition(":")
    if title in _SINGLE or (kind in _NAMED and name):
        return None
    if kind in _NAMED:
        return nameless(title, kind)
    if meant := closest(kind, _SINGLE + _NAMED):
        suffix = f":{name or 'NAME'}" if meant in _NAMED else ""
        return f"[{title}]: unknown section; did you mean [{meant}{suffix}]?"
    known = ", ".join([*(f"[{single}]" for single in _SINGLE), *(f"[{named}:NAME]" for named in _NAMED)])
    return f"[{title}]: unknown section. Expected one of {known}."


def _named(file: configparser.ConfigParser, cls: type[NamedSection]) -> Iterable[tuple[str, str]]:
    """Yield title and name of every section of this kind.  A lacking name is reported by `_section_problem`."""
    for title in file.sections():
        kind, _, name = title.partition(":")
        if kind == cls.SECTION:
            yield title, name


def _lowered(route: Route, admission: Admission, origins: dict[tuple[str, str], str]) -> Route:
    """Return the route with a limit within that of the host, if the environment is what set the latter."""
    origin, most = origins["admission", "max_concurrent"], admission.max_concurrent
    if not origin.startswith("env ") or (route.max_concurrent or 0) <= most:
        return route
    origins[route.title, "max_concurrent"] = origin
    return replace(route, max_concurrent=most)


def _conflicts(admission: Admission | None, api: Api | None, routes: Sequence[Route | None]) -> Iterable[str]:
    """Return the problems between sections; None stands for one that has problems of its own."""
    if not routes:
        yield "there is no route, so nothing would ever be queued. Expected: at least one [route:NAME] with a path."
    known = [route for route in routes if route]
    taken: dict[tuple[str, str], Route] = {}
    for route in known:
        if sum(other.name == route.name for other in known) > 1:
            yield f"[{route.title}]: there is another route of this name."
        if admission and (route.max_concurrent or 0) > admission.max_concurrent:
            reason = f"is more than [admission] max_concurrent = {admission.max_concurrent}"
            yield route.problem("max_concurrent", reason)
        for pattern in route.path:
            form = expression(pattern).rstrip("/")
            if api and f"{form}/".startswith(f"{expression(api.prefix)}/"):
                yield route.problem("path", f"belongs to the queue API, whose prefix is {api.prefix!r}", pattern)
            others = {taken.setdefault((form.lower(), method), route).name for method in route.methods} - {route.name}
            if others:
                yield route.problem("path", f"is a path of [route:{min(others)}] already, for the same method", pattern)


def import_callable(reference: str) -> Callable[..., Any]:
    """Import what ``module:attribute`` names.

    :raises ValueError: when it cannot be imported, or is not callable; it says why.
    """
    name, _, attributes = reference.partition(":")
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no module {error.name!r} on sys.path") from error
        raise ValueError(f"importing {name!r} raised {error!r}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"importing {name!r} raised {error!r}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ValueError(f"{name!r} has no {attributes!r}")
        found = getattr(found, attribute)
    if not callable(found):
        raise ValueError("is not callable")  # noqa: TRY004 - the caller words every ValueError
    return found


def _located(source: str, problems: Iterable[str]) -> list[str]:
    """Put the file before each problem; a configuration made in Python has none."""
    return [f"{source} {problem}".lstrip() for problem in problems]
