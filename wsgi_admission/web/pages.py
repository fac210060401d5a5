"""Our pages for people: HTML from templates, in the reader's language, that runs and loads nothing of anybody else."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2

from wsgi_admission.config import Config
from wsgi_admission.languages import Language, preferred, qualities, with_texts
from wsgi_admission.web.answers import Answer, Environ, mounted, reason
from wsgi_admission.web.colours import shades
from wsgi_admission.web.durations import duration

log = logging.getLogger("wsgi_admission.pages")

PROBLEM = "application/problem+json"


def prefers_html(environ: Environ) -> bool:
    """Whether the client would rather have a page than JSON (RFC 9110, 12.5.1).

    Browsers that navigate name ``text/html`` first.  ``*/*`` and no Accept at all are what programs send.
    """
    given = dict(qualities(environ.get("HTTP_ACCEPT", "")))

    def quality(kind: str) -> float:
        return next((given[name] for name in (kind, f"{kind.partition('/')[0]}/*", "*/*") if name in given), 0.0)

    return quality("text/html") > max(quality("application/json"), quality(PROBLEM))


def navigates(environ: Environ) -> bool:
    """Whether a person's browser asks for a page to show, as far as can be known: scripts may prefer HTML too."""
    return environ.get("HTTP_SEC_FETCH_MODE", "navigate") == "navigate" and prefers_html(environ)


def foreign(environ: Environ) -> bool:
    """Whether a form was sent by a page of another site.

    Browsers say so (Sec-Fetch-Site) where the connection is safe; elsewhere Origin does, which is ``null`` where the
    page sends no Referer, as ours.  What guards a ticket then is that nobody else knows its id.
    """
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin: str = environ.get("HTTP_ORIGIN", "null")
    return origin != "null" and origin.partition("://")[2] != str(environ.get("HTTP_HOST"))


class Pages:
    """Renders the templates of a site.

    A template sees ``t`` (an English text -> the reader's), ``lang``, ``nonce`` (scripts and styles must name it),
    ``site`` (``[pages]``), ``colours`` (see `colours.shades`), ``static`` (a file's name -> its address), ``prefix``
    (the address of the queue API), and the values it is given.
    """

    def __init__(self, config: Config) -> None:
        self._site = config.pages
        self._prefix = config.api.prefix
        self._colours = shades(config.pages.colour)

    @cached_property
    def _languages(self) -> Mapping[str, Language]:
        return with_texts(self._site.texts)

    def language(self, environ: Environ) -> Language:
        """Return the language that the client reads."""
        return preferred(environ.get("HTTP_ACCEPT_LANGUAGE", ""), self._languages)

    def answer(
        self,
        environ: Environ,
        status: int,
        template: str,
        *headers: tuple[str, str],
        language: Language | None = None,
        **values: Any,
    ) -> Answer:
        """Return a page.

        :param template: one of ours, for instance ``problem.html``.
        :param headers: beside those that every page has.
        :param language: of the page; the reader's if it is not said.
        :param values: what the template shows.
        """
        nonce = secrets.token_urlsafe(16)
        language = language or self.language(environ)
        text = self._render(
            template,
            {
                **values,
                "t": language,
                "lang": language.tag,
                "nonce": nonce,
                "site": self._site,
                "colours": self._colours,
                "prefix": mounted(environ, self._prefix),
                "static": lambda name: mounted(environ, f"{self._prefix}/static/{name}"),
            },
        )
        ours = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Language", language.tag),
            ("Vary", "Accept-Language"),
            ("Content-Security-Policy", policy(nonce)),
            ("Referrer-Policy", "no-referrer"),  # the address of a ticket is a secret
            ("X-Frame-Options", "DENY"),
        ]
        return Answer(status, [*ours, *headers], text.encode("utf-8", "replace"))

    def problem(self, environ: Environ, answer: Answer) -> Answer:
        """Return a problem as a page with the same text, if the client would rather have that; else the answer."""
        headers = dict(answer.headers)
        if headers.pop("Content-Type", "") != PROBLEM or not prefers_html(environ):
            return answer
        detail = json.loads(answer.body)["detail"]
        seconds = headers.get("Retry-After", "")
        wait = duration(float(seconds), self.language(environ)) if seconds.isdecimal() else ""
        shown = {"wait": wait, "number": answer.status, "title": reason(answer.status), "detail": detail}
        return self.answer(environ, answer.status, "problem.html", *headers.items(), **shown)

    def _render(self, name: str, values: dict[str, Any]) -> str:
        own = Path(self._site.template)
        templates = _templates(str(own.parent))
        if name == "waiting.html" and self._site.template:
            try:
                return templates.get_template(own.name).render(values)
            except Exception:
                # Somebody waits for this page, and what is wrong with the site's own is no reason to show none.
                log.exception("the template %s cannot be used; ours is shown", self._site.template)
        return templates.get_template(f"admission/{name}").render(values)


@cache
def _templates(folder: str) -> jinja2.Environment:
    """Return our templates, as ``admission/NAME``, and those of a folder."""
    ours = jinja2.PrefixLoader({"admission": jinja2.PackageLoader("wsgi_admission.web")})
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([ours, jinja2.FileSystemLoader(folder)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def policy(nonce: str) -> str:
    """Return a Content-Security-Policy: scripts and styles that name ``nonce``, and nothing from elsewhere."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
