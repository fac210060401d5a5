"""Options that are texts: choices, names, URLs, headers, addresses, and several of one kind."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from wsgi_admission.options import Kind, closest

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: RFC 9110, section 5.6.2.
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a pattern, not a password
#: The least that cannot be guessed.
SECRET_LENGTH = 16
#: Request methods that a misspelt one was probably meant to be: RFC 9110, RFC 5789 and WebDAV (RFC 4918).
_METHODS = (
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"),
    *("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK"),
)
#: Registered ones (IANA) that look like one of those and are not meant to be.
_ALIKE = ("REPORT", "ORDERPATCH", "UNLINK")
_HOST = r"(?:[0-9A-Za-z_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
#: scheme -> (the expression for what follows ://, how that is written)
_STORES = {
    "memory": ("", ""),
    # sqlite3 would open one :memory: for each thread; after the last slash a file must be named.
    "sqlite": (r"/(?!:memory:).*[^/]", "/RELATIVE or sqlite:////ABSOLUTE"),
    **dict.fromkeys(
        ("redis", "rediss", "valkey", "valkeys"), (rf"(?:[^@/?]*@)?{_HOST}(?:/[0-9]*)?(?:\?.*)?", "HOST:PORT/DB")
    ),
    **dict.fromkeys(("redis+unix", "valkey+unix"), (r"(?:[^@/?]*@)?/[^?]*[^/?](?:\?.*)?", "/SOCKET?db=0")),
}
#: What may stand after the '?' of a URL of Redis.
_REDIS_PARAMETERS = ("db", "username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def choice(values: Mapping[str, T]) -> Kind[T]:
    """Return the kind of one of these values, written as their keys in any case."""
    names = ", ".join(values)

    def read(text: str) -> T:
        if text.lower() not in values:
            meant = closest(text, values)
            raise ValueError("is none of them" + (f"; did you mean {meant!r}?" if meant else ""))
        return values[text.lower()]

    def check(value: object) -> None:
        known = next((known for known in values.values() if known == value), None)
        if known is None:
            raise ValueError("is none of them")
        # A member of a str enumeration equals its text, and is not that text.
        if type(value) is not type(known):
            raise ValueError(f"must be a {type(known).__name__}")

    return Kind(
        expected=f"one of {names}",
        read=read,
        check=check,
        show=lambda value: next(name for name, known in values.items() if known == value),
    )


def string(expected: str, check: Callable[[str], object] = str, *, mask: Callable[[str], str] = str) -> Kind[str]:
    """Return the kind of a text of one line that ``check`` raises no ValueError about."""

    def check_all(value: object) -> None:
        if not isinstance(value, str):
            raise ValueError("must be a text")  # noqa: TRY004 - a kind raises ValueError only
        if any(character < " " or character == "\x7f" for character in value):
            raise ValueError("must be one line without control characters")
        check(value)

    return Kind(expected=expected, read=str, check=check_all, mask=mask)


def matching(expression: str, expected: str, reason: str) -> Kind[str]:
    """Return the kind of a text that matches a regular expression; ``reason`` says what is wrong if it does not."""

    def check(value: str) -> None:
        if not re.fullmatch(expression, value):
            raise ValueError(reason)

    return string(expected, check)


def several(item: Kind[T], *, make: type[Any], split: str, join: str, expected: str, minimum: int) -> Kind[Any]:
    """Return the kind of a tuple or frozenset of items.

    :param make: ``tuple`` or ``frozenset``.
    :param split: the regular expression between two items in a text.
    :param join: what is put between them when they are shown.
    :param minimum: how many there must be.
    """

    def read(text: str) -> object:
        parts = [part for part in re.split(split, text) if part]
        return make(_each(parts, item.read))

    def check(value: object) -> None:
        if not isinstance(value, make):
            raise ValueError(f"must be a {make.__name__}")  # noqa: TRY004 - a kind raises ValueError only
        if len(value) < minimum:
            raise ValueError("must not be empty")
        # A set has no order of its own, and the words about it should always be the same.
        _each(value if make is tuple else sorted(value, key=str), item.check)

    def show(value: Any) -> str:
        texts = [item.show(one) for one in value]
        return join.join(texts if make is tuple else sorted(texts))

    return Kind(expected=expected, read=read, check=check, show=show)


def _each(items: Collection[Any], step: Callable[[Any], T]) -> list[T]:
    """Take the step with every item; where there are several, say which ones it failed with."""
    results, reasons = [], []
    for item in items:
        try:
            results.append(step(item))
        except ValueError as error:
            reasons.append(f"{str(item)!r}: {error}" if len(items) > 1 else str(error))
    if reasons:
        raise ValueError("; ".join(reasons))
    return results


def store_url() -> Kind[str]:
    """Return the kind of a store's URL.  What it says is looked at, not whether such a store can be opened."""

    def check(value: str) -> None:
        scheme, separator, rest = value.partition("://")
        if not separator:
            raise ValueError("names no known store")
        if scheme not in _STORES:
            raise ValueError(f"this version has no store for {scheme + separator!r}")
        expression, shape = _STORES[scheme]
        if not re.fullmatch(expression, rest):
            raise ValueError(f"must look like {scheme}://{shape}")
        if scheme == "sqlite" and re.search("[?#]", rest):
            raise ValueError("must be a path without '?' and '#': there are no parameters")
        if scheme.startswith(("redis", "valkey")):
            _check_parameters(rest.partition("?")[2])

    def mask(value: str) -> str:
        hidden = re.sub(r"([?&]password=)[^&]*", r"\1********", value)
        try:
            check(hidden)
            end = r"[^@?]*"
        except ValueError:
            end = ".*"  # nobody knows where it ends
        return re.sub(rf"(://[^:@/]*:){end}@", r"\1********@", hidden)

    return string(
        "memory://, sqlite:///RELATIVE, sqlite:////ABSOLUTE, redis://HOST:PORT/DB, rediss:// (with TLS) or "
        "redis+unix:///SOCKET?db=0, and valkey likewise",
        check,
        mask=mask,
    )


def _check_parameters(query: str) -> None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _REDIS_PARAMETERS:
            meant = closest(name, _REDIS_PARAMETERS)
            raise ValueError(f"has no parameter {name!r}" + (f"; did you mean {meant!r}?" if meant else ""))
        if name == "db" and not re.fullmatch("[0-9]+", value):
            raise ValueError("must have a number for db")


def origin() -> Kind[str]:
    """Return the kind of an origin, or an empty text."""
    return matching(
        rf"(?:https?://{_HOST})?",
        "http:// or https:// and a host, without a path, such as https://example.org",
        "is not the beginning of a URL up to its host, without a slash at its end",
    )


def origins() -> Kind[tuple[str, ...]]:
    """Return the kind of origins as browsers send them; ``*`` alone stands for all."""

    def check(value: object) -> None:
        if not isinstance(value, str):
            raise ValueError("must be a text")  # noqa: TRY004 - a kind raises ValueError only
        if value == "*":
            return
        if not re.fullmatch(rf"[a-z][a-z0-9+.-]*://{_HOST}", value) or value != value.lower():
            raise ValueError("is no origin: a scheme, :// and a host in lower case, without a slash at its end")
        for scheme, port in (("http", 80), ("https", 443)):
            if re.fullmatch(rf"{scheme}://.*:0*{port}", value):
                raise ValueError(f"must not name the port {port}: browsers leave that of {scheme} out")

    item = Kind(expected="", read=str.lower, check=check)
    expected = "origins, such as https://www.example.org, between commas or on lines of their own, or * alone"
    return several(item, make=tuple, split=r"[,\s]+", join=", ", expected=expected, minimum=0)


def url_path() -> Kind[str]:
    """Return the kind of a path that other paths are put below."""
    return matching(
        r"(?:/(?!\.{1,2}(?:/|\Z))[0-9A-Za-z_.~-]+)+",
        "a path such as /api/queue: letters, digits, '-', '.', '_' and '~' between slashes",
        "must begin with '/', name something, and not end with '/'",
    )


def secret() -> Kind[str]:
    """Return the kind of a secret, or an empty text.  It is never shown."""

    def check(value: str) -> None:
        if value and len(value) < SECRET_LENGTH:
            raise ValueError(f"can be guessed: must have {SECRET_LENGTH} characters or more")
        if not re.fullmatch(r"[!-~]*", value):
            raise ValueError("must be ASCII without spaces, as it travels in a header")

    return string(
        f"{SECRET_LENGTH} characters or more, ASCII without spaces", check, mask=lambda text: "********" if text else ""
    )


def reference() -> Kind[str]:
    """Return the kind of ``module:callable``, or an empty text."""
    dotted = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
    return matching(
        rf"(?:{dotted}:{dotted})?", "module:callable, such as shop.accounts:tier_of", "must be module:callable"
    )


def header_name() -> Kind[str]:
    """Return the kind of a header's name, or an empty text."""
    return matching(rf"(?:{TOKEN})?", "the name of a header, such as X-User-Tier", "is not the name of a header")


def networks() -> Kind[tuple[Network, ...]]:
    """Return the kind of addresses and networks."""

    def read(text: str) -> Network:
        try:
            return ipaddress.ip_network(text)
        except ValueError as error:
            raise ValueError(f"is no network ({error})") from error

    def check(value: object) -> None:
        if not isinstance(value, Network):
            raise ValueError("is no network of the ipaddress module")  # noqa: TRY004 - a kind raises ValueError only

    item = Kind(expected="", read=read, check=check)
    expected = "addresses or networks, such as 10.0.0.0/8, between commas or on lines of their own"
    return several(item, make=tuple, split=r"[,\s]+", join=", ", expected=expected, minimum=0)


def request_methods() -> Kind[frozenset[str]]:
    """Return the kind of request methods that can be queued.  One that is not known is an extension, or misspelt."""

    def check(value: str) -> None:
        if not re.fullmatch(TOKEN, value):
            raise ValueError("is not a request method")
        if value != value.upper():
            raise ValueError("must be upper case")
        if value in {"CONNECT", "OPTIONS"}:
            raise ValueError("is never queued")
        if value == "HEAD":
            raise ValueError("is covered by GET; leave it out")
        if value not in _METHODS + _ALIKE and (meant := closest(value, map(str.lower, _METHODS))):
            raise ValueError(f"is no known request method; did you mean {meant.upper()!r}?")

    item = Kind(expected="", read=str.upper, check=check)
    expected = "request methods, such as GET, POST"
    return several(item, make=frozenset, split=r"[,\s]+", join=", ", expected=expected, minimum=1)
