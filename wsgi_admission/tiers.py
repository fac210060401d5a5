"""Who is asking: from the environ to a tier and a client.

The first of these that has an answer gives the tier:

1. the resolver, a callable of the site;
2. a header that a trusted proxy sets;
3. REMOTE_USER, as the server or a middleware outside of this one has set it: tier ``registered``, if there is one;
4. nobody: tier ``anonymous``, if there is one, else the last.

The client is the account that the resolver named, else REMOTE_USER, else the network address.  An account is also the
owner of its tickets; those of a mere address have none.

A proxy that sets the header must remove it from what it gets from outside, in every spelling: ``X-User-Tier`` and
``X_User_Tier`` are one key of the environ.  Behind several proxies all of their networks must be trusted.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Account ids longer than this many characters are replaced by their digest.
LONGEST_ID = 200
#: What is kept of an address that is none.
LONGEST_ADDRESS = 64
#: Seconds in which the same complaint about a resolver is logged once.
QUIET = 60.0
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_DIGEST = "sha256:"

logger = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Who is asking.

    :param tier: the tier's name.
    :param rank: its place in the configuration, 0 first.
    :param client: the unit of fairness, ``user:<id>`` or ``addr:<address>``.
    :param owner: the account that tickets answer to, ``user:<id>``, or an empty string for an anonymous client.
    """

    tier: str
    rank: int
    client: str
    owner: str


class Resolver:
    """Tells from an environ who is asking.

    :param order: tier names, best first; at least one.
    :param resolver: callable(environ) -> tier name, or (tier name, account id), or None for no answer.  What it raises
        is logged, and the client is anonymous then.
    :param header: the name of a header with the tier's name, or an empty string.
    :param trusted_proxies: networks of the proxies whose header and X-Forwarded-For are believed.
    :param clock: seconds of a clock that does not jump.
    """

    def __init__(
        self,
        order: Sequence[str],
        *,
        resolver: Callable[[dict[str, Any]], object] | None = None,
        header: str = "",
        trusted_proxies: Sequence[_Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order = tuple(order)
        self._ranks = {name: rank for rank, name in enumerate(order)}
        self._by_header = {name.lower(): name for name in order if _TOKEN.fullmatch(name)}
        self._anonymous = "anonymous" if "anonymous" in self._ranks else order[-1]
        self._registered = "registered" if "registered" in self._ranks else order[-1]
        self._resolver = resolver
        self._header_key = "HTTP_" + header.upper().replace("-", "_") if header else ""
        self._proxies = tuple(trusted_proxies)
        self._clock = clock
        self._complained: dict[str, float] = {}

    def __call__(self, environ: dict[str, Any]) -> Identity:
        """Return who is asking; raises nothing, whatever the resolver does."""
        tier, account = "", ""
        if self._resolver is not None:
            try:
                tier, account = self._read_answer(self._resolver(environ))
            except Exception as error:  # noqa: BLE001 - the site's code must not take the line down
                self._complain(repr(type(error)), "The tier resolver raised; the client is anonymous.", error)
                return self._identity(self._anonymous, "", environ)
        if not tier and self._header_key:
            tier = self._read_header(environ)
        account = account or str(environ.get("REMOTE_USER") or "")
        return self._identity(tier or (self._registered if account else self._anonymous), account, environ)

    def _identity(self, tier: str, account: str, environ: dict[str, Any]) -> Identity:
        if account:
            owner = "user:" + _storable(account)
            return Identity(tier, self._ranks[tier], owner, owner)
        return _stranger(tier, self._ranks[tier], self._network_address(environ))

    def _read_answer(self, answer: object) -> tuple[str, str]:
        """Return the tier and the account id that the resolver gave; empty strings for what it did not."""
        if answer is None:
            return "", ""
        tier, account = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        name = "" if account is None else str(account)
        if isinstance(tier, str) and tier in self._ranks:
            return self._order[self._ranks[tier]], name  # not str(tier), which for an enum is another text
        self._complain(
            "answer",
            f"The tier resolver returned {answer!r:.200}; expected one of {', '.join(self._ranks)}, or a pair of that "
            "and an account id, or None. The tier is the anonymous one.",
        )
        return self._anonymous, name

    def _read_header(self, environ: dict[str, Any]) -> str:
        """Return the tier that a trusted proxy names, or an empty string."""
        # Two headers come joined by a comma, and no name of a tier in _by_header has one.
        tier = self._by_header.get(environ.get(self._header_key, "").lower(), "")
        return tier if tier and self._trusts(_parse(environ.get("REMOTE_ADDR") or "")) else ""

    def _network_address(self, environ: dict[str, Any]) -> str:
        """Return the client's address, as it came here or as trusted proxies tell it."""
        peer: str = environ.get("REMOTE_ADDR") or ""
        if self._proxies and "HTTP_X_FORWARDED_FOR" in environ and self._trusts(_parse(peer)):
            return self._forwarded(peer, environ["HTTP_X_FORWARDED_FOR"])
        return peer

    def _forwarded(self, peer: str, chain: str) -> str:
        """Return the last address that no trusted proxy has, or the first if all are trusted.

        Each proxy appends the address that it was called from: what stands left of the last untrusted one is anybody's
        claim.
        """
        nearest = peer
        for entry in reversed(chain.split(",")):
            nearest = entry.strip()[:LONGEST_ADDRESS]
            address = _parse(nearest)
            if address is None:
                return peer
            if not self._trusts(address):
                break
        return nearest

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)

    def _complain(self, kind: str, sentence: str, error: Exception | None = None) -> None:
        now = self._clock()
        if now - self._complained.get(kind, -QUIET) >= QUIET:
            self._complained[kind] = now
            logger.error(sentence, exc_info=error)


def _storable(account: str) -> str:
    """Return the account id, or its digest when it is too long or not printable.

    An id that looks like such a digest is replaced too: nobody may pass for another by his name.
    """
    if len(account) <= LONGEST_ID and account.isprintable() and not account.startswith(_DIGEST):
        return account
    return _DIGEST + hashlib.sha256(account.encode("utf-8", "surrogatepass")).hexdigest()


@functools.lru_cache(maxsize=1024)
def _stranger(tier: str, rank: int, address: str) -> Identity:
    return Identity(tier, rank, _client(address), "")


def _client(text: str) -> str:
    """Return the client of a network address.

    IPv6 addresses are taken by their /64: that is what one subscriber has.
    """
    address = _parse(text)
    if address is None:
        return "addr:" + (_storable(text[:LONGEST_ADDRESS]) or "unknown")
    if isinstance(address, ipaddress.IPv6Address):
        return f"addr:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"addr:{address}"


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> _Address | None:
    """Return the address without port, brackets and zone; an IPv4-mapped one as IPv4; or None when it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
