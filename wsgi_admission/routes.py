"""Match a request to a route: one compiled expression for all of them and the API prefix together.

A pattern is a path in which ``<name>`` stands for one segment, ``<int:n>`` for a whole number, ``<float:x>``
for a number with a point, ``<uuid:id>`` for a UUID and ``<path:rest>`` for anything, slashes included.

A route must not be got around by writing its path in another way that the app, or a framework below it, takes
for the same.  So a path is matched as it came, whatever its case and with or without a slash at its end, and,
if it holds anything that could be such a trick (``//``, ``/./``, ``/../``, ``;x=y``, ``%2f``, a backslash),
in its normalised form too.  If either matches, the route applies; what the app sees is never changed.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Sequence
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import unquote

_CONVERTERS = {
    "string": r"[^/]+",
    "int": r"\d+",
    "float": r"\d+\.\d+",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "path": r".+",
}
_PLACEHOLDER = re.compile(r"<(?:(?P<converter>[^<>:]*):)?(?P<name>[^<>:]*)>")


class Target(Protocol):
    """What this module needs of a route: its patterns and the methods that it takes."""

    @property
    def path(self) -> tuple[str, ...]:
        """The path patterns."""

    @property
    def methods(self) -> frozenset[str]:
        """The request methods, in upper case."""


class Api(enum.Enum):
    """The answer of `Table.find` for a path of the queue API."""

    API = "api"


API: Final = Api.API
R = TypeVar("R", bound=Target)


def expression(pattern: str) -> str:
    """Return the regular expression (without groups) that a path pattern stands for.

    :raises ValueError: about the pattern, in words that can follow it.
    """
    if not pattern.startswith("/"):
        raise ValueError("must begin with '/'")
    if re.search(r"[\s?#]", pattern):
        raise ValueError("must be a path without spaces, '?' or '#'")
    _check_cost(pattern)
    parts, end, names = [], 0, set()
    for found in _PLACEHOLDER.finditer(pattern):
        converter, name = "string" if found["converter"] is None else found["converter"], found["name"]
        if converter not in _CONVERTERS:
            raise ValueError(f"unknown converter {converter!r}; expected one of {', '.join(_CONVERTERS)}")
        if not name.isidentifier():
            raise ValueError(f"the name in {found[0]!r} must be an identifier")
        if name in names:
            raise ValueError(f"the name {name!r} stands in it twice")
        names.add(name)
        parts += [_literal(pattern[end : found.start()]), _CONVERTERS[converter]]
        end = found.end()
    parts.append(_literal(pattern[end:]))
    return "".join(parts)


def _check_cost(pattern: str) -> None:
    """Refuse what would take more than linear time to match: a hostile path could then hold a thread for seconds.

    It does when two placeholders can both run over the text between them: each place where that text stands is then
    tried, and from each the rest is looked through.
    """
    placeholders = list(_PLACEHOLDER.finditer(pattern))
    if sum(found["converter"] == "path" for found in placeholders) > 1:
        raise ValueError("has more than one <path:...>; expected one")
    for first, second in itertools.pairwise(placeholders):
        between = pattern[first.end() : second.start()]
        if all(_runs_over(found["converter"], between) for found in (first, second)):
            raise ValueError(
                f"between {first[0]} and {second[0]} there must be a text that one of them cannot match, such as '/'"
            )


def _runs_over(converter: str | None, text: str) -> bool:
    """Whether what matches the converter can go on over this text."""
    if converter == "path":
        return True
    allowed = {"int": "0123456789", "float": "0123456789.", "uuid": ""}.get(converter or "string")
    return "/" not in text if allowed is None else all(character in allowed for character in text)


def _literal(text: str) -> str:
    """Return the expression for fixed text, in the form that PATH_INFO has: decoded bytes as latin-1."""
    if "<" in text or ">" in text:
        raise ValueError(f"unbalanced '<' or '>' in {text!r}")
    return re.escape(_decoded(text))


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape").encode("utf-8", "surrogateescape").decode("latin-1")


def normalise(path: str) -> str:
    """Return what a lenient reader could take the path for.

    Decodes once more, reads backslashes as slashes, drops parameters (``;x=y``), empty and ``.`` segments, and
    resolves ``..``.
    """
    segments: list[str] = []
    for part in unquote(path, "latin-1").replace("\\", "/").split("/"):
        segment = part.partition(";")[0]
        if segment == "..":
            del segments[-1:]
        elif segment not in {"", "."}:
            segments.append(segment)
    return "/" + "/".join(segments)


#: Paths remembered for each method, so that a flood of made-up ones takes no memory ...
KNOWN_PATHS = 1024
#: ... and the longest of them, in characters.
KNOWN_LENGTH = 256

_UNSEEN: Any = object()

#: Methods that get an expression of their own even when no route takes them: nearly every request has one of these.
_COMMON = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Table(Generic[R]):
    """All routes and the API prefix, compiled for each method.

    :param routes: earlier ones win where several match.
    :param prefix: the path below which the queue API lives, without a slash at its end.
    """

    def __init__(self, routes: Sequence[R], prefix: str) -> None:
        methods = {*_COMMON, *(method for route in routes for method in route.methods)}
        self._routes: dict[str, list[R]] = {
            method: [r for r in routes if method in r.methods or (method == "HEAD" and "GET" in r.methods)]
            for method in methods
        }
        self._matchers = {method: _compile(candidates, prefix).match for method, candidates in self._routes.items()}
        self._api_only = _compile((), prefix).match
        # A disguised API path is not ours: the app may have one that really looks so.
        self._disguised = {method: _compile(found).match for method, found in self._routes.items()}
        # Most requests have a path that was seen a moment ago; remembering the answer costs less than finding it.
        self._known: dict[str, dict[str, R | Api | None]] = {method: {} for method in methods}

    def find(self, method: str, path: str) -> R | Api | None:
        """Return the route that matches, or `API` for a path of the queue API, or None.

        :param path: the PATH_INFO of the request.
        """
        known = self._known.get(method)
        if known is None:
            return self._look_up(method, path)
        found = known.get(path, _UNSEEN)
        if found is not _UNSEEN:
            return found
        found = self._look_up(method, path)
        if len(path) <= KNOWN_LENGTH:
            if len(known) >= KNOWN_PATHS:
                known.clear()
            known[path] = found
        return found

    def _look_up(self, method: str, path: str) -> R | Api | None:
        match = self._matchers.get(method)
        if match is None:
            # Methods are case-sensitive, but not every server and app thinks so: "post" is no way around a route.
            method = method.upper()
            match = self._matchers.get(method, self._api_only)
        found = match(path)
        if found is None:
            # One substring search each is several times as quick as one expression for all of them.
            if not ("//" in path or "/." in path or ";" in path or "%" in path or "\\" in path or path[:1] != "/"):
                return None
            disguised = self._disguised.get(method)
            found = disguised and disguised(normalise(path))
            if found is None:
                return None
        if found.lastindex == 1:
            return API
        return self._routes[method][_index(found.lastindex)]


def _index(group: int | None) -> int:
    assert group is not None, "every alternative is a group"  # noqa: S101 - an invariant of _compile
    return group - 2


def _compile(routes: Sequence[Target], prefix: str | None = None) -> re.Pattern[str]:
    """Build one expression: group 1 is the API, if there is a prefix, and group 2 + i is route i."""
    # The API's paths are compared exactly: they are ours, and nobody else has to take them for anything.
    api = "((?!))" if prefix is None else rf"(?-i:({re.escape(prefix)}(?:/|\Z)))"
    groups = ["(?:" + "|".join(expression(pattern).rstrip("/") for pattern in route.path) + ")" for route in routes]
    if not groups:
        return re.compile(api)
    routed = "|".join(f"({group})" for group in groups)
    fixed = {_decoded(pattern.partition("<")[0]).rstrip("/") for route in routes for pattern in route.path}
    beginning = _beginning({_rough(text) for text in (fixed if prefix is None else {*fixed, prefix})})
    # The end is where a "$" of some other expression would see it: before a newline, too.
    return re.compile(rf"(?-i:(?={beginning}))(?:{api}|(?:{routed})/?\n?\Z)", re.IGNORECASE | re.DOTALL)


#: Characters of a path's beginning that are looked at together for all routes.
_ROUGH_LENGTH = 32
_BEYOND_ASCII = "\x80"


def _rough(text: str) -> str:
    """Return the beginning of a text, without its case, and with one character for all beyond ASCII."""
    return "".join(c.lower() if c.isascii() else _BEYOND_ASCII for c in text[:_ROUGH_LENGTH])


def _beginning(texts: set[str]) -> str:
    """Return an expression for what begins like one of these `_rough` texts.

    It takes a letter in either case and, as some of them are the same as an ASCII letter but for their case, anything
    beyond ASCII.  Because it follows the texts letter by letter, most paths fail it at once, however many routes there
    are; ignoring case in earnest, each route by itself, takes several times as long.
    """
    if "" in texts:
        return ""
    ends: dict[str, set[str]] = {}
    for text in texts:
        ends.setdefault(text[0], set()).add(text[1:])
    return "(?:" + "|".join(_either_case(first) + _beginning(rest) for first, rest in ends.items()) + ")"


def _either_case(character: str) -> str:
    return f"[{re.escape(character)}{re.escape(character.upper())}{_BEYOND_ASCII}-\U0010ffff]"
