from __future__ import annotations

import enum
import logging
import tracemalloc
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import pytest

from wsgi_admission.tiers import Identity, Resolver

ORDER = ("donor", "registered", "anonymous")
PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def client_of(address: str, forwarded: str | None = None) -> str:
    """Return the client of a request from this address behind the trusted proxies."""
    environ = {"REMOTE_ADDR": address}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded
    return Resolver(ORDER, trusted_proxies=PROXIES)(environ).client


def answering(answer: object, **environ: str) -> Identity:
    """Return the identity that a resolver with this answer leads to."""
    return Resolver(ORDER, resolver=lambda _: answer)({"REMOTE_ADDR": "192.0.2.1", **environ})


def test_nobody_is_anonymous_and_owns_nothing() -> None:
    """Catches: an anonymous client given an owner, so that only its address could read its tickets."""
    assert Resolver(ORDER)({"REMOTE_ADDR": "192.0.2.1"}) == Identity("anonymous", 2, "addr:192.0.2.1", "")


def test_remote_user_is_registered_and_owns_its_tickets() -> None:
    """Catches: REMOTE_USER ignored."""
    environ = {"REMOTE_ADDR": "192.0.2.1", "REMOTE_USER": "ada"}
    assert Resolver(ORDER)(environ) == Identity("registered", 1, "user:ada", "user:ada")


@pytest.mark.parametrize("environ", [{}, {"REMOTE_USER": "ada"}])
def test_tiers_of_other_names_fall_back_to_the_last(environ: dict[str, str]) -> None:
    """Catches: a KeyError where the site names its tiers otherwise."""
    assert Resolver(("gold", "silver"))(environ)[:2] == ("silver", 1)


def test_the_resolver_gives_tier_and_account() -> None:
    """Catches: the account of the resolver overruled by REMOTE_USER."""
    assert answering(("donor", 7), REMOTE_USER="ada") == Identity("donor", 0, "user:7", "user:7")
    assert answering(("donor", 0), REMOTE_USER="ada") == Identity("donor", 0, "user:0", "user:0")


def test_a_tier_alone_leaves_the_client_to_remote_user_or_the_address() -> None:
    """Catches: a resolver without ids that takes a signed-in client's ownership away."""
    assert answering("donor") == Identity("donor", 0, "addr:192.0.2.1", "")
    assert answering(("donor", None), REMOTE_USER="ada") == Identity("donor", 0, "user:ada", "user:ada")


def test_a_resolver_without_an_answer_is_as_none() -> None:
    """Catches: None read as anonymous."""
    assert answering(None, REMOTE_USER="ada").tier == "registered"


def test_an_enum_of_strings_names_a_tier() -> None:
    """Catches: the tier of an enum stored as 'Tier.DONOR'."""

    class Tier(str, enum.Enum):
        DONOR = "donor"

    tier = answering(Tier.DONOR).tier
    assert (tier, type(tier)) == ("donor", str)


@pytest.mark.parametrize("answer", ["Donor", "king", "", 5, ("donor",), ("a", "b", "c"), (["donor"], None), b"donor"])
def test_an_answer_that_is_none_is_logged_and_anonymous(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: an unknown tier that reaches the store, and one that goes unsaid."""
    assert answering(answer) == Identity("anonymous", 2, "addr:192.0.2.1", "")
    assert repr(answer) in caplog.text
    assert "expected one of donor, registered, anonymous" in caplog.text


def test_an_unknown_tier_keeps_the_account() -> None:
    """Catches: a misspelt tier that makes the account's tickets readable for anybody with the id."""
    assert answering(("king", "ada")) == Identity("anonymous", 2, "user:ada", "user:ada")


def test_a_resolver_that_raises_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a broken account database that takes the line down, or fills the log."""
    now = 0.0

    def broken(environ: dict[str, Any]) -> str:
        raise ConnectionError(f"no accounts for {environ['REMOTE_USER']}")

    resolver = Resolver(ORDER, resolver=broken, clock=lambda: now)
    environ = {"REMOTE_ADDR": "192.0.2.1", "REMOTE_USER": "ada"}
    counts = []
    for now in (0.0, 59.0, 61.0):  # noqa: B007 - the clock reads it
        assert resolver(environ) == Identity("anonymous", 2, "addr:192.0.2.1", "")
        counts.append(len(caplog.records))
    assert counts == [1, 1, 2]
    assert "no accounts for ada" in caplog.text
    assert "Traceback" in caplog.text


def test_an_account_whose_text_raises_is_anonymous(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: only the call guarded, not what is done with its answer."""

    class Account:
        def __str__(self) -> str:
            raise RuntimeError("detached")

    assert answering(("donor", Account())).owner == ""
    assert "detached" in caplog.text


def test_the_environ_reaches_the_resolver_itself() -> None:
    """Catches: a copy handed out, in which a resolver's caches for the app would be lost."""
    seen: list[object] = []
    environ = {"REMOTE_ADDR": "192.0.2.1"}
    Resolver(ORDER, resolver=seen.append)(environ)
    assert seen[0] is environ


def by_header(value: str, address: str = "10.0.0.1", **environ: str) -> Identity:
    """Return the identity of a request with this X-User-Tier."""
    resolver = Resolver(ORDER, header="X-User-Tier", trusted_proxies=PROXIES)
    return resolver({"REMOTE_ADDR": address, "HTTP_X_USER_TIER": value, **environ})


def test_the_header_of_a_trusted_proxy_gives_the_tier() -> None:
    """Catches: the header looked up under a wrong key, or compared with its case."""
    assert by_header("DONOR", HTTP_X_FORWARDED_FOR="192.0.2.9") == Identity("donor", 0, "addr:192.0.2.9", "")
    assert by_header("donor", REMOTE_USER="ada") == Identity("donor", 0, "user:ada", "user:ada")
    assert by_header("donor", "::ffff:10.0.0.1").tier == "donor"


@pytest.mark.parametrize("address", ["192.0.2.1", "", "unix:", "11.0.0.1", "::1"])
def test_the_header_of_anybody_else_is_ignored(address: str) -> None:
    """Catches: CVE-2025-29927 again, an internal header believed from outside."""
    assert by_header("donor", address).tier == "anonymous"


@pytest.mark.parametrize("value", ["", "donor,donor", "donor anonymous", "king", "don\u00f6r", "donor;q=1", "donor\n"])
def test_a_header_that_is_not_one_known_token_is_ignored(value: str) -> None:
    """Catches: the first of two headers believed, which the client may have sent."""
    assert by_header(value).tier == "anonymous"


def test_a_tier_whose_name_is_no_token_cannot_come_by_header() -> None:
    """Catches: two headers, joined by the server, that make up the name of a tier."""
    resolver = Resolver(("gold,silver", "silver"), header="X-User-Tier", trusted_proxies=PROXIES)
    assert resolver({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_USER_TIER": "gold,silver"}).tier == "silver"


def test_a_header_is_ignored_unless_it_is_configured() -> None:
    """Catches: a default header name."""
    resolver = Resolver(ORDER, trusted_proxies=PROXIES)
    assert resolver({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_USER_TIER": "donor"}).tier == "anonymous"


def test_the_resolver_goes_before_the_header() -> None:
    """Catches: the order of the sources turned round."""
    resolver = Resolver(ORDER, resolver=lambda _: "registered", header="X-User-Tier", trusted_proxies=PROXIES)
    assert resolver({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_USER_TIER": "donor"}).tier == "registered"


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "addr:192.0.2.1"),
        ("192.0.2.1:4711", "addr:192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "addr:2001:db8:0:1::/64"),
        ("[2001:db8:0:1::9]:4711", "addr:2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "addr:192.0.2.1"),
        ("fe80::1%eth0", "addr:fe80::/64"),
        ("", "addr:unknown"),
        ("unix:", "addr:unix:"),
        ("x" * 99, "addr:" + "x" * 64),
    ],
)
def test_an_address_becomes_one_client(address: str, client: str) -> None:
    """Catches: ports, zones or the 2**64 addresses of one subscriber counted as clients of their own."""
    assert client_of(address) == client


def test_an_environ_without_an_address_is_one_client() -> None:
    """Catches: a KeyError on servers that set no REMOTE_ADDR."""
    assert Resolver(ORDER)({}).client == "addr:unknown"


@pytest.mark.parametrize(
    ("address", "forwarded", "client"),
    [
        ("10.0.0.1", "192.0.2.9", "addr:192.0.2.9"),
        ("10.0.0.1", "203.0.113.5, 192.0.2.9", "addr:192.0.2.9"),
        ("10.0.0.1", "203.0.113.5,192.0.2.9 , 10.1.1.1,fd00::7", "addr:192.0.2.9"),
        ("10.0.0.1", "[2001:db8::9]:80", "addr:2001:db8::/64"),
        ("10.0.0.1", "10.3.3.3, 10.2.2.2", "addr:10.3.3.3"),
        ("10.0.0.1", "192.0.2.9, unknown", "addr:10.0.0.1"),
        ("10.0.0.1", "", "addr:10.0.0.1"),
        ("192.0.2.1", "203.0.113.5", "addr:192.0.2.1"),
        ("", "203.0.113.5", "addr:unknown"),
    ],
)
def test_the_forwarded_address_is_the_last_untrusted_one(address: str, forwarded: str, client: str) -> None:
    """Catches: the leftmost entry believed, which any client can write, and so be as many clients as it likes."""
    assert client_of(address, forwarded) == client


def test_what_a_client_claims_to_be_its_address_is_not_kept_at_length() -> None:
    """Catches: megabytes that whoever sends long headers makes every process remember."""
    resolver = Resolver(ORDER, trusted_proxies=PROXIES)
    resolver({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "203.0.113.5"})
    tracemalloc.start()
    try:
        for number in range(100):
            claim = f"{number} " + "x" * 60_000
            assert resolver({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": claim}).client == "addr:10.0.0.1"
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


def test_without_trusted_proxies_nothing_forwarded_counts() -> None:
    """Catches: X-Forwarded-For believed by default."""
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "203.0.113.5"}
    assert Resolver(ORDER)(environ).client == "addr:10.0.0.1"


@pytest.mark.parametrize("account", ["x" * 201, "a\nb", "a\x00", "\ud800"])
def test_an_account_that_cannot_be_kept_as_it_is_becomes_its_digest(account: str) -> None:
    """Catches: a line break or half a surrogate in logs and stores, and a key of any length."""
    owner = answering(("donor", account)).owner
    assert owner.startswith("user:sha256:")
    assert len(owner) == len("user:sha256:") + 64
    assert owner == answering(("donor", account)).client
    assert owner != answering(("donor", account + "x")).owner


def test_no_account_can_be_named_like_the_digest_of_another() -> None:
    """Catches: somebody who registers under the digest of a long id and reads its tickets."""
    victim = answering(("donor", "x" * 201)).owner
    assert answering(("donor", victim.removeprefix("user:"))).owner != victim


def test_an_account_of_200_characters_is_kept() -> None:
    """Catches: the limit off by one."""
    assert answering(("donor", "x" * 200)).client == "user:" + "x" * 200


def test_networks_of_both_versions_can_be_trusted_together() -> None:
    """Catches: a TypeError where an address meets a network of the other version."""
    assert isinstance(PROXIES[0], IPv4Network)
    assert isinstance(PROXIES[1], IPv6Network)
    assert client_of("fd00::1", "192.0.2.9") == "addr:192.0.2.9"


def test_a_good_answer_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a complaint on every request."""
    with caplog.at_level(logging.DEBUG):
        answering(("donor", 0))
        answering(None)
    assert caplog.records == []
