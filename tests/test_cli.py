from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.support import ROOT
from wsgi_admission import __version__
from wsgi_admission.cli import LazyCommand, main
from wsgi_admission.config import SECTIONS, load_config
from wsgi_admission.options import options_of

ROUTE = "[route:x]\npath = /x\n"
#: None takes a variable out of the environment of the machine that runs the tests.
CLEAN = {
    "MAX_CONCURRENT_REQUESTS": None,
    "QUEUE_WORKER_THREADS": None,
    "RESOURCE_CPU_THRESHOLD": None,
    "RESOURCE_MEMORY_THRESHOLD": None,
}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def call(*arguments: str, **environ: str) -> Result:
    """Run the command with these environment variables."""
    return CliRunner().invoke(main, arguments, env={**CLEAN, **environ})


# check


def test_check_refuses_a_store_that_this_version_does_not_have() -> None:
    """Catches: a configuration called good with which the first request would fail; a password shown."""
    Path("a.ini").write_text("[store]\nurl = mysql://me:s3cret@host/0\n[route:x]\npath = /x\n", encoding="utf-8")
    result = call("check", "a.ini")
    assert result.exit_code == 1
    assert result.stderr == (
        "a.ini [store] url = 'mysql://me:********@host/0': this version has no store for 'mysql://'.\n"
        "  url: where tickets and recordings are kept. "
        "Expected: memory://, sqlite:///RELATIVE, sqlite:////ABSOLUTE, redis://HOST:PORT/DB, rediss:// (with TLS) or "
        "redis+unix:///SOCKET?db=0, and valkey likewise.\n"
    )


def test_check_notes_slots_that_no_thread_will_use() -> None:
    """Catches: a line that is worked off more slowly than it could be, in silence; a guess where nobody can know."""

    def note(admission: str) -> str:
        Path("a.ini").write_text(f"{ROUTE}[admission]\n{admission}", encoding="utf-8")
        result = call("check", "a.ini")
        assert (result.stderr, result.exit_code) == ("", 0)
        return result.stdout.partition("\n\n; Note: ")[2]

    assert note("") == (
        "[admission] worker_threads = 3: replays take at most 3 of the 5 slots (3 threads in each of 1 "
        "process that replays). Set worker_threads = 5 to use all.\n"
    )
    assert "Set worker_threads = 4 to use all" in note("worker_threads = 3\nreplay_processes = 2\nmax_concurrent = 7")
    for enough in ("worker_threads = 5", "replay_processes = 2", "max_concurrent = 3", "replay_processes = 0"):
        assert note(enough) == ""


def test_check_prints_what_is_in_force_and_where_it_comes_from() -> None:
    """Catches: a value that is not the one in force, or an origin that is not its own."""
    Path("a.ini").write_text(
        "[admission]\nmax_concurrent = 2\nworker_threads = 7\nretention = 86400\n"
        "[load]\nmemory_threshold =\n"
        "[api]\nadmin_token = 0123456789abcdef\n"
        "[store]\nurl = sqlite:////srv/a.db\n"
        "[route:x]\npath = /x\n  /y\nmax_concurrent = 1\n",
        encoding="utf-8",
    )
    result = call("check", "a.ini", MAX_CONCURRENT_REQUESTS="7")

    assert (
        result.stdout
        == """\
; a.ini

[admission]
name = main                              ; default
mode = auto                              ; default
max_concurrent = 7                       ; env MAX_CONCURRENT_REQUESTS
worker_threads = 7
replay_processes = 1                     ; default
retention = 24h
cleanup_interval = 30s                   ; default
crash_retries = 1                        ; default

[load]
threshold = 80%                          ; default
resume = 70%                             ; default
cpu_threshold =                          ; default: threshold applies
memory_threshold =                       ; file: threshold applies

[store]
url = sqlite:////srv/a.db
durability = full                        ; default

[tiers]
resolver =                               ; default
header =                                 ; default
trusted_proxies =                        ; default

[tier:donor]
priority = high                          ; default
hint =                                   ; default

[tier:registered]
priority = medium                        ; default
hint =                                   ; default

[tier:anonymous]
priority = low                           ; default
hint =                                   ; default

[api]
prefix = /api/queue                      ; default
base_url =                               ; default
admin_token = ********
metrics = public                         ; default
allow_origins =                          ; default

[pages]
name =                                   ; default
logo =                                   ; default
colour = #4f46e5                         ; default
note =                                   ; default
texts =                                  ; default
template =                               ; default

[log]
format = text                            ; default

[route:x]
path = /x
    /y
methods = POST                           ; default
expected_time = 30s                      ; default
max_concurrent = 1
max_body = 16MiB                         ; default
max_wait =                               ; default: as long as it takes
max_runtime =                            ; default: as long as it takes
crash_retries =                          ; default: that of [admission] applies
"""
    )
    assert (result.stderr, result.exit_code) == ("", 0)


def test_what_check_prints_means_what_was_checked() -> None:
    """Catches: a value that is shown in a form that reads back as another."""
    text = (
        ROUTE + "expected_time = 1500ms\nmax_body = 1000\nmethods = PUT, GET\n[load]\nthreshold = 0.333\nresume = 1%\n"
    )
    Path("a.ini").write_text(text, encoding="utf-8")
    before = load_config("a.ini", {})
    Path("a.ini").write_text(call("check", "a.ini").stdout, encoding="utf-8")

    assert load_config("a.ini", {}) == before


def test_check_prints_every_problem_and_fails() -> None:
    """Catches: problems on standard output, one only, or an exit status that a deployment script takes for success."""
    Path("a.ini").write_text("[route:x]\nmax_body = big\npath = x\n", encoding="utf-8")
    result = call("check", "a.ini")

    assert [line for line in result.stderr.splitlines() if not line.startswith("  ")] == [
        "a.ini [route:x] path = 'x': must begin with '/'.",
        "a.ini [route:x] max_body = 'big': must be a size.",
    ]
    assert (result.stdout, result.exit_code) == ("", 1)


def test_check_says_that_a_file_is_missing() -> None:
    """Catches: a traceback, or the exit status of wrong usage."""
    result = call("check", "none.ini")

    assert result.stderr == "none.ini: cannot be read: No such file or directory. Expected: an INI file.\n"
    assert (result.stdout, result.exit_code) == ("", 1)


def test_check_finds_a_resolver_in_the_working_directory() -> None:
    """Catches: a resolver that the server finds and the check does not."""
    Path("a.ini").write_text(ROUTE + "[tiers]\nresolver = accounts_of_cli:tier\n", encoding="utf-8")
    Path("accounts_of_cli.py").write_text("def tier(environ): return 'donor'\n", encoding="utf-8")
    result = call("check", "a.ini")

    assert (result.stderr, result.exit_code) == ("", 0)


def test_wrong_usage_has_an_exit_status_of_its_own() -> None:
    """Catches: a misspelt call that looks like a bad configuration."""
    assert [call("check").exit_code, call("chek", "a.ini").exit_code, call("options", "x").exit_code] == [2, 2, 2]


# options


def test_options_tells_all_there_is_to_know() -> None:
    """Catches: an option without its meaning, expectation, variable or default."""
    result = call("options")
    flowing = " ".join(result.stdout.replace("\n;   ", " ").split())

    assert result.exit_code == 0
    for section in SECTIONS:
        assert f"[{section.title}]" in result.stdout
        for name, about in options_of(type(section)).items():
            expected = f"{about.meaning[1:]}. ; Expected: {about.kind.expected}."
            expected += f" ; Empty: {about.kind.empty}." if about.kind.empty else ""
            expected += f" ; Environment: {about.env}." if about.env else ""
            assert f"{expected} {name} =" in flowing


def test_what_options_prints_is_a_file_with_all_the_defaults() -> None:
    """Catches: output that cannot be pasted into a file."""
    Path("all.ini").write_text(call("options").stdout, encoding="utf-8")

    assert load_config("all.ini", {}).sections == SECTIONS


def test_options_fits_a_terminal() -> None:
    """Catches: lines that a terminal breaks."""
    assert max(map(len, call("options").stdout.splitlines())) <= 100


# The rest


def test_version_and_help() -> None:
    """Catches: a version kept in two places, or a command that is not listed."""
    assert call("--version").stdout == f"wsgi-admission, version {__version__}\n"
    listed = call("--help").stdout.partition("Commands:")[2].split("\n")
    assert {line.split()[0] for line in listed if line} >= {"check", "options", "demo"}


def test_the_module_can_be_run() -> None:
    """Catches: a __main__ that does nothing, or calls itself __main__.py."""
    Path("a.ini").write_text(ROUTE, encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, "-m", "wsgi_admission", "check"],
        capture_output=True,
        text=True,
        timeout=30,
        env=environ,
        check=False,
    )

    assert result.stderr.startswith("Usage: wsgi-admission check [OPTIONS] FILE\n")
    assert result.returncode == 2


def test_the_demo_is_imported_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: `check` on a server without Flask that fails because of the demo."""
    ran = []

    @click.command()
    @click.option("--port", type=int)
    def demo(port: int) -> None:
        """Run the example."""
        ran.append(port)

    # What cannot be imported: each of these commands works all the same.
    monkeypatch.setitem(sys.modules, "wsgi_admission.demo.command", None)
    assert [call("--help").exit_code, call("options").exit_code] == [0, 0]
    module = types.ModuleType("wsgi_admission.demo.command")
    module.demo = demo  # type: ignore[attr-defined]  # a stand-in for the real module
    monkeypatch.setitem(sys.modules, "wsgi_admission.demo.command", module)

    assert "Run the example." in call("demo", "--help").stdout
    assert call("demo", "--port", "8").exit_code == 0
    assert call("demo", "--port", "x").exit_code == 2
    assert ran == [8]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import package_that_is_missing", "No module named 'package_that_is_missing'"),
        ("raise ImportError('too old')", "too old"),
    ],
)
def test_a_command_that_lacks_its_packages_names_the_extra(source: str, reason: str) -> None:
    """Catches: a traceback where a sentence on what to install belongs."""
    Path("lazy_of_cli.py").write_text(source, encoding="utf-8")
    sys.path.insert(0, str(Path.cwd()))
    group = click.Group(
        commands=[LazyCommand("demo", target="lazy_of_cli:demo", extra="demo", short_help="Run the example.")]
    )
    result = CliRunner().invoke(group, ["demo"])

    assert result.stderr == (
        f"Error: 'demo' needs packages that are not there ({reason}).\n"
        "Install them with: pip install 'wsgi-admission[demo]'\n"
    )
    assert result.exit_code == 1


def test_a_fault_of_this_package_is_not_blamed_on_missing_packages() -> None:
    """Catches: a bug in an import of ours told as a lack of Flask."""
    group = click.Group(
        commands=[LazyCommand("demo", target="wsgi_admission.nothing:demo", extra="demo", short_help="Run it.")]
    )
    result = CliRunner().invoke(group, ["demo"])

    assert isinstance(result.exception, ModuleNotFoundError)


def test_every_extra_that_a_command_names_exists() -> None:
    """Catches: advice to install what pip does not know."""
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    lazy = {command.name: command._extra for command in main.commands.values() if isinstance(command, LazyCommand)}
    assert lazy == {"demo": "demo", "top": "top"}
    for extra in lazy.values():
        assert f"\n{extra} = [" in declared
