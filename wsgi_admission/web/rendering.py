"""Pages of ours: templates filled in, and the headers that keep what stands in them harmless."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsgi_admission.web.answers import Answer

#: Everything that a page shows comes from this server; nothing that stands in it runs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def page(template: str, *headers: tuple[str, str], status: int = 200, **values: Any) -> Answer:
    """Return a page.

    :param template: a file of the folder ``templates``; everything that it is given is escaped.
    """
    body = _environment().get_template(template).render(values).encode("utf-8", "backslashreplace")
    return Answer(
        status,
        [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"),
            *headers,
        ],
        body,
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("wsgi_admission.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
