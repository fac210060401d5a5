"""Pages of other origins that may read our answers (CORS, as the Fetch standard has it).

Our answers come from outside the app, so what the app does for its own reaches none of them.  A recorded answer for
which the app has decided itself stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from wsgi_admission.config import Api
from wsgi_admission.web.answers import Environ, StartResponse

EVERYBODY = "*"
#: Seconds for which a browser remembers the answer to a preflight; it asks for each address anew.
REMEMBERED = 7200
#: What operators see is for no other site: their cookie is sent with a request of each page of the same host.
_OPERATORS = ("/dashboard", "/metrics")
_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z, -]*")

Headers = list[tuple[str, str]]


class Origins:
    """Tells browsers which pages may read an answer."""

    def __init__(self, api: Api) -> None:
        self._allowed = frozenset(api.allow_origins)
        self._closed = tuple(f"{api.prefix}{path}" for path in _OPERATORS)

    def telling(self, environ: Environ, start_response: StartResponse) -> StartResponse:
        """Return a ``start_response`` for an answer that the page which asked may read, if that is allowed."""
        ours = self._headers(environ)
        if not ours:
            return start_response

        def told(status: str, headers: Headers, *exc_info: Any) -> Callable[[bytes], object]:
            named = {name.lower() for name, _ in headers}
            if "access-control-allow-origin" not in named:
                headers = [*headers, *(own for own in ours if own[0] == "Vary" or own[0].lower() not in named)]
            return start_response(status, headers, *exc_info)

        return told

    def preflight(self, environ: Environ, methods: str) -> Headers:
        """Return what a browser wants to know before it sends a request for a page.

        :param methods: what the address takes.
        """
        if "HTTP_ACCESS_CONTROL_REQUEST_METHOD" not in environ or not self._allows(environ):
            return []
        # A page sends with its questions what it sent with the request; its names are the app's affair.
        names: str = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
        allowed = [("Access-Control-Allow-Headers", names)] if names and _NAMES.fullmatch(names) else []
        return [
            ("Access-Control-Allow-Methods", methods), *allowed, ("Access-Control-Max-Age", str(REMEMBERED)),
        ]  # fmt: skip

    def _allows(self, environ: Environ) -> bool:
        open_to_others = not environ.get("PATH_INFO", "").startswith(self._closed)
        return open_to_others and bool(self._allowed & {EVERYBODY, environ.get("HTTP_ORIGIN", "")})

    def _headers(self, environ: Environ) -> Headers:
        # Who keeps an answer must not give it to pages for which it does not hold.
        vary = [("Vary", "Origin")] if self._allowed else []
        if not self._allows(environ):
            return vary
        if EVERYBODY in self._allowed:
            return [("Access-Control-Allow-Origin", EVERYBODY)]
        allow = ("Access-Control-Allow-Origin", environ["HTTP_ORIGIN"])
        return [allow, ("Access-Control-Allow-Credentials", "true"), *vary]
