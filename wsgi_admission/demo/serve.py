"""Start the demo site under gunicorn, with a store of its own, and say what there is to try."""

from __future__ import annotations

import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import click

_RESOLVER = "wsgi_admission.demo.who:tier_of"
_PATIENCE = 60.0  # seconds for gunicorn to answer; a slow machine imports numpy in several processes at once
_HERE = Path(__file__).parent


def address(host: str, port: int) -> str:
    """Return the URL at which a server that listens on this host and port can be reached from here."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(host: str, port: int) -> int:
    """Run the demo until it is told to stop; return the exit status, gunicorn's own once it has run.

    :param port: 0 takes one that is free.
    """
    try:
        port = _free_port(host, port)
    except OSError as error:
        reason = error.strerror or error
        click.echo(f"Error: {host}:{port} cannot be listened on ({reason}); try another one with --port.", err=True)
        return 1
    with tempfile.TemporaryDirectory(prefix="wsgi-admission-demo-", ignore_cleanup_errors=True) as folder:
        gunicorn, ini = _shipped()
        config = Path(folder) / "admission.ini"
        token = secrets.token_urlsafe(12)
        config.write_text(own_config(ini.read_text("utf-8"), Path(folder) / "admission.db", token), "utf-8")
        return _run(gunicorn, config, host, port, token)


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; raise OSError when it is taken."""
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As gunicorn does: connections that are still being closed after an earlier run are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
        return int(probe.getsockname()[1])


def _shipped() -> tuple[Path, Path]:
    """Return the gunicorn configuration and the INI file: those of the checkout, else the copies in the package."""
    conf = _HERE.parents[1] / "conf"
    if (conf / "gunicorn.conf.py").is_file() and (conf / "admission.ini").is_file():
        return conf / "gunicorn.conf.py", conf / "admission.ini"
    return _HERE / "gunicorn_conf.py", _HERE / "admission.ini"


def own_config(text: str, database: Path, token: str) -> str:
    """Return the INI text with a store in ``database``, the demo's resolver and the admin token; all else as it was."""
    text = _with_option(text, "store", "url", f"sqlite:///{database}")
    text = _with_option(text, "tiers", "resolver", _RESOLVER)
    text = _with_option(text, "api", "admin_token", token)
    # The first guess of the waits: what is drawn here takes seconds, and not the minutes of a real model.
    for route in re.findall(r"^\[(route:[^\]]+)\]", text, re.MULTILINE):
        text = _with_option(text, route, "expected_time", "2s")
    return text


def _with_option(text: str, section: str, option: str, value: str) -> str:
    """Return INI text in which an option that takes one line has the value; a missing section is added."""
    line = f"{option} = {value}"
    header = re.search(rf"^\[{re.escape(section)}\].*\n", text, re.MULTILINE)
    if header is None:
        return f"{text}\n[{section}]\n{line}\n"
    end = re.compile(r"^\[", re.MULTILINE).search(text, header.end())
    body = text[header.end() : end.start() if end else len(text)]
    body, found = re.subn(rf"^{re.escape(option)}\s*[=:].*$", lambda _: line, body, flags=re.MULTILINE)
    return text[: header.end()] + ("" if found else line + "\n") + body + (text[end.start() :] if end else "")


def _run(gunicorn: Path, config: Path, host: str, port: int, token: str) -> int:
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # A session of its own: Ctrl-C in a terminal reaches this process alone, and gunicorn hears of it once, from us.
    child = subprocess.Popen(  # noqa: S603 - a fixed program; the paths are this package's and the temporary folder's
        [sys.executable, "-m", "gunicorn", "-c", gunicorn, "--bind", bind, "wsgi_admission.demo.site:app"],
        env=os.environ | {"ADMISSION_CONFIG": str(config)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _forward_signals(child)
        url = address(host, port)
        if _answers(url, child):
            click.echo(_welcome(url, config.parent, token))
        elif child.poll() is None:
            click.echo(f"Error: the demo did not answer at {url} within {_PATIENCE:.0f} seconds.", err=True)
            return 1
        status = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    return 128 - status if status < 0 else status


def _forward_signals(child: subprocess.Popen[bytes]) -> None:
    def forward(number: int, _frame: FrameType | None) -> None:
        # A closed terminal (SIGHUP) ends the demo too; gunicorn would take that signal for a reload.
        child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)


def _answers(url: str, child: subprocess.Popen[bytes]) -> bool:
    """Wait until the site answers; False when gunicorn ends before, or is not ready in time."""
    place = url.removeprefix("http://")
    deadline = time.monotonic() + _PATIENCE
    while child.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(place, timeout=5)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    return False


def _welcome(url: str, folder: Path, token: str) -> str:
    beside = Path(sys.executable).with_name("wsgi-admission")
    command = beside if beside.is_file() else "wsgi-admission"
    return f"""
The demo runs at {url}  (Ctrl-C stops it; what it keeps in {folder} goes with it)

Three things to try in another terminal:

1. A picture.  200: picture.png is it.  202: it waits in the line, and Location is where it will be.
   curl -sS -D - -o picture.png -d 'prompt=mountains at night' {url}/api/generate

2. Twenty at once.  Each 200 was drawn at once, each 202 has its place in the line; none is refused.
   curl -sS --no-progress-meter -Z -o /dev/null -w '%{{http_code}} ' -d prompt=galaxy '{url}/api/generate?n=[1-20]'

3. The line, while it works those off.
   curl -sS -w '\\n' {url}/api/queue/metrics

The dashboard of its operators is {url}/api/queue/dashboard
It asks for the admin token, which is {token} as long as the demo runs.

Or 50 visitors of three tiers, in a live table:
   {command} demo --load 50 --url {url}
"""
