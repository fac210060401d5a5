from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wsgi_admission.config import (
    Admission,
    Api,
    Config,
    LoadOptions,
    Route,
    StoreOptions,
    Tier,
    Tiers,
    load_config,
)
from wsgi_admission.errors import ConfigError
from wsgi_admission.options.numbers import duration, fraction, size
from wsgi_admission.options.texts import store_url
from wsgi_admission.policy.decision import Mode

TOKEN = "0123456789%(abc)s"  # noqa: S105 - made up
ROUTE = "[route:x]\npath = /x\n"
SHIPPED = Path(__file__).parent.parent / "conf" / "admission.ini"

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that loads a text, as a file ``a.ini`` of the working directory."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, environ: Mapping[str, str] | None = None) -> Config:
        Path("a.ini").write_text(text, encoding="utf-8")
        return load_config("a.ini", environ or {})

    return load


def problems(step: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[str]:
    """Return the problems of the ConfigError that a step raises."""
    with pytest.raises(ConfigError) as caught:
        step(*arguments, **keywords)
    return list(caught.value.problems)


def first_line(step: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """Return the first line of the only problem."""
    (problem,) = problems(step, *arguments, **keywords)
    return problem.partition("\n")[0]


# What a file means


def test_a_file_with_one_route_has_the_documented_defaults(load: Load) -> None:
    """Catches: a default that differs from the documented one."""
    config = load(ROUTE)

    assert config.admission == Admission(
        name="main",
        mode=Mode.AUTO,
        max_concurrent=5,
        worker_threads=3,
        replay_processes=1,
        retention=86400.0,
        cleanup_interval=30.0,
        crash_retries=1,
    )
    assert config.load == LoadOptions(threshold=0.8, resume=0.7, cpu_threshold=None, memory_threshold=None)
    assert config.store == StoreOptions(url="sqlite:///var/admission.db", durability="full")
    assert config.tiers == Tiers(
        resolver="",
        header="",
        trusted_proxies=(),
        order=(
            Tier(name="donor", priority="high", hint=""),
            Tier(name="registered", priority="medium", hint=""),
            Tier(name="anonymous", priority="low", hint=""),
        ),
    )
    assert config.api == Api(prefix="/api/queue", base_url="", admin_token="", metrics="public", allow_origins=())
    assert config.routes == (
        Route(
            name="x",
            path=("/x",),
            methods=frozenset({"POST"}),
            expected_time=30.0,
            max_concurrent=None,
            max_body=16 * 1024 * 1024,
            max_wait=None,
            max_runtime=None,
            crash_retries=None,
        ),
    )
    assert config.source == "a.ini"


def test_every_option_of_a_file_is_read(load: Load) -> None:
    """Catches: an option that is parsed and then dropped."""
    config = load("""\
[admission]
name = other
mode = Shadow
MAX_CONCURRENT = 7        ; names in any case, comments behind values
worker_threads = 2
replay_processes = 0
retention = 7d
cleanup_interval = 500ms
crash_retries = 0
[load]
threshold = 90
resume = 0.5
cpu_threshold = 0%
memory_threshold = 95%
[store]
url = sqlite:////srv/a;b.db
durability = normal
[tiers]
header = X-User-Tier
trusted_proxies = 10.0.0.0/8, 192.168.1.7
    fd00::/8
[tier:gold]
priority = high
hint = You're #1; thank you   ; a comment
[tier:rest]
priority = low
[api]
prefix = /line
base_url = https://example.org:8443
admin_token = 0123456789%(abc)s
metrics = token
allow_origins = https://WWW.example.org, http://localhost:3000
    capacitor://localhost
[route:video]
path = /video
    # a comment between the paths

    /video/<int:n>,really
methods = post, GET
expected_time = 5m
max_concurrent = 1
max_body = 1MB
max_wait = 10m
max_runtime = 90
crash_retries = 3
""")
    assert config == Config(
        admission=Admission(
            name="other",
            mode=Mode.SHADOW,
            max_concurrent=7,
            worker_threads=2,
            replay_processes=0,
            retention=7 * 86400.0,
            cleanup_interval=0.5,
            crash_retries=0,
        ),
        load=LoadOptions(threshold=0.9, resume=0.5, cpu_threshold=0.0, memory_threshold=0.95),
        store=StoreOptions(url="sqlite:////srv/a;b.db", durability="normal"),
        tiers=Tiers(
            header="X-User-Tier",
            trusted_proxies=(
                ipaddress.ip_network("10.0.0.0/8"),
                ipaddress.ip_network("192.168.1.7/32"),
                ipaddress.ip_network("fd00::/8"),
            ),
            order=(Tier(name="gold", priority="high", hint="You're #1; thank you"), Tier(name="rest", priority="low")),
        ),
        api=Api(
            prefix="/line",
            base_url="https://example.org:8443",
            admin_token=TOKEN,
            metrics="token",
            allow_origins=("https://www.example.org", "http://localhost:3000", "capacitor://localhost"),
        ),
        routes=(
            Route(
                name="video",
                path=("/video", "/video/<int:n>,really"),
                methods=frozenset({"POST", "GET"}),
                expected_time=300.0,
                max_concurrent=1,
                max_body=1_000_000,
                max_wait=600.0,
                max_runtime=90.0,
                crash_retries=3,
            ),
        ),
        source="a.ini",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("30s", 30.0),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("5m", 300.0),
        ("5 M", 300.0),
        ("24h", 86400.0),
        ("7D", 604800.0),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    """Catches: a wrong factor, or a unit in capitals that is refused."""
    assert duration().parse(text) == seconds


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("80%", 0.8),
        ("80 %", 0.8),
        ("80", 0.8),
        ("0.8", 0.8),
        ("1", 1.0),
        ("1%", 0.01),
        ("33.3%", 0.333),
        ("0", 0.0),
        ("100", 1.0),
    ],
)
def test_a_percentage_is_read(text: str, part: float) -> None:
    """Catches: 1 taken for one percent, and 1% for all."""
    assert fraction().parse(text) == part


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16MiB", 16 * 2**20),
        ("16mib", 16 * 2**20),
        ("16 MB", 16 * 10**6),
        ("512KiB", 512 * 1024),
        ("1.5GiB", 3 * 2**29),
        ("1.1MB", 1_100_000),
        ("4096", 4096),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_a_size_is_read(text: str, count: int) -> None:
    """Catches: MB taken for MiB, or the other way round."""
    assert size().parse(text) == count


@pytest.mark.parametrize("value", [0.001, 0.5, 1.0, 30.0, 60.0, 90.0, 3600.0, 86400.0, 604800.0])
def test_a_duration_reads_back_as_it_is_shown(value: float) -> None:
    """Catches: a shown duration that rounds or has the wrong unit."""
    assert duration().parse(duration().show(value)) == value


@pytest.mark.parametrize("value", [0, 1, 1024, 1_000_000, 16 * 2**20, 2**30])
def test_a_size_reads_back_as_it_is_shown(value: int) -> None:
    """Catches: a shown size that rounds."""
    assert size().parse(size().show(value)) == value


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(load: Load) -> None:
    """Catches: a BOM taken for a part of the first section's header."""
    assert load("\ufeff" + ROUTE.replace("\n", "\r\n")).routes[0].path == ("/x",)


def test_a_declared_default_tier_keeps_its_priority(load: Load) -> None:
    """Catches: [tier:donor] with nothing but a hint, whose clients are told that they are of medium priority."""
    config = load(ROUTE + "[tier:donor]\nhint = Thank you.\n[tier:anonymous]\npriority = medium\n")

    assert config.tiers.order == (
        Tier(name="donor", priority="high", hint="Thank you."),
        Tier(name="anonymous", priority="medium"),
    )


def test_methods_of_extensions_are_taken(load: Load) -> None:
    """Catches: a method of WebDAV, or of the site's own, taken for a typing error."""
    names = "MKCALENDAR VERSION-CONTROL QUERY SEARCH REPORT ORDERPATCH UNLINK PURGE RENDER"
    config = load(f"[route:a]\npath = /x\nmethods = {names}\n")

    assert config.routes[0].methods == set(names.split())


def test_the_same_path_may_belong_to_two_routes_that_take_different_methods(load: Load) -> None:
    """Catches: a conflict that looks at the paths alone."""
    config = load("[route:a]\npath = /x\nmethods = GET\n[route:b]\npath = /x\n")

    assert [route.name for route in config.routes] == ["a", "b"]


def test_both_thresholds_may_be_zero(load: Load) -> None:
    """Catches: a comparison that refuses the configuration that queues always."""
    assert load(ROUTE + "[load]\nthreshold = 0\nresume = 0\n").load.resume == 0.0


def test_the_shipped_file_holds_the_defaults_and_the_eight_endpoints() -> None:
    """Catches: a shipped file that does not load, or that says something else than the defaults it claims to say."""
    config = load_config(SHIPPED, {})

    assert (config.admission, config.load, config.store) == (Admission(max_concurrent=3), LoadOptions(), StoreOptions())
    assert config.admission.idle_slots(1) == ""
    assert (config.tiers, config.api) == (Tiers(), Api())
    assert sorted(path for route in config.routes for path in route.path) == [
        "/api/generate",
        "/api/img2img",
        "/api/img2video",
        "/api/text-to-video/generate",
        "/generate-text-to-video-ui",
        "/generate-txt2img-ui",
        "/img2img",
        "/img2video-ui",
    ]
    assert {route.methods for route in config.routes} == {frozenset({"POST"})}


# The environment


def test_the_environment_overrides_the_file(load: Load) -> None:
    """Catches: a variable that is not read, or is read into another option."""
    environ = {
        "MAX_CONCURRENT_REQUESTS": "9",
        "QUEUE_WORKER_THREADS": " 8 ",
        "RESOURCE_CPU_THRESHOLD": "70",
        "RESOURCE_MEMORY_THRESHOLD": "0.6",
    }
    config = load(ROUTE + "[admission]\nmax_concurrent = 2\n", environ)

    assert (config.admission.max_concurrent, config.admission.worker_threads) == (9, 8)
    assert (config.load.cpu_threshold, config.load.memory_threshold) == (0.7, 0.6)
    assert config.routes[0].max_concurrent is None


def test_an_empty_variable_is_as_good_as_none(load: Load) -> None:
    """Catches: MAX_CONCURRENT_REQUESTS= in a unit file taken for a bad number."""
    config = load(ROUTE + "[admission]\nmax_concurrent = 2\n", {"MAX_CONCURRENT_REQUESTS": " "})

    assert config.admission.max_concurrent == 2


def test_a_bad_variable_is_named_and_a_bad_value_in_the_file_too(load: Load) -> None:
    """Catches: an error that blames the file for the environment, or the environment hiding the file's error."""
    text = ROUTE + "[admission]\nmax_concurrent = many\n"

    expected = (
        "\n  max_concurrent: slots on this host: queueable requests that run at once. "
        "Expected: a whole number, 1 or more."
    )
    assert problems(load, text, {"MAX_CONCURRENT_REQUESTS": "0"}) == [
        "a.ini [admission] max_concurrent = 'many': must be a whole number." + expected,
        "environment MAX_CONCURRENT_REQUESTS = '0': must be 1 or more." + expected,
    ]


# Problems


def test_all_problems_are_told_at_once(load: Load) -> None:
    """Catches: loading that stops at the first problem."""
    text = """\
[adminssion]
[load]
resume = 90%
[store]
url = postgres://x
[route:video]
max_concurent = 1
path = /x
[route:video2]
path = /y
max_concurrent = 0
[route:three]
path = /api/queue/three
"""
    assert problems(load, text, {"QUEUE_WORKER_THREADS": "-1"}) == [
        "a.ini [adminssion]: unknown section; did you mean [admission]?",
        (
            "environment QUEUE_WORKER_THREADS = '-1': must be 1 or more.\n"
            "  worker_threads: replay threads in each process that replays; all together should reach max_concurrent. "
            "Expected: a whole number, 1 or more."
        ),
        (
            "a.ini [load] resume = '90%': must be below threshold, which is 80% (or both 0%).\n"
            "  resume: load below which requests go straight through again. "
            "Expected: a percentage, such as 80% or 0.8; a number above 1 is percent."
        ),
        (
            "a.ini [store] url = 'postgres://x': this version has no store for 'postgres://'.\n"
            "  url: where tickets and recordings are kept. "
            "Expected: memory://, sqlite:///RELATIVE, sqlite:////ABSOLUTE, redis://HOST:PORT/DB, rediss:// (with TLS) "
            "or redis+unix:///SOCKET?db=0, and valkey likewise."
        ),
        "a.ini [route:video]: unknown option 'max_concurent'; did you mean 'max_concurrent'?",
        (
            "a.ini [route:video2] max_concurrent = '0': must be 1 or more.\n"
            "  max_concurrent: requests of this route that run at once. Expected: a whole number, 1 or more."
        ),
        (
            "a.ini [route:three] path = '/api/queue/three': belongs to the queue API, whose prefix is '/api/queue'.\n"
            "  path: path patterns, one a line: /img/<name>, /job/<int:n>; <path:rest> takes anything, slashes "
            "included. Expected: paths that begin with '/', such as /api/video or /img/<name>, one a line."
        ),
    ]


def test_a_missing_file(tmp_path: Path) -> None:
    """Catches: a FileNotFoundError that reaches the deployer."""
    path = tmp_path / "none.ini"

    assert problems(load_config, path) == [f"{path}: cannot be read: No such file or directory. Expected: an INI file."]


def test_a_directory(tmp_path: Path) -> None:
    """Catches: an IsADirectoryError that reaches the deployer."""
    assert problems(load_config, tmp_path) == [f"{tmp_path}: cannot be read: Is a directory. Expected: an INI file."]


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """Catches: a UnicodeDecodeError that reaches the deployer, or a wrong line."""
    path = tmp_path / "latin.ini"
    path.write_bytes(b"[tier:anonymous]\npriority = low\nhint = Gr\xfc\xdfe\n")

    assert problems(load_config, path) == [f"{path} line 3: byte 0xfc is not UTF-8. Expected: an INI file in UTF-8."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[route:x]\npath = /x\npath = /y\n", ["a.ini line 3 [route:x]: option 'path' stands there a second time."]),
        (ROUTE + ROUTE, ["a.ini line 3 [route:x]: the section stands there a second time."]),
        ("; hello\nname = x\n", ["a.ini line 2: 'name = x' stands before the first [section]."]),
        (
            "[api]\nprefix\n= x\n",
            [
                "a.ini line 2: 'prefix' is neither '[section]' nor 'option = value'.",
                "a.ini line 3: '= x' is neither '[section]' nor 'option = value'.",
            ],
        ),
    ],
)
def test_a_file_that_is_no_ini_file(load: Load, text: str, expected: list[str]) -> None:
    """Catches: an error of configparser that reaches the deployer, or a wrong line."""
    assert problems(load, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            ("a.ini there is no route, so nothing would ever be queued. "
            "Expected: at least one [route:NAME] with a path."),
        ),
        (ROUTE + "[routes:y]\n", "a.ini [routes:y]: unknown section; did you mean [route:y]?"),
        (ROUTE + "[API]\n", "a.ini [API]: unknown section; did you mean [api]?"),
        (
            ROUTE + "[DEFAULT]\nname = y\n",
            ("a.ini [DEFAULT]: unknown section. "
            "Expected one of [admission], [load], [store], [tiers], [api], [pages], [log], [tier:NAME], [route:NAME]."),
        ),
        (ROUTE + "[api]\nzzz = 1\n", ("a.ini [api]: unknown option 'zzz'. "
            "Expected one of prefix, base_url, admin_token, metrics, allow_origins.")),
        ("[route]\npath = /x\n", "a.ini [route]: has no name. Expected: [route:NAME]."),
        (ROUTE + "[tier:]\n", "a.ini [tier:]: has no name. Expected: [tier:NAME]."),
        ("[route: x]\npath = /x\n", "a.ini [route: x]: the name must be printable, without spaces at its ends."),
        (
            ROUTE + "[tier:gold]\npriority = high\n",
            ("a.ini [tier:gold]: nothing says who is in this tier. Expected: a resolver or a header in [tiers]; "
            "without them there are only registered (REMOTE_USER) and anonymous."),
        ),
    ],
)  # fmt: skip
def test_a_problem_of_a_section(load: Load, text: str, expected: str) -> None:
    """Catches: a section that is ignored, guessed wrong, or told without its place."""
    assert problems(load, text) == [expected]


@pytest.mark.parametrize(
    ("section", "line", "reason"),
    [
        ("admission", "name = a b", "has other characters"),
        ("admission", "mode = autoo", "is none of them; did you mean 'auto'?"),
        ("admission", "max_concurrent = 0", "must be 1 or more"),
        ("admission", "max_concurrent = 1_000", "must be a whole number"),
        ("admission", "max_concurrent =", "must be a whole number"),
        ("admission", "worker_threads = 0", "must be 1 or more"),
        ("admission", "replay_processes = -1", "must be 0 or more"),
        ("admission", "crash_retries = 1.5", "must be a whole number"),
        ("admission", "retention = 0", "must be above 0"),
        ("admission", "retention = 5y", "unknown unit 'y'; expected one of ms, s, m, h, d"),
        ("admission", "retention = 40000d", "must be 36500d (a hundred years) or less"),
        ("admission", "cleanup_interval = -1s", "must be above 0"),
        ("admission", "cleanup_interval = soon", "must be a duration"),
        ("load", "threshold = 101%", "must be between 0% and 100%"),
        ("load", "threshold = -1%", "must be between 0% and 100%"),
        ("load", "threshold = nan", "must be a percentage"),
        ("load", "cpu_threshold = inf", "must be a percentage"),
        ("load", "memory_threshold = 80s", "unknown unit 's'; expected '%' or none"),
        ("admission", "max_concurrent = 10001", "must be 10000 or less"),
        ("store", "url = sqlite://var/x.db", "must look like sqlite:///RELATIVE or sqlite:////ABSOLUTE"),
        ("store", "url = sqlite:///", "must look like sqlite:///RELATIVE or sqlite:////ABSOLUTE"),
        ("store", "url = sqlite:///:memory:", "must look like sqlite:///RELATIVE or sqlite:////ABSOLUTE"),
        ("store", "url = sqlite:///var/", "must look like sqlite:///RELATIVE or sqlite:////ABSOLUTE"),
        ("store", "url = sqlite:///x.db?mode=ro", "must be a path without '?' and '#': there are no parameters"),
        ("store", "url = sqlite:////srv/x.db#f", "must be a path without '?' and '#': there are no parameters"),
        ("store", "url = memory://x", "must look like memory://"),
        ("store", "url = redis:///0", "must look like redis://HOST:PORT/DB"),
        ("store", "url = rediss://host:6379/main", "must look like rediss://HOST:PORT/DB"),
        ("store", "url = valkeys://a b", "must look like valkeys://HOST:PORT/DB"),
        ("store", "url = redis+unix://run/redis.sock", "must look like redis+unix:///SOCKET?db=0"),
        ("store", "url = valkey+unix:///", "must look like valkey+unix:///SOCKET?db=0"),
        ("store", "url = redis://host?usernam=me", "has no parameter 'usernam'; did you mean 'username'?"),
        ("store", "url = redis+unix:///s?db=main", "must have a number for db"),
        ("store", "url = redis+tcp://host", "this version has no store for 'redis+tcp://'"),
        ("store", "url = var/x.db", "names no known store"),
        ("store", "durability = none", "is none of them"),
        ("tiers", "resolver = shop.accounts", "must be module:callable"),
        ("tiers", "resolver = shop/accounts.py:f", "must be module:callable"),
        ("tiers", "header = X User", "is not the name of a header"),
        ("tiers", "trusted_proxies = 10.0.0.1/8", "is no network (10.0.0.1/8 has host bits set)"),
        ("api", "prefix = api", "must begin with '/', name something, and not end with '/'"),
        ("api", "prefix = /", "must begin with '/', name something, and not end with '/'"),
        ("api", "prefix = /api/", "must begin with '/', name something, and not end with '/'"),
        ("api", "prefix = /api/../x", "must begin with '/', name something, and not end with '/'"),
        ("api", "base_url = example.org", "is not the beginning of a URL up to its host, without a slash at its end"),
        (
            "api",
            "base_url = https://example.org/",
            "is not the beginning of a URL up to its host, without a slash at its end",
        ),
        ("api", "metrics = token", "needs an admin_token"),
        (
            "api",
            "allow_origins = www.example.org",
            "is no origin: a scheme, :// and a host in lower case, without a slash at its end",
        ),
        (
            "api",
            "allow_origins = https://*.example.org, https://example.org/, http://ok",
            (
                "'https://*.example.org': is no origin: a scheme, :// and a host in lower case, without a slash at its "
                "end; 'https://example.org/': is no origin: a scheme, :// and a host in lower case, without a slash at "
                "its end"
            ),
        ),
        (
            "api",
            "allow_origins = https://example.org:443",
            "must not name the port 443: browsers leave that of https out",
        ),
        ("api", "allow_origins = *, https://example.org", "must be * alone, or origins without it"),
        ("route:y", "max_wait = 0", "must be above 0"),
        ("route:y", "max_wait = soon", "must be a duration"),
        ("route:y", "max_runtime = -5m", "must be above 0"),
        ("route:y", "max_runtime = 5y", "unknown unit 'y'; expected one of ms, s, m, h, d"),
        ("route:y", "path = video", "must begin with '/'"),
        ("route:y", "path = /y ?", "must be a path without spaces, '?' or '#'"),
        ("route:y", "path = /<n>/<n>", "the name 'n' stands in it twice"),
        ("route:y", "path =", "must not be empty"),
        ("route:y", "path = /X/", "is a path of [route:x] already, for the same method"),
        ("route:y", "path = /api/queue", "belongs to the queue API, whose prefix is '/api/queue'"),
        ("route:y", "path = /api/%71ueue/z", "belongs to the queue API, whose prefix is '/api/queue'"),
        ("route:y", "path = /y\nmethods = POST GE(T)", "'GE(T)': is not a request method"),
        ("route:y", "path = /y\nmethods = options", "is never queued"),
        ("route:y", "path = /y\nmethods = CONNECT, HEAD",
            "'CONNECT': is never queued; 'HEAD': is covered by GET; leave it out"),
        ("route:y", "path = /y\nmethods = PSOT", "is no known request method; did you mean 'POST'?"),
        ("route:y", "path = /y\nmethods = GTE, POST, propfnd",
            ("'GTE': is no known request method; did you mean 'GET'?; "
            "'PROPFND': is no known request method; did you mean 'PROPFIND'?")),
        ("route:y", "path = /y\nmethods =", "must not be empty"),
        ("route:y", "path = /y\nexpected_time = 0s", "must be above 0"),
        ("route:y", "path = /y\nmax_body = -1", "must be 0 or more"),
        ("route:y", "path = /y\nmax_body = 16M", "unknown unit 'M'; expected one of B, KB, MB, GB, KiB, MiB, GiB"),
        ("route:y", "path = /y\nmax_body = 0.1KiB", "must be a whole number of bytes"),
        ("route:y", "path = /y\nmax_concurrent = 0", "must be 1 or more"),
        ("route:y", "path = /y\nmax_concurrent = 9", "is more than [admission] max_concurrent = 5"),
        (
            "route:y",
            "path = /y\nmax_concurrent = 2 # slots",
            ("must be a whole number "
            "('#' begins a comment only at the start of a line; within a line it is ';')"),
        ),
    ],
)  # fmt: skip
def test_a_bad_value_is_told_with_its_place(load: Load, section: str, line: str, reason: str) -> None:
    """Catches: a bad value that is taken, or a reason that misleads."""
    text = f"{ROUTE}[{section}]\n{line}\n"
    name, _, value = (part.strip() for part in line.splitlines()[-1].partition("="))

    assert first_line(load, text) == f"a.ini [{section}] {name} = {value!r}: {reason}" + "." * (
        not reason.endswith("?")
    )


def test_a_header_needs_trusted_proxies(load: Load) -> None:
    """Catches: a header that anybody could send."""
    assert first_line(load, ROUTE + "[tiers]\nheader = X-User-Tier\n") == (
        "a.ini [tiers] trusted_proxies = '': is needed with header: anybody could send that."
    )


def test_a_limit_of_a_route_follows_the_environment_down(load: Load) -> None:
    """Catches: a server that MAX_CONCURRENT_REQUESTS=1 makes refuse its own configuration."""
    text = ROUTE + "max_concurrent = 3\n[route:y]\npath = /y\n[admission]\nmax_concurrent = 4\n"
    limited, free = load(text, {"MAX_CONCURRENT_REQUESTS": "2"}).routes
    assert (limited.max_concurrent, free.max_concurrent) == (2, None)

    assert load(text, {"MAX_CONCURRENT_REQUESTS": "9"}).routes[0].max_concurrent == 3
    assert first_line(load, text.replace("= 4", "= 2")) == (
        "a.ini [route:x] max_concurrent = '3': is more than [admission] max_concurrent = 2."
    )


def test_a_limit_of_a_route_given_in_python_is_within_the_hosts() -> None:
    """Catches: a check that only files go through."""
    routes = (Route(name="x", path=("/x",), max_concurrent=6),)
    assert first_line(Config, routes=routes) == (
        "[route:x] max_concurrent = '6': is more than [admission] max_concurrent = 5."
    )


def test_a_resolver_and_a_header_exclude_each_other(load: Load) -> None:
    """Catches: one of them silently ignored."""
    text = ROUTE + "[tiers]\nresolver = os:getcwd\nheader = X-Tier\ntrusted_proxies = 10.0.0.0/8\n"

    assert first_line(load, text) == "a.ini [tiers] header = 'X-Tier': cannot be used together with resolver."


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:s3cret@host:port", "redis://me:********@host:port"),
        ("redis://:s3/cr@t@host", "redis://:********@host"),
        ("redis://:s3?cr@t@host", "redis://:********@host"),
        ("redis://10.0.0.5:6379/0?password=s3@cret&bd=1", "redis://10.0.0.5:6379/0?password=********&bd=1"),
        ("redis+unix:///a b?password=s3cret&bd=1", "redis+unix:///a b?password=********&bd=1"),
    ],
)
def test_an_error_does_not_tell_a_password(load: Load, url: str, shown: str) -> None:
    """Catches: the password of a store in a log."""
    (problem,) = problems(load, f"{ROUTE}[store]\nurl = {url}\n")

    assert problem.startswith(f"a.ini [store] url = {shown!r}: ")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://10.0.0.5:6379/0?password=s3@cret", "redis://10.0.0.5:6379/0?password=********"),
        ("redis://me:s3cret@host?username=me@shop", "redis://me:********@host?username=me@shop"),
        ("redis://:a@host:1/2?password=s3@cret&db=3", "redis://:********@host:1/2?password=********&db=3"),
        ("redis+unix://:s3cret@/run/a@b?db=1", "redis+unix://:********@/run/a@b?db=1"),
    ],
)
def test_a_url_is_shown_without_its_password_and_with_its_server(load: Load, url: str, shown: str) -> None:
    """Catches: the end of a password that holds an at sign; two servers that look like one."""
    load(f"{ROUTE}[store]\nurl = {url}\n")

    assert store_url().mask(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://me:s3cret@10.0.0.1:6379/0",
        "rediss://[::1]:6380/15?ssl_ca_certs=/etc/ca.pem",
        "redis+unix:///run/redis/redis.sock?db=1&password=s3cret",
        "valkey://localhost:6379/0",
        "valkeys://valkey.example.org",
        "valkey+unix://:s3cret@/run/valkey.sock",
    ],
)
def test_the_urls_of_redis_and_valkey_are_known(load: Load, url: str) -> None:
    """Catches: a form of URL that is documented and refused."""
    assert load(f"{ROUTE}[store]\nurl = {url}\n").store.url == url


def test_a_short_admin_token_is_refused_and_not_told(load: Load) -> None:
    """Catches: a token that can be guessed, and one that is printed."""
    assert problems(load, ROUTE + "[api]\nadmin_token = hunter2hunter2h\n") == [
        (
            "a.ini [api] admin_token = '********': can be guessed: must have 16 characters or more.\n"
            "  admin_token: the secret of operators: opens the dashboard, and the metrics where these are not public; "
            "empty: no dashboard. "
            "Expected: 16 characters or more, ASCII without spaces."
        )
    ]
    assert load(ROUTE + "[api]\nadmin_token = hunter2hunter2hu\n").api.admin_token[14:] == "hu"


def test_secrets_are_not_in_the_representation() -> None:
    """Catches: the admin token in a traceback or a log of the configuration."""
    config = Config(
        api=Api(admin_token=TOKEN),
        routes=(Route(name="x", path=("/x",)),),
    )

    assert "0123456789" not in repr(config)


# The resolver


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that makes a module importable for one test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, text: str) -> None:
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")

    return make


def test_a_resolver_is_imported(load: Load, module: Callable[[str, str], None]) -> None:
    """Catches: a dotted attribute that is not followed."""
    module("accounts_good", "class Accounts:\n    @staticmethod\n    def tier(environ): return environ['t']\n")
    config = load(ROUTE + "[tiers]\nresolver = accounts_good:Accounts.tier\n[tier:gold]\n")
    resolver = config.load_resolver()

    assert resolver is not None
    assert resolver({"t": "gold"}) == "gold"
    assert load(ROUTE).load_resolver() is None


@pytest.mark.parametrize(
    ("reference", "source", "reason"),
    [
        ("accounts_none:f", None, "there is no module 'accounts_none' on sys.path"),
        ("os.nothing.more:f", None, "there is no module 'os.nothing' on sys.path"),
        ("accounts_bare:f", "", "'accounts_bare' has no 'f'"),
        ("accounts_bare:f.g", "f = 1", "'accounts_bare' has no 'f.g'"),
        ("accounts_value:f", "f = 1", "is not callable"),
        ("accounts_broken:f", "1 / 0", "importing 'accounts_broken' raised ZeroDivisionError('division by zero')"),
        ("accounts_exits:f", "raise SystemExit(3)", "importing 'accounts_exits' raised SystemExit(3)"),
        (
            "accounts_lacks:f",
            "import accounts_other",
            "importing 'accounts_lacks' raised ModuleNotFoundError(\"No module named 'accounts_other'\")",
        ),
    ],
)  # fmt: skip
def test_a_resolver_that_cannot_be_used(
    load: Load, module: Callable[[str, str], None], reference: str, source: str | None, reason: str
) -> None:
    """Catches: an exception of the app's code that takes the check down, or a cause that is hidden."""
    if source is not None:
        module(reference.partition(":")[0], source)
    expected = (
        f"[tiers] resolver = {reference!r}: {reason}.\n"
        "  resolver: callable(environ) that returns a tier's name, or (tier's name, client id). "
        "Expected: module:callable, such as shop.accounts:tier_of."
    )

    assert problems(load, f"{ROUTE}[tiers]\nresolver = {reference}\n") == [f"a.ini {expected}"]
    in_python = Config(tiers=Tiers(resolver=reference), routes=(Route(name="x", path=("/x",)),))
    assert problems(in_python.load_resolver) == [expected]


def test_the_resolver_can_be_left_alone(load: Load, tmp_path: Path) -> None:
    """Catches: a module of the app imported into a server's master, which then cannot reload it."""
    (tmp_path / "a.ini").write_text(ROUTE + "[tiers]\nresolver = accounts_none:f\n", encoding="utf-8")

    config = load_config(tmp_path / "a.ini", {}, import_resolver=False)

    assert config.tiers.resolver == "accounts_none:f"
    assert first_line(config.load_resolver).endswith("there is no module 'accounts_none' on sys.path.")


# In Python


@pytest.mark.parametrize(
    ("cls", "values", "expected"),
    [
        (Admission, {"max_concurrent": 0}, "[admission] max_concurrent = '0': must be 1 or more."),
        (Admission, {"max_concurrent": True}, "[admission] max_concurrent = 'True': must be a whole number."),
        (Admission, {"mode": "auto"}, "[admission] mode = 'auto': must be a Mode."),
        (Admission, {"retention": float("inf")}, "[admission] retention = 'infs': must be a number of seconds."),
        (Admission, {"retention": "24h"}, "[admission] retention = \"'24h'\": must be a number of seconds."),
        (Admission, {"name": 7}, "[admission] name = '7': must be a text."),
        (LoadOptions, {"threshold": 80.0}, "[load] threshold = '8000%': must be between 0% and 100%."),
        (LoadOptions, {"cpu_threshold": float("nan")}, "[load] cpu_threshold = 'nan%': must be between 0% and 100%."),
        (LoadOptions, {"resume": 0.8}, "[load] resume = '80%': must be below threshold, which is 80% (or both 0%)."),
        (Tier, {}, "[tier:]: has no name. Expected: [tier:NAME]."),
        (
            Tier,
            {"name": "x", "hint": "a\nb"},
            "[tier:x] hint = 'a b': must be one line without control characters.",
        ),
        (Tiers, {"order": ()}, "[tiers]: there is no tier. Expected: at least one [tier:NAME]."),
        (
            Tiers,
            {"resolver": "a:b", "order": (Tier(name="x"), Tier(name="x"))},
            "[tier:x]: there is another tier of this name.",
        ),
        (
            Tiers,
            {"trusted_proxies": ("10.0.0.0/8",)},
            "[tiers] trusted_proxies = '10.0.0.0/8': is no network of the ipaddress module.",
        ),
        (Route, {"name": "x"}, "[route:x] path = '': must not be empty."),
        (Route, {"name": "x", "path": "/x"}, "[route:x] path = '/ x': must be a tuple."),
        (
            Route,
            {"name": "x", "path": ("/x",), "methods": frozenset({"post"})},
            "[route:x] methods = 'post': must be upper case.",
        ),
        (
            Route,
            {"name": "x", "path": ("/x",), "max_body": 1.5},
            "[route:x] max_body = '1.5': must be a whole number of bytes.",
        ),
        (
            Config,
            {},
            ("there is no route, so nothing would ever be queued. Expected: at least one [route:NAME] with a path."),
        ),
    ],
)
def test_a_bad_value_given_in_python_is_told_without_a_file(
    cls: Callable[..., Any], values: dict[str, Any], expected: str
) -> None:
    """Catches: a check that only the file's way goes through, or a TypeError instead of a reason."""
    assert first_line(cls, **values) == expected


def test_two_routes_of_one_name() -> None:
    """Catches: routes that share their slots and their estimates by accident."""
    routes = (Route(name="x", path=("/x",)), Route(name="x", path=("/y",)))

    assert problems(Config, routes=routes) == ["[route:x]: there is another route of this name."] * 2


def test_a_configuration_can_be_compared_and_kept_in_a_set() -> None:
    """Catches: a field that cannot be hashed, so that a configuration is no value any more."""
    made = [Config(routes=(Route(name="x", path=("/x",)),)) for _ in range(2)]

    assert len(set(made)) == 1
