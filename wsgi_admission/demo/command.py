"""``wsgi-admission demo``: start the demo site, or send it visitors."""

from __future__ import annotations

import importlib.util
import sys

import click

_NEEDED = ("flask", "gunicorn", "numpy", "PIL", "rich")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--load", "visitors", type=click.IntRange(1, 1000), metavar="N", help="Send N visitors to a demo that runs."
)
@click.option("--url", help="With --load: where it runs.  [default: http://HOST:PORT]")
def demo(host: str, port: int, visitors: int | None, url: str | None) -> None:
    """Start a site that draws pictures, with the line in front of it; or, with --load, visit it.

    The site needs no other service: its store is a SQLite file in a folder of its own, which goes when it stops.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"the demo needs {', '.join(missing)}: install it with  pip install 'wsgi-admission[demo]'"
        )
    # These need what was looked for above; the other commands do without.
    if visitors is None:
        if url is not None:
            raise click.UsageError("--url says where to send visitors: it needs --load N")
        from wsgi_admission.demo.serve import serve  # noqa: PLC0415 - an optional dependency

        sys.exit(serve(host, port))
    from wsgi_admission.demo.load import visit  # noqa: PLC0415 - an optional dependency
    from wsgi_admission.demo.serve import address  # noqa: PLC0415 - an optional dependency

    sys.exit(visit(url or address(host, port), visitors))
